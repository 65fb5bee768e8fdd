"""Why a choice was made: every candidate with what it would take, and why it lost. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from calibration.bounds import MARGIN, Bound, firm_limit_s, keeps
from calibration.choosing import best_table
from calibration.objectives import DEADLINE_KEPT, Objective
from calibration.predictor import Prediction
from calibration.prepared import PreparedPlans
from calibration.ranking import EXPECTED_AT, Ranking, barred, rank
from engines.errors import ManifestError
from runtime.decision import Situation, decision_text, goodput_quantiles
from runtime.hedging import promise
from runtime.selector import open_selector, selector_names

__all__ = ["Candidate", "Explanation", "SpreadLink", "explain"]

_WIDE = 0.9
"""A spread link is given its 10% and its 90% quantile."""


@dataclass(frozen=True)
class SpreadLink:
    """A link whose goodput lies between two values with a probability of 80%: log-normal.

    Attributes:
        low_bps: The 10% quantile of the goodput.
        high_bps: The 90% quantile; at least as much.
        rtt_s: Round trip in seconds.
    """

    low_bps: float
    high_bps: float
    rtt_s: float = 0.0

    @property
    def goodput_bps(self) -> Optional[float]:
        """The median."""
        return float(np.sqrt(self.low_bps * self.high_bps))

    def quantile(self, part: float) -> float:
        """Return a quantile of the goodput in bits per second."""
        if self.low_bps == self.high_bps:
            return self.low_bps
        normal = statistics.NormalDist()
        half = normal.inv_cdf(part) / normal.inv_cdf(_WIDE) / 2
        return float(
            np.sqrt(self.low_bps * self.high_bps) * (self.high_bps / self.low_bps) ** half
        )


@dataclass(frozen=True)
class Candidate:
    """Something that could have been done.

    Attributes:
        name: Its mode, and its cut or plan.
        latency_s: Expected; the parts are of a serial choice's, and overlap in a striped one.
        energy_j: Expected energy on the robot.
        predicted: Its parts.
        chosen: Whether it is the choice.
        reason: Why it was chosen, or why not.
    """

    name: str
    latency_s: float
    energy_j: float
    predicted: Prediction
    chosen: bool
    reason: str

    def record(self) -> Dict[str, Any]:
        """Return it for JSON; null for what is not possible."""
        p = self.predicted
        return {
            "name": self.name,
            "mode": p.mode,
            "chosen": self.chosen,
            "reason": self.reason,
            "latency_ms": _ms(self.latency_s),
            "robot_ms": _ms(p.robot_s),
            "link_ms": _ms(p.link_s),
            "server_ms": _ms(p.server_s),
            "queue_ms": _ms(p.queue_s),
            "energy_j": round(self.energy_j, 6) if np.isfinite(self.energy_j) else None,
            "bytes_up": p.bytes_up,
            "bytes_down": p.bytes_down,
        }


@dataclass(frozen=True)
class Explanation:
    """All candidates, the choice first, then from the best to the worst.

    Attributes:
        rule: What the choice is the best by.
        candidates: Every choice once.
        others: What each other selector would take in this situation, by name.
        bound: What the choice promises; none where nothing is promised.
    """

    rule: str
    candidates: Tuple[Candidate, ...]
    others: Dict[str, str]
    bound: Optional[Bound] = None


def explain(situation: Situation) -> Explanation:
    """Explain what ``splitrt`` does in a situation.

    Args:
        situation: With plans, and a link of which the goodput is known.
    """
    plans, link = situation.plans, situation.link
    assert plans is not None, "nothing to explain without plans"
    assert link is not None, "nothing to explain without a link"
    at = goodput_quantiles(link)
    found = rank(
        plans,
        situation.objective,
        at,
        rtt_s=link.rtt_s,
        queue_s=situation.queue_s,
        constraints=situation.constraints,
        serial=situation.serial,
        in_flight=situation.in_flight,
        promised=situation.promised,
        price_hedges=True,
    )
    table = best_table(plans, situation.rules, situation.in_flight)
    taken = table.choose(
        plans,
        at,
        rtt_s=link.rtt_s,
        queue_s=situation.queue_s,
        in_flight=situation.in_flight,
    )
    found = replace(found, best=taken.place)
    kept = keeps(plans, situation.objective) if situation.promised else None
    # At this goodput a serial choice's parts add up to its expected latency.
    mean_bps = 1.0 / float(np.mean([1.0 / at(part) for part in EXPECTED_AT]))
    why_not = barred(plans, situation.constraints)
    candidates: List[Tuple[Tuple[bool, bool, float, int], Candidate]] = []
    for place, choice in enumerate(plans.choices):
        predicted = plans.predict(
            choice.cut,
            choice.plan,
            goodput_bps=mean_bps,
            rtt_s=link.rtt_s,
            queue_s=situation.queue_s,
            coding=choice.coding,
        )
        chosen = place == found.best
        reason = why_not[place] or _reason(found, place, situation.objective)
        if situation.serial and choice.plan is not None:
            reason = "no plan can be carried out now"
        elif not why_not[place] and kept is not None and not kept[place]:
            reason = _broken(plans, place, situation.objective)
        candidate = Candidate(
            name=decision_text(plans.manifest, choice.cut, choice.plan, choice.coding),
            latency_s=float(found.latencies_s[place]),
            energy_j=float(found.energies_j[place]),
            predicted=predicted,
            chosen=chosen,
            reason=found.rule if chosen else reason,
        )
        out = found.within is not None and not bool(found.within[place])
        candidates.append(((not chosen, out, float(found.costs[place]), place), candidate))
    candidates.sort(key=lambda one: one[0])
    decision = open_selector("splitrt", plans.manifest).decide(situation)
    last = len(plans.manifest.cuts) - 1
    return Explanation(
        found.rule,
        tuple(candidate for _, candidate in candidates),
        _others(plans, situation),
        promise(decision, situation, last=last, local_s=plans.local_s),
    )


def _reason(found: Ranking, place: int, objective: Objective) -> str:
    """Say why a choice that may be used was not taken."""
    cost, within, bounded = float(found.costs[place]), found.within, found.bounded
    if not np.isfinite(cost):
        return "too slow at any goodput" if found.unit == "bps" else "not possible"
    if within is not None and bounded is not None and within.any() and not within[place]:
        return _out_of_bounds(objective, float(bounded[place]))
    best = float(found.costs[found.best]) if found.best is not None else 0.0
    more = cost - best
    if more < 0 and best > 0:  # where it is striped and the choice is not, the gain may be larger
        return f"{-100 * more / best:.1f}% less: a gain too small to tell"
    if more <= 0:
        return "as good"
    part = f" (+{100 * more / best:.1f}%)" if best > 0 else ""
    if found.unit == "bps":
        return f"needs {cost / 1e6:.2f} Mbps to keep it, {more / 1e6:.2f} more"
    return f"{more:.4f} J more{part}" if found.unit == "J" else f"{more * 1e3:.2f} ms more{part}"


def _broken(plans: PreparedPlans, place: int, objective: Objective) -> str:
    """Say why a choice cannot keep what its objective promises."""
    limit_s = firm_limit_s(objective, plans.local_s)
    assert limit_s is not None, "a promise that nothing can break"
    alone_s = float(plans.robot_s[place]) + MARGIN * float(plans.rest_s[place])
    return (
        f"without an answer {alone_s * 1e3:.2f} ms, over the {limit_s * 1e3:.2f} ms that are "
        "promised"
    )


def _out_of_bounds(objective: Objective, value: float) -> str:
    if objective.kind == "deadline":
        return (
            f"{value * 1e3:.2f} ms at the goodput that {DEADLINE_KEPT:.0%} exceed: "
            "over the deadline"
        )
    return f"{value:.3f} J: over the budget"


def _others(plans: PreparedPlans, situation: Situation) -> Dict[str, str]:
    """Say what every selector would take; those that may not be used are left out."""
    found: Dict[str, str] = {}
    for name in selector_names():
        try:
            selector = open_selector(name, plans.manifest)
        except ManifestError:
            continue
        decision = selector.decide(situation)
        found[name] = decision_text(
            plans.manifest, decision.cut, decision.plan, tuple(decision.codecs.items())
        )
    return found


def _ms(seconds: float) -> Optional[float]:
    return round(seconds * 1e3, 3) if np.isfinite(seconds) else None
