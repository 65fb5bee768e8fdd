"""Which cut is best over a range of goodputs, by how much, and what that means in words.

Pure: from a manifest, the segments' times on both sides and a round trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np

from calibration.energy import StatePower
from calibration.predictor import CutCosts, cut_costs, predict
from engines.manifest import Manifest
from engines.tensors import Array

__all__ = ["Choices", "Stretch", "choices", "mbps", "verdict"]

LOWEST_BPS = 0.5e6
HIGHEST_BPS = 10e9
_POINTS = 400
"""Goodputs on a logarithmic scale; two neighbours are 2.5% apart."""


@dataclass(frozen=True)
class Stretch:
    """A range of goodputs with one best cut.

    Attributes:
        low_bps: Where it begins.
        high_bps: Where it ends.
        cut: Index of the best cut.
        runner_up: Index of the second best where the margin is largest.
        margin: Largest lead over the second best, as a part of the latter.
        gain: Largest lead over the better of both ends (all on the robot, all on the server) that
            may be used; 0 where the best is one of them.
    """

    low_bps: float
    high_bps: float
    cut: int
    runner_up: int
    margin: float
    gain: float


@dataclass(frozen=True)
class Choices:
    """Costs of every cut over the range of goodputs.

    Attributes:
        unit: ``s`` for latency, ``J`` for energy.
        goodputs_bps: The goodputs.
        costs: Latency or energy, [cuts, goodputs].
        stretches: From low to high goodput.
    """

    unit: str
    goodputs_bps: Array
    costs: Array
    stretches: Tuple[Stretch, ...]


def choices(
    manifest: Manifest,
    robot_s: Sequence[float],
    server_s: Sequence[float],
    *,
    rtt_s: float,
    energy: bool = False,
    power: StatePower = StatePower(),
) -> Choices:
    """Find the best cut for every goodput.

    Args:
        manifest: The bundle's manifest.
        robot_s: Seconds of each segment on the robot.
        server_s: Seconds of each segment on the server.
        rtt_s: Round trip in seconds.
        energy: Compare the robot's joules instead of seconds.
        power: The robot's power by state.
    """
    costs: CutCosts = cut_costs(manifest, robot_s, server_s)
    goodputs = np.geomspace(LOWEST_BPS, HIGHEST_BPS, _POINTS)
    table = np.empty((len(manifest.cuts), _POINTS))
    for column, goodput in enumerate(goodputs):
        for prediction in predict(costs, goodput_bps=float(goodput), rtt_s=rtt_s, power=power):
            value = prediction.energy_j if energy else prediction.latency_s
            usable = np.isfinite(prediction.latency_s)
            table[prediction.cut, column] = value if usable else np.inf
    return Choices("J" if energy else "s", goodputs, table, _stretches(goodputs, table))


def _stretches(goodputs: Array, table: Array) -> Tuple[Stretch, ...]:
    order = np.argsort(table, axis=0, kind="stable")
    best, second = order[0], order[min(1, len(order) - 1)]
    columns = np.arange(table.shape[1])
    lead = 1 - table[best, columns] / table[second, columns]
    ends = np.minimum(table[0], table[-1])
    gain = np.where(np.isfinite(ends), 1 - table[best, columns] / ends, 0.0)
    found: List[Stretch] = []
    begin = 0
    for column in range(1, table.shape[1] + 1):
        if column < table.shape[1] and best[column] == best[begin]:
            continue
        part = slice(begin, column)
        at = begin + int(np.argmax(lead[part]))
        found.append(
            Stretch(
                low_bps=float(goodputs[begin]),
                high_bps=float(goodputs[min(column, table.shape[1] - 1)]),
                cut=int(best[begin]),
                runner_up=int(second[at]),
                margin=float(lead[at]),
                gain=float(np.max(gain[part])),
            )
        )
        begin = column
    return tuple(found)


def verdict(manifest: Manifest, found: Choices) -> str:
    """Say in a sentence or two whether and where a split pays."""
    last = len(manifest.cuts) - 1
    what = "latency" if found.unit == "s" else "energy on the robot"
    splits = [s for s in found.stretches if 0 < s.cut < last and s.gain > 0]
    where = "; ".join(
        f"{_named(manifest, s.cut)} {_range(s, found.stretches)}" for s in found.stretches
    )
    if not splits:
        return f"For {what}, splitting this model adds nothing on these devices: best is {where}."
    top = max(splits, key=lambda s: s.gain)
    low, high = min(s.low_bps for s in splits), max(s.high_bps for s in splits)
    gain = f"at most {100 * top.gain:.0f}%" if top.gain >= 0.005 else "by less than 1%"
    return (
        f"For {what}, a split pays between {mbps(low)} and {mbps(high)}: {gain} below the better "
        f"of robot alone and server alone (cut {manifest.cuts[top.cut].id}). Best is {where}."
    )


def _named(manifest: Manifest, index: int) -> str:
    if index == len(manifest.cuts) - 1:
        return "the robot alone"
    cut = manifest.cuts[index]
    return "the server alone" if not cut.robot_segments else f"cut {cut.id}"


def _range(stretch: Stretch, stretches: Tuple[Stretch, ...]) -> str:
    first, last = stretch is stretches[0], stretch is stretches[-1]
    if first and last:
        return "at every goodput"
    if first:
        return f"below {mbps(stretch.high_bps)}"
    if last:
        return f"above {mbps(stretch.low_bps)}"
    return f"from {mbps(stretch.low_bps)} to {mbps(stretch.high_bps)}"


def mbps(bps: float) -> str:
    """Say a goodput in Mbps, or in Gbps from 1000 Mbps on."""
    value = bps / 1e6
    if value >= 999.5:
        return f"{value / 1e3:.3g} Gbps"
    return f"{value:.2g} Mbps" if value < 10 else f"{value:.0f} Mbps"
