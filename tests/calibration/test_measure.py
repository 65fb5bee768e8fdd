from __future__ import annotations

import itertools

import pytest

from calibration import measure as measure_module
from calibration.measure import measure_latency
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.program import Program


class FakeClock:
    """Advances by a fixed step at each look."""

    def __init__(self, step_s: float) -> None:
        self.times = itertools.count(0.0, step_s)

    def perf_counter(self) -> float:
        return next(self.times)


def test_one_timing_a_segment_and_one_for_the_whole(program: Program) -> None:
    told: list[tuple[int, int]] = []
    table = measure_latency(program, runs=4, warmup=2, progress=lambda *at: told.append(at))
    assert table.bundle == program.bundle.digest
    assert table.fingerprint == program.backend.fingerprint()
    assert table.runs == 4
    assert len(table.segments) == len(program.bundle.manifest.segments)
    assert all(0 < t.p50_s <= t.p95_s for t in (*table.segments, table.whole))
    assert told == [(i, 6) for i in range(1, 7)]


def test_times_are_those_of_the_clock(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "time", FakeClock(0.5))
    table = measure_latency(program, runs=3, warmup=0, budget_s=1e9)
    assert {t.p50_s for t in (*table.segments, table.whole)} == {0.5}


@pytest.mark.parametrize(("runs", "done"), [(30, 3), (3, 3), (2, 2)])
def test_a_spent_budget_stops_it_but_not_before_three_runs(
    program: Program, runs: int, done: int
) -> None:
    assert measure_latency(program, runs=runs, warmup=1, budget_s=0.0).runs == done


def test_without_a_fused_whole_the_chain_counts(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Program(toy, open_backend("reference"), fuse=False) as program:
        monkeypatch.setattr(program, "load_half", lambda *_: False)
        table = measure_latency(program, runs=3, warmup=0)
    chain = sum(t.p50_s for t in table.segments)
    assert table.whole.p50_s == pytest.approx(chain, rel=0.9)
