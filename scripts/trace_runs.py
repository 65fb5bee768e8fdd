"""Workloads on a link that follows a recorded trace: one robot, one selector, one server a run."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from benches.plan_rows import prepared
from benches.stations import Station, serving
from estimator_sim import Trace
from robot_end import Drive, RobotEnd, trace_of
from shaped_link import changing_rate, shaped_link
from workloads.bundles import Replayed

from calibration.objectives import Objective, parse_objective

__all__ = [
    "DEADLINE_BY_LOCAL",
    "Outcome",
    "Run",
    "follow",
    "joined",
    "local_s",
    "objective_of",
    "replay_all",
    "stations",
]

DEADLINE_BY_LOCAL = 1.25
"""A deadline of its own for each workload: this many times what the robot alone takes."""

_LEAD_S = 0.3
"""From telling a robot to begin to its first inference."""


@dataclass(frozen=True)
class Run:
    """One robot on one trace.

    Attributes:
        workload: Name of the workload.
        objective: As text; ``deadline`` for the workload's own.
        selector: Name of the selector.
        trace: File of the trace.
        begin_s: Where in it the run begins.
        count: Inferences.
        every_s: Least time from the begin of one to that of the next; 0 for back to back; none
            for 1.25 times what the robot alone takes.
        hedge: Whether the robot keeps the promise of its objective.
    """

    workload: str
    objective: str
    selector: str
    trace: Path
    begin_s: float
    count: int
    every_s: float | None = 0.0
    hedge: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Times in seconds, energy in joules.

    Attributes:
        run: Of what.
        objective: As text, with the deadline.
        local_s: What the robot alone takes by its table.
        latencies_s: Of all inferences, in order.
        energies_j: Of all inferences.
        parts: Part of the inferences by ``answered_by``, and ``hedged``.
        kept: Part that kept the deadline; none without one.
        wrong: Inferences with another answer than expected.
        goodput_bps: Mean of what the trace let through while it ran.
        seconds: How long it ran.
        records: What the robot said of each, times counted from the trace's beginning.
    """

    run: Run
    objective: str
    local_s: float
    latencies_s: tuple[float, ...]
    energies_j: tuple[float, ...]
    parts: dict[str, float]
    kept: float | None
    wrong: int
    goodput_bps: float
    seconds: float
    records: Sequence[dict[str, Any]] = field(default=(), repr=False)

    @property
    def mean_s(self) -> float:
        """Mean latency."""
        return statistics.fmean(self.latencies_s)

    @property
    def mean_j(self) -> float:
        """Mean energy."""
        return statistics.fmean(self.energies_j)

    def quantile_s(self, part: float) -> float:
        """Return a quantile of the latencies: the least that so large a part does not exceed."""
        ordered = sorted(self.latencies_s)
        return ordered[max(math.ceil(part * len(ordered)) - 1, 0)]


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Return one outcome of several of the same run, as if they had been one after another."""
    first = outcomes[0]
    count = len(outcomes)
    kept = [outcome.kept for outcome in outcomes if outcome.kept is not None]
    return replace(
        first,
        latencies_s=tuple(value for outcome in outcomes for value in outcome.latencies_s),
        energies_j=tuple(value for outcome in outcomes for value in outcome.energies_j),
        parts={by: sum(o.parts[by] for o in outcomes) / count for by in first.parts},
        kept=statistics.fmean(kept) if kept else None,
        wrong=sum(outcome.wrong for outcome in outcomes),
        goodput_bps=statistics.fmean(outcome.goodput_bps for outcome in outcomes),
        seconds=sum(outcome.seconds for outcome in outcomes),
        records=tuple(record for outcome in outcomes for record in outcome.records),
    )


def stations(made: Replayed) -> tuple[Station, Station]:
    """Return robot and server of a workload, launches as they were."""
    robot, server = (
        Station(
            bundle=str(made.bundle.folder),
            backend=f"replay:{made.tables[side, 1.0]}",
        )
        for side in ("robot", "server")
    )
    return robot, server


def local_s(made: Replayed) -> float:
    """Return what the robot alone takes by its table."""
    robot, server = stations(made)
    plans = prepared((made.bundle, robot.backend), (made.bundle, server.backend))
    last = len(made.bundle.manifest.cuts) - 1
    return plans.predict(last, goodput_bps=None, rtt_s=0.0).latency_s


def replay_all(
    runs: Sequence[Run],
    made: dict[str, Replayed],
    *,
    jobs: int,
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Carry out all runs, some at a time, each in namespaces of its own.

    Those that run at the same time begin together, once all are warm: to start a process and open
    its bundle takes a core for a second, which others that are being timed would feel.
    """
    alone = {name: local_s(workload) for name, workload in made.items()}
    traces = {run.trace: trace_of(run.trace, run.begin_s) for run in runs}
    outcomes: list[Outcome] = []

    def one(run: Run, together: threading.Barrier) -> Outcome:
        try:
            trace = traces[run.trace]
            outcome = _replay(run, made[run.workload], trace, alone[run.workload], together)
        except BaseException:
            together.abort()  # nobody waits for this one
            raise
        done(outcome)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        for first in range(0, len(runs), jobs):
            some = runs[first : first + jobs]
            together = threading.Barrier(len(some))
            outcomes += pool.map(lambda run, gate=together: one(run, gate), some)
    return outcomes


def follow(
    change: Callable[[float], None], trace: Trace, begin_s: float, over: threading.Event
) -> None:
    """Set the rate of a link as a trace says, until it ends or all is over."""
    for index, mbps in enumerate(trace.mbps):
        wait_s = begin_s + index * trace.step_s - time.monotonic()
        if over.wait(max(wait_s, 0.0)):
            return
        if index and mbps != trace.mbps[index - 1]:
            change(mbps)


def objective_of(text: str, alone_s: float) -> Objective:
    """Return an objective; ``deadline`` alone is the workload's own."""
    if text == "deadline":
        return Objective("deadline", limit=round(alone_s * DEADLINE_BY_LOCAL, 6))
    return parse_objective(text)


def _replay(
    run: Run, made: Replayed, trace: Trace, alone_s: float, together: threading.Barrier
) -> Outcome:
    objective = objective_of(run.objective, alone_s)
    every_s = alone_s * DEADLINE_BY_LOCAL if run.every_s is None else run.every_s
    robot, server = stations(made)
    with shaped_link(trace.mbps[0], half_duplex=True) as link:
        if link.rate_mbps is None:
            raise RuntimeError(link.description)
        server = msgspec.structs.replace(server, host=link.server_host)
        with serving(link.server_prefix, server) as address:
            job = Drive(
                station=robot,
                address=address,
                values=str(made.values),
                selector=run.selector,
                objective=str(objective),
                trace=str(run.trace),
                begin_s=run.begin_s,
                hedge=run.hedge,
            )
            with RobotEnd(link.robot_prefix, job) as end, changing_rate(link) as change:
                if not end.wait_ready():
                    raise RuntimeError(f"{run}: the robot has no link")
                together.wait()
                begin_s = time.monotonic() + _LEAD_S
                end.start(begin_s, count=run.count, every_s=every_s)
                over = threading.Event()
                shaper = threading.Thread(target=follow, args=(change, trace, begin_s, over))
                shaper.start()
                try:
                    end.wait(lambda: len(end.records) >= run.count, trace.seconds)
                finally:
                    over.set()
                    shaper.join()
                records = end.finish()
    return _outcome(run, objective, alone_s, trace, begin_s, records)


def _outcome(
    run: Run,
    objective: Objective,
    alone_s: float,
    trace: Trace,
    begin_s: float,
    records: Sequence[dict[str, Any]],
) -> Outcome:
    answered = [record for record in records if "failed" not in record]
    if not answered:
        raise RuntimeError(f"{run}: no inference was answered")
    latencies_s = tuple(record["latency_ms"] * 1e-3 for record in answered)
    kept: float | None = None
    if objective.kind == "deadline":
        kept = sum(latency_s <= objective.limit for latency_s in latencies_s) / len(records)
    parts = {
        by: sum(record["answered_by"] == by for record in answered) / len(records)
        for by in ("remote", "local", "fallback")
    }
    parts["hedged"] = sum(record["hedge_ms"] > 0 for record in answered) / len(records)
    for record in records:
        record.update(begin_s=record["begin_s"] - begin_s, at_s=record["at_s"] - begin_s)
    seconds = records[-1]["at_s"]
    points = max(round(2 * seconds / trace.step_s), 1)
    return Outcome(
        run=run,
        objective=str(objective),
        local_s=alone_s,
        latencies_s=latencies_s,
        energies_j=tuple(record["energy_j"] for record in answered),
        parts=parts,
        kept=kept,
        wrong=len(records) - sum(record["error"] == 0.0 for record in answered),
        goodput_bps=trace.mean_bps(0.0, seconds, points),
        seconds=seconds,
        records=records,
    )
