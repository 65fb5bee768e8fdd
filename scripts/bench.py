"""Benchmarks: ratios measured in one run. Prints a table and writes ``build/bench.json``.

``make bench ONLY=name`` runs one part.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import platform
import sys
from pathlib import Path

import click
from benches.row import Row
from rich.console import Console
from rich.table import Table

PARTS = {
    "wire": "benches.wire",
    "segments": "benches.segments",
    "overhead": "benches.overhead",
    "compile": "benches.compiling",
    "decide": "benches.decide",
    "search": "benches.search",
    "vgg19": "benches.vgg19",
    "codecs": "benches.codecs",
    "stripes": "benches.stripes",
    "replay": "benches.replay",
    "traces": "benches.traces",
    "rate": "benches.rate",
    "robots": "benches.robots",
}
"""Name of a part -> module with ``run() -> list[Row]``."""

OUT = Path(__file__).resolve().parent.parent / "build" / "bench.json"


@click.command()
@click.option("--only", type=click.Choice(sorted(PARTS)), help="Run one part.")
def main(only: str | None) -> None:
    """Run the benchmarks."""
    logging.basicConfig(level=logging.ERROR)
    rows: list[Row] = []
    for name in [only] if only else PARTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += importlib.import_module(PARTS[name]).run()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    table = Table("name", "workload", "value", "against", "ratio", "target", "met")
    for row in rows:
        table.add_row(
            row.name,
            row.workload,
            f"{row.value:.2f} {row.unit}",
            row.reference,
            f"{row.ratio:.3f}",
            row.target,
            {None: "", True: "yes", False: "NO"}[row.met],
        )
    console = Console(width=max(120, Console().width))
    console.print(table)
    parts = _parts([row for row in rows if row.more])
    if parts is not None:
        Console(width=max(200, console.width)).print(parts)
    console.print(
        f"medians of one run; Python {platform.python_version()}, {os.cpu_count()} cores; {OUT}"
    )


def _parts(rows: list[Row]) -> Table | None:
    """Return a table of what else was measured, if anything was."""
    titles = list(dict.fromkeys(title for row in rows for title in row.more))
    if not titles:
        return None
    table = Table("workload", "value", "ratio", *titles)
    for row in rows:
        cells = [row.more.get(title, "") for title in titles]
        shown = [_cell(cell) for cell in cells]
        table.add_row(row.workload, f"{row.value:.2f}", f"{row.ratio:.3f}", *shown)
    return table


def _cell(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


if __name__ == "__main__":
    main()
