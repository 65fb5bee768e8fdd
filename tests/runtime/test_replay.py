"""Recorded runs: written, read again, and decided anew."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from calibration.objectives import Constraints, parse_objective
from calibration.predictor import Prediction
from engines.bundle import Bundle
from engines.errors import ManifestError, SplitError
from runtime import Result
from runtime.cli import main
from runtime.decision import Decision, KnownLink, Situation
from runtime.recording import QUANTILES, VERSION, RecordedLink, Recorder, Run, read_run
from runtime.replay import MEASURED, RECORDED, Outcome, replay, true_goodputs
from runtime.selector import open_selector, selector_names
from tests.hand_tables import BYTES_UP, HEAD_S, LAST, MODEL, PLANS, TAIL_S, Steps

BUNDLE = cast(Bundle, SimpleNamespace(manifest=MODEL, digest="d" * 64))


def _result(
    seq: int,
    *,
    estimate_bps: float | None,
    true_bps: float,
    objective: str = "latency",
    answered_by: str = "",
    link: Any = None,
) -> Result:
    """Return what ``splitrt`` does with an estimate, on a link that has another goodput."""
    view = link or (None if estimate_bps is None else KnownLink(estimate_bps, 0.01))
    situation = Situation(PLANS, view, 0.002, parse_objective(objective))
    decision = open_selector("splitrt", MODEL).decide(situation)
    local = decision.cut == LAST
    size = 0 if local else BYTES_UP[decision.cut]
    link_s = 0.0 if local else 8 * size / true_bps + 0.01
    return Result(
        outputs={},
        seq=seq,
        cut=MODEL.cuts[decision.cut].id,
        answered_by=answered_by or ("local" if local else "remote"),
        reason=decision.reason,
        latency_s=float(HEAD_S[decision.cut] + TAIL_S[decision.cut]) + link_s + 0.001 * seq,
        robot_s=float(HEAD_S[decision.cut]),
        link_s=link_s,
        server_s=float(TAIL_S[decision.cut]),
        queue_s=0.003,
        bytes_up=size,
        bytes_down=0,
        goodput_bps=estimate_bps,
        energy_j=5.0,
        predicted=decision.prediction,
        decision=replace(decision, situation=situation),
    )


def _record(results: list[Result], *, constraints: Constraints = Constraints()) -> str:
    sink, ticks = io.StringIO(), iter(range(1000))
    recorder = Recorder(
        sink, BUNDLE, selector="splitrt", constraints=constraints, clock=lambda: next(ticks)
    )
    for result in results:
        recorder.add(result)
    return sink.getvalue()


def _read(tmp_path: Path, text: str | bytes) -> Run:
    path = tmp_path / "run.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_run(path)


def _by_name(run: Run, *names: str, objective: str | None = None) -> dict[str, Outcome]:
    wanted = None if objective is None else parse_objective(objective)
    return {one.selector: one for one in replay(run, names, objective=wanted)}


# The robot believes in 100 Mbps throughout; then it has 100, 10 and 1.
#   cut   latency at 100 / 10 / 1 Mbps, 10 ms round trip, 3 ms queue
#   0     .193 / .913 / 8.113
#   4     .477 / .513 / .873
#   7     1
BELIEVED = [
    _result(0, estimate_bps=100e6, true_bps=100e6),
    _result(1, estimate_bps=100e6, true_bps=10e6),
    _result(2, estimate_bps=100e6, true_bps=1e6),
]


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    bound = Constraints(keep_local=MODEL.cuts[2].id)
    run = _read(tmp_path, _record(BELIEVED, constraints=bound))
    assert run.damaged == ()
    assert run.header.manifest == MODEL
    assert (run.header.version, run.header.selector) == (VERSION, "splitrt")
    assert run.header.constraints == bound
    for result, record in zip(BELIEVED, run.inferences, strict=True):
        assert (record.seq, record.cut, record.tables) == (result.seq, result.cut, 0)
        assert (record.latency_s, record.link_s) == (result.latency_s, result.link_s)
        assert (record.bytes_up, record.energy_j) == (result.bytes_up, result.energy_j)
        assert record.objective == "latency"
        assert record.link is not None
        assert record.link.goodput_bps == 100e6
        predicted = result.predicted
        assert isinstance(predicted, Prediction)
        assert record.predicted_s == predicted.latency_s
    assert [record.at_s for record in run.inferences] == [1, 2, 3]
    plans = run.plans(0)
    assert plans is not None
    assert (plans.robot, plans.server, plans.power) == (PLANS.robot, PLANS.server, PLANS.power)
    assert run.plans(None) is run.plans(7) is None


def test_tables_are_written_once() -> None:
    kinds = [json.loads(line)["type"] for line in _record(BELIEVED).splitlines()]
    assert kinds == ["run", "tables", "inference", "inference", "inference"]


def test_the_uncertainty_is_kept(tmp_path: Path) -> None:
    unsteady = Steps(1e6, 100e6, 0.2)
    result = _result(0, estimate_bps=None, true_bps=50e6, link=unsteady, objective="energy")
    assert result.cut == MODEL.cuts[4].id
    run = _read(tmp_path, _record([result]))
    link = run.inferences[0].link
    assert link is not None
    for part in QUANTILES:
        assert link.quantile(part) == unsteady.quantile(part)
    assert (link.quantile(0.001), link.quantile(0.999)) == (1e6, 100e6)
    assert 1e6 < (link.quantile(0.2) or 0) < 100e6  # between two that were kept
    assert RecordedLink(goodput_bps=3e6, rtt_s=0.0).quantile(0.1) == 3e6
    again = _by_name(run, "splitrt")["splitrt"].inferences[0]
    assert again.choice.endswith(MODEL.cuts[4].id)


def test_the_same_selector_decides_the_same_again(tmp_path: Path) -> None:
    run = _read(tmp_path, _record(BELIEVED))
    found = _by_name(run, MEASURED, RECORDED, "splitrt", "auto")
    assert found["splitrt"].inferences == found[RECORDED].inferences
    assert found["auto"].inferences == found[RECORDED].inferences
    measured = [one.latency_s for one in found[MEASURED].inferences]
    assert measured == [result.latency_s for result in BELIEVED]
    assert {one.choice for one in found[MEASURED].inferences} == {"coded frame"}


def test_others_are_predicted_for_the_goodput_that_there_was(tmp_path: Path) -> None:
    run = _read(tmp_path, _record(BELIEVED))
    found = _by_name(run, "splitrt", "local", MODEL.cuts[4].id, "oracle", "neurosurgeon")
    taken = {
        name: [one.latency_s for one in outcome.inferences] for name, outcome in found.items()
    }
    assert taken["splitrt"] == pytest.approx([0.193, 0.913, 8.113])
    assert taken["neurosurgeon"] == pytest.approx([0.193, 0.913, 8.113])
    assert taken[MODEL.cuts[4].id] == pytest.approx([0.477, 0.513, 0.873])
    assert taken["local"] == pytest.approx([1.0, 1.0, 1.0])
    assert taken["oracle"] == pytest.approx([0.193, 0.513, 0.873])
    local_j = [one.energy_j for one in found["local"].inferences]
    assert local_j == pytest.approx([13.35] * 3)
    assert found["oracle"].record()["modes"] == {"frame": 1, "split": 2}


def test_another_objective_can_be_asked_for(tmp_path: Path) -> None:
    run = _read(tmp_path, _record(BELIEVED))
    outcome = _by_name(run, "oracle", objective="deadline=600ms")["oracle"]
    assert [one.kept for one in outcome.inferences] == [True, True, False]
    assert outcome.record()["kept"] == pytest.approx(2 / 3, abs=1e-4)
    assert outcome.record()["objective"] == "deadline=600ms"
    by_latency = _by_name(run, "oracle")["oracle"].record()
    assert (by_latency["kept"], by_latency["objective"]) == (None, "")
    budget = _by_name(run, "local", objective="energy-budget=13J")["local"]
    assert {one.kept for one in budget.inferences} == {False}


def test_goodput_that_no_transfer_tells_lies_between_its_neighbours(tmp_path: Path) -> None:
    slow = _result(1, estimate_bps=0.1e6, true_bps=1e6)
    assert slow.answered_by == "local"
    results = [BELIEVED[0], slow, BELIEVED[1]]
    run = _read(tmp_path, _record(results))
    assert true_goodputs(run.inferences) == pytest.approx((100e6, 55e6, 10e6))
    assert true_goodputs([run.inferences[1]]) == (None,)
    known = json.loads(_record(results).splitlines()[3])
    known["true_bps"] = 7e6
    lines = _record(results).splitlines()
    lines[3] = json.dumps(known)
    run = _read(tmp_path, "\n".join(lines))
    assert true_goodputs(run.inferences)[1] == 7e6


def test_a_link_that_failed_fails_whoever_uses_it(tmp_path: Path) -> None:
    fallen = replace(
        _result(0, estimate_bps=100e6, true_bps=1e6, answered_by="fallback"),
        robot_s=1.0, latency_s=1.8,
    )  # fmt: skip
    run = _read(tmp_path, _record([fallen]))
    found = _by_name(run, "local", "offload", MODEL.cuts[4].id)
    assert found["local"].inferences[0].latency_s == pytest.approx(1.0)
    for name in ("offload", MODEL.cuts[4].id):
        one = found[name].inferences[0]
        assert one.latency_s == pytest.approx(1.8)
        assert one.energy_j == pytest.approx(13.35 + 4.04 * 0.8)


def test_without_a_connection_everyone_runs_alone(tmp_path: Path) -> None:
    run = _read(tmp_path, _record([BELIEVED[0], _result(1, estimate_bps=None, true_bps=1e6)]))
    for name in selector_names(replay=True):
        assert _by_name(run, name)[name].inferences[1].latency_s == pytest.approx(1.0)


def test_without_any_table_nothing_is_said(tmp_path: Path) -> None:
    result = _result(0, estimate_bps=100e6, true_bps=100e6)
    assert result.decision is not None
    situation = Situation(None, KnownLink(1e8), 0.0)
    blind = replace(result, decision=Decision(LAST, "no table", None, situation=situation))
    run = _read(tmp_path, _record([blind]))
    found = _by_name(run, MEASURED, "splitrt")
    assert (len(found[MEASURED].inferences), found["splitrt"].skipped) == (1, 1)
    assert found["splitrt"].record()["mean_ms"] is None


def test_a_result_without_its_situation_is_left_out() -> None:
    bare = replace(BELIEVED[0], decision=None)
    assert len(_record([bare]).splitlines()) == 1


def test_an_unknown_selector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        replay(_read(tmp_path, _record(BELIEVED)), ["fastest"])


# -- damage ------------------------------------------------------------------------------------


def test_damaged_lines_are_told_by_number_and_left_out(tmp_path: Path) -> None:
    lines = _record(BELIEVED).splitlines()
    tables = json.loads(lines[1])
    tables["robot"]["segments_s"] = [1.0]
    negative = json.loads(lines[2])
    negative["latency_s"] = -1
    lines[2:2] = ["{", "", '{"type": "unheard of"}', lines[0], json.dumps(tables),
                  json.dumps(negative), lines[2][:-20], '"\\ud800', "[" * 5000]  # fmt: skip
    run = _read(tmp_path, "\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert [number for number, _ in run.damaged] == [3, 5, 6, 7, 8, 9, 10, 11, 15]
    assert len(run.inferences) == 3
    assert all("\n" not in why for _, why in run.damaged)


def test_every_truncation_is_survived(tmp_path: Path) -> None:
    data = _record(BELIEVED).encode()
    first = data.index(b"\n")
    for size in [*range(0, first, 500), first - 1]:
        with pytest.raises(SplitError, match="line 1"):
            _read(tmp_path, data[:size])
    for size in range(first + 1, len(data), 97):
        run = _read(tmp_path, data[:size])
        assert len(run.damaged) <= 1
        replay(run, ["splitrt", "oracle"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1"),
        ("not JSON\n", "line 1"),
        ('{"type": "run", "version": 99}\n', "expected a run of version 1, given 99"),
        ('{"type": "run", "version": 1}\n', "line 1"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(SplitError, match=match):
        _read(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="--record"):
        read_run(tmp_path / "none")


# -- the command -------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(_record(BELIEVED) + "broken\n")
    shown = CliRunner().invoke(main, ["replay", str(path)])
    assert shown.exit_code == 0, shown.stderr
    for name in selector_names(replay=True):
        assert name in shown.stdout
    assert "line 6" in shown.stderr
    result = CliRunner().invoke(
        main,
        ["replay", str(path), "--selector", "oracle", "--objective", "energy", "--json",
         "--inferences"],
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert [one["selector"] for one in told["outcomes"]] == [MEASURED, RECORDED, "oracle"]
    assert told["damaged"][0]["line"] == 6
    assert [one["seq"] for one in told["outcomes"][2]["inferences"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--selector", "fastest"], "fastest"),
        (["--objective", "quick"], "objective 'quick'"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(_record(BELIEVED))
    result = CliRunner().invoke(main, ["replay", str(path), *arguments])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert part in result.stderr
