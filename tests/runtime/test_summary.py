from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import numpy as np

from calibration.predictor import Prediction
from runtime.infer_output import result_line, summary_line
from runtime.power import Energy
from runtime.robot import Result
from runtime.summary import Summary


def _result(
    latency_s: float, answered_by: str, *, mode: str = "split", predicted_s: float | None = None
) -> Result:
    predicted = None
    if predicted_s is not None:
        predicted = Prediction(0, predicted_s, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Result(
        outputs={"y": np.zeros(1)},
        seq=0,
        cut="00000000",
        answered_by=answered_by,
        reason="",
        latency_s=latency_s,
        robot_s=0.0,
        link_s=0.0,
        server_s=0.0,
        queue_s=0.0,
        bytes_up=0,
        bytes_down=0,
        goodput_bps=None,
        energy_j=latency_s * 2,
        predicted=predicted,
        mode=mode,
        age_s=latency_s * 3,
    )


def test_counts_quantiles_and_mean() -> None:
    summary = Summary()
    for milliseconds in range(1, 101):
        who = "remote" if milliseconds > 10 else "fallback"
        summary.add(_result(milliseconds / 1e3, who))
    record = summary.record(elapsed_s=4.0)
    assert record == {
        "count": 100,
        "failures": 0,
        "lossy": 0,
        "answered_by": {"fallback": 10, "remote": 90},
        "modes": {"split": 100},
        "hedged": 0,
        "promised": 0,
        "beyond_bound": 0,
        "most_beyond_ms": None,
        "p50_ms": 50.5,
        "p95_ms": 95.05,
        "p99_ms": 99.01,
        "mean_energy_j": 0.101,
        "energy_source": "modelled",
        "age_p50_ms": 151.5,
        "ratio_p50": None,
        "rate_hz": 25.0,
        "dropped": 0,
        "unreadable": 0,
    }


def test_a_sensor_that_failed_on_the_way_is_said() -> None:
    summary = Summary()
    summary.add(_result(0.1, "local").measured(Energy(3.0, 0.1)))
    assert summary.record()["energy_source"] == "measured"
    assert summary.record()["mean_energy_j"] == 3.0
    summary.add(_result(0.1, "local").measured(None))
    summary.dropped = 4
    record = summary.record(elapsed_s=1.0)
    assert record["energy_source"] == "mixed"
    assert "(mixed)" in summary_line(record)
    assert "4 frames dropped" in summary_line(record)


def test_nothing_run_is_no_number_and_still_json() -> None:
    record = Summary().record()
    assert record["count"] == record["failures"] == 0
    assert [record[key] for key in ("p50_ms", "p95_ms", "p99_ms", "mean_energy_j")] == [None] * 4
    json.dumps(record, allow_nan=False)


def test_measured_is_held_against_predicted_where_it_was() -> None:
    summary = Summary()
    for predicted_s, mode in (
        (0.1, "rows"),
        (0.2, "streamed-raw"),
        (0.4, "rows"),
        (None, "local"),
    ):
        summary.add(_result(0.2, "remote", mode=mode, predicted_s=predicted_s))
    record = summary.record(elapsed_s=1.0)
    assert record["ratio_p50"] == 1.0
    assert record["modes"] == {"local": 1, "rows": 2, "streamed-raw": 1}
    assert "measured / predicted p50 1.000" in summary_line(record)


def test_a_line_says_mode_stripes_and_error_of_the_prediction() -> None:
    result = dataclasses.replace(
        _result(0.21, "remote", mode="streamed-raw", predicted_s=0.2), stripes=4, plan="offload/4"
    )
    line = result_line({**result.record(), "source": "random"})
    assert "210.00 ms (+5%)  streamed-raw in 4 offload/4 remote" in line
    assert "(" not in result_line({**_result(0.2, "local").record(), "source": "random"})


def test_hedges_and_broken_promises_are_counted() -> None:
    summary = Summary()
    for latency_s, hedge_s in ((0.1, 0.0), (0.2, 0.05), (0.25, 0.1)):
        summary.add(replace(_result(latency_s, "remote"), bound_s=0.2, hedge_s=hedge_s))
    record = summary.record()
    assert (record["hedged"], record["promised"], record["beyond_bound"]) == (2, 3, 1)
    assert record["most_beyond_ms"] == 50.0
    assert "1 of 3 beyond their bound, by 50.00 ms at most" in summary_line(record)
