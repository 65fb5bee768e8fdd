"""Measures stripes: a middle stripe of every striped segment at a few shares, and row splits.

A stripe's bounds must suit its segment, so the shares that can be run are seldom just those of
:data:`~calibration.segment_times.SHARES`. The nearest ones are timed, and times at the shares
themselves are read off them; that of the whole segment, unstriped, is the time at 1.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from calibration.latency_table import Timing
from calibration.segment_times import SHARES, at_shares
from engines.errors import SplitError
from engines.program import Program
from engines.rows import RowsBackend, RowsEngine, rows_backend
from engines.stripe_runs import rows_between
from engines.stripes import RowSplit, StripedSegment, Striping, carry_name, kept_name
from engines.tensors import Array

__all__ = ["StripeTimings", "measure_stripes", "stripe_parts"]

logger = logging.getLogger(__name__)

_FEWEST_RUNS = 3

StripeTimings = Tuple[Tuple[Tuple[Timing, ...], ...], Tuple[Tuple[Timing, ...], ...]]
"""``LatencyTable.striped`` and ``LatencyTable.row_splits``."""


def stripe_parts(program: Program) -> int:
    """Return how many things :func:`measure_stripes` times: 0 where it can time none."""
    striping = program.bundle.manifest.striping
    if striping is None or rows_backend(program.backend) is None:
        return 0
    return len(striping.segments) + len(striping.row_splits)


def measure_stripes(
    program: Program,
    inputs: Mapping[str, Array],
    segments: Sequence[Timing],
    *,
    runs: int,
    warmup: int,
    budget_s: float,
    progress: Optional[Callable[[int], None]] = None,
) -> StripeTimings:
    """Time the striped forms of a loaded program. Each is loaded for its turn only.

    Args:
        program: What to measure.
        inputs: The model's inputs.
        segments: Timings of the segments as wholes.
        runs: Timed runs of each form at each share.
        warmup: Untimed runs before them.
        budget_s: Stop early once this many seconds have passed; each form gets an equal share,
            but no fewer than 3 timed runs.
        progress: Called with the number of forms done.
    """
    striping = program.bundle.manifest.striping
    backend = rows_backend(program.backend)
    parts = stripe_parts(program)
    if striping is None or backend is None or not parts:
        return (), ()
    clock = _Clock(runs, warmup, budget_s / parts / (len(SHARES) - 1))
    env: Dict[str, Array] = dict(inputs)
    striped: List[Tuple[Timing, ...]] = []
    done = 0
    for segment in program.bundle.manifest.segments:
        points: Tuple[Timing, ...] = ()
        forms = striping.segment(segment.index)
        if segment.index in program.loaded:
            if forms is not None:
                measure = partial(_segment, program, backend, striping, forms, env, clock)
                points = _measured(f"segment {segment.index}", measure, segments[segment.index])
            env.update(program.run_segment(segment.index, env))
        striped.append(points)
        done += forms is not None
        if progress is not None and forms is not None:
            progress(done)
    splits: List[Tuple[Timing, ...]] = []
    complete = len(program.loaded) == len(segments)
    for split in striping.row_splits:
        behind = set(program.bundle.manifest.cuts[split.cut].robot_segments)
        rest = [t for index, t in enumerate(segments) if index not in behind]
        whole = Timing(sum(t.p50_s for t in rest), sum(t.p95_s for t in rest))
        measure = partial(_rows, program, backend, split, env, clock)
        splits.append(_measured(f"row split {split.cut}", measure, whole) if complete else ())
        done += 1
        if progress is not None:
            progress(done)
    return (tuple(striped) if any(striped) else ()), (tuple(splits) if any(splits) else ())


class _Clock:
    """Times one thing over and over."""

    def __init__(self, runs: int, warmup: int, budget_s: float) -> None:
        self._runs, self._warmup, self._budget_s = runs, warmup, budget_s

    def time(self, engine: RowsEngine, feed: Mapping[str, Array]) -> Timing:
        started = time.perf_counter()
        samples: List[float] = []
        for run in range(self._warmup + self._runs):
            begin = time.perf_counter()
            engine.run(feed)
            end = time.perf_counter()
            if run >= self._warmup:
                samples.append(end - begin)
            if end - started > self._budget_s and len(samples) >= min(_FEWEST_RUNS, self._runs):
                break
        p50, p95 = np.quantile(np.asarray(samples), [0.5, 0.95])
        return Timing(p50_s=float(p50), p95_s=float(p95))


def _segment(
    program: Program,
    backend: RowsBackend,
    striping: Striping,
    forms: StripedSegment,
    env: Mapping[str, Array],
    clock: _Clock,
) -> Dict[float, Timing]:
    """Time a middle stripe at every share that the segment's limits allow."""
    names = program.bundle.manifest.segments[forms.index].inputs
    low = -(-forms.least // forms.band) * forms.band
    most = min(forms.most, striping.rows - 1) // forms.band * forms.band
    sizes = _feasible(striping.rows, forms.band, most - low)

    def rows(lower: int, upper: int) -> Dict[str, Array]:
        base = striping.rows
        of = striping.tensors
        return {
            n: rows_between(env[n], of[n], of[n].upto(lower, base), of[n].upto(upper, base))
            for n in names
        }

    found: Dict[float, Timing] = {}
    first = backend.load_rows(program.bundle.path(forms.first))
    try:
        kept = _run(first, rows(0, low))
    finally:
        first.close()
    carried = {
        carry_name(c.tensor, forms.index): kept[kept_name(c.tensor, forms.index)]
        for c in forms.carries
    }
    middle = backend.load_rows(program.bundle.path(forms.middle))
    try:
        for size in sizes:
            feed = _feed(middle, {**rows(low, low + size), **carried})
            found[size / striping.rows] = clock.time(middle, feed)
    finally:
        middle.close()
    return found


def _rows(
    program: Program,
    backend: RowsBackend,
    split: RowSplit,
    env: Mapping[str, Array],
    clock: _Clock,
) -> Dict[float, Timing]:
    """Time the robot's rows of a row split at every share that its limits allow."""
    found: Dict[float, Timing] = {}
    top = backend.load_rows(program.bundle.path(split.top))
    low = -(-split.least // split.band) * split.band
    most = split.most // split.band * split.band
    try:
        for bound in _feasible(split.rows, split.band, most, least=low):
            rows = {
                n: rows_between(env[n], of, 0, bound * of.num // of.den)
                for n, of in split.tensors.items()
                if n in split.starts
            }
            found[bound / split.rows] = clock.time(top, _feed(top, rows))
    finally:
        top.close()
    return found


def _feasible(rows: int, band: int, most: int, *, least: int = 1) -> List[int]:
    """Return the multiples of a band nearest to the shares of some rows, within limits."""
    low, high = max(-(-least // band), 1), most // band
    near = {min(max(round(rows * share / band), low), high) for share in SHARES[:-1]}
    return sorted(number * band for number in near) if low <= high else []


def _measured(
    what: str, measure: "Callable[[], Dict[float, Timing]]", whole: Timing
) -> Tuple[Timing, ...]:
    """Read times at the shares off those that could be measured; empty where none could."""
    try:
        found = measure()
    except SplitError as exc:
        logger.warning("stripes of %s are not measured: %s", what, exc)
        return ()
    if not found:
        return ()
    found[1.0] = whole
    p50 = at_shares({share: timing.p50_s for share, timing in found.items()})
    p95 = at_shares({share: timing.p95_s for share, timing in found.items()})
    return tuple(Timing(a, b) for a, b in zip(p50, p95))


def _feed(engine: RowsEngine, env: Mapping[str, Array]) -> Dict[str, Array]:
    return {spec.name: np.ascontiguousarray(env[spec.name]) for spec in engine.inputs}


def _run(engine: RowsEngine, env: Mapping[str, Array]) -> Dict[str, Array]:
    return engine.run(_feed(engine, env))
