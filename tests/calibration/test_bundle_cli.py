from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from calibration.bundle_cli import main
from engines.bundle import Bundle
from tests.toy import reseal


def _run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def wrong(toy_copy: Path) -> Path:
    """Give a bundle whose digests hold, but not its results."""
    weights = toy_copy / "graph" / "weights.bin"
    values = np.frombuffer(weights.read_bytes(), np.float32)
    weights.write_bytes((values * 1.01).astype(np.float32).tobytes())
    reseal(toy_copy)
    return toy_copy


def test_inspect_names_inputs_outputs_and_every_cut(toy: Bundle) -> None:
    result = _run("inspect", toy.folder)
    assert result.exit_code == 0
    for text in ("toy", "x: float32 [1, 3, 16, 16]", "logits: float32 [1, 5]", toy.digest[:12]):
        assert text in result.stdout
    assert all(cut.id in result.stdout for cut in toy.manifest.cuts)


def test_inspect_as_json_is_the_manifest(toy: Bundle) -> None:
    record = json.loads(_run("inspect", toy.folder, "--json").stdout)
    assert record["digest"] == toy.digest
    assert record["bundle"] == str(toy.folder)
    assert [cut["id"] for cut in record["cuts"]] == [cut.id for cut in toy.manifest.cuts]


def test_inspect_one_cut(toy: Bundle) -> None:
    cut = toy.manifest.cuts[3]
    text = _run("inspect", toy.folder, "--cut", cut.id).stdout
    assert f"cut {cut.id} (index 3)" in text
    record = json.loads(_run("inspect", toy.folder, "--cut", cut.id, "--json").stdout)
    assert record["tensors"] == ["b: float32 [1, 8, 16, 16]", "m: bool [1, 8, 16, 16]"]
    assert record["robot_operators"] == ["Conv", "Relu", "Greater"]
    assert record["server_operators"] == ["Where", "GlobalAveragePool", "Flatten", "Gemm"]
    for cut in toy.manifest.cuts:
        assert _run("inspect", toy.folder, "--cut", cut.id).exit_code == 0


@pytest.mark.parametrize("backend", ["ort", "reference"])
def test_verify_a_right_bundle(toy: Bundle, backend: str) -> None:
    result = _run("verify", toy.folder, "--backend", backend)
    assert result.exit_code == 0
    assert f"8 of 8 cuts within tolerance on backend {backend}" in result.stdout


def test_verify_as_json(toy: Bundle) -> None:
    record = json.loads(_run("verify", toy.folder, "--json").stdout)
    assert record["ok"] is True
    assert record["bundle"] == toy.digest
    assert [row["cut"] for row in record["cuts"]] == [cut.id for cut in toy.manifest.cuts]
    assert record["max_error"] == max(row["max_error"] for row in record["cuts"]) <= 1e-4


def test_verify_a_wrong_bundle_exits_1(wrong: Path) -> None:
    result = _run("verify", wrong)
    assert result.exit_code == 1
    assert "over tolerance" in result.stdout
    assert "0 of 8 cuts within tolerance" in result.stdout
    result = _run("verify", wrong, "--json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert record["ok"] is False
    assert record["max_error"] > 1e-4


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_errors_are_one_line_and_status_1(toy_copy: Path, command: str) -> None:
    result = _run(command, toy_copy.parent / "none")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "split-compile" in result.stderr
    weights = toy_copy / "graph" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = _run(command, toy_copy)
    assert result.exit_code == 1
    assert "graph/weights.bin" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_cut_or_backend_is_an_error(toy: Bundle) -> None:
    result = _run("inspect", toy.folder, "--cut", "nope")
    assert (result.exit_code, result.stderr[:16]) == (1, "error: cut 'nope")
    result = _run("verify", toy.folder, "--backend", "tpu")
    assert result.exit_code == 1
    assert "expected one of ort, reference" in result.stderr


@pytest.mark.parametrize("args", [[], ["inspect"], ["unknown"], ["inspect", "a", "b"]])
def test_wrong_usage_is_status_2(args: list[str]) -> None:
    assert _run(*args).exit_code == 2
