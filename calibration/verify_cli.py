"""Prints the parity of every cut, for ``runtime verify`` and ``split-bundle verify``."""

from __future__ import annotations

from typing import Any, Dict, List

import click
from rich.console import Console
from rich.table import Table

from calibration.parity import verify_cuts
from calibration.precisions import node_precisions, precisions_text
from engines.console import print_json, progress_bar
from engines.program import Program

__all__ = ["print_parity"]


def print_parity(program: Program, *, as_json: bool) -> bool:
    """Verify every cut of a loaded program and print a table. Returns whether all are ok."""
    manifest = program.bundle.manifest
    rows: List[Dict[str, Any]] = []
    with progress_bar("verifying cuts", len(manifest.cuts)) as advance:
        for parity in verify_cuts(program):
            row: Dict[str, Any] = {
                "cut": parity.cut.id,
                "max_error": parity.error,
                "largest_difference": parity.largest,
                "ok": parity.ok,
                "after": parity.cut.after,
            }
            rows.append(row)
            advance(len(rows), len(manifest.cuts))
    ok = all(row["ok"] for row in rows)
    quantised = manifest.quantisation
    largest = max(row["max_error"] for row in rows)
    if as_json:
        print_json(
            {
                "bundle": program.bundle.digest,
                "backend": program.backend.name,
                "ok": ok,
                "max_error": largest,
                "tolerance": manifest.parity.tolerance,
                "measure": manifest.parity.measure,
                "cuts": rows,
                "precisions": None if quantised is None else node_precisions(quantised),
            }
        )
        return ok
    by_rms = manifest.parity.measure == "rms"
    table = Table("cut", "largest error", *(["largest difference"] if by_rms else []), "", "after")
    for row in rows:
        verdict = "ok" if row["ok"] else "over tolerance"
        difference = [f"{row['largest_difference']:.2e}"] if by_rms else []
        table.add_row(row["cut"], f"{row['max_error']:.2e}", *difference, verdict, row["after"])
    Console().print(table)
    if quantised is not None:
        click.echo(f"nodes: {precisions_text(quantised)}")
    passed = sum(1 for row in rows if row["ok"])
    click.echo(
        f"{passed} of {len(rows)} cuts within tolerance on backend {program.backend.name}; "
        f"largest error {largest:.2e}{' (relative RMS)' if by_rms else ''}"
    )
    return ok
