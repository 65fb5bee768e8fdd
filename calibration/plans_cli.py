"""Prints plans, for ``runtime build`` and ``split-bundle inspect --target``."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Dict, List, Optional, Sequence

import click
from rich.console import Console
from rich.table import Table

from engines.manifest import Manifest
from engines.plans import ROWS, PlanHeader

__all__ = ["part_of", "plan_record", "print_plans"]


def part_of(header: PlanHeader, manifest: Manifest) -> str:
    """Say what a plan is of: ``segment``, ``form`` (a striped one) or ``half`` (a fused one)."""
    if header.onnx in (PurePosixPath(segment.file).name for segment in manifest.segments):
        return "segment"
    return "form" if ROWS in header.options else "half"


def plan_record(
    header: PlanHeader, manifest: Manifest, *, found: Optional[bool] = None
) -> Dict[str, Any]:
    """Return what is known of a plan, as JSON has it."""
    record: Dict[str, Any] = {
        "onnx": header.onnx,
        "part": part_of(header, manifest),
        "bytes": header.size,
        "precision": header.precision,
        "fingerprint": {"backend": header.fingerprint.backend, **header.fingerprint.fields},
        "build_s": header.build_s,
        "key": header.key,
    }
    if found is not None:
        record["found"] = found
    return record


def print_plans(headers: Sequence[PlanHeader], manifest: Manifest) -> None:
    """Print a table of plans, and what they add up to: each holds the weights that it uses."""
    table = Table()
    table.add_column("graph", no_wrap=True)
    for title in ("part", "bytes", "precision", "build s", "valid for"):
        table.add_column(title)
    totals: Dict[str, List[int]] = {"segment": [], "half": [], "form": []}
    for header in headers:
        part = part_of(header, manifest)
        totals[part].append(header.size)
        table.add_row(
            header.onnx,
            part,
            str(header.size),
            header.precision,
            f"{header.build_s:.2f}",
            str(header.fingerprint),
        )
    Console().print(table)
    seconds = sum(header.build_s for header in headers)
    segments, halves, forms = totals["segment"], totals["half"], totals["form"]
    striped = f"; {len(forms)} of striped forms, {sum(forms)} bytes" if forms else ""
    click.echo(
        f"{len(headers)} plans, {sum(segments + halves + forms)} bytes, built in {seconds:.2f} s: "
        f"{len(segments)} of segments, {sum(segments)} bytes; "
        f"{len(halves)} of halves, {sum(halves)} bytes{striped}"
    )
