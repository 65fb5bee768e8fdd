"""Latency tables for use: this device's own, and what crosses the wire of them."""

from __future__ import annotations

import logging
import threading
from typing import Callable, Optional, Tuple

from calibration.codings import CodecCost, Codings
from calibration.energy import StatePower
from calibration.latency_table import LatencyTable, load_table, store_table
from calibration.measure import measure_latency
from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes, estimated_times
from engines.codecs import codec_ids_here
from engines.errors import SplitError
from engines.manifest import Manifest
from engines.program import Program
from engines.stripe_plans import Plan
from runtime.codec_policy import AUTO, CodecPolicy
from runtime.wire import Table

__all__ = ["Preparer", "prepare_plans", "table_for", "times_of", "wire_table"]

logger = logging.getLogger(__name__)

_QUICK_RUNS = 5
_QUICK_BUDGET_S = 10.0
"""A table measured on the way in: good enough to choose a cut, quick enough to wait for."""

_TOLD_BYTES = 128 * 1024
"""Costs of codecs in a table on the wire take at most so much of its message's limit."""


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
        codec_ids=codec_ids_here(),
        codecs=_told(table.codecs),
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
    policy: CodecPolicy = AUTO,
) -> Optional[PreparedPlans]:
    """Prepare every cut and plan for the tables of both sides; none where one does not fit.

    With ``least_halo``, lossy plans of at least so many rows of halo are among them; of all plans,
    only those that ``usable`` says can be carried out. The policy says which codecs are.

    Takes some tenths of a second on a small robot where the bundle has stripes.
    """
    times = times_of(robot, manifest), times_of(server, manifest)
    if times[0] is None or times[1] is None:
        return None
    offer = policy.offer(robot, server)
    return PreparedPlans(
        manifest,
        times[0],
        times[1],
        power,
        least_halo=least_halo,
        usable=usable,
        codings=None if offer is None else Codings(manifest, offer),
    )


def _told(costs: Tuple[CodecCost, ...]) -> Tuple[CodecCost, ...]:
    """Return what a peer is told of codecs' costs: all, unless it would not fit its message."""
    size = 0
    for place, cost in enumerate(costs):
        size += len(cost.tensor.encode()) + len(cost.codec) + 40
        if size > _TOLD_BYTES:
            return costs[:place]
    return costs


class Preparer:
    """Keeps the plans for the server's current table, and prepares them where nobody waits.

    Safe across threads.

    Args:
        manifest: The bundle's manifest.
        robot: The robot's table.
        power: The robot's power by state.
        least_halo: See :func:`prepare_plans`.
        usable: See :func:`prepare_plans`.
        policy: The same.
        then: Told of plans each time that they have been prepared, by the thread that did.
    """

    def __init__(
        self,
        manifest: Manifest,
        robot: Table,
        power: StatePower,
        *,
        least_halo: Optional[int] = None,
        usable: Callable[[Plan], bool] = lambda _: True,
        policy: CodecPolicy = AUTO,
        then: Callable[[PreparedPlans], None] = lambda _: None,
    ) -> None:
        self._then = then
        self._policy = policy
        self._manifest = manifest
        self._robot = robot
        self._power = power
        self._least_halo = least_halo
        self._usable = usable
        self._lock = threading.Lock()
        self._server: Optional[Table] = None
        self._plans: Optional[PreparedPlans] = None
        self._thread: Optional[threading.Thread] = None

    def __repr__(self) -> str:
        return f"<Preparer {self._plans!r}>"

    def plans(self, server: Optional[Table]) -> Optional[PreparedPlans]:
        """Return all plans for a server's table; none while they are being prepared.

        A server that comes back with the same times needs nothing prepared.
        """
        if server is None:
            return None
        with self._lock:
            if self._server is server or self._server == server:
                return self._plans
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self.prepare, args=(server,), name="splitrt-prepare", daemon=True
                )
                self._thread.start()
        return None

    def prepare(self, server: Optional[Table]) -> None:
        """Prepare all plans for a server's table now."""
        if server is None:
            return
        try:
            plans = self._prepared(server)
            if plans is not None:
                self._tell(plans)
        finally:
            with self._lock:
                self._thread = None

    def _prepared(self, server: Table) -> Optional[PreparedPlans]:
        """Prepare all plans, which can be had from then on."""
        plans: Optional[PreparedPlans] = None
        try:
            plans = prepare_plans(
                self._manifest,
                self._robot,
                server,
                power=self._power,
                least_halo=self._least_halo,
                usable=self._usable,
                policy=self._policy,
            )
        finally:
            with self._lock:
                self._server, self._plans = server, plans
        return plans

    def _tell(self, plans: PreparedPlans) -> None:
        try:
            self._then(plans)
        except Exception:  # the plans are there, which is what counts
            logger.exception("nothing was worked out beforehand")

    def close(self) -> None:
        """Wait for what is being prepared; safe to call again."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
