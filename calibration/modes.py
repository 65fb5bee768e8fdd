"""Which way of dividing an inference is best over a range of goodputs, stripes among them. Pure.

The rivals are the robot alone and the coded frame: what anyone can have without a split. Every
gain is over the better of these two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Tuple

import numpy as np

from calibration.choices import goodput_range, mbps, stretch_range
from calibration.plan_text import plan_text
from calibration.predictor import MODES
from calibration.prepared import Choice, PreparedPlans
from engines.manifest import Manifest
from engines.stripe_plans import BoundedPlan
from engines.stripes import BoundedCut
from engines.tensors import Array

__all__ = [
    "MODE_NAMES",
    "BoundedGain",
    "ModeChoices",
    "ModeStretch",
    "bounded_gains",
    "bounded_text",
    "choice_text",
    "mode_choices",
    "verdict",
]

MODE_NAMES: Dict[str, str] = {
    "local": "robot alone",
    "frame": "coded frame",
    "split": "split",
    "streamed-head": "streamed head",
    "streamed-raw": "streamed raw",
    "two-sided": "two-sided",
    "rows": "row-parallel",
    "bounded": "bounded halo (lossy)",
}
"""What people call the modes."""

_STRIPED = MODES[3:]
_WORTH = 0.005
"""A smaller part is no gain: predictions are not that good."""


@dataclass(frozen=True)
class ModeStretch:
    """A range of goodputs with one best mode.

    Attributes:
        low_bps: Where it begins.
        high_bps: Where it ends.
        mode: The best mode.
        choice: The best choice of this mode where its gain is largest.
        at_bps: Where that is.
        gain: Largest gain over the better of robot alone and coded frame; 0 for these.
        serial_gain: Gain over the best serial plan, at the same goodput.
    """

    low_bps: float
    high_bps: float
    mode: str
    choice: Choice
    at_bps: float
    gain: float
    serial_gain: float


@dataclass(frozen=True)
class ModeChoices:
    """Costs of every mode over the range of goodputs.

    Attributes:
        unit: ``s`` for latency, ``J`` for energy.
        goodputs_bps: The goodputs.
        costs: Latency or energy at the best of each mode, by mode; infinite where there is none.
        stretches: From low to high goodput.
    """

    unit: str
    goodputs_bps: Array
    costs: Dict[str, Array]
    stretches: Tuple[ModeStretch, ...]

    @property
    def striped(self) -> Tuple[ModeStretch, ...]:
        """The stretches in which stripes gain something over every serial plan."""
        return tuple(s for s in self.stretches if s.mode in _STRIPED and s.serial_gain >= _WORTH)


def mode_choices(plans: PreparedPlans, *, rtt_s: float, objective: str = "latency") -> ModeChoices:
    """Find the best mode for every goodput.

    Args:
        plans: All choices.
        rtt_s: Round trip in seconds.
        objective: ``latency`` or ``energy``.
    """
    goodputs = goodput_range()
    members = {
        mode: np.asarray([n for n, c in enumerate(plans.choices) if c.mode == mode], np.int64)
        for mode in MODES
    }
    table = np.full((len(MODES), len(goodputs)), np.inf)
    winners = np.zeros(table.shape, np.int64)
    for column, goodput in enumerate(goodputs):
        costs = plans.costs(float(goodput), rtt_s, objective=objective)
        for row, mode in enumerate(MODES):
            if members[mode].size:
                best = members[mode][np.argmin(costs[members[mode]])]
                winners[row, column], table[row, column] = best, costs[best]
    unit = "J" if objective == "energy" else "s"
    return ModeChoices(
        unit,
        goodputs,
        {mode: table[row] for row, mode in enumerate(MODES)},
        _stretches(plans, goodputs, table, winners),
    )


def _stretches(
    plans: PreparedPlans, goodputs: Array, table: Array, winners: Array
) -> Tuple[ModeStretch, ...]:
    best = np.argmin(table, axis=0)  # the first of equals: serial before striped
    columns = np.arange(table.shape[1])
    least = table[best, columns]
    # Where neither rival may be used there is nothing to gain over.
    gain = _part_below(least, table[:2].min(axis=0))
    serial = _part_below(least, table[:3].min(axis=0))
    found: List[ModeStretch] = []
    begin = 0
    for column in range(1, table.shape[1] + 1):
        if column < table.shape[1] and best[column] == best[begin]:
            continue
        at = begin + int(np.argmax(gain[begin:column]))
        row = int(best[begin])
        found.append(
            ModeStretch(
                low_bps=float(goodputs[begin]),
                high_bps=float(goodputs[min(column, table.shape[1] - 1)]),
                mode=MODES[row],
                choice=plans.choices[int(winners[row, at])],
                at_bps=float(goodputs[at]),
                gain=float(gain[at]),
                serial_gain=float(serial[at]),
            )
        )
        begin = column
    return tuple(found)


def _part_below(least: Array, rival: Array) -> Array:
    gain = np.zeros(least.shape)
    np.divide(rival - least, rival, out=gain, where=np.isfinite(rival) & (rival > 0))
    return gain


def verdict(manifest: Manifest, found: ModeChoices) -> str:
    """Say in a sentence or two whether and where stripes pay."""
    what = "latency" if found.unit == "s" else "energy on the robot"
    where = "; ".join(
        f"{MODE_NAMES[s.mode]} {stretch_range(s.low_bps, s.high_bps, found.goodputs_bps)}"
        for s in found.stretches
    )
    if not found.striped:
        return (
            f"For {what}, stripes add nothing to this model on these devices, their lag, halo and "
            f"launches charged: best is {where}."
        )
    top = max(found.striped, key=lambda s: s.gain)
    low, high = found.striped[0].low_bps, found.striped[-1].high_bps
    rivals = "the better of robot alone and coded frame"
    return (
        f"For {what}, stripes pay between {mbps(low)} and {mbps(high)}: at most "
        f"{100 * top.gain:.0f}% below {rivals} ({choice_text(manifest, top.choice)} at "
        f"{mbps(top.at_bps)}, there {100 * top.serial_gain:.0f}% below the best serial plan). "
        f"Best is {where}."
    )


@dataclass(frozen=True)
class BoundedGain:
    """What a bounded division, which is lossy, is worth over all that is not.

    Attributes:
        bounded: The division.
        choice: Its best plan where its gain is largest.
        at_bps: The goodput there.
        gain: Part of the best lossless latency that it saves there; below 0 where it never does.
    """

    bounded: BoundedCut
    choice: Choice
    at_bps: float
    gain: float


def bounded_gains(
    manifest: Manifest, lossless: PreparedPlans, lossy: PreparedPlans, *, rtt_s: float
) -> Tuple[BoundedGain, ...]:
    """Compare every bounded division with the best lossless choice, over all goodputs.

    Args:
        manifest: The bundle's manifest.
        lossless: All lossless choices.
        lossy: The plans of all bounded divisions, among others.
        rtt_s: Round trip in seconds.
    """
    striping = manifest.striping
    goodputs = goodput_range()
    rivals = np.asarray([lossless.latencies_s(float(b), rtt_s).min() for b in goodputs])
    costs = np.asarray([lossy.latencies_s(float(b), rtt_s) for b in goodputs])
    found: List[BoundedGain] = []
    for bounded in () if striping is None else striping.bounded:
        members = [
            number
            for number, choice in enumerate(lossy.choices)
            if isinstance(choice.plan, BoundedPlan)
            and (choice.plan.cut, choice.plan.halo) == (bounded.cut, bounded.halo)
        ]
        if members:
            gains = 1 - costs[:, members].min(axis=1) / rivals
            at = int(np.argmax(gains))
            best = members[int(np.argmin(costs[at, members]))]
            found.append(
                BoundedGain(bounded, lossy.choices[best], float(goodputs[at]), float(gains[at]))
            )
    return tuple(found)


def bounded_text(manifest: Manifest) -> str:
    """Say in a line what there is of bounded divisions; an empty string for nothing."""
    found = () if manifest.striping is None else manifest.striping.bounded
    if not found:
        return ""
    cuts = len({bounded.cut for bounded in found})
    halos = ", ".join(str(halo) for halo in sorted({bounded.halo for bounded in found}))
    return (
        f"{len(found)} bounded divisions at {cuts} cuts, {halos} rows of halo, error up to "
        f"{max(bounded.error for bounded in found):.2g} on the proof's inputs; used only with "
        "--allow-lossy-halo ROWS"
    )


def choice_text(manifest: Manifest, choice: Choice) -> str:
    """Name a choice: its mode, and its cut or plan as ``runtime infer --cut`` takes it."""
    name = MODE_NAMES[choice.mode]
    if choice.plan is not None:
        return f"{name} {plan_text(choice.plan, manifest)}"
    return f"{name} at {manifest.cuts[choice.cut].id}" if choice.mode == "split" else name
