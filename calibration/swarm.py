"""SPSO-GA, a self-adaptive discrete particle swarm with genetic operators. Pure.

A particle says for every segment whether the robot or the server runs it. In every round it

1. mutates: with a probability, its inertia, one segment changes sides;
2. crosses over with its own best: a run of segments is taken from that, with a probability that
   falls from round to round;
3. crosses over with the swarm's best, with a probability that rises.

The inertia adapts itself: it is high while a particle is far from the swarm's best, and low where
it is near. Of two particles the one that keeps the deadline is better; of two that keep it the one
of less energy; of two that do not, the quicker.

What a segment depends on must run on the robot where the segment does (closure). A mutation takes
along all segments that closure demands; after a crossover, segments of which something is missing
go to the server. Only the assignments that a bundle has as cuts can be run, so a particle stands
for the cut that differs in the fewest segments, and moves there.

The random numbers are drawn from a fixed seed, and the rounds are counted: the same problem has
the same answer.

Source:
    X. Chen, J. Zhang, B. Lin, Z. Chen, K. Wolter, G. Min, *Energy-Efficient Offloading for
    DNN-Based Smart IoT Systems in Cloud-Edge Environments*, IEEE Transactions on Parallel and
    Distributed Systems 33(3), 2022, pp. 683-697, doi 10.1109/TPDS.2021.3100298: SPSO-GA.

    Read: the abstract, and the authors' program (github.com/SPSO-GA/dataset, ``SPSO-GA.py`` and
    beside it). From there: mutation, crossover with the particle's best, crossover with the
    swarm's, in this order; a mutation that moves one layer to another server; a crossover that
    takes over all between two places. It has 100 particles, 1000 rounds, a fixed inertia of 0.5
    and either crossover with a random probability; a particle also holds the order of the layers,
    and the function of its energy is empty.

    Not stated in what we could read: how the inertia adapts, its bounds, how the probabilities of
    the crossovers change, and how late assignments are compared. What stands here for these is
    this family's usual form. The closure and the move to a cut are this bundle's, and so is the
    size of the swarm: a bundle has few cuts.
"""

from __future__ import annotations

from typing import Dict, Set, Tuple

import numpy as np
from numpy.typing import NDArray

from engines.manifest import Manifest
from engines.tensors import Array

__all__ = ["SwarmProblem", "swarm"]

Mask = NDArray[np.bool_]

_INERTIA = (0.9, 0.4)
"""Largest and smallest inertia; not stated in what we could read."""

_OWN = (0.9, 0.2)
_SWARM = (0.4, 0.9)
"""Probability of either crossover in the first and in the last round; not stated in what we could
read."""


class SwarmProblem:
    """The segments of a bundle: who depends on whom, and which assignments are cuts.

    Args:
        manifest: The bundle's manifest.
    """

    def __init__(self, manifest: Manifest) -> None:
        count = len(manifest.segments)
        producer: Dict[str, int] = {
            name: segment.index for segment in manifest.segments for name in segment.outputs
        }
        before: Tuple[Set[int], ...] = tuple({index} for index in range(count))
        for segment in manifest.segments:  # in an order in which each follows what it needs
            for name in segment.inputs:
                if name in producer:
                    before[segment.index].update(before[producer[name]])
        self.needs: Mask = np.zeros((count, count), bool)
        for index, others in enumerate(before):
            self.needs[index, list(others)] = True
        self.cuts: Mask = np.zeros((len(manifest.cuts), count), bool)
        for cut in manifest.cuts:
            self.cuts[cut.index, list(cut.robot_segments)] = True

    def nearest(self, particles: Mask) -> NDArray[np.intp]:
        """Return the cut nearest to each particle; the first of equals."""
        given, cuts = particles.astype(np.float32), self.cuts.astype(np.float32)
        distance = given.sum(1)[:, None] + cuts.sum(1)[None] - 2.0 * given @ cuts.T
        found: NDArray[np.intp] = distance.argmin(axis=1)
        return found

    def closed(self, particles: Mask) -> Mask:
        """Return the particles less the segments of which something is missing on the robot."""
        missing = (~particles).astype(np.float32) @ self.needs.T.astype(np.float32) > 0
        kept: Mask = particles & ~missing
        return kept


def swarm(
    problem: SwarmProblem,
    energies_j: Array,
    latencies_s: Array,
    deadline_s: float,
    *,
    particles: int = 24,
    rounds: int = 40,
    seed: int = 0,
) -> int:
    """Return the index of the cut that the swarm finds; costs ``particles * (rounds + 1)`` looks.

    Args:
        problem: The bundle's segments.
        energies_j: Of every cut, in joules; infinite where it may not be used.
        latencies_s: Of every cut, in seconds.
        deadline_s: Bound on the latency in seconds.
        particles: Size of the swarm.
        rounds: Rounds after the first.
        seed: Of the random numbers.
    """
    draw = np.random.default_rng(seed)
    fitness = _fitness(energies_j, latencies_s, deadline_s)
    count = problem.cuts.shape[1]
    places = draw.integers(len(problem.cuts), size=particles)
    best_places = places.copy()
    lead = int(best_places[np.argmin(fitness[best_places])])
    for turn in range(rounds):
        part = turn / max(rounds - 1, 1)
        chances = draw.random((3, particles))
        segments = draw.integers(count, size=(5, particles))
        now = problem.cuts[places]
        differ = (now != problem.cuts[lead]).mean(axis=1)
        now = _mutated(problem, now, segments[0], chances[0] < _inertia(differ))
        own = problem.cuts[best_places]
        now = _crossed(now, own, segments[1:3], chances[1] < _between(_OWN, part))
        swarms = np.broadcast_to(problem.cuts[lead], now.shape)
        now = _crossed(now, swarms, segments[3:5], chances[2] < _between(_SWARM, part))
        places = problem.nearest(problem.closed(now))
        better = fitness[places] < fitness[best_places]
        best_places = np.where(better, places, best_places)
        leader = int(best_places[np.argmin(fitness[best_places])])
        lead = leader if fitness[leader] < fitness[lead] else lead
    return lead


def _fitness(energies_j: Array, latencies_s: Array, deadline_s: float) -> Array:
    """Return one number a cut, smaller for the better: late ones above all that are in time."""
    possible = np.isfinite(energies_j) & np.isfinite(latencies_s)
    in_time = possible & (latencies_s <= deadline_s)
    above = float(energies_j[possible].max(initial=0.0)) + 1.0
    late: Array = np.where(possible, above + latencies_s, np.inf)
    return np.where(in_time, energies_j, late)


def _inertia(differ: Array) -> Array:
    """Return the inertia of particles of which a part differs from the swarm's best.

    The form is not stated in what we could read.
    """
    most, least = _INERTIA
    weight: Array = most - (most - least) * np.exp(differ / (differ - 1.01))
    return weight


def _mutated(
    problem: SwarmProblem, particles: Mask, segments: NDArray[np.int64], happens: Mask
) -> Mask:
    """Let one segment change sides, with all that has to go along."""
    rows = np.arange(len(particles))
    to_robot = ~particles[rows, segments]
    joined = particles | problem.needs[segments]
    left = particles & ~problem.needs.T[segments]
    changed = np.where(to_robot[:, None], joined, left)
    return np.where(happens[:, None], changed, particles)


def _crossed(particles: Mask, others: Mask, ends: NDArray[np.int64], happens: Mask) -> Mask:
    """Take the run of segments between two ends from others."""
    low, high = ends.min(axis=0), ends.max(axis=0)
    place = np.arange(particles.shape[1])
    run = (place >= low[:, None]) & (place <= high[:, None]) & happens[:, None]
    return np.where(run, others, particles)


def _between(ends: Tuple[float, float], part: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * part
