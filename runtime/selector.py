"""Chooses the cut or the striped plan of the next inference.

Pure: no clock, no I/O, so that runs can be replayed.

To add a selector: write a class with ``decide`` and add a line to ``SELECTORS``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Dict, Optional, Tuple

from calibration.choosing import BestTable, best_table
from calibration.plan_text import is_plan_text, parse_plan
from calibration.predictor import Prediction
from calibration.prepared import PreparedPlans
from engines.errors import ManifestError
from engines.manifest import Manifest
from engines.stripe_plans import BoundedPlan, Plan, bounded_of
from runtime.decision import (
    Decision,
    KnownLink,
    Selector,
    Situation,
    blind_cut,
    goodput_quantiles,
    without_link,
)
from runtime.published import Dads, Neurosurgeon, SpsoGa

__all__ = [
    "SELECTORS",
    "Decision",
    "Oracle",
    "Selector",
    "Situation",
    "SplitRT",
    "open_selector",
    "parse_allowed",
    "plan_named",
    "selector_names",
    "wants_server",
]

FIXED = "fixed:"
"""Before the id of a cut or a plan, which do without it too."""


class SplitRT:
    """``splitrt``: the best of all choices for the objective, under the constraints.

    The choices are the robot alone, the coded frame, every cut and every striped plan. All are
    judged with the same predictor, so the frame and the robot alone are as well off as a split.
    ``calibration.ranking`` says how an objective is judged on an uncertain link.

    Args:
        manifest: The bundle's manifest.
        exact: Whether what is as good as the best (``calibration.choosing``) is not good enough.
    """

    def __init__(self, manifest: Manifest, *, exact: bool = False) -> None:
        self._manifest = manifest
        self._exact = exact
        self._last: Optional[Tuple[PreparedPlans, BestTable]] = None

    def decide(self, situation: Situation) -> Decision:
        """Choose the best."""
        known = without_link(situation, self._manifest)
        if known is not None:
            return known
        link, plans = situation.link, situation.plans
        assert link is not None
        assert plans is not None
        table = self._table(plans, situation)
        found = table.choose(
            plans,
            goodput_quantiles(link),
            rtt_s=link.rtt_s,
            queue_s=situation.queue_s,
            in_flight=situation.in_flight,
        )
        if found.place is None:
            return Decision(blind_cut(self._manifest), "nothing else is possible", None)
        choice = plans.choices[found.place]
        prediction = plans.predict(
            choice.cut,
            choice.plan,
            goodput_bps=link.goodput_bps,
            rtt_s=link.rtt_s,
            queue_s=situation.queue_s,
            in_flight=situation.in_flight,
            coding=choice.coding,
        )
        return Decision(choice.cut, found.rule, prediction, choice.plan)

    def prepare(self, situation: Situation) -> None:
        """Work out beforehand what decisions in situations like this one rest on."""
        if situation.plans is not None:
            self._table(situation.plans, situation).prepare(situation.plans)

    def _table(self, plans: PreparedPlans, situation: Situation) -> BestTable:
        """Return the table for a situation: most often, that of the last one."""
        if self._last is not None:
            of, table = self._last
            objective, constraints, serial, promised = table.rules
            if (
                of is plans
                and objective is situation.objective
                and constraints is situation.constraints
                and serial == situation.serial
                and promised == situation.promised
                and table.several == ((situation.in_flight or 1) > 1)
            ):
                return table
        table = best_table(plans, situation.rules, situation.in_flight, exact=self._exact)
        self._last = plans, table
        return table


class Oracle:
    """``oracle``: what ``splitrt`` would do if it knew the goodput of the next inference.

    The same choices, tables and rules; no uncertainty, and nothing spent on probing. Only a replay
    knows that goodput; where it does not, the estimate stands in.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._splitrt = SplitRT(manifest, exact=True)

    def decide(self, situation: Situation) -> Decision:
        """Choose the best for the goodput that will be."""
        link, true_bps = situation.link, situation.true_bps
        if link is not None and true_bps is not None:
            situation = replace(situation, link=KnownLink(true_bps, link.rtt_s))
        return self._splitrt.decide(situation)


class Fixed:
    """A cut or a plan that the user named; the robot alone while there is no connection."""

    def __init__(self, manifest: Manifest, cut: int, plan: Optional[Plan] = None) -> None:
        self._last = len(manifest.cuts) - 1
        self._cut = cut
        self._plan = plan

    def decide(self, situation: Situation) -> Decision:
        """Choose what was named."""
        link, plans = situation.link, situation.plans
        if link is None and self._cut != self._last:
            return Decision(self._last, situation.trouble, None)
        prediction: Optional[Prediction] = None
        goodput = None if link is None else link.goodput_bps
        if plans is not None and (goodput or self._cut == self._last):
            prediction = plans.predict(
                self._cut,
                self._plan,
                goodput_bps=goodput,
                rtt_s=0.0 if link is None else link.rtt_s,
                queue_s=situation.queue_s,
                in_flight=situation.in_flight,
            )
        return Decision(self._cut, "named by the user", prediction, self._plan, named=True)


def _usable(manifest: Manifest, index: int) -> int:
    cut = manifest.cuts[index]
    if cut.refused:
        raise ManifestError(
            f"cut {cut.id} of bundle {manifest.name!r} may not be used: {cut.refused}; "
            "`split-bundle inspect BUNDLE` lists those that may"
        )
    return index


SELECTORS: Dict[str, Callable[[Manifest], Selector]] = {
    "splitrt": SplitRT,
    "auto": SplitRT,
    "local": lambda manifest: Fixed(manifest, _usable(manifest, len(manifest.cuts) - 1)),
    "offload": lambda manifest: Fixed(manifest, _usable(manifest, 0)),
    "neurosurgeon": Neurosurgeon,
    "dads": Dads,
    "spso_ga": SpsoGa,
    "oracle": Oracle,
}
"""Selectors by name; ``auto`` is ``splitrt``. Any other name is the id of a cut, or a plan
(``calibration.plan_text``), with or without ``fixed:`` before it."""

_REPLAY_ONLY = ("oracle",)


def selector_names(*, replay: bool = False) -> "tuple[str, ...]":
    """Return the names that a user may give, beside cuts and plans."""
    return tuple(n for n in SELECTORS if n != "auto" and (replay or n not in _REPLAY_ONLY))


def open_selector(
    name: str, manifest: Manifest, *, least_halo: Optional[int] = None, replay: bool = False
) -> Selector:
    """Return the selector called ``name``, or the one that always takes that cut or plan.

    Args:
        name: Its name; the id of a cut, or a plan, with or without ``fixed:`` before it.
        manifest: The bundle's manifest.
        least_halo: Fewest rows of halo of lossy plans; none where they are not allowed.
        replay: Whether a recorded run is replayed: only there is the future known.

    Raises:
        ManifestError: Neither a selector nor a cut nor a plan of this bundle, or one that may not
            be used.
    """
    if name in _REPLAY_ONLY and not replay:
        raise ManifestError(
            f"selector {name!r}: knows the future, so only `runtime replay` has it; expected "
            f"{', '.join(selector_names())}, a cut or a plan"
        )
    factory = SELECTORS.get(name)
    if factory is not None:
        return factory(manifest)
    named = _named(name)
    if is_plan_text(named):
        plan = parse_allowed(named, manifest, least_halo)
        return Fixed(manifest, plan.cut, plan)
    return Fixed(manifest, _usable(manifest, manifest.cut(named).index))


def parse_allowed(text: str, manifest: Manifest, least_halo: Optional[int]) -> Plan:
    """Read a striped plan; a lossy one only if it is allowed.

    Raises:
        ManifestError: Not a plan of this bundle, or not allowed.
    """
    plan = parse_plan(text, manifest)
    striping = manifest.striping
    if isinstance(plan, BoundedPlan) and striping is not None:
        if least_halo is None:
            raise ManifestError(
                f"plan {text!r} is lossy: expected leave for it, given none; allow lossy plans of "
                f"{plan.halo} rows of halo or more (--allow-lossy-halo {plan.halo})"
            )
        if not bounded_of(plan, striping).enough(least_halo):
            raise ManifestError(
                f"plan {text!r} is lossy: expected the {least_halo} rows of halo that are allowed "
                f"or more, given {plan.halo}; take a plan with more, or allow fewer"
            )
    return plan


def wants_server(name: str, manifest: Manifest) -> bool:
    """Whether a name leaves a part to the server whatever the link: alone is a fallback then."""
    if name in SELECTORS:
        return name == "offload"
    named = _named(name)
    return is_plan_text(named) or manifest.cut(named).index < len(manifest.cuts) - 1


def plan_named(name: str) -> Optional[str]:
    """Return the text of the striped plan that a selector's name is; none where it is none."""
    named = _named(name)
    return named if name not in SELECTORS and is_plan_text(named) else None


def _named(name: str) -> str:
    return name[len(FIXED) :] if name.startswith(FIXED) else name
