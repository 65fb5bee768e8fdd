"""What an inference promises under any fault, and when the robot has to begin for it. Pure.

While the server computes, the robot keeps what it needs to finish alone. A *hedge* is when it does
begin, before it knows whether an answer will come; the first answer counts. What is promised
follows from the objective:

- ``latency``: an answer by ``LOCAL`` times what the robot takes alone. The robot begins as late as
  that allows, or earlier once the answer has been late (later than 95 of 100 should be) for as
  long as the robot itself will take: who waits no longer than the alternative costs never takes
  more than twice as long as with foresight.
- ``deadline=D``: an answer by D, where that is ``LOCAL`` times what the robot alone takes; it
  begins as late as that allows, which costs the least energy. Elsewhere D or what ``latency``
  promises, whichever is later.
- ``energy``, ``energy-budget`` and ``rate``: no hedge while the answer is on schedule. It is late
  at ``LATE`` times the predicted latency; then the robot begins, so that an answer comes by that
  and ``MARGIN`` times what it takes alone.

With several inferences under way each may have to wait for the others: all times are multiplied by
their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, TypeVar

import numpy as np

from calibration.objectives import Objective
from calibration.predictor import Prediction
from calibration.prepared import PreparedPlans
from engines.tensors import Array

__all__ = [
    "LOCAL",
    "Bound",
    "alone_bound",
    "bound_of",
    "firm_limit_s",
    "hedge_j",
    "hedged_in_time",
    "hedges_j",
    "keeps",
    "own_ends_s",
]

Seconds = TypeVar("Seconds", float, Array)

LOCAL = 1.2
MARGIN = 1.1
"""The robot is taken to need so many times as long as its table says."""
LATE = 1.5
JITTER_S = 0.002
"""An answer is not late by less than this: operating systems do not keep time better."""


@dataclass(frozen=True)
class Bound:
    """What a decision promises.

    Attributes:
        latency_s: The answer is there by then, from when the robot began on the inference.
        hedge_s: When the robot begins with the server's part itself if there is no answer; none
            where it only does once the answer cannot come any more.
    """

    latency_s: float
    hedge_s: Optional[float] = None


def firm_limit_s(objective: Objective, local_s: float) -> Optional[float]:
    """Return the latency that an objective promises whatever is chosen; none for the others.

    Args:
        objective: What to be best at.
        local_s: What the robot takes alone, in seconds.
    """
    if objective.kind == "latency":
        return LOCAL * local_s
    if objective.kind == "deadline":
        in_time = _in_time(objective, local_s)
        return objective.limit if in_time else max(objective.limit, LOCAL * local_s)
    return None


def hedged_in_time(plans: PreparedPlans, objective: Objective) -> bool:
    """Whether the robot's hedge keeps a deadline whatever becomes of the answer."""
    return objective.kind == "deadline" and _in_time(objective, plans.local_s)


def alone_bound(objective: Objective, local_s: float, in_flight: int = 1) -> Bound:
    """Return what is promised where the robot works alone."""
    limit_s = firm_limit_s(objective, local_s)
    return Bound((LOCAL * local_s if limit_s is None else limit_s) * in_flight)


def keeps(plans: PreparedPlans, objective: Objective) -> Optional[Array]:
    """Return for every choice whether its promise can be kept; none where all can.

    It cannot where the robot's part in it and then all the rest take longer than is promised.
    """
    limit_s = firm_limit_s(objective, plans.local_s)
    if limit_s is None or not math.isfinite(limit_s):
        return None
    kept: Array = plans.robot_s + MARGIN * plans.rest_s <= limit_s
    return kept


def hedges_j(plans: PreparedPlans, objective: Objective, latencies_s: Array) -> Array:
    """Return the energy that the robot is expected to put into its hedge, of every choice.

    Args:
        plans: All choices.
        objective: What to be best at.
        latencies_s: What every choice takes; a row for each case, all as likely as the others.
    """
    limit_s = firm_limit_s(objective, plans.local_s)
    if limit_s is None or not math.isfinite(limit_s):
        return np.zeros(len(plans.choices))
    begin_s = np.maximum(_latest_s(limit_s, plans.rest_s), 0.0)
    beside_s = np.minimum(np.maximum(latencies_s - begin_s, 0.0), plans.rest_s)
    spent: Array = _extra_w(plans) * beside_s.mean(axis=0)
    return spent


def own_ends_s(plans: PreparedPlans, objective: Objective) -> Array:
    """Return when the robot itself has the answer of every choice, whatever becomes of the link.

    Infinite where it is not promised, and where the robot does all of it anyway.
    """
    limit_s = firm_limit_s(objective, plans.local_s)
    if limit_s is None or not math.isfinite(limit_s):
        return np.full(len(plans.choices), np.inf)
    begin_s = np.maximum(_latest_s(limit_s, plans.rest_s), plans.robot_s)
    ends_s: Array = np.where(plans.rest_s > 0, begin_s + plans.rest_s, np.inf)
    return ends_s


def hedge_j(plans: PreparedPlans, prediction: Prediction, bound: Optional[Bound]) -> float:
    """Return the same for one choice and its bound."""
    if bound is None or bound.hedge_s is None or not math.isfinite(prediction.latency_s):
        return 0.0
    rest_s = plans.choice(prediction.cut, prediction.plan).work.rest_s
    beside_s = min(max(prediction.latency_s - bound.hedge_s, 0.0), rest_s)
    return _extra_w(plans) * beside_s


def bound_of(
    plans: PreparedPlans,
    prediction: Prediction,
    objective: Objective,
    *,
    late_s: Optional[float] = None,
    in_flight: int = 1,
) -> Optional[Bound]:
    """Return what a prediction's choice promises; none where the robot may not do it all alone.

    Args:
        plans: All choices.
        prediction: What is expected of the one that was taken.
        objective: What to be best at.
        late_s: What 95 of 100 inferences take at most, where that is known.
        in_flight: Inferences under way at a time.
    """
    local_s = plans.local_s
    if not (math.isfinite(local_s) and math.isfinite(prediction.latency_s)):
        return None
    if prediction.mode == "local":
        return alone_bound(objective, local_s, in_flight)
    limit_s = firm_limit_s(objective, local_s)
    if limit_s is None:
        hedge_s = max(LATE * prediction.latency_s, prediction.latency_s + JITTER_S)
        limit_s = hedge_s + MARGIN * local_s
    else:
        rest_s = plans.choice(prediction.cut, prediction.plan).work.rest_s
        hedge_s = max(_latest_s(limit_s, rest_s), 0.0)
        if objective.kind == "latency" and late_s is not None:
            hedge_s = min(hedge_s, late_s + rest_s)
    return Bound(limit_s * in_flight, hedge_s * in_flight)


def _in_time(objective: Objective, local_s: float) -> bool:
    return LOCAL * local_s <= objective.limit


def _latest_s(limit_s: float, rest_s: Seconds) -> Seconds:
    """Return the latest time to begin with what is left, to be done by a limit."""
    return limit_s - MARGIN * rest_s


def _extra_w(plans: PreparedPlans) -> float:
    """Return the power that computing draws on top of waiting."""
    return plans.power.compute - plans.power.idle
