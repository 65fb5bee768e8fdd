"""``runtime replay``: what other selectors would have done in a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import click
from rich.console import Console
from rich.table import Table

from calibration.objectives import OBJECTIVE_FORMS, parse_objective
from engines.console import command_options, print_json
from runtime.recording import read_run
from runtime.replay import MEASURED, RECORDED, Outcome, replay
from runtime.selector import selector_names

__all__ = ["replay_command"]

_WIDTH = 120
"""Columns of the table where the terminal has fewer."""


@click.command("replay")
@click.argument("run_file", metavar="RUN", type=click.Path(dir_okay=False))
@click.option(
    "--selector",
    "names",
    multiple=True,
    help=f"{', '.join(selector_names(replay=True))}, a cut or a plan; may be given again. "
    "Default: all but cuts and plans.",
)
@click.option("--objective", help=f"{OBJECTIVE_FORMS}. Default: what the run was recorded with.")
@click.option("--inferences", is_flag=True, help="With --json: every inference, not only sums.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def replay_command(
    run_file: str,
    names: Tuple[str, ...],
    objective: Optional[str],
    inferences: bool,
    as_json: bool,
) -> None:
    """Let selectors decide again in RUN, which `runtime infer --record` wrote.

    What they decide is predicted for the goodput that the recorded transfers really had.
    """
    wanted = None if objective is None else parse_objective(objective)
    run = read_run(Path(run_file))
    for number, why in run.damaged:
        click.echo(f"{run_file}: line {number}: left out: {why}", err=True)
    chosen = names or _all(
        run.header.manifest.cuts[-1].refused, run.header.manifest.cuts[0].refused
    )
    outcomes = replay(run, (MEASURED, RECORDED, *chosen), objective=wanted)
    if as_json:
        print_json(
            {
                "run": run_file,
                "bundle": run.header.bundle,
                "recorded_with": run.header.selector,
                "damaged": [{"line": number, "why": why} for number, why in run.damaged],
                "outcomes": [_record(one, inferences=inferences) for one in outcomes],
            }
        )
        return
    click.echo(
        f"{len(run.inferences)} inferences of {run.header.manifest.name}, recorded with "
        f"{run.header.selector}; predicted for the goodput that they really had"
    )
    _print(outcomes)


def _all(local_refused: str, offload_refused: str) -> Tuple[str, ...]:
    refused = {"local": local_refused, "offload": offload_refused}
    return tuple(name for name in selector_names(replay=True) if not refused.get(name))


def _record(outcome: Outcome, *, inferences: bool) -> Dict[str, Any]:
    record = outcome.record()
    if inferences:
        record["inferences"] = [one.record() for one in outcome.inferences]
    return record


def _print(outcomes: Sequence[Outcome]) -> None:
    table = Table()
    for title in ("selector", "n", "mean ms", "p50", "p95", "p99", "mean J", "kept"):
        table.add_column(title, no_wrap=True)
    table.add_column("modes")
    for outcome in outcomes:
        record = outcome.record()
        cells = [outcome.selector, str(record["count"])]
        for key in ("mean_ms", "p50_ms", "p95_ms", "p99_ms"):
            cells.append("-" if record[key] is None else f"{record[key]:.2f}")
        energy, kept = record["mean_energy_j"], record["kept"]
        cells.append("-" if energy is None else f"{energy:.4f}")
        cells.append("" if kept is None else f"{100 * kept:.1f}%")
        cells.append(", ".join(f"{count} {mode}" for mode, count in record["modes"].items()))
        table.add_row(*cells)
    Console(width=max(_WIDTH, Console().width)).print(table)
    skipped = max(outcome.skipped for outcome in outcomes)
    if skipped:
        click.echo(
            f"{skipped} inferences left out: nothing is known of what they would have taken"
        )
