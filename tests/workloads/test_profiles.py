"""The reader of published profiles, and the checker of workloads against them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scripts.workloads import WORKLOADS
from scripts.workloads.check import Step, check, main, match, profile_steps, workload_steps
from scripts.workloads.profiles import (
    TESTBED,
    Operator,
    ProfileError,
    profiles_folder,
    read_profile,
)


def operator(index: int, op: str, inputs: list[int], *shapes: list[int]) -> dict[str, Any]:
    dim = 1 if shapes and len(shapes[0]) > 1 else None
    return {
        "index": index,
        "op": op,
        "inputs": inputs,
        "shapes": list(shapes),
        "local_dim": dim,
        "ms": 0.5,
    }


def profile(operators: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": "small",
        "robot": "a robot",
        "server": "a server",
        "robot_ops": operators,
        "server_ops": copy.deepcopy(operators),
    }


# A convolution with its activation in place, a residual sum in place, a tensor that is written
# in place in two pieces, and a selection that depends on the data.
SMALL = profile(
    [
        operator(0, "_start", [], [1, 3, 8, 8]),
        operator(1, "conv2d", [0, 0], [1, 4, 8, 8]),
        operator(2, "relu", [1], [1, 4, 8, 8]),
        operator(3, "conv2d", [1, 2], [1, 4, 8, 8]),
        operator(4, "add_", [1, 2, 3], [1, 4, 8, 8]),
        operator(5, "sigmoid", [3, 4], [1, 4, 8, 8]),
        operator(6, "__getitem__", [5], [1, 2, 8, 8]),
        operator(7, "mul", [6], [1, 2, 8, 8]),
        operator(8, "__setitem__", [5, 7]),
        operator(9, "__getitem__", [5, 8], [1, 2, 8, 8]),
        operator(10, "__setitem__", [5, 8, 9]),
        operator(11, "max_pool2d", [5, 8, 10], [1, 4, 4, 4]),
        operator(12, "masked_select", [11], [17]),
        operator(13, "cat", [12], [17]),
        operator(14, "_end", [13], [17]),
    ]
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def to_file(content: Any) -> Path:
        path = tmp_path / "small.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def test_reads_records(write: Callable[[Any], Path]) -> None:
    read = read_profile(write(SMALL))
    assert (read.model, read.robot, read.server) == ("small", "a robot", "a server")
    assert read.robot_ops[3] == Operator(3, "conv2d", (2,), ((1, 4, 8, 8),), 1, 0.5)
    assert read.robot_ops[13].local_dim is None
    assert len(read.server_ops) == len(read.robot_ops) == 15


def test_producers_are_read_without_doubles(write: Callable[[Any], Path]) -> None:
    inputs = [operator.inputs for operator in read_profile(write(SMALL)).robot_ops]
    assert inputs[1] == (0,)  # twice the same
    assert inputs[4] == (2, 3)  # relu overwrote the convolution
    assert inputs[5] == (4,)  # the sum overwrote the second convolution
    assert inputs[10] == (8, 9)
    assert inputs[11] == (10,)  # what was written in place, once


def test_compared_operators(write: Callable[[Any], Path]) -> None:
    steps = profile_steps(read_profile(write(SMALL)).robot_ops)
    assert [str(step) for step in steps] == [
        "conv2d [1, 4, 8, 8]",
        "conv2d [1, 4, 8, 8]",
        "add [1, 4, 8, 8]",
        "cat [1, 4, 8, 8]",
        "max_pool2d [1, 4, 4, 4]",
    ]


def changed(where: str, value: Any, index: int = 5, *, both: bool = True) -> dict[str, Any]:
    broken = copy.deepcopy(SMALL)
    for key in ("robot_ops", "server_ops") if both else ("server_ops",):
        broken[key][index][where] = value
    return broken


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "small.json: expected JSON"),
        ([], "profile: expected an object, given list"),
        ({}, "model: expected a string, given nothing"),
        ({**SMALL, "robot_ops": []}, "robot_ops: expected operators, given none"),
        ({**SMALL, "robot_ops": [1]}, "robot_ops[0]: expected an object, given int"),
        ({**SMALL, "server_ops": SMALL["robot_ops"][:3]}, "expected as many server_ops"),
        (changed("index", 4), "robot_ops[5].index: expected 5, given 4"),
        (changed("op", None), "robot_ops[5].op: expected a string, given nothing"),
        (changed("op", "tanh", both=False), "server_ops[5]: expected 'sigmoid'"),
        (changed("inputs", [5]), "robot_ops[5].inputs: expected indices below 5, given [5]"),
        (changed("inputs", ["4"]), "robot_ops[5].inputs: expected an integer from 0 on"),
        (changed("inputs", None), "robot_ops[5].inputs: expected a list, given nothing"),
        (changed("shapes", [4]), "robot_ops[5].shapes: expected a list, given int"),
        (changed("shapes", [[-1]]), "robot_ops[5].shapes: expected an integer from 0 on"),
        (changed("local_dim", 4), "expected a dimension of [1, 4, 8, 8], given 4"),
        (changed("ms", -1), "robot_ops[5].ms: expected milliseconds from 0 on, given -1"),
        (changed("ms", float("nan")), "robot_ops[5].ms: expected milliseconds from 0 on"),
        (changed("ms", True), "robot_ops[5].ms: expected milliseconds, given True"),
    ],
)
def test_says_what_is_malformed(write: Callable[[Any], Path], content: Any, message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        read_profile(write(content))
    assert message in str(caught.value)
    assert "small.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match=r"none.json: No such file"):
        read_profile(tmp_path / "none.json")
    monkeypatch.delenv(TESTBED, raising=False)
    with pytest.raises(ProfileError, match=f"name one, or set {TESTBED}"):
        profiles_folder()
    monkeypatch.setenv(TESTBED, str(tmp_path / "none"))
    with pytest.raises(ProfileError, match="no such folder"):
        profiles_folder()


def test_finds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").mkdir()
    monkeypatch.setenv(TESTBED, str(tmp_path))
    assert profiles_folder() == profiles_folder(tmp_path / "profiles") == tmp_path / "profiles"


def test_matches_in_order() -> None:
    conv, pool = Step("conv2d", (1, 4, 8, 8)), Step("max_pool2d", (1, 4, 4, 4))
    wide = Step("conv2d", (1, 8, 8, 8))
    same = match([conv, pool], [conv, pool])
    assert (same.profile, same.model, same.matched, same.first_difference) == (2, 2, 2, None)
    other = match([conv, conv, pool], [conv, wide, pool])
    assert (other.matched, other.first_difference) == (
        2,
        "at 1 of the profile: expected conv2d [1, 4, 8, 8]; the model has conv2d [1, 8, 8, 8]",
    )
    more = match([conv], [conv, pool])
    assert more.first_difference is not None
    assert "expected nothing; the model has max_pool2d" in more.first_difference


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """Give a folder with a profile as long as the voxel network's own operators."""
    steps = workload_steps(WORKLOADS["agrnav"])
    operators = [operator(0, "_start", [], [1, 1, 256, 32, 256])]
    operators += [operator(i, s.op, [i - 1], list(s.shape)) for i, s in enumerate(steps, 1)]
    (tmp_path / "agrnav.json").write_text(json.dumps(profile(operators)))
    return tmp_path


def test_checks_a_workload(synthetic: Path) -> None:
    result = check("agrnav", synthetic)
    assert (result.profile, result.model, result.matched) == (37, 37, 37)
    assert result.first_difference is None
    shown = CliRunner().invoke(main, [str(synthetic), "agrnav"])
    assert shown.exit_code == 0, shown.output
    assert "agrnav" in shown.output
    assert "none" in shown.output


def test_finds_a_difference(synthetic: Path) -> None:
    content = json.loads((synthetic / "agrnav.json").read_text())
    for key in ("robot_ops", "server_ops"):
        content[key][4]["shapes"][0][1] += 1
    (synthetic / "agrnav.json").write_text(json.dumps(content))
    assert check("agrnav", synthetic).matched == 36
    assert CliRunner().invoke(main, [str(synthetic), "agrnav"]).exit_code == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nope"], "nope: expected a workload with a profile"),
        (["vgg19"], "vgg19: expected a workload with a profile"),
        (["kapao"], "kapao.json: No such file"),
    ],
)
def test_refuses_in_one_line(synthetic: Path, names: list[str], message: str) -> None:
    shown = CliRunner().invoke(main, [str(synthetic), *names])
    assert shown.exit_code == 1
    assert message in shown.output
    assert shown.output.count("\n") == 1


@pytest.mark.parametrize("name", [n for n, w in WORKLOADS.items() if w.profile is not None])
@pytest.mark.skipif(TESTBED not in os.environ, reason=f"{TESTBED} names no testbed data")
def test_is_the_published_profile(name: str) -> None:
    result = check(name, profiles_folder())
    assert result.first_difference is None
    assert result.matched == result.profile == result.model
