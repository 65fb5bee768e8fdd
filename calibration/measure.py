"""Measures a latency table: every segment within its chain, the whole, and the likely halves."""

from __future__ import annotations

import logging
import time
from typing import Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np

from calibration.latency_table import HalfTiming, LatencyTable, Timing
from calibration.measure_stripes import StripeTimings, measure_stripes, stripe_parts
from engines.errors import SplitError
from engines.halves import Span, halves_of
from engines.program import Program
from engines.tensors import Array

__all__ = ["measure_latency"]

logger = logging.getLogger(__name__)

_FEWEST_RUNS = 3
"""Runs below which a median says nothing."""

Advance = Callable[[int, int], None]


def measure_latency(
    program: Program,
    *,
    runs: int = 30,
    warmup: int = 3,
    budget_s: float = 60.0,
    halves: bool = False,
    stripes: bool = False,
    progress: Optional[Advance] = None,
) -> LatencyTable:
    """Time a loaded program on the bundle's parity inputs.

    A segment is timed inside its chain, so that it finds the caches as in a real inference. Those
    that are not loaded get a time of 0, and the whole is then the sum of the others.

    Args:
        program: What to measure; nothing else should use the device meanwhile.
        runs: Timed runs.
        warmup: Untimed runs before them.
        budget_s: Stop early once this many seconds have passed, but not before 3 timed runs.
        halves: Measure the likely halves too, fused and as chains, each in an equal share of
            ``budget_s`` more.
        stripes: Measure the striped forms too, where the bundle has them and the backend runs
            them, in ``budget_s`` more.
        progress: Called with (runs done, runs in all).
    """
    inputs, _ = program.bundle.parity_vectors()
    started = time.perf_counter()
    segments: List[List[float]] = [[] for _ in program.bundle.manifest.segments]
    whole: List[float] = []
    complete = len(program.loaded) == len(segments)
    fused = _load(program, (0, program.last))
    total = warmup + runs
    spans = list(halves_of(program.bundle.manifest, "auto")) if halves else []
    parts = stripe_parts(program) if stripes else 0
    everything = total * (1 + len(spans)) + parts
    done = 0
    for done in range(1, total + 1):
        times = _chain_times(program, inputs)
        begin = time.perf_counter()
        if complete:
            program.run(inputs, 0, program.last, fused=fused)
        taken = time.perf_counter() - begin
        if done > warmup:
            for samples, sample in zip(segments, times):
                samples.append(sample)
            whole.append(taken if complete else sum(times))
        if progress is not None:
            progress(done, everything)
        late = time.perf_counter() - started > budget_s
        if late and len(whole) >= min(_FEWEST_RUNS, runs):
            break
    measured: List[HalfTiming] = []
    for number, span in enumerate(spans, 1):
        if _load(program, span):
            share_s = budget_s / len(spans)
            measured.append(_measure_half(program, inputs, span, runs, warmup, share_s))
        if progress is not None:
            progress(total * (1 + number), everything)
    whole_timing = _timing(whole)
    for half in measured:
        if (half.start, half.stop) == (0, program.last):
            whole_timing = half.fused if half.pays else half.chain
    timings = tuple(_timing(samples) for samples in segments)
    striped, row_splits = _measure_stripes(
        program,
        inputs,
        timings,
        runs=runs,
        warmup=warmup,
        budget_s=budget_s,
        before=everything - parts,
        parts=parts,
        progress=progress,
    )
    return LatencyTable(
        bundle=program.bundle.digest,
        fingerprint=program.backend.fingerprint(),
        runs=len(whole),
        segments=timings,
        whole=whole_timing,
        striped=striped,
        row_splits=row_splits,
        halves=tuple(measured),
    )


def _measure_stripes(
    program: Program,
    inputs: Mapping[str, Array],
    timings: Sequence[Timing],
    *,
    runs: int,
    warmup: int,
    budget_s: float,
    before: int,
    parts: int,
    progress: Optional[Advance],
) -> StripeTimings:
    """Time stripes; ``before`` things are done already, ``parts`` are still to do."""
    if not parts:
        return (), ()

    def advance(done: int) -> None:
        if progress is not None:
            progress(before + done, before + parts)

    return measure_stripes(
        program,
        inputs,
        timings,
        runs=runs,
        warmup=warmup,
        budget_s=budget_s,
        progress=advance,
    )


def _load(program: Program, span: Span) -> bool:
    """Load a fused half to be measured; without one the chain is what runs."""
    try:
        return program.load_half(*span)
    except SplitError as exc:
        logger.warning("half %s is not measured: %s", span, exc)
        return False


def _measure_half(
    program: Program,
    inputs: Mapping[str, Array],
    span: Span,
    runs: int,
    warmup: int,
    budget_s: float,
) -> HalfTiming:
    """Time both ways through a half that is loaded, in turns, so that a drift hits both alike."""
    started = time.perf_counter()
    given = program.run(inputs, 0, span[0], fused=False)
    samples: Dict[bool, List[float]] = {False: [], True: []}
    for run in range(warmup + runs):
        for fused, times in samples.items():
            begin = time.perf_counter()
            program.run(given, *span, fused=fused)
            if run >= warmup:
                times.append(time.perf_counter() - begin)
        late = time.perf_counter() - started > budget_s
        if late and len(samples[True]) >= min(_FEWEST_RUNS, runs):
            break
    return HalfTiming(*span, chain=_timing(samples[False]), fused=_timing(samples[True]))


def _chain_times(program: Program, inputs: "dict[str, np.ndarray]") -> List[float]:
    times: List[float] = []
    env = dict(inputs)
    for index in range(len(program.bundle.manifest.segments)):
        if index not in program.loaded:
            times.append(0.0)
            continue
        begin = time.perf_counter()
        env.update(program.run_segment(index, env))
        times.append(time.perf_counter() - begin)
    return times


def _timing(samples: Sequence[float]) -> Timing:
    p50, p95 = np.quantile(np.asarray(samples), [0.5, 0.95])
    return Timing(p50_s=float(p50), p95_s=float(p95))
