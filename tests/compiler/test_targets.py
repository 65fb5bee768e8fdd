"""Targets: what is built here, what the device builds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calibration.bundle_cli import main as split_bundle
from compiler import CompileOptions, compile_model
from compiler.cli import main as split_compile
from compiler.target_specs import TargetSpec, parse_target
from engines.bundle import Bundle
from engines.errors import BuildError, CompileError
from engines.plans import PlanStore
from runtime.build import build_plans
from runtime.cli import main as runtime
from tests.models import torch_models

RTX = "tensorrt-rtx:sm86,sm89"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("cpu", TargetSpec("cpu")),
        ("tensorrt", TargetSpec("tensorrt")),
        ("tensorrt-rtx", TargetSpec("tensorrt-rtx")),
        (RTX, TargetSpec("tensorrt-rtx", ("sm86", "sm89"))),
        ("tensorrt-rtx: SM120", TargetSpec("tensorrt-rtx", ("sm120",))),
        ("jetson-orin-nx", TargetSpec("jetson-orin-nx")),
    ],
)
def test_targets_are_read(text: str, spec: TargetSpec) -> None:
    assert parse_target(text) == spec


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "jetson-nano", "cpu:sm86", "tensorrt:sm86", "tensorrt-rtx:", "tensorrt-rtx:86"],
)
def test_other_targets_are_refused(text: str) -> None:
    with pytest.raises(BuildError, match="--target"):
        parse_target(text)


def test_the_opset_is_the_highest_that_every_target_takes() -> None:
    assert CompileOptions(targets=("jetson-orin-nx",)).graph_opset == 18
    assert CompileOptions(targets=("jetson-xavier-nx", "cpu")).graph_opset == 17
    assert CompileOptions(targets=("jetson",), opset=17).graph_opset == 17
    with pytest.raises(CompileError, match="jetson-xavier-nx takes at most 17"):
        CompileOptions(targets=("jetson-xavier-nx",), opset=18)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    out = tmp_path_factory.mktemp("planned") / "residual.bundle"
    options = CompileOptions(targets=(RTX, "jetson-orin-nx"), workspace=1 << 28)
    compile_model(torch_models.residual(), out, options=options)
    return Bundle.open(out)


def test_rtx_plans_are_built_without_a_gpu_for_every_segment(planned: Bundle) -> None:
    target = planned.manifest.targets["tensorrt-rtx"]
    assert target.compute_capabilities == ("sm86", "sm89")
    assert target.plans is not None
    headers = PlanStore(planned.folder / target.plans).headers()
    names = [segment.file.rpartition("/")[2] for segment in planned.manifest.segments]
    assert [header.onnx for header in headers] == names
    assert all(header.fingerprint.fields["targets"] == "sm86,sm89" for header in headers)
    assert all(header.size > 0 and header.precision == "fp32" for header in headers)


def test_a_plan_of_other_dtypes_than_the_graph_is_refused(tmp_path: Path) -> None:
    """TensorRT for RTX gives float32 where the graph says float64, and does not say so."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    torch = pytest.importorskip("torch")

    class Double(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return (x * 2).relu()

    options = CompileOptions(targets=(RTX,))
    example = torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(BuildError, match="dtypes"):
        compile_model((Double(), (example,)), tmp_path / "double.bundle", options=options)
    assert not (tmp_path / "double.bundle").exists()


def test_a_jetson_target_is_a_recipe(planned: Bundle) -> None:
    target = planned.manifest.targets["jetson-orin-nx"]
    assert (target.backend, target.plans, target.workspace_bytes) == ("tensorrt", None, 1 << 28)


def test_the_recipe_is_carried_out_and_found_again(planned: Bundle) -> None:
    """The builder of TensorRT for RTX stands in for that of the robot."""

    def carry_out() -> list[bool]:
        plans = build_plans(
            planned,
            target="jetson-orin-nx",
            backend="tensorrt-rtx",
            compute_capabilities=("sm86",),
        )
        return [plan.found for plan in plans]

    assert not any(carry_out())
    assert all(carry_out())


def test_commands_on_targets(planned: Bundle) -> None:
    def said(command: Any, *arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(command, list(arguments))
        assert result.exit_code == status, result.output
        return result.output

    path = str(planned.folder)
    listed = json.loads(said(split_bundle, "inspect", path, "--target", "tensorrt-rtx", "--json"))
    assert len(listed["built"]) >= len(planned.manifest.segments)
    assert {"bytes", "precision", "fingerprint", "build_s"} <= set(listed["built"][0])
    assert "by `runtime build`" in said(
        split_bundle, "inspect", path, "--target", "jetson-orin-nx"
    )
    refused = said(split_bundle, "inspect", path, "--target", "orin", status=1)
    assert "jetson-orin-nx, tensorrt-rtx" in refused
    assert "none named" in said(runtime, "build", path, status=1)
    built = said(runtime, "build", path, "--target", "tensorrt-rtx", "--for", "sm89", "--json")
    assert [plan["found"] for plan in json.loads(built)] == [False] * len(
        planned.manifest.segments
    )


def test_errors_are_one_line(tmp_path: Path) -> None:
    for arguments in (["--target", "gpu"], ["--target", "jetson", "--opset", "18"]):
        result = CliRunner().invoke(
            split_compile, ["model.onnx", "-o", str(tmp_path / "o"), *arguments]
        )
        assert result.exit_code == 1
        assert len(result.output.strip().splitlines()) == 1
        assert "Traceback" not in result.output
