from __future__ import annotations

from pathlib import Path
from typing import Optional

import msgspec
import pytest

from calibration.energy import StatePower
from calibration.latency_table import HalfTiming, LatencyTable, Timing, load_table, store_table
from calibration.prepared import PreparedPlans
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.fingerprint import Fingerprint
from engines.program import Program
from runtime import tables
from runtime.tables import Preparer, table_for, times_of, wire_table
from runtime.wire import Table
from tests.runtime.helpers import eventually


@pytest.fixture
def loaded(toy_copy: Path) -> Program:
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(Bundle.open(toy_copy), backend) as program:
        yield program


def _table(program: Program) -> LatencyTable:
    return LatencyTable(
        bundle=program.bundle.digest,
        fingerprint=program.backend.fingerprint(),
        runs=30,
        segments=(Timing(0.25, 0.5),) * 7,
        whole=Timing(0.875, 1.0),
    )


def test_a_kept_table_is_used_and_nothing_measured(
    loaded: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_table(loaded.bundle, _table(loaded))
    monkeypatch.setattr(tables, "measure_latency", None)
    assert table_for(loaded) == _table(loaded)


def test_what_does_not_pay_runs_as_a_chain(loaded: Program) -> None:
    slow, quick = Timing(1.0, 1.0), Timing(0.5, 0.5)
    halves = (HalfTiming(0, 7, slow, slow), HalfTiming(0, 3, slow, quick))
    store_table(loaded.bundle, msgspec.structs.replace(_table(loaded), halves=halves))
    loaded.load_half(0, 7)
    table_for(loaded)
    loaded.prepare(0, 7)
    loaded.prepare(0, 3)
    loaded.prepare(0, 4)  # never measured: fused
    assert loaded._halves.spans == ((0, 3), (0, 4))


def test_a_quick_table_decides_nothing(loaded: Program) -> None:
    assert table_for(loaded).halves == ()


def test_where_there_is_none_a_quick_one_is_measured_and_kept(loaded: Program) -> None:
    table = table_for(loaded)
    assert table.runs == 5
    assert load_table(loaded.bundle, loaded.backend.fingerprint()) == table


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(
    loaded: Program, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.bundle.device_folder.write_text("in the way")
    assert table_for(loaded).runs == 5
    assert "measured anew at the next start" in caplog.text


def test_on_the_wire_times_are_medians_scaled_to_the_fused_whole(loaded: Program) -> None:
    table = wire_table(_table(loaded))
    assert table.segments_s == (0.125,) * 7
    assert table.device == str(loaded.backend.fingerprint())
    assert Fingerprint("ort", {}).backend in table.device


def test_times_of_stripes_cross_the_wire_as_measured(loaded: Program) -> None:
    stripes = tuple(Timing(0.25 * (i + 1), 1.0) for i in range(5))
    measured = msgspec.structs.replace(
        _table(loaded), striped=(stripes, *((),) * 6), row_splits=((), stripes)
    )
    table = wire_table(measured)
    assert table.segments_s == (0.125,) * 7, "only whole segments are fused"
    assert table.striped_s == ((0.25, 0.5, 0.75, 1.0, 1.25), *((),) * 6)
    assert table.row_splits_s == ((), (0.25, 0.5, 0.75, 1.0, 1.25))


def test_a_table_of_another_bundle_says_nothing(toy: Bundle) -> None:
    assert times_of(Table((0.5,) * 6), toy.manifest) is None
    assert times_of(Table((0.5,) * 7, row_splits_s=((),)), toy.manifest) is None
    times = times_of(Table((0.5,) * 7), toy.manifest)
    assert times is not None
    assert times.segments_s == (0.5,) * 7


# -- plans for the server's table, where nobody waits --------------------------------------------


def _wire(seconds: float) -> Table:
    return Table(segments_s=(seconds,) * 7, device="test")


def _eventually_plans(preparer: Preparer, table: Table) -> PreparedPlans:
    eventually(lambda: preparer.plans(table) is not None, "plans")
    plans = preparer.plans(table)
    assert plans is not None
    return plans


def test_plans_are_prepared_in_the_background(toy: Bundle) -> None:
    preparer = Preparer(toy.manifest, _wire(0.1), StatePower())
    assert preparer.plans(None) is None
    assert preparer.plans(_wire(0.01)) is None, "no inference waits for them"
    first = _eventually_plans(preparer, _wire(0.01))
    assert first.server.segments_s == (0.01,) * 7
    assert preparer.plans(_wire(0.01)) is first, "the same table, come again"
    assert preparer.plans(_wire(0.02)) is None
    assert _eventually_plans(preparer, _wire(0.02)).server.segments_s == (0.02,) * 7
    preparer.close()
    preparer.close()


def test_plans_can_be_prepared_at_once(toy: Bundle) -> None:
    preparer = Preparer(toy.manifest, _wire(0.1), StatePower())
    preparer.prepare(None)
    preparer.prepare(_wire(0.01))
    assert preparer.plans(_wire(0.01)) is not None
    preparer.close()


def test_plans_are_told_of_once_they_are_there(toy: Bundle) -> None:
    told: list[Optional[PreparedPlans]] = []

    def then(plans: PreparedPlans) -> None:
        assert preparer.plans(_wire(0.01)) is plans, "nobody waits for this"
        told.append(plans)

    preparer = Preparer(toy.manifest, _wire(0.1), StatePower(), then=then)
    preparer.prepare(Table(segments_s=(0.1,), device="test"))
    assert not told
    preparer.plans(_wire(0.01))
    eventually(lambda: len(told) == 1, "plans")
    preparer.close()
    assert told == [preparer.plans(_wire(0.01))]


def test_what_fails_at_being_told_of_plans_does_not_lose_them(
    toy: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def then(_: PreparedPlans) -> None:
        raise MemoryError

    preparer = Preparer(toy.manifest, _wire(0.1), StatePower(), then=then)
    preparer.prepare(_wire(0.01))
    assert preparer.plans(_wire(0.01)) is not None
    assert "beforehand" in caplog.text
    assert preparer.plans(_wire(0.02)) is None
    assert _eventually_plans(preparer, _wire(0.02)) is not None, "and the next are prepared too"
    preparer.close()


def test_a_table_of_another_bundle_gives_no_plans(toy: Bundle) -> None:
    preparer = Preparer(toy.manifest, _wire(0.1), StatePower())
    other = Table(segments_s=(0.1,), device="test")
    preparer.prepare(other)
    assert preparer.plans(other) is None
    preparer.close()
