"""Latency tables for use: this device's own, and what crosses the wire of them."""

from __future__ import annotations

import logging
from typing import Callable, Optional

from calibration.latency_table import LatencyTable, load_table, store_table
from calibration.measure import measure_latency
from engines.errors import SplitError
from engines.program import Program
from runtime.wire import Table

__all__ = ["table_for", "wire_table"]

logger = logging.getLogger(__name__)

_QUICK_RUNS = 5
_QUICK_BUDGET_S = 10.0
"""A table measured on the way in: good enough to choose a cut, quick enough to wait for."""


def table_for(
    program: Program, *, progress: Optional[Callable[[int, int], None]] = None
) -> LatencyTable:
    """Return this device's latency table; measure and keep a quick one where there is none.

    The program runs as chains from then on what the table says does not pay as fused halves. A
    quick table does not say: ``runtime profile`` measures that.
    """
    table = load_table(program.bundle, program.backend.fingerprint())
    if table is not None:
        program.keep_chained(table.chained)
        return table
    logger.info("no latency table for this device: measuring a quick one")
    table = measure_latency(
        program, runs=_QUICK_RUNS, warmup=2, budget_s=_QUICK_BUDGET_S, progress=progress
    )
    try:
        store_table(program.bundle, table)
    except SplitError as exc:
        logger.warning("%s; measured anew at the next start", exc)
    return table


def wire_table(table: LatencyTable) -> Table:
    """Return what a peer needs of a table: expected seconds of each segment, as they are run."""
    ratio = table.fused_ratio
    return Table(
        segments_s=tuple(segment.p50_s * ratio for segment in table.segments),
        device=str(table.fingerprint),
    )
