from __future__ import annotations

from collections.abc import Iterator

import pytest

from calibration import measure_stripes as module
from calibration.latency_table import LatencyTable
from calibration.measure import measure_latency
from calibration.measure_stripes import stripe_parts
from calibration.segment_times import SHARES
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import EngineError
from engines.ort import OrtBackend
from engines.program import Program
from engines.rows import RowsEngine


@pytest.fixture
def striped(dense: Bundle) -> Iterator[Program]:
    with Program(dense, open_backend("ort", BackendOptions(threads=1))) as program:
        yield program


def _measure(program: Program, **more: object) -> LatencyTable:
    return measure_latency(program, runs=3, warmup=1, stripes=True, **more)  # type: ignore[arg-type]


def test_every_striped_segment_and_row_split_has_a_time_at_every_share(
    striped: Program, classes: Bundle
) -> None:
    told: list[tuple[int, int]] = []
    table = _measure(striped, progress=lambda *at: told.append(at))
    assert [len(points) for points in table.striped] == [len(SHARES)] * 5
    assert [len(points) for points in table.row_splits] == [len(SHARES)] * 3
    for points, whole in zip(table.striped, table.segments):
        assert all(point.p50_s > 0 and point.p95_s > 0 for point in points)
        assert points[-1].p50_s == pytest.approx(whole.p50_s), "that of all rows is the whole's"
    assert told[-1] == (12, 12)
    with Program(classes, open_backend("ort", BackendOptions(threads=1))) as program:
        table = _measure(program)
        assert [len(points) for points in table.striped] == [5, 5, 5, 5, 0]
        assert table.row_splits == ()


def test_only_bounds_that_a_segment_allows_are_run(
    striped: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 48 rows: the band is 2, a middle stripe lies between 8 and 40."""
    heights: list[tuple[str, int]] = []
    run = RowsEngine.run

    def watched(engine: RowsEngine, inputs: dict) -> dict:
        if "x" in inputs:
            heights.append((repr(engine).split()[1], inputs["x"].shape[2]))
        return run(engine, inputs)

    monkeypatch.setattr(RowsEngine, "run", watched)
    _measure(striped)
    middle = {rows for name, rows in heights if "middle" in name}
    assert middle == {4, 6, 12, 24}  # 1/16 of 48 is 3, off the band
    assert {rows for name, rows in heights if "first" in name} == {8}


def test_forms_are_loaded_for_their_turn_only(
    striped: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[RowsEngine] = []
    load = OrtBackend.load_rows
    most = 0

    def watched(backend: OrtBackend, path: object) -> RowsEngine:
        nonlocal most
        opened.append(load(backend, path))  # type: ignore[arg-type]
        most = max(most, sum("open" in repr(engine) for engine in opened))
        return opened[-1]

    monkeypatch.setattr(OrtBackend, "load_rows", watched)
    _measure(striped)
    assert len(opened) == 2 * 5 + 3
    assert most == 1
    assert all("closed" in repr(engine) for engine in opened)


def test_a_form_that_fails_is_left_out(
    striped: Program, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = OrtBackend.load_rows

    def fail(backend: OrtBackend, path: object) -> RowsEngine:
        if "segment_1" in str(path):
            raise EngineError("no memory")
        return load(backend, path)  # type: ignore[arg-type]

    monkeypatch.setattr(OrtBackend, "load_rows", fail)
    table = _measure(striped)
    assert [len(points) for points in table.striped] == [5, 0, 5, 5, 5]
    assert "stripes of segment 1 are not measured: no memory" in caplog.text


def test_a_spent_budget_stops_it_but_not_before_three_runs(
    striped: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    clock = module._Clock.time

    def watched(self: module._Clock, engine: RowsEngine, feed: dict) -> object:
        before = len(runs)
        result = clock(self, engine, feed)
        counts.append(len(runs) - before)
        return result

    runs: list[int] = []
    run = RowsEngine.run
    monkeypatch.setattr(RowsEngine, "run", lambda *a: (runs.append(1), run(*a))[1])
    monkeypatch.setattr(module._Clock, "time", watched)
    measure_latency(striped, runs=50, warmup=1, budget_s=0.0, stripes=True)
    assert set(counts) == {4}


def test_what_is_not_loaded_or_cannot_be_striped_is_not_measured(
    dense: Bundle, striped: Program
) -> None:
    with Program(dense, open_backend("reference"), fuse=False) as program:
        assert stripe_parts(program) == 0
    assert measure_latency(striped, runs=3).striped == ()
    options = BackendOptions(threads=1)
    with Program(dense, open_backend("ort", options), only=[0, 1]) as part:
        table = _measure(part)
        assert [len(points) for points in table.striped] == [5, 5, 0, 0, 0]
        assert table.row_splits == (), "rows are divided by who may run the whole model"
