"""Orders all choices for an objective, where the goodput is only known as quantiles. Pure.

Theory of operation:

1. The link's goodput is uncertain, so a choice has a distribution of latencies. Latency falls with
   goodput for every choice: the latency at a low quantile of goodput is the high quantile of
   latency. Only the goodput is taken to be uncertain; computing, round trip and queue are not.
2. *Expected* latency and energy are means over five goodputs, the middles of five parts of equal
   probability.
3. ``latency:p95`` is the latency at the goodput that 95% of inferences exceed.
4. ``deadline=D`` is kept by whatever the robot itself can see to, where it is promised
   (``calibration.bounds``): of that, the least expected energy. Elsewhere it is kept by what takes
   no longer than D at the goodput that 99% exceed; of that, the least expected energy. Where
   nothing keeps it, the choice that needs the least goodput is the most likely to. Where even the
   99% goodput is not enough for any, the least expected latency.
5. ``energy-budget=E``: of what is expected to take E or less, the least expected latency; where
   nothing does, the least expected energy.
6. ``rate``: the shortest time from result to result at the median goodput; of equals the least
   expected latency.

Where a promise is kept by the robot beginning the server's part itself (``calibration.bounds``),
what it is expected to spend on that counts, no inference waits longer than the robot takes itself,
and what could not keep the promise is left out. So with objective ``latency`` a goodput at which
the answer would be very late costs no more than one at which it is just too late.

Of equals the earlier is taken: the serial cuts come before the striped plans. A striped plan is
taken only where it is better than all of them by more than a prediction can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Callable, Dict, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import numpy as np

from calibration.bounds import hedged_in_time, hedges_j, keeps, own_ends_s
from calibration.codings import is_lossy_coding
from calibration.objectives import DEADLINE_KEPT, UNCONSTRAINED, Constraints, Objective
from calibration.prepared import Choice, PlansKey, PreparedPlans, mean_of
from engines.stripe_plans import BoundedPlan, RowPlan, is_lossy
from engines.tensors import Array

__all__ = [
    "EXPECTED_AT",
    "WORTHWHILE",
    "GoodputAt",
    "Ranking",
    "Rules",
    "barred",
    "rank",
    "rule_of",
    "ruled_out",
]

GoodputAt = Callable[[float], float]
"""Gives a quantile of the goodput in bits per second, for a part between 0 and 1."""

_SAME = 1e-9
"""Periods that differ by a smaller part are equal: sums in another order differ as much."""

WORTHWHILE = 0.98
"""A striped plan costs at most this part of the best serial choice: of a smaller gain nothing is
left, as what is least by prediction is so by its error too."""

EXPECTED_AT = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Quantiles of goodput over which latency and energy are averaged."""


_RULES = {
    "latency": "least predicted latency",
    "energy": "least predicted energy",
    "rate": "highest predicted rate",
}


@dataclass(frozen=True)
class Ranking:
    """All choices, judged by one objective. One element a choice.

    Attributes:
        best: Place of the best choice; none where none may be used.
        rule: What it is the best by, in a few words.
        unit: Of the costs: ``s``, ``J``, or ``bps``, the goodput that a choice needs.
        costs: What was to be small. Infinite where it is not possible or not allowed.
        within: Whether the bound of the objective is kept; none where it has none.
        latencies_s: Expected latency.
        bounded: What the bound is about: latency at the low goodput, or energy; none where there
            is no bound.
    """

    best: Optional[int]
    rule: str
    unit: str
    costs: Array
    within: Optional[Array]
    latencies_s: Array
    outlook: _Outlook
    bounded: Optional[Array] = None

    @property
    def energies_j(self) -> Array:
        """Expected energy; one element a choice. Worked out when it is asked for."""
        return self.outlook.energies_j


def rank(
    plans: PreparedPlans,
    objective: Objective,
    goodput_at: GoodputAt,
    *,
    rtt_s: float,
    queue_s: float = 0.0,
    constraints: Constraints = UNCONSTRAINED,
    serial: bool = False,
    in_flight: Optional[int] = None,
    promised: bool = True,
    price_hedges: bool = False,
) -> Ranking:
    """Judge all choices; tens of microseconds for some hundreds of them.

    Args:
        plans: All choices, prepared for the tables of both sides.
        objective: What to be best at.
        goodput_at: The goodput's quantiles.
        rtt_s: Round trip in seconds.
        queue_s: Expected wait at the server in seconds.
        constraints: What a choice may not do.
        serial: Only serial cuts.
        in_flight: Inferences under way at a time, for the rate; none for enough of them.
        price_hedges: Count the robot's hedges in the energy though no choice depends on it.
        promised: Only what can keep the promise of its objective (``calibration.bounds``).
    """
    rules = Rules(objective, constraints, serial, promised)
    kept, forbidden, own_s = ruled_out(plans, rules)
    several = in_flight is not None and in_flight > 1  # the robot cannot end all of them
    ends_s = own_s if objective.kind == "latency" and not several else None
    priced = kept is not None and (price_hedges or objective.kind == "deadline")
    hedged = (objective, own_s) if priced and own_s is not None else None
    outlook = _Outlook(plans, goodput_at, rtt_s, queue_s, in_flight, hedged, ends_s)
    bounded: Optional[Array] = None
    if kept is not None and hedged_in_time(plans, objective):
        bounded = np.where(kept, 0.0, np.inf)  # the robot itself sees to it
    elif objective.kind == "deadline":
        bounded = outlook.latencies_at(1 - DEADLINE_KEPT)
    elif objective.kind == "energy-budget":
        bounded = outlook.energies_j
    if bounded is None:
        within = None
        rule, unit, costs = _unbounded(outlook, objective)
        costs = np.where(forbidden, np.inf, costs)
        judged = costs
        if objective.kind == "rate":  # most choices share their busiest station with others
            quickest = costs <= costs.min() * (1 + _SAME)
            judged = np.where(quickest, outlook.latencies_s, np.inf)
    else:
        within = (bounded <= objective.limit) & ~forbidden
        if bool(within.any()):
            rule, unit, costs = _bounded(outlook, objective)
            judged = np.where(within, costs, np.inf)
        else:
            rule, unit, costs = _out_of_bounds(outlook, objective, forbidden)
            judged = np.where(forbidden, np.inf, costs)
        costs = np.where(forbidden, np.inf, costs)
    place = _best(plans, judged)
    best = place if np.isfinite(judged[place]) else None
    return Ranking(best, rule, unit, costs, within, outlook.latencies_s, outlook, bounded)


def _best(plans: PreparedPlans, judged: Array) -> int:
    """Return the place of the best choice; of those that are about as good, a serial one."""
    place = int(np.argmin(judged))
    if plans.choices[place].plan is not None:
        serial = np.where(plans.striped, np.inf, judged)
        other = int(np.argmin(serial))
        if serial[other] * WORTHWHILE < judged[place]:
            return other
    return place


class _Outlook:
    """What is expected of all choices on one link; the energy only when it is asked for.

    Args:
        plans: All choices.
        goodput_at: The goodput's quantiles.
        rtt_s: Round trip in seconds.
        queue_s: Expected wait at the server in seconds.
        in_flight: Inferences under way at a time, for the rate; none for enough of them.
        hedged: The objective whose hedges count in the energy, and when the robot itself has the
            answer of every choice then; none where none do.
        ends_s: When the robot itself has the answer of every choice; none where that is not to
            count.
    """

    def __init__(
        self,
        plans: PreparedPlans,
        goodput_at: GoodputAt,
        rtt_s: float,
        queue_s: float,
        in_flight: Optional[int],
        hedged: Optional[Tuple[Objective, Array]],
        ends_s: Optional[Array],
    ) -> None:
        self.plans, self.goodput_at = plans, goodput_at
        self.rtt_s, self.queue_s, self.in_flight = rtt_s, queue_s, in_flight
        goodputs = [goodput_at(part) for part in EXPECTED_AT]
        if goodputs[0] == goodputs[-1]:
            goodputs = goodputs[:1]
        self._goodputs = goodputs
        self._hedged = hedged
        self._ends_s = ends_s
        self._spread_s = plans.spread_s(goodputs, rtt_s, queue_s)
        if ends_s is not None:
            np.minimum(self._spread_s, ends_s, out=self._spread_s)
        self.latencies_s: Array = mean_of(self._spread_s)

    @cached_property
    def energies_j(self) -> Array:
        """Expected energy; where the robot hedges, with its own work, and no longer waits."""
        if self._hedged is None:
            return self.plans.expected_j(self.latencies_s, self._goodputs, self.rtt_s)
        objective, own_s = self._hedged
        ended_s = np.minimum(self._spread_s, own_s)
        energies: Array = self.plans.ended_j(ended_s, self._goodputs, self.rtt_s)
        energies += hedges_j(self.plans, objective, ended_s)
        return energies

    def latencies_at(self, part: float) -> Array:
        """Return all latencies at a quantile of the goodput."""
        latencies_s = self.plans.latencies_s(self.goodput_at(part), self.rtt_s, self.queue_s)
        return latencies_s if self._ends_s is None else np.minimum(latencies_s, self._ends_s)


def rule_of(objective: Objective) -> str:
    """Return what a choice is the best by, in words, for an objective without a bound."""
    if objective.quantile is not None:
        return f"least predicted latency, p{objective.quantile * 100:g}"
    return _RULES[objective.kind]


def _unbounded(outlook: _Outlook, objective: Objective) -> Tuple[str, str, Array]:
    rule = rule_of(objective)
    if objective.kind == "energy":
        return rule, "J", outlook.energies_j
    if objective.kind == "rate":
        goodput = outlook.goodput_at(0.5)
        costs = outlook.plans.costs(
            goodput, outlook.rtt_s, outlook.queue_s, "rate", outlook.in_flight
        )
        return rule, "s", costs
    if objective.quantile is not None:
        return rule, "s", outlook.latencies_at(1 - objective.quantile)
    return rule, "s", outlook.latencies_s


def _bounded(outlook: _Outlook, objective: Objective) -> Tuple[str, str, Array]:
    if objective.kind == "deadline":
        return "least predicted energy within the deadline", "J", outlook.energies_j
    return "least predicted latency within the energy budget", "s", outlook.latencies_s


def _out_of_bounds(
    outlook: _Outlook, objective: Objective, forbidden: Array
) -> Tuple[str, str, Array]:
    if objective.kind == "energy-budget":
        return "least predicted energy: nothing is within the budget", "J", outlook.energies_j
    needed = outlook.plans.needed_bps(objective.limit, outlook.rtt_s, outlook.queue_s)
    needed[forbidden] = np.inf
    if needed.min() <= outlook.goodput_at(DEADLINE_KEPT):
        return "most likely to keep the deadline", "bps", needed
    return "least predicted latency: nothing keeps the deadline", "s", outlook.latencies_s


def barred(plans: PreparedPlans, constraints: Constraints) -> Tuple[str, ...]:
    """Return for every choice why it may not be used; empty where it may."""
    return _standing(plans, constraints)[0]


class Rules(NamedTuple):
    """What says that a choice may not be taken, whatever the link."""

    objective: Objective
    constraints: Constraints
    serial: bool
    promised: bool


_Standing = Tuple[Tuple[str, ...], Array, Array]
_RuledOut = Tuple[Optional[Array], Array, Optional[Array]]

_MOST_RULES = 64
"""Rules whose masks are kept: each deadline that a caller gives is one."""

_known: "WeakKeyDictionary[PlansKey, Dict[Constraints, _Standing]]" = WeakKeyDictionary()
"""What constraints forbid, once for each pair of tables."""

_masks: "WeakKeyDictionary[PreparedPlans, Dict[Rules, _RuledOut]]" = WeakKeyDictionary()
"""What all rules forbid, once for each pair of tables and what messages take."""


def ruled_out(plans: PreparedPlans, rules: Rules) -> _RuledOut:
    """Return what rules say of every choice.

    That is, whether it keeps the promise, none where all do; whether it may not be taken; and
    when the robot itself has the answer, none where it promises none.
    """
    masks = _masks.setdefault(plans, {})
    found = masks.get(rules)
    if found is None:
        _, mask, serial_mask = _standing(plans, rules.constraints)
        mask = serial_mask if rules.serial else mask
        kept = keeps(plans, rules.objective) if rules.promised else None
        own_s = None if kept is None else own_ends_s(plans, rules.objective)
        found = kept, mask if kept is None else mask | ~kept, own_s
        if len(masks) >= _MOST_RULES:
            masks.clear()
        masks[rules] = found
    return found


def _standing(plans: PreparedPlans, constraints: Constraints) -> _Standing:
    """Return why choices may not be used; as a mask; and that with all but serial cuts in it."""
    known = _known.setdefault(plans.key, {})
    if constraints not in known:
        why = tuple(_against(plans, choice, constraints) for choice in plans.choices)
        mask = np.asarray([bool(reason) for reason in why])
        known[constraints] = why, mask, mask | plans.striped
    return known[constraints]


def _against(plans: PreparedPlans, choice: Choice, constraints: Constraints) -> str:
    cuts = plans.manifest.cuts
    if choice.plan is None and cuts[choice.cut].refused:
        return f"refused: {cuts[choice.cut].refused}"
    if constraints.lossless and (is_lossy(choice.plan) or is_lossy_coding(choice.coding)):
        return "lossy"
    if constraints.keep_local is not None:
        kept = set(plans.manifest.cut(constraints.keep_local).robot_segments)
        raw = choice.mode == "two-sided" or isinstance(choice.plan, (RowPlan, BoundedPlan))
        leaves = set() if raw else set(cuts[choice.cut].robot_segments)
        if not kept <= leaves:
            return f"keep-local {constraints.keep_local}: earlier tensors would leave the robot"
    return ""
