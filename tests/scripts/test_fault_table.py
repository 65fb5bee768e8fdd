"""How the fault table judges: counted by hand. The faults themselves need namespaces."""

from __future__ import annotations

import math
from typing import Any

import fault_table
import pytest
from click.testing import CliRunner
from fault_table import Judged, judged, table_of
from faults import FAULTS
from rich.console import Console
from shaped_link import ShapedLink


def record(begin_s: float, latency_s: float, by: str = "remote", **more: Any) -> dict[str, Any]:
    fields = {
        "begin_s": begin_s,
        "at_s": begin_s + latency_s,
        "latency_ms": latency_s * 1e3,
        "answered_by": by,
        "bound_ms": 120.0,
        "hedge_ms": 0.0,
        "error": 0.0,
    }
    return {**fields, **more}


CALM = [record(i * 0.1, 0.05) for i in range(10)]
DURING = [record(1.0, 0.2, "fallback", hedge_ms=80.0), record(1.2, 0.1, "local")]
LATER = [record(2.1, 0.1, "local"), record(2.3, 0.05)]


def judge(
    records: list[dict[str, Any]], *spans: tuple[float, float], tolerance: float = 0.0
) -> Judged:
    return judged("cut-2", "latency", records, spans or ((1.0, 2.0),), tolerance)


def test_what_is_counted() -> None:
    row = judge([*CALM, *DURING, *LATER])
    assert (row.inferences, row.answered, row.right, row.sound) == (14, 14, 14, True)
    assert row.parts == {"remote": 11, "local": 2, "fallback": 1, "hedged": 1}
    assert (row.promised, row.exceeded) == (14, 1)
    assert row.over_p50_s == row.over_most_s == pytest.approx(0.08)
    assert row.slowest_s == pytest.approx(0.2)
    assert row.back_s == [pytest.approx(0.35)]
    assert row.complaints == ["bound exceeded by 1 of 14, by 80.0 ms (median), 80.0 ms at most"]


def test_no_bound_is_not_exceeded() -> None:
    row = judge([record(0.0, 9.0, bound_ms=None)], (0.0, 0.0))
    assert (row.promised, row.exceeded, row.over_most_s) == (0, 0, None)


def test_a_wrong_or_failed_inference_is_not_sound() -> None:
    wrong = judge([*CALM, record(1.0, 0.1, error=1e-3)])
    assert (wrong.answered, wrong.right, wrong.sound) == (11, 10, False)
    assert judge([*CALM, record(1.0, 0.1, error=1e-3)], tolerance=1e-2).sound
    failed = judge([*CALM, {"failed": "no", "begin_s": 1.0, "at_s": 1.5}])
    assert (failed.inferences, failed.answered, failed.sound) == (11, 10, False)
    assert failed.complaints[0] == "11 begun, 10 answered, 10 right"
    assert failed.slowest_s == pytest.approx(0.5)
    assert not judge([]).sound, "a robot that did nothing"


def test_a_server_that_is_not_used_again_is_told() -> None:
    row = judge([*CALM, *DURING])
    assert row.back_s == [math.inf]
    assert "1 of 1 times: inf s" in row.complaints[-1]
    slow = judge([*CALM, record(3.5, 0.1)])
    assert slow.back_s == [pytest.approx(1.6)]
    assert "1 of 1 times: 1.60 s" in slow.complaints[-1]


def test_a_server_that_was_not_wanted_is_not_missed() -> None:
    alone = [record(i * 0.1, 0.05, "local") for i in range(10)]
    row = judge([*alone, *DURING])
    assert row.back_s == [None]
    assert not any("used again" in line for line in row.complaints)


def test_each_fault_is_judged_by_itself() -> None:
    again = [record(2.5 + i * 0.1, 0.05) for i in range(10)]
    row = judge([*CALM, *DURING, *LATER, *again, record(5.0, 0.1)], (1.0, 2.0), (3.6, 4.0))
    assert row.back_s == [pytest.approx(0.35), pytest.approx(1.1)]


def test_the_table_has_a_line_for_each() -> None:
    console = Console(width=200, record=True)
    console.print(table_of([judge([*CALM, *DURING, *LATER]), judge(CALM, (2.0, 3.0))]))
    text = console.export_text()
    assert "0.35, 0.35" in text
    assert "1 of 14" in text
    assert "inf" in text


def test_without_a_shaped_link_there_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Link:
        def __enter__(self) -> ShapedLink:
            return ShapedLink("127.0.0.1", [], "loopback, not shaped: needs root")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(fault_table, "shaped_link", lambda *_, **__: Link())
    with (
        pytest.raises(fault_table.click.ClickException, match="needs root"),
        fault_table._link(93.0, check=False),
    ):
        pass


def test_what_may_be_named() -> None:
    done = CliRunner().invoke(fault_table.main, ["vgg19_bn", "--only", "flood"])
    assert done.exit_code == 2
    assert all(name in done.output for name in FAULTS)
