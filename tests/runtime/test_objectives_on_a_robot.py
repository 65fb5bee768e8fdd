"""What a robot does with its selector, its objective and its constraints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.objectives import Constraints, parse_objective
from engines.bundle import Bundle
from engines.errors import ManifestError, SplitError
from runtime import Robot, Server
from runtime.cli import main
from runtime.recording import read_run
from runtime.selector import SplitRT, selector_names
from tests.runtime.helpers import address, assert_right

Tensors = dict[str, np.ndarray]


@pytest.mark.parametrize("name", selector_names())
def test_every_selector_runs(
    toy: Bundle, server: Server, inputs: Tensors, expected: Tensors, name: str
) -> None:
    with Robot(toy, server=address(server), selector=name, threads=1) as robot:
        for _ in range(3):
            assert_right(robot.infer(inputs), expected)


def test_a_result_carries_its_decision_and_the_situation(
    toy: Bundle, server: Server, inputs: Tensors
) -> None:
    with Robot(toy, server=address(server), objective="energy", threads=1) as robot:
        result = robot.infer(inputs)
    decision = result.decision
    assert decision is not None
    assert decision.prediction is result.predicted
    assert toy.manifest.cuts[decision.cut].id == result.cut
    situation = decision.situation
    assert situation is not None
    assert situation.objective == parse_objective("energy")
    assert situation.plans is not None
    assert situation.link is not None
    assert result.record()["objective"] == "energy"


def test_what_decisions_rest_on_is_worked_out_before_the_first(
    toy: Bundle, server: Server, inputs: Tensors
) -> None:
    bound = Constraints(lossless=True)
    with Robot(
        toy, server=address(server), objective="energy", constraints=bound, hedge=False, threads=1
    ) as robot:
        selector = robot._selector
        assert isinstance(selector, SplitRT)
        assert selector._last is not None
        _, table = selector._last
        result = robot.infer(inputs)
    assert result.decision is not None
    assert result.decision.situation is not None
    assert table.rules == result.decision.situation.rules
    assert len(table._cells) > 100


def test_a_deadline_can_be_given_with_each_call(
    toy: Bundle, server: Server, inputs: Tensors
) -> None:
    with Robot(toy, server=address(server), threads=1) as robot:
        one = robot.infer(inputs, deadline_s=0.25)
        other = robot.infer(inputs)
        streamed = list(robot.stream([inputs] * 2, deadline_s=0.5))
        for wrong in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(SplitError, match="objective deadline"):
                robot.infer(inputs, deadline_s=wrong)
            with pytest.raises(SplitError, match="objective deadline"):
                robot.stream([inputs], deadline_s=wrong)
    assert one.record()["objective"] == "deadline=250ms"
    assert other.record()["objective"] == "latency"
    assert {result.record()["objective"] for result in streamed} == {"deadline=500ms"}


def test_constraints_are_heeded(toy: Bundle, server: Server, inputs: Tensors) -> None:
    bound = Constraints(keep_local=toy.manifest.cuts[4].id)
    with Robot(toy, server=address(server), constraints=bound, threads=1) as robot:
        cuts = {robot.infer(inputs).cut for _ in range(3)}
    assert cuts <= {cut.id for cut in toy.manifest.cuts[4:]}


def test_wrong_choices_are_refused_before_anything_is_loaded(toy: Bundle) -> None:
    with pytest.raises(SplitError, match="objective 'quick'"):
        Robot(toy, objective="quick")
    with pytest.raises(ManifestError, match="runtime replay"):
        Robot(toy, selector="oracle")
    with pytest.raises(ManifestError):
        Robot(toy, constraints=Constraints(keep_local="ffffffff"))


def _run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_run_is_recorded_and_replayed(toy: Bundle, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    code, _, err = _run(
        "infer", toy.folder, "--server", address(server), "--source", "random:5", "--selector",
        "offload", "--objective", "deadline=5s", "--record", path, "--threads", 1,
    )  # fmt: skip
    assert code == 0, err
    run = read_run(path)
    assert run.damaged == ()
    assert run.header.bundle == toy.digest
    assert [record.seq for record in run.inferences] == list(range(5))
    assert {record.answered_by for record in run.inferences} == {"remote"}
    assert {record.objective for record in run.inferences} == {"deadline=5000ms"}
    code, out, err = _run("replay", path, "--json")
    assert code == 0, err
    told = json.loads(out)
    names = [one["selector"] for one in told["outcomes"]][2:]
    assert tuple(names) == selector_names(replay=True)
    assert {one["count"] for one in told["outcomes"][2:]} == {5}


def test_cut_and_selector_are_one_thing(toy: Bundle) -> None:
    code, _, err = _run(
        "infer", toy.folder, "--source", "random:1", "--cut", "local", "--selector", "local"
    )
    assert code == 2
    assert "give one of them" in err
    code, _, err = _run("infer", toy.folder, "--source", "random:1", "--objective", "quick")
    assert (code, len(err.splitlines())) == (1, 1)
