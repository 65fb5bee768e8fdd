from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calibration import measure as measure_module
from calibration.measure import measure_latency
from engines.backend import BackendOptions, Engine, open_backend
from engines.bundle import Bundle
from engines.errors import EngineError
from engines.ort import OrtBackend
from engines.program import Program


class FakeClock:
    """Advances by a fixed step at each look."""

    def __init__(self, step_s: float) -> None:
        self.times = itertools.count(0.0, step_s)

    def perf_counter(self) -> float:
        return next(self.times)


class Clock:
    """Stands still until it is moved."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


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


@pytest.fixture
def likely(toy: Bundle) -> Bundle:
    """Give the toy bundle with a cut that the search found."""
    cuts = list(toy.manifest.cuts)
    cuts[3] = msgspec.structs.replace(cuts[3], why=("serial",))
    return Bundle(toy.folder, msgspec.structs.replace(toy.manifest, cuts=tuple(cuts)), toy.digest)


def test_the_likely_halves_are_measured_both_ways(likely: Bundle) -> None:
    told: list[tuple[int, int]] = []
    with Program(likely, open_backend("ort", BackendOptions(threads=1))) as program:
        table = measure_latency(
            program, runs=3, warmup=1, halves=True, progress=lambda *at: told.append(at)
        )
    last = len(likely.manifest.cuts) - 1
    assert [(half.start, half.stop) for half in table.halves] == [(0, last), (0, 3), (3, last)]
    assert all(half.chain.p50_s > 0 and half.fused.p50_s > 0 for half in table.halves)
    whole = table.halves[0]
    assert table.whole == (whole.fused if whole.pays else whole.chain)
    assert told[-1] == (16, 16)


def test_halves_are_timed_in_turns_and_by_the_way_they_go(
    likely: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(measure_module, "time", clock)
    with Program(likely, open_backend("ort", BackendOptions(threads=1))) as program:
        went: list[bool] = []
        run = program.run

        def timed(*arguments: Any, fused: Any = None) -> Any:
            went.append(fused)
            clock.now_s += 1.0 if fused else 2.0
            return run(*arguments, fused=fused)

        monkeypatch.setattr(program, "run", timed)
        table = measure_latency(program, runs=3, warmup=0, budget_s=1e9, halves=True)
    assert [half.ratio for half in table.halves] == [2.0, 2.0, 2.0]
    assert all(half.pays for half in table.halves)
    assert table.whole.p50_s == 1.0
    assert went[3:10] == [False, False, True, False, True, False, True]
    assert table.chained == ()


def test_a_half_that_cannot_be_loaded_is_not_measured(
    likely: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Small(OrtBackend):
        def load(self, plan: bytes, *, folder: Path) -> Engine:
            if self._files[hashlib.sha256(plan).digest()].name.startswith("head"):
                raise EngineError("out of memory")
            return super().load(plan, folder=folder)

    with Program(likely, Small(BackendOptions(threads=1))) as program:
        table = measure_latency(program, runs=3, warmup=0, halves=True)
    assert [half.start for half in table.halves] == [0, 3]
    assert "out of memory" in caplog.text


def test_without_a_fused_whole_the_chain_counts(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Program(toy, open_backend("reference"), fuse=False) as program:
        monkeypatch.setattr(program, "load_half", lambda *_: False)
        table = measure_latency(program, runs=3, warmup=0)
    chain = sum(t.p50_s for t in table.segments)
    assert table.whole.p50_s == pytest.approx(chain, rel=0.9)
