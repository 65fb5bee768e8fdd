"""Every striped form of the published workloads, at full size, against the whole.

Compiles each workload with stripes, then runs every form of every segment, every form of a
divided head and every row split on the workload's own example, and prints the largest error. Where
it is not 0, ONNX Runtime chose another kernel for another height: the same sums in another order.

    python scripts/stripe_proof.py [--only vgg19_bn] [--keep FOLDER]
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from workloads import WORKLOADS

from compiler import CompileOptions, compile_model
from compiler.stripes.proof import prove_stripes
from engines.backend import open_backend
from engines.console import command_options
from engines.ondemand import OnDemandBackend
from engines.program import Program

LIMIT = 1e-5
"""Largest error allowed, relative to the largest value of a tensor."""


@click.command()
@click.option("--only", type=click.Choice(sorted(WORKLOADS)), help="One workload.")
@click.option("--keep", type=click.Path(file_okay=False), help="Keep the bundles in this folder.")
@command_options
def main(only: str | None, keep: str | None) -> None:
    """Compile, prove and print a table; exit 1 if an error is above 1e-5."""
    logging.basicConfig(level=logging.ERROR)
    table = Table(box=SIMPLE, title="striped forms against the whole", title_justify="left")
    for title in ("workload", "rows", "segments", "cuts", "forms", "ends at", "error", "s"):
        table.add_column(title, justify="left" if title in ("workload", "ends at") else "right")
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name in [only] if only else WORKLOADS:
            begin = time.monotonic()
            model, example = WORKLOADS[name].build()
            out = Path(keep or scratch) / f"{name}.bundle"
            bundle, _ = compile_model((model, example), out, options=CompileOptions(name=name))
            del model
            striping = bundle.manifest.striping
            assert striping is not None, f"{name} has no stripes"
            with Program(bundle, OnDemandBackend(open_backend("ort")), fuse=False) as program:
                inputs, _ = bundle.parity_vectors()
                error = prove_stripes(program, inputs, progress=_quiet)
            worst = max(worst, error)
            ends = striping.ended_by[0].operator if striping.ended_by else "nothing"
            table.add_row(
                name,
                str(striping.rows),
                f"{len(striping.segments)} of {len(bundle.manifest.segments)}",
                f"{len(striping.cuts)} of {len(bundle.manifest.cuts)}",
                str(len(striping.files())),
                ends,
                f"{error:.2g}",
                f"{time.monotonic() - begin:.0f}",
            )
    Console(width=max(100, Console().width)).print(table)
    print(f"largest error {worst:.2g}, allowed {LIMIT:g}")
    raise SystemExit(worst > LIMIT)


def _quiet(done: int, total: int) -> None:
    """Ignore how far the proof is."""
    del done, total


if __name__ == "__main__":
    main()
