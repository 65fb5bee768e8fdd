from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from calibration.swarm import SwarmProblem, swarm
from engines.manifest import Manifest
from tests.striped import serial

GAP = 0.05
"""Largest allowed part above the best, on small instances."""


def branching(pairs: int) -> Manifest:
    """Return a bundle of ``pairs`` diamonds: a, then b beside c, then the next a; every closure.

    Segments 3i (a), 3i + 1 (b), 3i + 2 (c); b and c take a's output, the next a takes both.
    """
    count = 3 * pairs
    chain = serial([10] * count)
    segments = []
    for index in range(count):
        pair, part = divmod(index, 3)
        ends = [f"o{3 * pair - 2}", f"o{3 * pair - 1}"] if pair else ["t0"]
        inputs = ends if part == 0 else [f"o{3 * pair}"]
        segments.append(
            msgspec.structs.replace(
                chain.segments[index], inputs=tuple(inputs), outputs=(f"o{index}",)
            )
        )
    tensors = {**chain.tensors, **{f"o{i}": chain.tensors["t0"] for i in range(count)}}
    closed = [
        robot
        for size in range(count + 1)
        for robot in itertools.combinations(range(count), size)
        if _is_closed(set(robot))
    ]
    cuts = tuple(
        msgspec.structs.replace(
            chain.cuts[0], id=f"{place:08x}", index=place, robot_segments=robot
        )
        for place, robot in enumerate(closed)
    )
    return msgspec.structs.replace(chain, tensors=tensors, segments=tuple(segments), cuts=cuts)


def _is_closed(robot: set[int]) -> bool:
    for index in robot:
        pair, part = divmod(index, 3)
        needs = {3 * pair} if part else ({3 * pair - 2, 3 * pair - 1} if pair else set())
        if not needs <= robot:
            return False
    return True


def _best(energies: np.ndarray, latencies: np.ndarray, deadline_s: float) -> int:
    """Look at every cut."""
    in_time = np.flatnonzero(latencies <= deadline_s)
    if len(in_time):
        return int(in_time[np.argmin(energies[in_time])])
    return int(np.argmin(latencies))


@pytest.mark.parametrize("pairs", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(10))
def test_it_comes_near_the_best_of_all_assignments(pairs: int, seed: int) -> None:
    manifest = branching(pairs)
    problem, draw = SwarmProblem(manifest), np.random.default_rng(seed)
    masks = problem.cuts
    robot, server, cross = (draw.uniform(0.1, 1.0, 3 * pairs) for _ in range(3))
    sent = (masks[:, :-1] != masks[:, 1:]) @ cross[:-1]
    latencies = masks @ robot + ~masks @ server * 0.3 + sent
    energies = 13.35 * (masks @ robot) + 4.04 * (~masks @ server * 0.3) + 4.25 * sent
    for deadline_s in (float(latencies.min()), float(np.median(latencies)), 1e9):
        found = swarm(problem, energies, latencies, deadline_s, seed=seed)
        best = _best(energies, latencies, deadline_s)
        assert latencies[found] <= deadline_s
        assert energies[found] <= energies[best] * (1 + GAP)


def test_where_nothing_is_in_time_it_is_the_quickest() -> None:
    problem = SwarmProblem(serial([10] * 12))
    latencies = np.array([9, 8, 7, 6, 5, 4, 3, 4, 5, 6, 7, 8, 9.0])
    assert swarm(problem, np.ones(13), latencies, 1.0) == 6


def test_what_may_not_be_used_is_not_found() -> None:
    problem = SwarmProblem(serial([10] * 12))
    energies = np.arange(13.0)
    energies[:5] = np.inf
    assert swarm(problem, energies, np.ones(13), 2.0) == 5


def test_the_same_seed_has_the_same_answer() -> None:
    problem, draw = SwarmProblem(branching(4)), np.random.default_rng(5)
    energies, latencies = draw.random((2, len(problem.cuts)))
    again = {swarm(problem, energies, latencies, 0.5, seed=3) for _ in range(5)}
    assert len(again) == 1


def test_a_swarm_too_small_may_miss_it() -> None:
    """The negative control: that the gap is small is not a matter of course."""
    problem, draw = SwarmProblem(branching(4)), np.random.default_rng(0)
    missed = 0
    for seed in range(20):
        energies, latencies = draw.random((2, len(problem.cuts)))
        found = swarm(problem, energies, latencies, 1.0, particles=1, rounds=1, seed=seed)
        missed += energies[found] > energies.min() * (1 + GAP)
    assert missed > 10


def test_every_closure_of_the_branching_bundle_is_a_cut() -> None:
    problem = SwarmProblem(branching(2))
    everything = np.array(list(itertools.product([False, True], repeat=6)))
    closed = problem.closed(everything)
    cuts = {tuple(row) for row in problem.cuts}
    assert {tuple(row) for row in closed} == cuts
    assert {tuple(row) for row in everything if _is_closed(set(np.flatnonzero(row)))} == cuts
    for place, row in enumerate(problem.cuts):
        assert problem.nearest(row[None])[0] == place
