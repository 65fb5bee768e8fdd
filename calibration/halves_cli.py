"""Prints what the fused halves of a bundle save, for ``runtime profile``."""

from __future__ import annotations

from typing import Any, Dict, List

import click
from rich.console import Console
from rich.table import Table

from calibration.latency_table import PAYS, LatencyTable
from engines.halves import Span, halves_of, segments_of
from engines.manifest import Manifest

__all__ = ["half_records", "print_halves"]


def half_records(manifest: Manifest, table: LatencyTable) -> List[Dict[str, Any]]:
    """Return, for each likely half, both ways through it and which is used, as JSON has it."""
    measured = {(half.start, half.stop): half for half in table.halves}
    records: List[Dict[str, Any]] = []
    for span in halves_of(manifest, "auto"):
        record: Dict[str, Any] = {
            **_name(manifest, span),
            "segments": len(segments_of(manifest, span)),
            "chain_p50_ms": None,
            "fused_p50_ms": None,
            "ratio": None,
            "runs_as": "chain",
        }
        half = measured.get(span)
        if half is not None:
            record["chain_p50_ms"] = round(half.chain.p50_s * 1e3, 4)
            record["fused_p50_ms"] = round(half.fused.p50_s * 1e3, 4)
            record["ratio"] = round(half.ratio, 4)
            record["runs_as"] = "fused" if half.pays else "chain"
        records.append(record)
    return records


def print_halves(manifest: Manifest, table: LatencyTable) -> None:
    """Print :func:`half_records`, and what they come to."""
    records = half_records(manifest, table)
    if not records:
        click.echo("no fused halves: every likely half is a single segment")
        return
    shown = Table("cut", "half", "segments", "chain ms", "fused ms", "chain/fused", "runs as")
    for record in records:
        there = record["ratio"] is not None
        shown.add_row(
            record["cut"],
            record["half"],
            str(record["segments"]),
            f"{record['chain_p50_ms']:.3f}" if there else "",
            f"{record['fused_p50_ms']:.3f}" if there else "",
            f"{record['ratio']:.3f}" if there else "",
            record["runs_as"] if there else "chain (no fused engine)",
        )
    Console().print(shown)
    fused = sum(1 for record in records if record["runs_as"] == "fused")
    click.echo(
        f"{fused} of {len(records)} likely halves run fused: those whose chain takes over "
        f"{(PAYS - 1) * 100:.0f}% longer"
    )


def _name(manifest: Manifest, span: Span) -> Dict[str, Any]:
    start, stop = span
    last = len(manifest.cuts) - 1
    if span == (0, last):
        return {"cut": "", "half": "whole"}
    cut = manifest.cuts[stop if start == 0 else start]
    return {"cut": cut.id, "half": "head" if start == 0 else "tail"}
