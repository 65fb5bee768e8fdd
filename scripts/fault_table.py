"""Faults of link and server while a robot runs inferences: all are answered, right, and in time.

    python scripts/fault_table.py vgg19_bn --only cut-2 --objective latency
    python scripts/fault_table.py demo

A published workload is replayed: devices take the published times and give recorded tensors, while
link, transport and fallback are real. ``demo`` computes really, on both ends, the robot slowed.
Needs root for the network namespaces. Exits with 1 if an inference failed or was wrong.
"""

from __future__ import annotations

import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import click
from benches.stations import Station
from faults import FAULTS, scene
from link_check import check_link, trouble
from rich.console import Console
from rich.table import Table
from robot_end import Drive, RobotEnd
from shaped_link import ShapedLink, shaped_link
from trace_runs import local_s, objective_of, stations
from workloads import WORKLOADS
from workloads.bundles import replayed

from engines.errors import SplitError
from runtime.selector import selector_names

__all__ = ["Ends", "Judged", "judged"]

BUILD = Path(__file__).resolve().parent.parent / "build"
DEMO = "demo"
NAMES = (*(name for name, workload in WORKLOADS.items() if workload.profile), DEMO)
OBJECTIVES = ("latency", "energy", "deadline")

CALM_S = (1.0, 2.5)
"""From when all is well to the next fault: drawn between these."""

RECOVER_S = 10.0
"""Longest wait for the first remote answer after a fault."""

BACK_S = 1.0
"""Time from a fault's end to the first remote answer, as it should be."""

WANTED = 0.5
"""Where a selector takes the server for fewer than this part of the inferences while all is well,
it does not want it."""

DEMO_SHARE = 0.25
"""Of a core, that the robot of ``demo`` has."""


@dataclass(frozen=True)
class Ends:
    """Both ends of a link, and what is expected of them.

    Attributes:
        robot: The robot's station.
        server: The server's.
        values: File with inputs and outputs.
        local_s: What the robot alone takes.
        tolerance: Largest error of an output, relative to the largest value.
        robot_prefix: Words before the robot's command.
        server_prefix: Words before the server's.
    """

    robot: Station
    server: Station
    values: Path
    local_s: float
    tolerance: float = 0.0
    robot_prefix: Sequence[str] = ()
    server_prefix: Sequence[str] = ()


@dataclass(frozen=True)
class Judged:
    """What came of one fault, some times over.

    Attributes:
        fault: Its name.
        objective: As text.
        inferences: How many were begun.
        answered: How many were answered.
        right: How many of these were right.
        parts: Their numbers by ``answered_by``, and ``hedged``.
        promised: How many carried a bound.
        exceeded: How many of these took longer than it.
        over_p50_s: Median of by how much; none where none did.
        over_most_s: The most.
        slowest_s: Slowest inference.
        back_s: From each fault's end to the first remote answer, infinite where none came; none
            where the selector had not wanted the server.
    """

    fault: str
    objective: str
    inferences: int
    answered: int
    right: int
    parts: dict[str, int]
    promised: int
    exceeded: int
    over_p50_s: float | None
    over_most_s: float | None
    slowest_s: float
    back_s: list[float | None]

    @property
    def sound(self) -> bool:
        """Whether every inference was answered, and right."""
        return self.inferences == self.answered == self.right > 0

    @property
    def complaints(self) -> list[str]:
        """What is not as it should be, a line each."""
        found: list[str] = []
        if not self.sound:
            found.append(f"{self.inferences} begun, {self.answered} answered, {self.right} right")
        if self.exceeded:
            assert self.over_p50_s is not None
            assert self.over_most_s is not None
            found.append(
                f"bound exceeded by {self.exceeded} of {self.promised}, by "
                f"{self.over_p50_s * 1e3:.1f} ms (median), {self.over_most_s * 1e3:.1f} ms at most"
            )
        late = [back_s for back_s in self.back_s if back_s is not None and back_s > BACK_S]
        if late:
            times = ", ".join(f"{back_s:.2f} s" for back_s in late)
            found.append(
                f"the server used again after more than {BACK_S:g} s, {len(late)} of "
                f"{len(self.back_s)} times: {times}"
            )
        return found


def judged(
    fault: str,
    objective: str,
    records: Sequence[dict[str, Any]],
    ends_s: Sequence[tuple[float, float]],
    tolerance: float,
) -> Judged:
    """Judge the records of a robot.

    Args:
        fault: Name of the fault.
        objective: As text.
        records: As ``robot_end`` gives them.
        ends_s: Begin and end of each fault, in monotonic time.
        tolerance: Largest error of a right answer.
    """
    answered = [record for record in records if "failed" not in record]
    bound = [record for record in answered if record["bound_ms"] is not None]
    over_s = [(r["latency_ms"] - r["bound_ms"]) * 1e-3 for r in bound]
    over_s = [excess_s for excess_s in over_s if excess_s > 0]
    parts = {
        by: sum(record["answered_by"] == by for record in answered)
        for by in ("remote", "local", "fallback")
    }
    parts["hedged"] = sum(record["hedge_ms"] > 0 for record in answered)
    return Judged(
        fault=fault,
        objective=objective,
        inferences=len(records),
        answered=len(answered),
        right=sum(record["error"] <= tolerance for record in answered),
        parts=parts,
        promised=len(bound),
        exceeded=len(over_s),
        over_p50_s=statistics.median(over_s) if over_s else None,
        over_most_s=max(over_s, default=None),
        slowest_s=max(r["at_s"] - r["begin_s"] for r in records) if records else 0.0,
        back_s=[_back_s(answered, *each) for each in _calms(ends_s)],
    )


def _calms(ends_s: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """Return of each fault the end of the one before, its begin, its end, the next one's begin."""
    never = float("inf")
    before = [-never, *(end for _, end in ends_s)]
    after = [*(begin for begin, _ in ends_s[1:]), never]
    return [(old, *ends, new) for old, ends, new in zip(before, ends_s, after, strict=False)]


def _back_s(
    records: Sequence[dict[str, Any]], before: float, begin: float, end: float, after: float
) -> float | None:
    """Return from a fault's end to the first remote answer; none where it was not wanted."""
    calm = [r for r in records if before <= r["begin_s"] and r["at_s"] < begin]
    last = calm[-10:]
    if sum(r["answered_by"] == "remote" for r in last) < WANTED * max(len(last), 1):
        return None
    later = [r for r in records if end <= r["at_s"] < after and r["answered_by"] == "remote"]
    return later[0]["at_s"] - end if later else float("inf")


def run_fault(
    name: str,
    objective: str,
    ends: Ends,
    link: ShapedLink,
    *,
    selector: str,
    times: int,
    draw: random.Random,
    keep: TextIO | None,
) -> Judged:
    """Let a robot run while a fault comes some times, at moments drawn."""
    assert link.rate_mbps is not None  # shaped
    fault = FAULTS[name]
    on = scene(link, ends.server_prefix, ends.server, link.rate_mbps, proxied=fault.proxied)
    with on as server:
        job = Drive(
            station=ends.robot,
            address=server.address,
            values=str(ends.values),
            selector=selector,
            objective=objective,
        )
        with RobotEnd([*ends.robot_prefix, *link.robot_prefix], job) as robot:
            if not robot.wait_ready():
                raise RuntimeError(f"{name}: the robot has no link before the fault")
            robot.start(time.monotonic())
            spans: list[tuple[float, float]] = []
            for _ in range(times):
                time.sleep(draw.uniform(*CALM_S))
                begin_s = time.monotonic()
                end_s = fault.cause(server, draw)
                spans.append((begin_s, end_s))
                _recover(robot, end_s)
            records = robot.finish()
    if keep is not None:
        for record in records:
            told = {"fault": name, "asked": objective, "spans_s": spans, **record}
            keep.write(json.dumps(told) + "\n")
    return judged(name, objective, records, spans, ends.tolerance)


def _recover(robot: RobotEnd, end_s: float) -> None:
    """Wait for the first remote answer, no longer than it is waited for at all."""
    robot.wait(
        lambda: any(
            r["at_s"] >= end_s and r.get("answered_by") == "remote" for r in robot.records[-50:]
        ),
        RECOVER_S,
    )


def table_of(rows: Sequence[Judged]) -> Table:
    """Return all faults as a table."""
    table = Table("fault", "objective")
    titles = ("done", "remote", "local", "fallback", "hedged", "answered", "right")
    for title in (*titles, "over bound", "most ms over", "slowest ms", "back s"):
        table.add_column(title, justify="right")
    for row in rows:
        over = "" if row.over_most_s is None else f"{row.over_most_s * 1e3:.1f}"
        back = [back_s for back_s in row.back_s if back_s is not None]
        table.add_row(
            row.fault,
            row.objective,
            str(row.inferences),
            *(str(row.parts[by]) for by in ("remote", "local", "fallback", "hedged")),
            "all" if row.answered == row.inferences else f"{row.answered} (!)",
            "all" if row.right == row.answered else f"{row.right} (!)",
            f"{row.exceeded} of {row.promised}" if row.promised else "no bound",
            over,
            f"{row.slowest_s * 1e3:.0f}",
            f"{statistics.median(back):.2f}, {max(back):.2f}" if back else "not wanted",
        )
    return table


@contextmanager
def ends_of(name: str, testbed: str | None) -> Iterator[Ends]:
    """Give both ends of a workload."""
    if name == DEMO:
        with _demo() as ends:
            yield ends
        return
    made = replayed(name, BUILD, testbed)
    robot, server = stations(made)
    yield Ends(robot, server, made.values, local_s(made))


@contextmanager
def _demo() -> Iterator[Ends]:
    """Give the demo's bundle, computing really; its robot is slowed so that the server pays."""
    from benches.real import LARGEST_ERROR, robots_copy, stations_on, stored_values
    from benches.workloads import demo_bundle

    bundle = demo_bundle()
    robots = robots_copy(bundle)
    values = stored_values(bundle)
    with stations_on(DEMO_SHARE, robots, bundle) as both:
        print(f"the robot: {both.slowed}", file=sys.stderr)
        last = len(bundle.manifest.cuts) - 1
        alone = both.plans.predict(last, goodput_bps=None, rtt_s=0.0)
        yield Ends(
            both.robot,
            both.server,
            values,
            alone.latency_s,
            LARGEST_ERROR,
            both.robot_prefix,
            both.server_prefix,
        )


@click.command()
@click.argument("name", metavar="[WORKLOAD]", type=click.Choice(NAMES), default="vgg19_bn")
@click.option("--testbed", help="Folder with profiles; default $SPLITRT_TESTBED.")
@click.option("--only", multiple=True, type=click.Choice(list(FAULTS)), help="All by default.")
@click.option("--objective", "objectives", multiple=True, default=OBJECTIVES, show_default=True)
@click.option(
    "--selector",
    type=click.Choice(selector_names()),
    default="splitrt",
    show_default=True,
)
@click.option("--times", default=3, show_default=True, help="Times that each fault comes.")
@click.option("--rate", "rate_mbps", default=93.0, show_default=True, help="Of the link, Mbps.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--records", type=click.File("w"), help="File for every inference, a line each.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="File for all rows.")
def main(  # noqa: PLR0913 (one argument an option)
    name: str,
    testbed: str | None,
    only: Sequence[str],
    objectives: Sequence[str],
    selector: str,
    times: int,
    rate_mbps: float,
    seed: int,
    records: TextIO | None,
    json_path: Path | None,
) -> None:
    """Cause faults while a robot runs WORKLOAD, and say what came of it."""
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=max(150, Console().width))
    rows: list[Judged] = []
    try:
        with ends_of(name, testbed) as ends:
            wanted = [str(objective_of(text, ends.local_s)) for text in objectives]
            for fault in only or FAULTS:
                for objective in wanted:
                    draw = random.Random(f"{seed} {fault}")  # noqa: S311 (moments, no secret)
                    with _link(rate_mbps, check=not rows) as link:
                        row = run_fault(
                            fault, objective, ends, link,
                            selector=selector, times=times, draw=draw, keep=records,
                        )  # fmt: skip
                    rows.append(row)
                    told = "; ".join(row.complaints) or "ok"
                    print(f"{fault} {objective}: {told}", file=sys.stderr, flush=True)
    except SplitError as exc:
        raise click.ClickException(str(exc)) from exc
    console.print(f"{name}: the robot alone takes {ends.local_s * 1e3:.1f} ms; {rate_mbps:g} Mbps")
    console.print(table_of(rows))
    for fault in dict.fromkeys(row.fault for row in rows):
        console.print(f"{fault}: {FAULTS[fault].words}", highlight=False)
    complaints = [(row, line) for row in rows for line in row.complaints]
    for row, line in complaints:
        console.print(f"FAIL {row.fault} {row.objective}: {line}", highlight=False)
    if not complaints:
        console.print("ok   all answered, right, within their bounds, and the server used again")
    if json_path is not None:
        found = {"workload": name, "local_s": ends.local_s, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(found, indent=1) + "\n")
    if not all(row.sound for row in rows):
        raise SystemExit(1)


@contextmanager
def _link(rate_mbps: float, *, check: bool) -> Iterator[ShapedLink]:
    """Shape a link; where it is to be checked, say what it is."""
    with shaped_link(rate_mbps, half_duplex=True) as link:
        if link.rate_mbps is None:
            raise click.ClickException(link.description)
        if check:
            found = check_link(link)
            print(f"{link.description}: {found} {trouble(found, link)}", file=sys.stderr)
        yield link


if __name__ == "__main__":
    main()
