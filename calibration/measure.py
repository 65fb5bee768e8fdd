"""Measures a latency table: every segment within its chain, and the fused whole."""

from __future__ import annotations

import time
from typing import Callable, List, Optional, Sequence

import numpy as np

from calibration.latency_table import LatencyTable, Timing
from engines.program import Program

__all__ = ["measure_latency"]

_FEWEST_RUNS = 3
"""Runs below which a median says nothing."""


def measure_latency(
    program: Program,
    *,
    runs: int = 30,
    warmup: int = 3,
    budget_s: float = 60.0,
    progress: Optional[Callable[[int, int], None]] = None,
) -> LatencyTable:
    """Time a loaded program on the bundle's parity inputs.

    A segment is timed inside its chain, so that it finds the caches as in a real inference. Those
    that are not loaded get a time of 0, and the whole is then the sum of the others.

    Args:
        program: What to measure; nothing else should use the device meanwhile.
        runs: Timed runs.
        warmup: Untimed runs before them.
        budget_s: Stop early once this many seconds have passed, but not before 3 timed runs.
        progress: Called with (runs done, runs in all).
    """
    inputs, _ = program.bundle.parity_vectors()
    started = time.perf_counter()
    segments: List[List[float]] = [[] for _ in program.bundle.manifest.segments]
    whole: List[float] = []
    has_whole = program.load_half(0, program.last)
    total = warmup + runs
    done = 0
    for done in range(1, total + 1):
        times = _chain_times(program, inputs)
        begin = time.perf_counter()
        if has_whole:
            program.run(inputs, 0, program.last)
        fused = time.perf_counter() - begin
        if done > warmup:
            for samples, sample in zip(segments, times):
                samples.append(sample)
            whole.append(fused if has_whole else sum(times))
        if progress is not None:
            progress(done, total)
        late = time.perf_counter() - started > budget_s
        if late and len(whole) >= min(_FEWEST_RUNS, runs):
            break
    return LatencyTable(
        bundle=program.bundle.digest,
        fingerprint=program.backend.fingerprint(),
        runs=len(whole),
        segments=tuple(_timing(samples) for samples in segments),
        whole=_timing(whole),
    )


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
