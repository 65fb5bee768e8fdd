"""Every selector on replayed robots and a link that follows a recorded trace.

    python scripts/trace_table.py vgg19_bn agrnav --trace indoors --objective latency --jobs 2
    python scripts/trace_table.py resnet152 --load 10

Robots and server take the times that the published devices took; link, transport, stripes and
choices are real. Each selector runs the same number of inferences from the same place of the trace
on, back to back, with a server and a link of its own. What is compared and what is not the same
for all is in docs/selectors.md.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import click
from benches.row import Row
from link_check import check_link, trouble
from rich.console import Console
from rich.table import Table
from server_load import load_line
from shaped_link import shaped_link
from trace_options import BUILD, NAMES, trace_options, traces_of
from trace_runs import Outcome, Run, joined, objective_of, replay_all
from workloads.bundles import replayed

from engines.errors import SplitError
from runtime.selector import selector_names

__all__ = ["SELECTORS", "checks", "table_of"]

SELECTORS = (*selector_names(replay=True),)
OWN, ORACLE, ALONE = "splitrt", "oracle", "local"

NEAR_ORACLE = 1.05
"""``splitrt``'s mean over the oracle's."""

BEHIND = 1.01
"""A rival is ahead where ``splitrt`` takes more than so many times as much: less is the noise of
two runs."""

TAIL = 1.2
"""The 99th percentile of ``splitrt`` over that of the robot alone."""

KEPT = 0.99
"""Part of the inferences that keep a deadline which the robot alone would."""


def checks(outcomes: Sequence[Outcome]) -> list[Row]:
    """Judge ``splitrt`` against the others of the same workload, objective and trace."""
    groups: dict[tuple[str, str, str], dict[str, Outcome]] = {}
    for outcome in outcomes:
        run = outcome.run
        key = run.workload, run.objective, run.trace.stem
        groups.setdefault(key, {})[run.selector] = outcome
    rows: list[Row] = []
    for key, some in groups.items():
        rows += _right(key, some)
        if OWN in some:
            rows += _kept(key, some) if some[OWN].kept is not None else _least(key, some)
    return rows


def _least(key: tuple[str, str, str], some: dict[str, Outcome]) -> list[Row]:
    """Compare what the objective makes small, and where it is latency the slowest too."""
    by_energy = key[1].startswith("energy")
    unit = "J" if by_energy else "ms"
    means = {n: o.mean_j if by_energy else o.mean_s * 1e3 for n, o in some.items()}
    own = means[OWN]
    what = " ".join(key)
    rows: list[Row] = []
    if ORACLE in means:
        rows.append(_row(what, own, unit, "the oracle's mean", means[ORACLE], NEAR_ORACLE))
    rivals = {name: mean for name, mean in means.items() if name not in (OWN, ORACLE)}
    if rivals:
        best = min(rivals, key=lambda name: rivals[name])
        rows.append(_row(what, own, unit, f"the best rival's mean, {best}", rivals[best], BEHIND))
    if ALONE in some and not by_energy:
        slowest = [some[name].quantile_s(0.99) * 1e3 for name in (OWN, ALONE)]
        rows.append(_row(what, slowest[0], "ms", "p99 of the robot alone", slowest[1], TAIL))
    return rows


def _kept(key: tuple[str, str, str], some: dict[str, Outcome]) -> list[Row]:
    """Judge how often a deadline was kept, and at what energy."""
    own, what = some[OWN], " ".join(key)
    kept = own.kept or 0.0
    text = f"{own.objective}, kept by that part"
    rows = [Row("traces", what, kept, "", text, kept / KEPT, f"at least {KEPT}", kept >= KEPT)]
    if ALONE in some:
        alone = some[ALONE]
        mostly = own.parts["local"] + own.parts["fallback"] > 0.5  # then both do the same
        most = BEHIND if mostly else 1.0
        rows.append(_row(what, own.mean_j, "J", "energy of the robot alone", alone.mean_j, most))
    return rows


def _right(key: tuple[str, str, str], some: dict[str, Outcome]) -> list[Row]:
    wrong = {name: outcome.wrong for name, outcome in some.items() if outcome.wrong}
    if not wrong:
        return []
    text = ", ".join(f"{name} {count}" for name, count in wrong.items())
    count = float(sum(wrong.values()))
    return [Row("traces", " ".join(key), count, "wrong", text, count, "0", False)]


def _row(what: str, own: float, unit: str, rival: str, value: float, most: float) -> Row:
    reference = f"{rival} {value:.2f} {unit}"
    ratio = own / value
    return Row("traces", what, own, unit, reference, ratio, f"at most {most}", ratio <= most)


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """Return all runs as a table."""
    table = Table("workload", "trace", "objective", "selector")
    titles = ("mean ms", "p50", "p99", "J", "remote", "local", "fallback", "hedged", "kept")
    for title in (*titles, "link Mbps", "s"):
        table.add_column(title, justify="right")
    for outcome in outcomes:
        run, parts = outcome.run, outcome.parts
        table.add_row(
            run.workload,
            run.trace.stem.removesuffix("_10hz"),
            outcome.objective,
            run.selector,
            f"{outcome.mean_s * 1e3:.1f}",
            f"{outcome.quantile_s(0.5) * 1e3:.1f}",
            f"{outcome.quantile_s(0.99) * 1e3:.1f}",
            f"{outcome.mean_j:.3f}",
            *(f"{parts[by]:.0%}" for by in ("remote", "local", "fallback", "hedged")),
            "" if outcome.kept is None else f"{outcome.kept:.1%}",
            f"{outcome.goodput_bps / 1e6:.0f}",
            f"{outcome.seconds:.0f}",
        )
    return table


def show_checks(console: Console, rows: Sequence[Row]) -> None:
    """Print checks, a line each."""
    for row in rows:
        verdict = "ok  " if row.met else "FAIL"
        given = f"{row.value:.2f} {row.unit}".strip()
        line = f"{verdict} {row.workload}: {given} against {row.reference}: {row.ratio:.3f}"
        console.print(f"{line}, {row.target}", highlight=False)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for machines, every latency and energy in it."""
    run = {**asdict(outcome.run), "trace": outcome.run.trace.name}
    more = {"mean_s": outcome.mean_s, "p99_s": outcome.quantile_s(0.99), "mean_j": outcome.mean_j}
    return {**asdict(replace(outcome, records=())), "run": run, **more}


def keep(outcomes: Sequence[Outcome], file: TextIO) -> None:
    """Write every inference as a line of JSON, with what it belongs to."""
    for outcome in outcomes:
        run = outcome.run
        belongs = {
            "workload": run.workload,
            "trace": run.trace.stem,
            "asked": outcome.objective,
            "selector": run.selector,
        }
        for record in outcome.records:
            file.write(json.dumps({**belongs, **record}) + "\n")


def _every_s(text: str) -> float | None:
    if text == "local":
        return None
    try:
        return float(text) * 1e-3
    except ValueError:
        raise click.UsageError(f"--every: expected ms or `local`, given {text!r}") from None


def measure(
    runs: Sequence[Run], made: dict[str, Any], jobs: int, console: Console, *, rounds: int = 1
) -> tuple[list[Outcome], list[Row]]:
    """Carry out runs, telling how far it is; returns what they gave, and the checks.

    Args:
        runs: What to carry out.
        made: The workloads by name.
        jobs: Runs at a time.
        console: Where to.
        rounds: How often all of them are carried out, in turn; a run's rounds count as one.
    """
    lock = threading.Lock()
    count = [0]

    def tell(outcome: Outcome) -> None:
        with lock:
            count[0] += 1
            run = outcome.run
            print(
                f"{count[0]}/{len(runs) * rounds} {run.workload} {run.trace.stem} "
                f"{outcome.objective} {run.selector}: {outcome.mean_s * 1e3:.1f} ms",
                file=sys.stderr,
                flush=True,
            )

    every = []
    for number in range(1, rounds + 1):
        every.append(replay_all(runs, made, jobs=jobs, done=tell))
        for outcome in every[-1]:
            for record in outcome.records:
                record["round"] = number
    outcomes = [joined(same) for same in zip(*every, strict=True)]
    rows = checks(outcomes)
    console.print(table_of(outcomes))
    show_checks(console, rows)
    alone = [o.quantile_s(0.5) / o.local_s for o in outcomes if o.run.selector == ALONE]
    if alone:
        console.print(
            f"the machine: the robot alone took {min(alone):.3f} to {max(alone):.3f} times its "
            f"table (median of a run), {jobs} at a time on {os.cpu_count()} cores"
        )
    return outcomes, rows


@click.command()
@trace_options
@click.option(
    "--every", metavar="MS|local", default="0", show_default=True,
    help="Begin one every so many ms; local: 1.25 x what the robot alone takes; 0: back to back.",
)  # fmt: skip
@click.option(
    "--objective", "objectives", multiple=True, default=("latency",), show_default=True,
    help="latency, energy, deadline (1.25 x local), deadline=80ms ...; one or more.",
)  # fmt: skip
@click.option("--selector", "selectors", multiple=True, type=click.Choice(SELECTORS))
@click.option("--hedge/--no-hedge", default=True, help="Whether robots keep their promise.")
@click.option("--jobs", default=1, show_default=True, help="Runs at a time.")
@click.option(
    "--rounds", default=1, show_default=True, type=click.IntRange(1),
    help="How often each; all take turns, so that a drift of the machine is not one selector's.",
)  # fmt: skip
@click.option("--load", "load", type=int, help="Show what N busy clients of the server change.")
@click.option("--rate", "rate_mbps", default=93.0, show_default=True, help="Of the link, --load.")
@click.option("--records", type=click.File("w"), help="File for every inference, a line each.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="File for all runs.")
@click.option("--strict", is_flag=True, help="Exit with 1 where a check fails.")
def main(  # noqa: PLR0913 (one argument an option)
    names: Sequence[str],
    testbed: str | None,
    traces: Sequence[str],
    begin_s: float,
    count: int,
    every: str,
    objectives: Sequence[str],
    selectors: Sequence[str],
    hedge: bool,  # noqa: FBT001 (click passes it)
    jobs: int,
    rounds: int,
    load: int | None,
    rate_mbps: float,
    records: TextIO | None,
    json_path: Path | None,
    strict: bool,  # noqa: FBT001 (click passes it)
) -> None:
    """Replay workloads (all by default) with every selector on recorded traces."""
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=max(150, Console().width))
    try:
        for objective in objectives:
            objective_of(objective, 1.0)  # a wrong one is told before anything is run
        if load is not None and rounds > 1:
            raise click.UsageError("--rounds: expected 1 with --load, which is one time line")
        every_s = _every_s(every)
        paths = traces_of(testbed, traces)
        made = {name: replayed(name, BUILD, testbed) for name in names or NAMES}
        if load is not None:
            told, rows = load_line(made, load, rate_mbps, console)
            show_checks(console, rows)
        else:
            with shaped_link(rate_mbps, half_duplex=True) as link:
                check = check_link(link)
                print(f"{link.description}: {check} {trouble(check, link)}", file=sys.stderr)
            runs = [
                Run(name, objective, selector, path, begin_s, count, every_s, hedge)
                for path in paths
                for name in made
                for objective in objectives
                for selector in selectors or SELECTORS
            ]
            outcomes, rows = measure(runs, made, jobs, console, rounds=rounds)
            told = [as_json(outcome) for outcome in outcomes]
            if records is not None:
                keep(outcomes, records)
    except SplitError as exc:
        raise click.ClickException(str(exc)) from exc
    if json_path is not None:
        found = {
            "jobs": jobs,
            "rounds": rounds,
            "runs": told,
            "checks": [asdict(row) for row in rows],
        }
        json_path.write_text(json.dumps(found, indent=1) + "\n")
    if strict and not all(row.met for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
