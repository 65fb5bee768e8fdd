"""Latency tables for use: this device's own, and what crosses the wire of them."""

from __future__ import annotations

import logging
from typing import Callable, Optional

from calibration.energy import StatePower
from calibration.latency_table import LatencyTable, load_table, store_table
from calibration.measure import measure_latency
from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes, estimated_times
from engines.errors import SplitError
from engines.manifest import Manifest
from engines.program import Program
from engines.stripe_plans import Plan
from runtime.wire import Table

__all__ = ["prepare_plans", "table_for", "times_of", "wire_table"]

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
    """Return what a peer needs of a table: expected seconds of segments, as they are run."""
    times = table.times()
    return Table(
        segments_s=times.segments_s,
        device=str(table.fingerprint),
        striped_s=times.striped_s,
        row_splits_s=times.row_splits_s,
    )


def times_of(table: Table, manifest: Manifest) -> Optional[SegmentTimes]:
    """Return the times that a table says, what was not measured of stripes estimated.

    None where the table is not of this bundle: another number of segments or row splits.
    """
    striping = manifest.striping
    splits = 0 if striping is None else len(striping.row_splits)
    if len(table.segments_s) != len(manifest.segments) or len(table.row_splits_s) > splits:
        return None
    times = SegmentTimes(table.segments_s, table.striped_s, table.row_splits_s)
    return estimated_times(manifest, times)


def prepare_plans(
    manifest: Manifest,
    robot: Table,
    server: Table,
    *,
    power: StatePower = StatePower(),
    least_halo: Optional[int] = None,
    usable: Callable[[Plan], bool] = lambda _: True,
) -> Optional[PreparedPlans]:
    """Prepare every cut and plan for the tables of both sides; none where one does not fit.

    With ``least_halo``, lossy plans of at least so many rows of halo are among them; of all plans,
    only those that ``usable`` says can be carried out.

    Takes some tenths of a second on a small robot where the bundle has stripes.
    """
    times = times_of(robot, manifest), times_of(server, manifest)
    if times[0] is None or times[1] is None:
        return None
    return PreparedPlans(manifest, times[0], times[1], power, least_halo=least_halo, usable=usable)
