"""Prints plans, for ``runtime build`` and ``split-bundle inspect --target``."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence

import click
from rich.console import Console
from rich.table import Table

from engines.plans import PlanHeader

__all__ = ["plan_record", "print_plans"]


def plan_record(header: PlanHeader, *, found: Optional[bool] = None) -> Dict[str, Any]:
    """Return what is known of a plan, as JSON has it."""
    record: Dict[str, Any] = {
        "onnx": header.onnx,
        "bytes": header.size,
        "precision": header.precision,
        "fingerprint": {"backend": header.fingerprint.backend, **header.fingerprint.fields},
        "build_s": header.build_s,
        "key": header.key,
    }
    if found is not None:
        record["found"] = found
    return record


def print_plans(headers: Sequence[PlanHeader]) -> None:
    """Print a table of plans, and what they add up to."""
    table = Table("segment", "bytes", "precision", "build s", "valid for")
    for header in headers:
        table.add_row(
            header.onnx,
            str(header.size),
            header.precision,
            f"{header.build_s:.2f}",
            str(header.fingerprint),
        )
    Console().print(table)
    total = sum(header.size for header in headers)
    seconds = sum(header.build_s for header in headers)
    click.echo(f"{len(headers)} plans, {total} bytes, built in {seconds:.2f} s")
