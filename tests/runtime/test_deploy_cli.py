from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engines.bundle import Bundle
from runtime.deploy_cli import main
from tests.toy import write_toy_bundle


def _run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_deploy_list_and_roll_back(toy: Bundle, tmp_path: Path) -> None:
    other = write_toy_bundle(tmp_path / "other", seed=1)
    target = tmp_path / "robot"
    result = _run(toy.folder, target)
    assert result.exit_code == 0
    assert f"current is {toy.digest[:12]}" in result.stdout
    record = json.loads(_run(other.folder, target, "--json").stdout)
    assert record["release"] == other.digest[:12]
    assert record["current"] is True
    listed = json.loads(_run("--list", target, "--json").stdout)
    assert {r["release"]: (r["current"], r["previous"]) for r in listed} == {
        toy.digest[:12]: (False, True),
        other.digest[:12]: (True, False),
    }
    assert f"{toy.digest[:12]}  previous\n" in _run("--list", target).stdout
    assert _run("--rollback", target).exit_code == 0
    assert Bundle.open(target).digest == toy.digest


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["gone", "target"], "split-compile"),
        (["--list", "nothing-here"], "nothing is deployed"),
        (["--rollback", "nothing-here"], "no previous release"),
    ],
)
def test_errors_are_one_line(args: list[str], says: str, tmp_path: Path) -> None:
    result = _run(*(arg if arg.startswith("-") else tmp_path / arg for arg in args))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_its_library_ssh_says_what_to_install(
    toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    result = _run(toy.folder, "user@robot:/opt/model")
    assert result.exit_code == 1
    assert "pip install 'splitrt[deploy]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [["bundle", "path", "--port", "22"], ["--list", "path", "--identity", "key"],
     ["bundle", "user@robot:m", "--move"]],
)  # fmt: skip
def test_options_of_the_other_kind_of_target_are_refused(args: list[str]) -> None:
    assert _run(*args).exit_code == 2


def test_a_release_is_made_ready_where_it_was_asked_for(toy: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "robot"
    assert _run(toy.folder, target).exit_code == 0
    device = target / "releases" / f"{toy.digest[:12]}.device"
    assert not device.exists()
    result = _run(toy.folder, target, "--prepare")
    assert result.exit_code == 0, result.stderr
    assert len(list(device.glob("latency-*.json"))) == 1


def test_moving_leaves_nothing_behind(toy_copy: Path, tmp_path: Path) -> None:
    digest = Bundle.open(toy_copy).digest
    assert _run("--move", toy_copy, tmp_path / "robot").exit_code == 0
    assert not toy_copy.exists()
    assert Bundle.open(tmp_path / "robot").digest == digest


@pytest.mark.parametrize(
    "args",
    [[], ["bundle"], ["b", "t", "--list", "t"], ["--list", "t", "--rollback", "t"],
     ["b", "--rollback", "t"], ["b", "t", "more"]],
)  # fmt: skip
def test_wrong_usage_is_status_2(args: list[str]) -> None:
    assert _run(*args).exit_code == 2


def test_a_truncated_bundle_as_a_process(toy_copy: Path, tmp_path: Path) -> None:
    weights = toy_copy / "graph" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    code = "from runtime.deploy_cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(toy_copy), str(tmp_path / "robot")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "graph/weights.bin" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "robot").exists()
