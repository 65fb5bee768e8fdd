"""Chooses the cut or the striped plan of the next inference.

Pure: no clock, no I/O, so that runs can be replayed.

To add a selector: write a class with ``decide`` and add a line to ``SELECTORS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Optional, Protocol

from calibration.plan_text import is_plan_text, parse_plan
from calibration.predictor import Prediction
from calibration.prepared import PreparedPlans
from engines.errors import ManifestError
from engines.manifest import Manifest
from engines.stripe_plans import BoundedPlan, Plan, bounded_of
from runtime.estimator import LinkEstimate

__all__ = [
    "SELECTORS",
    "Decision",
    "Selector",
    "Situation",
    "open_selector",
    "parse_allowed",
    "wants_server",
]


@dataclass(frozen=True)
class Situation:
    """What a selector may know.

    Attributes:
        plans: All that may be done, for the tables of both; none while one is missing.
        link: The link as estimated; none while there is no connection.
        queue_s: Expected wait at the server in seconds.
        in_flight: Inferences under way at a time, where the caller says so.
    """

    plans: Optional[PreparedPlans]
    link: Optional[LinkEstimate]
    queue_s: float
    in_flight: Optional[int] = None


@dataclass(frozen=True)
class Decision:
    """What the next inference does.

    Attributes:
        cut: Index of the cut, of a striped plan its own; the last runs all of it on the robot.
        reason: Why, in a few words.
        prediction: What it is expected to take; none where it cannot be predicted.
        plan: How the inference is striped; none for a serial cut.
    """

    cut: int
    reason: str
    prediction: Optional[Prediction]
    plan: Optional[Plan] = None


class Selector(Protocol):
    """Chooses a cut or a striped plan."""

    def decide(self, situation: Situation) -> Decision:
        """Choose for the next inference; takes well under a millisecond."""


class Best:
    """What is predicted to be best for an objective, of every cut and every striped plan.

    Args:
        manifest: The bundle's manifest.
        objective: One of ``calibration.prepared.OBJECTIVES``.
    """

    def __init__(self, manifest: Manifest, objective: str = "latency") -> None:
        self._objective = objective
        self._last = len(manifest.cuts) - 1
        self._blind = self._last
        if manifest.cuts[-1].refused:  # what leaves most to the server is the safest guess
            self._blind = next(cut.index for cut in manifest.cuts if not cut.refused)

    def decide(self, situation: Situation) -> Decision:
        link, plans = situation.link, situation.plans
        if link is None:
            return Decision(self._last, "no connection", None)
        if plans is None:
            return Decision(self._blind, "no latency table of the server", None)
        if link.goodput_bps is None and self._blind != self._last:
            return Decision(self._blind, "goodput unknown", None)
        best = plans.best(
            link.goodput_bps,
            link.rtt_s,
            situation.queue_s,
            self._objective,
            situation.in_flight,
        )
        reason = _REASONS[self._objective]
        if link.goodput_bps is None:
            reason = "goodput unknown"
        return Decision(best.cut, reason, best, best.plan)


_REASONS = {
    "latency": "least predicted latency",
    "energy": "least predicted energy",
    "rate": "highest predicted rate",
}


class Fixed:
    """A cut or a plan that the user named; the robot alone while there is no connection."""

    def __init__(self, manifest: Manifest, cut: int, plan: Optional[Plan] = None) -> None:
        self._last = len(manifest.cuts) - 1
        self._cut = cut
        self._plan = plan

    def decide(self, situation: Situation) -> Decision:
        link, plans = situation.link, situation.plans
        if link is None and self._cut != self._last:
            return Decision(self._last, "no connection", None)
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
        return Decision(self._cut, "named by the user", prediction, self._plan)


def _usable(manifest: Manifest, index: int) -> int:
    cut = manifest.cuts[index]
    if cut.refused:
        raise ManifestError(
            f"cut {cut.id} of bundle {manifest.name!r} may not be used: {cut.refused}; "
            "`split-bundle inspect BUNDLE` lists those that may"
        )
    return index


SELECTORS: Dict[str, Callable[[Manifest], Selector]] = {
    "auto": Best,
    "latency": Best,
    "energy": lambda manifest: Best(manifest, "energy"),
    "rate": lambda manifest: Best(manifest, "rate"),
    "local": lambda manifest: Fixed(manifest, _usable(manifest, len(manifest.cuts) - 1)),
    "offload": lambda manifest: Fixed(manifest, _usable(manifest, 0)),
}
"""Selectors by name. Any other name is the id of a cut, or a plan (``calibration.plan_text``)."""


def open_selector(name: str, manifest: Manifest, *, least_halo: Optional[int] = None) -> Selector:
    """Return the selector called ``name``, or the one that always takes that cut or plan.

    Args:
        name: A selector's name, or what a user calls a cut or a plan.
        manifest: The bundle's manifest.
        least_halo: Fewest rows of halo of lossy plans; none where they are not allowed.

    Raises:
        ManifestError: Neither a selector nor a cut nor a plan of this bundle, or one that may not
            be used.
    """
    factory = SELECTORS.get(name)
    if factory is not None:
        return factory(manifest)
    if is_plan_text(name):
        plan = parse_allowed(name, manifest, least_halo)
        return Fixed(manifest, plan.cut, plan)
    return Fixed(manifest, _usable(manifest, manifest.cut(name).index))


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
    return is_plan_text(name) or manifest.cut(name).index < len(manifest.cuts) - 1
