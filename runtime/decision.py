"""What a selector is told, and what it answers: the seam between choosing and doing. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Protocol

from calibration.bounds import Bound
from calibration.codings import Coding
from calibration.modes import MODE_NAMES
from calibration.objectives import LATENCY, UNCONSTRAINED, Constraints, Objective
from calibration.plan_text import plan_text
from calibration.predictor import Prediction
from calibration.prepared import PreparedPlans
from calibration.ranking import GoodputAt, Rules
from engines.manifest import Manifest
from engines.stripe_plans import Plan, mode_of
from runtime.link_state import LinkState

__all__ = [
    "Decision",
    "KnownLink",
    "LinkView",
    "Selector",
    "Situation",
    "blind_cut",
    "decision_text",
    "goodput_quantiles",
    "mode_at",
    "raw_quantiles",
    "without_link",
]

_WORSE = 0.5
"""Part of the distribution of the goodput that counts on a degraded link: its lower end."""


class LinkView(Protocol):
    """The link as it is estimated, or known.

    It may have ``quantile(part)`` too: the goodput in bits per second that is exceeded with a
    probability of 1 - ``part``. Where it has none, its goodput is taken to be certain. And
    ``state``: see :func:`goodput_quantiles`.
    """

    @property
    def goodput_bps(self) -> Optional[float]:
        """Payload bits per second, up and down together; none while unknown."""

    @property
    def rtt_s(self) -> float:
        """Round trip of a message without payload, in seconds."""


@dataclass(frozen=True)
class KnownLink:
    """A link of which the goodput is certain."""

    goodput_bps: Optional[float]
    rtt_s: float = 0.0


@dataclass(frozen=True)
class Situation:
    """What a selector may know.

    Attributes:
        plans: All that may be done, for the tables of both; none while one is missing.
        link: The link as estimated; none while there is no connection.
        queue_s: Expected wait at the server in seconds.
        objective: What to be best at.
        constraints: What may not be done.
        serial: Only serial cuts: no plan can be carried out now.
        in_flight: Inferences under way at a time, where the caller says so.
        true_bps: The goodput that the next inference will have; only in replays, for ``oracle``.
        trouble: Why there is no link, where there is none.
        promised: Whether the robot keeps the promise of its objective (``calibration.bounds``).
    """

    plans: Optional[PreparedPlans]
    link: Optional[LinkView]
    queue_s: float
    objective: Objective = LATENCY
    constraints: Constraints = UNCONSTRAINED
    serial: bool = False
    in_flight: Optional[int] = None
    true_bps: Optional[float] = None
    trouble: str = "no connection"
    promised: bool = True

    @property
    def rules(self) -> Rules:
        """What a choice is judged by, whatever the link."""
        return Rules(self.objective, self.constraints, self.serial, self.promised)


@dataclass(frozen=True)
class Decision:
    """What the next inference does.

    Attributes:
        cut: Index of the cut, of a striped plan its own; the last runs all of it on the robot.
        reason: Why, in a few words.
        prediction: What it is expected to take; none where it cannot be predicted.
        plan: How the inference is striped; none for a serial cut.
        situation: What it was decided in; none where nobody kept it.
        coding: Codecs by tensor, where they are not the prediction's.
        named: Whether the user named it: the robot is to wait for the server then.
        bound: What is promised; none where nothing is.
        ahead_s: Seconds that the processor took for deciding before the inference began, whether
            this came of it or not.
    """

    cut: int
    reason: str
    prediction: Optional[Prediction]
    plan: Optional[Plan] = None
    situation: Optional[Situation] = field(default=None, repr=False, compare=False)
    coding: Optional[Coding] = None
    named: bool = False
    bound: Optional[Bound] = None
    ahead_s: float = field(default=0.0, compare=False)

    @property
    def codecs(self) -> Dict[str, str]:
        """Names of codecs by tensor; the default ones for what is not in it."""
        if self.coding is not None:
            return dict(self.coding)
        return {} if self.prediction is None else dict(self.prediction.coding)


class Selector(Protocol):
    """Chooses a cut or a striped plan."""

    def decide(self, situation: Situation) -> Decision:
        """Choose for the next inference; pure, and well under a millisecond if it can be."""


def goodput_quantiles(link: LinkView) -> GoodputAt:
    """Return the quantiles of a link's goodput, which is known; itself where it is certain.

    Of a degraded link only the worse half of what was learned counts.
    """
    at = raw_quantiles(link)
    if getattr(link, "state", None) is LinkState.DEGRADED:
        return lambda part: at(part * _WORSE)
    return at


def raw_quantiles(link: LinkView) -> GoodputAt:
    """Return the quantiles of a link's goodput whatever its state; see above."""
    goodput_bps = link.goodput_bps
    assert goodput_bps, "no goodput"
    quantile = getattr(link, "quantile", None)

    def at(part: float) -> float:
        value = None if quantile is None else quantile(part)
        return float(value) if value else goodput_bps

    return at


def blind_cut(manifest: Manifest) -> int:
    """Return the safest guess where nothing can be predicted: the robot alone, if it may."""
    if not manifest.cuts[-1].refused:
        return len(manifest.cuts) - 1
    # What leaves most to the server.
    return next(cut.index for cut in manifest.cuts if not cut.refused)


def without_link(situation: Situation, manifest: Manifest) -> Optional[Decision]:
    """Return the decision where too little is known to predict any other; else none."""
    link, plans = situation.link, situation.plans
    last = len(manifest.cuts) - 1
    if link is None:
        return Decision(last, situation.trouble, None)
    blind = blind_cut(manifest)
    if plans is None:
        return Decision(blind, "no latency table of the server", None)
    if not link.goodput_bps:
        prediction = None
        if blind == last:
            prediction = plans.predict(
                last, goodput_bps=None, rtt_s=link.rtt_s, in_flight=situation.in_flight
            )
        return Decision(blind, "goodput unknown", prediction)
    return None


def mode_at(manifest: Manifest, cut: int, plan: Optional[Plan]) -> str:
    """Return the mode of a cut or a plan: one of ``calibration.predictor.MODES``."""
    if plan is not None:
        return mode_of(plan)
    if cut == len(manifest.cuts) - 1:
        return "local"
    return "split" if manifest.cuts[cut].robot_segments else "frame"


def decision_text(manifest: Manifest, cut: int, plan: Optional[Plan], coding: Coding = ()) -> str:
    """Name what is decided on: its mode, its cut or plan as ``--cut`` takes it, its codecs."""
    mode = mode_at(manifest, cut, plan)
    codecs = sorted({codec for _, codec in coding})
    coded = f", {' and '.join(codecs)}" if codecs else ""
    if plan is not None:
        return f"{MODE_NAMES[mode]} {plan_text(plan, manifest)}{coded}"
    at = f" at {manifest.cuts[cut].id}" if mode == "split" else ""
    return f"{MODE_NAMES[mode]}{at}{coded}"
