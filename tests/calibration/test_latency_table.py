from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from calibration.latency_table import (
    HalfTiming,
    LatencyTable,
    Timing,
    load_table,
    store_table,
    table_path,
)
from engines.bundle import Bundle
from engines.errors import SplitError
from engines.fingerprint import Fingerprint

HERE = Fingerprint("ort", {"device": "board", "version": "1"})


@pytest.fixture
def bundle(toy_copy: Path) -> Bundle:
    return Bundle.open(toy_copy)


def _table(bundle: Bundle, *, whole_s: float = 0.035) -> LatencyTable:
    return LatencyTable(
        bundle=bundle.digest,
        fingerprint=HERE,
        runs=30,
        segments=tuple(Timing(0.01 * (i + 1), 0.02 * (i + 1)) for i in range(7)),
        whole=Timing(whole_s, whole_s),
    )


def test_a_stored_table_is_loaded_again_and_the_bundle_is_untouched(bundle: Bundle) -> None:
    table = _table(bundle)
    path = store_table(bundle, table)
    assert path == table_path(bundle, HERE)
    assert path.parent == bundle.device_folder
    assert load_table(bundle, HERE) == table
    assert Bundle.open(bundle.folder).digest == bundle.digest
    assert [p.name for p in bundle.device_folder.iterdir()] == [path.name]


def test_a_newer_table_replaces_an_older_one(bundle: Bundle) -> None:
    store_table(bundle, _table(bundle))
    store_table(bundle, _table(bundle, whole_s=0.5))
    loaded = load_table(bundle, HERE)
    assert loaded is not None
    assert loaded.whole.p50_s == 0.5


def test_no_table_is_none(bundle: Bundle) -> None:
    assert load_table(bundle, HERE) is None


def test_another_devices_table_is_none(bundle: Bundle) -> None:
    store_table(bundle, _table(bundle))
    assert load_table(bundle, Fingerprint("ort", {"device": "other", "version": "1"})) is None


def test_a_table_copied_to_another_devices_name_is_none(bundle: Bundle) -> None:
    other = Fingerprint("ort", {"device": "other"})
    store_table(bundle, _table(bundle)).rename(table_path(bundle, other))
    assert load_table(bundle, other) is None


def test_another_bundles_table_is_none(bundle: Bundle) -> None:
    store_table(bundle, msgspec.structs.replace(_table(bundle), bundle="f" * 64))
    assert load_table(bundle, HERE) is None


def test_a_table_with_another_number_of_segments_is_none(bundle: Bundle) -> None:
    table = _table(bundle)
    store_table(bundle, msgspec.structs.replace(table, segments=table.segments[:-1]))
    assert load_table(bundle, HERE) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"bundle": "\xff"}', b'{"\xff": 1}', b"[" * 100_000,
     b'{"x":' + b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_table_is_no_table_and_is_told(
    bundle: Bundle, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store_table(bundle, _table(bundle)).write_bytes(content)
    assert load_table(bundle, HERE) is None
    assert "not a latency table" in caplog.text


@pytest.mark.parametrize("seconds", [-0.001, 1e999])
def test_a_time_that_cannot_be_is_no_table(bundle: Bundle, seconds: float) -> None:
    path = store_table(bundle, _table(bundle))
    record = json.loads(path.read_bytes())
    record["segments"][3]["p50_s"] = seconds
    path.write_text(json.dumps(record))
    assert load_table(bundle, HERE) is None


def test_every_truncation_is_no_table(bundle: Bundle) -> None:
    path = store_table(bundle, _table(bundle))
    content = path.read_bytes()
    for end in range(0, len(content.rstrip()) - 1, 23):
        path.write_bytes(content[:end])
        assert load_table(bundle, HERE) is None


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(bundle: Bundle) -> None:
    bundle.device_folder.write_text("in the way")
    with pytest.raises(SplitError, match="cannot be written"):
        store_table(bundle, _table(bundle))


def test_a_failed_write_leaves_the_old_table_and_no_litter(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store_table(bundle, _table(bundle))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SplitError, match="No space left"):
        store_table(bundle, _table(bundle, whole_s=1))
    assert os.listdir(bundle.device_folder) == [path.name]
    assert load_table(bundle, HERE) == _table(bundle)


def test_a_table_without_halves_is_read_and_says_nothing_of_them(bundle: Bundle) -> None:
    path = store_table(bundle, _table(bundle))
    record = json.loads(path.read_bytes())
    del record["halves"]
    path.write_text(json.dumps(record))
    table = load_table(bundle, HERE)
    assert table is not None
    assert table.halves == ()
    assert table.chained == ()


@pytest.mark.parametrize(
    ("chain_s", "fused_s", "pays"),
    [(1.031, 1.0, True), (1.029, 1.0, False), (0.5, 1.0, False), (0.0, 0.0, False),
     (0.1, 0.0, True)],
)  # fmt: skip
def test_a_half_pays_where_its_chain_takes_over_3_percent_longer(
    bundle: Bundle, chain_s: float, fused_s: float, pays: bool
) -> None:
    half = HalfTiming(0, 3, Timing(chain_s, chain_s), Timing(fused_s, fused_s))
    assert half.pays == pays
    table = msgspec.structs.replace(_table(bundle), halves=(half,))
    store_table(bundle, table)
    assert load_table(bundle, HERE) == table
    assert table.chained == (() if pays else ((0, 3),))


@pytest.mark.parametrize("span", [(-1, 3), (3, 3), (4, 3), (0, 8)])
def test_a_half_outside_the_bundle_is_no_table(bundle: Bundle, span: tuple[int, int]) -> None:
    half = HalfTiming(*span, Timing(1, 1), Timing(1, 1))
    store_table(bundle, msgspec.structs.replace(_table(bundle), halves=(half,)))
    assert load_table(bundle, HERE) is None


@dataclass(frozen=True)
class _Ratio:
    segments: tuple[float, ...]
    whole: float
    ratio: float


@pytest.mark.parametrize(
    "case",
    [
        _Ratio((0.1, 0.3), 0.2, 0.5),
        _Ratio((0.1, 0.3), 0.9, 1.0),
        _Ratio((0.0, 0.0), 0.1, 1.0),
    ],
)
def test_the_fused_ratio_is_at_most_one(bundle: Bundle, case: _Ratio) -> None:
    table = msgspec.structs.replace(
        _table(bundle),
        segments=tuple(Timing(s, s) for s in case.segments),
        whole=Timing(case.whole, case.whole),
    )
    assert table.fused_ratio == pytest.approx(case.ratio)


def test_a_table_keeps_its_stripes(bundle: Bundle) -> None:
    points = tuple(Timing(0.001 * (i + 1), 0.1) for i in range(5))
    table = msgspec.structs.replace(
        _table(bundle), striped=(points, *((),) * 6), row_splits=(points,)
    )
    store_table(bundle, table)
    assert load_table(bundle, HERE) == table
    times = table.times()
    assert times.segments_s[0] == pytest.approx(0.01 * table.fused_ratio)
    assert times.striped_s[0] == times.row_splits_s[0] == (0.001, 0.002, 0.003, 0.004, 0.005)


def test_a_table_without_stripes_can_be_read(bundle: Bundle) -> None:
    path = store_table(bundle, _table(bundle))
    record = json.loads(path.read_bytes())
    del record["striped"], record["row_splits"]
    path.write_text(json.dumps(record))
    assert load_table(bundle, HERE) == _table(bundle)


@pytest.mark.parametrize("striped", [((),), ((Timing(1.0, 1.0),), *((),) * 6)])
def test_stripes_that_do_not_fit_the_table_are_refused(
    bundle: Bundle, striped: tuple[tuple[Timing, ...], ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        msgspec.structs.replace(_table(bundle), striped=striped)
