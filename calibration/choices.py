"""Which cut is best over a range of goodputs, by how much, and what that means in words.

Serial plans only; ``calibration.modes`` adds the striped ones. Pure: from prepared plans and
a round trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

import numpy as np

from calibration.prepared import Choice, PreparedPlans
from engines.manifest import Manifest
from engines.tensors import Array

__all__ = [
    "Choices",
    "Stretch",
    "choices",
    "codec_names",
    "goodput_range",
    "mbps",
    "stretch_range",
    "verdict",
]

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
        codecs: Names of the codecs of the best cut, as the goodput grows.
    """

    low_bps: float
    high_bps: float
    cut: int
    runner_up: int
    margin: float
    gain: float
    codecs: Tuple[str, ...] = ()


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


def goodput_range() -> Array:
    """Return the goodputs over which choices are compared, in bits per second."""
    return np.geomspace(LOWEST_BPS, HIGHEST_BPS, _POINTS)


def choices(
    manifest: Manifest, plans: PreparedPlans, *, rtt_s: float, objective: str = "latency"
) -> Choices:
    """Find the best cut for every goodput.

    Args:
        manifest: The bundle's manifest.
        plans: Its cuts, prepared, each with its best codecs; striped plans are left out.
        rtt_s: Round trip in seconds.
        objective: ``latency`` or ``energy``.
    """
    goodputs = goodput_range()
    table = np.empty((len(manifest.cuts), len(goodputs)))
    winners = np.empty(table.shape, np.int64)
    members = [
        np.asarray([n for n, c in enumerate(plans.choices) if c.plan is None and c.cut == index])
        for index in range(len(manifest.cuts))
    ]
    for column, goodput in enumerate(goodputs):
        costs = plans.costs(float(goodput), rtt_s, objective=objective)
        for index, some in enumerate(members):
            winners[index, column] = best = some[np.argmin(costs[some])]
            table[index, column] = costs[best]
    unit = "J" if objective == "energy" else "s"
    return Choices(unit, goodputs, table, _stretches(goodputs, table, winners, plans))


def codec_names(choice: Choice) -> Tuple[str, ...]:
    """Return the names of a choice's codecs but the default ones, each once."""
    return tuple(sorted({codec for _, codec in choice.coding}))


def _stretches(
    goodputs: Array, table: Array, winners: Array, plans: PreparedPlans
) -> Tuple[Stretch, ...]:
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
        used = [int(n) for n in winners[best[begin], part]]
        names = [name for n in dict.fromkeys(used) for name in codec_names(plans.choices[n])]
        found.append(
            Stretch(
                low_bps=float(goodputs[begin]),
                high_bps=float(goodputs[min(column, table.shape[1] - 1)]),
                cut=int(best[begin]),
                runner_up=int(second[at]),
                margin=float(lead[at]),
                gain=float(np.max(gain[part])),
                codecs=tuple(dict.fromkeys(names)),
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
        f"{_named(manifest, s.cut)} {stretch_range(s.low_bps, s.high_bps, found.goodputs_bps)}"
        for s in found.stretches
    )
    if not splits:
        split = "splitting this model" if manifest.striping is None else "a serial split"
        return f"For {what}, {split} adds nothing on these devices: best is {where}."
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


def stretch_range(low_bps: float, high_bps: float, goodputs_bps: Array) -> str:
    """Say which part of a range of goodputs is meant."""
    first, last = low_bps <= goodputs_bps[0], high_bps >= goodputs_bps[-1]
    if first and last:
        return "at every goodput"
    if first:
        return f"below {mbps(high_bps)}"
    if last:
        return f"above {mbps(low_bps)}"
    return f"from {mbps(low_bps)} to {mbps(high_bps)}"


def mbps(bps: float) -> str:
    """Say a goodput in Mbps, or in Gbps from 1000 Mbps on."""
    value = bps / 1e6
    if value >= 999.5:
        return f"{value / 1e3:.3g} Gbps"
    return f"{value:.2g} Mbps" if value < 10 else f"{value:.0f} Mbps"
