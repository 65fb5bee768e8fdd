"""What another selector would have done in a recorded run, and what would have come of it. Pure.

1. A selector gets, for every recorded inference, just what the robot knew then, and decides.
2. What it decided is predicted for the goodput that the link really had, by the same predictor for
   all selectors: latency and energy. Serving, and the wait at the server, are as recorded.
3. The true goodput is what the recorded transfer had. Where the robot sent nothing, or too little
   to tell, it lies between that of the inferences before and after, by time.
4. Where the recorded inference had to do without its answer, the link is taken to fail whoever
   uses it: a remote choice waits as long as was waited and then takes the local time.

The estimates are those of the recorded run: a selector that sends more would have known more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from calibration.objectives import Objective, parse_objective
from calibration.plan_text import is_plan_text, parse_plan
from calibration.prepared import PreparedPlans
from engines.stripe_plans import Plan
from runtime.busy import MIN_SAMPLE_BYTES
from runtime.decision import Decision, Selector, Situation, decision_text, mode_at
from runtime.recording import Inference, Run
from runtime.selector import open_selector

__all__ = ["MEASURED", "RECORDED", "Outcome", "Replayed", "replay", "true_goodputs"]

MEASURED = "recorded, measured"
"""The run itself."""

RECORDED = "recorded, predicted"
"""What was decided then, predicted as the others are: how far this is from what was measured says
how far to trust a replay."""


@dataclass(frozen=True)
class Replayed:
    """One inference.

    Attributes:
        seq: Its number.
        choice: What would have been done.
        mode: One of ``calibration.predictor.MODES``.
        latency_s: Predicted, or measured.
        energy_j: The same.
        kept: Whether the deadline or budget was kept; none where the objective has none.
    """

    seq: int
    choice: str
    mode: str
    latency_s: float
    energy_j: float
    kept: Optional[bool]

    def record(self) -> Dict[str, Any]:
        """Return it for JSON."""
        return {
            "seq": self.seq,
            "choice": self.choice,
            "mode": self.mode,
            "latency_ms": round(self.latency_s * 1e3, 3),
            "energy_j": round(self.energy_j, 6),
            "kept": self.kept,
        }


@dataclass(frozen=True)
class Outcome:
    """What a selector would have had of a run.

    Attributes:
        selector: Its name.
        objective: What it was to be best at, as text; empty for what each inference had.
        inferences: In the order of the run.
        skipped: Inferences that nothing can be said of, as no latency tables were known.
    """

    selector: str
    objective: str
    inferences: Tuple[Replayed, ...]
    skipped: int

    def record(self) -> Dict[str, Any]:
        """Return a summary for JSON."""
        latency = np.asarray([one.latency_s for one in self.inferences]) * 1e3
        energy = [one.energy_j for one in self.inferences]
        kept = [one.kept for one in self.inferences if one.kept is not None]
        modes: Dict[str, int] = {}
        for one in self.inferences:
            modes[one.mode] = modes.get(one.mode, 0) + 1
        summary: Dict[str, Any] = {
            "selector": self.selector,
            "objective": self.objective,
            "count": len(self.inferences),
            "skipped": self.skipped,
            "mean_ms": round(float(latency.mean()), 3) if latency.size else None,
        }
        for part in (50, 95, 99):
            value = round(float(np.percentile(latency, part)), 3) if latency.size else None
            summary[f"p{part}_ms"] = value
        summary["mean_energy_j"] = round(float(np.mean(energy)), 6) if energy else None
        summary["kept"] = round(sum(kept) / len(kept), 4) if kept else None
        summary["modes"] = dict(sorted(modes.items()))
        return summary


def replay(
    run: Run, names: Sequence[str], *, objective: Optional[Objective] = None
) -> Tuple[Outcome, ...]:
    """Let selectors decide on a recorded run.

    Args:
        run: The run.
        names: Their names; :data:`MEASURED` and :data:`RECORDED` stand for the run itself.
        objective: What to be best at; none for what each inference was recorded with.

    Raises:
        ManifestError: A name is not that of a selector, a cut or a plan.
    """
    truth = true_goodputs(run.inferences)
    tables = _tables(run)
    text = "" if objective is None else str(objective)
    found: List[Outcome] = []
    for name in names:
        selector: Optional[Selector] = None
        if name not in (MEASURED, RECORDED):
            selector = open_selector(
                name, run.header.manifest, least_halo=run.header.least_halo, replay=True
            )
        replayed: List[Replayed] = []
        for record, true_bps, plans in zip(run.inferences, truth, tables):
            situation = _situation(run, record, objective, true_bps)
            decision = _decided(run, record) if selector is None else selector.decide(situation)
            outcome: Optional[Tuple[float, float]] = None
            if name == MEASURED:
                outcome = record.latency_s, record.energy_j
            elif plans is not None:
                outcome = _outcome(plans, record, decision, true_bps)
            if outcome is not None:
                replayed.append(_replayed(run, record, situation, decision, *outcome))
        found.append(Outcome(name, text, tuple(replayed), len(run.inferences) - len(replayed)))
    return tuple(found)


def _replayed(
    run: Run,
    record: Inference,
    situation: Situation,
    decision: Decision,
    latency_s: float,
    energy_j: float,
) -> Replayed:
    manifest = run.header.manifest
    return Replayed(
        seq=record.seq,
        choice=decision_text(
            manifest, decision.cut, decision.plan, tuple(decision.codecs.items())
        ),
        mode=mode_at(manifest, decision.cut, decision.plan),
        latency_s=latency_s,
        energy_j=energy_j,
        kept=_kept(situation.objective, latency_s, energy_j),
    )


def true_goodputs(inferences: Sequence[Inference]) -> Tuple[Optional[float], ...]:
    """Return the goodput during every inference; none where no transfer of the run tells it."""
    known = [(record.at_s, _goodput(record)) for record in inferences]
    times = [at_s for at_s, bps in known if bps is not None]
    values = [bps for _, bps in known if bps is not None]
    if not values:
        return (None,) * len(known)
    between = np.interp([at_s for at_s, _ in known], times, values)
    return tuple(float(guess) if bps is None else bps for (_, bps), guess in zip(known, between))


def _goodput(record: Inference) -> Optional[float]:
    if record.true_bps is not None:
        return record.true_bps
    size = record.bytes_up + record.bytes_down
    if record.answered_by != "remote" or size < MIN_SAMPLE_BYTES or not record.link_s > 0:
        return None
    rtt_s = 0.0 if record.link is None else record.link.rtt_s
    return 8.0 * size / max(record.link_s - rtt_s, 0.1 * record.link_s)


def _tables(run: Run) -> List[Optional[PreparedPlans]]:
    """Return the choices to predict each inference with: those of its tables, or the nearest."""
    own = [run.plans(record.tables) for record in run.inferences]
    found, last = list(own), next((plans for plans in own if plans is not None), None)
    for place, plans in enumerate(own):
        last = plans or last
        found[place] = last
    return found


def _situation(
    run: Run, record: Inference, objective: Optional[Objective], true_bps: Optional[float]
) -> Situation:
    plans = run.plans(record.tables)
    return Situation(
        None if plans is None else plans.with_handling(record.handling),
        record.link,
        record.queue_s,
        parse_objective(record.objective) if objective is None else objective,
        run.header.constraints,
        in_flight=record.in_flight,
        true_bps=true_bps,
        trouble=record.trouble,
    )


def _decided(run: Run, record: Inference) -> Decision:
    plan: Optional[Plan] = None
    if record.plan and is_plan_text(record.plan):
        plan = parse_plan(record.plan, run.header.manifest)
    return Decision(run.header.manifest.cut(record.cut).index, record.reason, None, plan)


def _outcome(
    plans: PreparedPlans, record: Inference, decision: Decision, true_bps: Optional[float]
) -> Optional[Tuple[float, float]]:
    """Return what would have come of a decision, in seconds and joules; none if nobody knows."""
    last = len(plans.manifest.cuts) - 1
    alone = plans.predict(last, goodput_bps=None, rtt_s=0.0)
    if decision.cut == last or record.link is None:
        return alone.robot_s, alone.robot_s * plans.power.compute
    if record.answered_by == "fallback":
        waited_s = max(record.latency_s - record.robot_s, 0.0)
        energy_j = alone.robot_s * plans.power.compute + waited_s * plans.power.idle
        return alone.robot_s + waited_s, energy_j
    found = plans.with_handling(record.handling).predict(
        decision.cut,
        decision.plan,
        goodput_bps=true_bps or record.link.goodput_bps,
        rtt_s=record.link.rtt_s,
        queue_s=record.waited_s if record.answered_by == "remote" else record.queue_s,
    )
    return (found.latency_s, found.energy_j) if math.isfinite(found.latency_s) else None


def _kept(objective: Objective, latency_s: float, energy_j: float) -> Optional[bool]:
    if objective.kind == "deadline":
        return latency_s <= objective.limit
    return energy_j <= objective.limit if objective.kind == "energy-budget" else None
