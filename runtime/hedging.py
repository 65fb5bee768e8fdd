"""What a decision promises, from the situation in which it was taken. Pure."""

from __future__ import annotations

import math
from typing import Optional

from calibration.bounds import Bound, alone_bound, bound_of
from runtime.decision import Decision, Situation, goodput_quantiles

__all__ = ["LATE_AT", "promise"]

LATE_AT = 0.05
"""An answer is late that comes later than at the goodput which all but this part exceed."""


def promise(
    decision: Decision, situation: Situation, *, last: int, local_s: float
) -> Optional[Bound]:
    """Return what a decision promises; none where nothing can be said.

    That is where the robot may not run the whole model, or where nobody knows how long the server
    will take. A cut or plan that the user named is waited for with patience instead of hedged.

    Args:
        decision: What was decided.
        situation: What it was decided in.
        last: Index of the cut at which the robot works alone.
        local_s: What the robot takes alone by its own table; infinite where it may not.
    """
    in_flight, plans = situation.in_flight or 1, situation.plans
    prediction = decision.prediction
    if not situation.promised:
        return None
    if decision.cut == last and math.isfinite(local_s):
        return alone_bound(situation.objective, local_s, in_flight)
    if plans is None or prediction is None or decision.named:
        return None
    late_s: Optional[float] = None
    link = situation.link
    if situation.objective.kind == "latency" and link is not None and link.goodput_bps:
        choice = plans.choice(decision.cut, decision.plan)
        low_bps = goodput_quantiles(link)(LATE_AT)
        late_s = choice.latency_s(low_bps, link.rtt_s, situation.queue_s)
    return bound_of(plans, prediction, situation.objective, late_s=late_s, in_flight=in_flight)
