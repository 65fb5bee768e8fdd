"""Targets: what is built here, what the device builds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calibration.bundle_cli import main as split_bundle
from compiler import CompileOptions, compile_model
from compiler.cli import main as split_compile
from compiler.target_specs import TargetSpec, parse_target
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.bundle_plans import BundlePlans
from engines.errors import BuildError, CompileError, MissingPlanError
from engines.halves import halves_of
from engines.plans import PlanStore
from engines.tensorrt.backend import TensorRTOptions
from engines.tensorrt.builder import BuildOptions
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


def names_of(files: Iterable[str]) -> list[str]:
    return sorted(file.rpartition("/")[2] for file in files)


def test_rtx_plans_are_built_without_a_gpu_for_every_segment_and_the_likely_halves(
    planned: Bundle,
) -> None:
    target = planned.manifest.targets["tensorrt-rtx"]
    assert target.compute_capabilities == ("sm86", "sm89")
    assert target.plans is not None
    headers = PlanStore(planned.folder / target.plans).headers()
    segments = [segment.file for segment in planned.manifest.segments]
    halves = list(halves_of(planned.manifest, "auto").values())
    assert planned.manifest.graph in halves
    assert target.halves == tuple(halves)
    assert [header.onnx for header in headers] == names_of(segments + halves)
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
    assert target.halves == tuple(halves_of(planned.manifest, "auto").values())


def test_the_recipe_is_carried_out_and_found_again(planned: Bundle) -> None:
    """The builder of TensorRT for RTX stands in for that of the robot."""

    told: list[tuple[int, int]] = []

    def carry_out(**options: Any) -> list[tuple[str, bool]]:
        plans = build_plans(
            planned,
            target="jetson-orin-nx",
            backend="tensorrt-rtx",
            compute_capabilities=("sm86",),
            progress=lambda *at: told.append(at),
            **options,
        )
        return [(plan.header.onnx, plan.found) for plan in plans]

    segments = [segment.file for segment in planned.manifest.segments]
    halves = list(planned.manifest.targets["jetson-orin-nx"].halves)
    assert [name for name, _ in carry_out(halves=False)] == names_of(segments)
    assert told[-1] == (len(segments), len(segments))
    found = dict(carry_out())
    assert sorted(found) == names_of(segments + halves)
    assert [name for name, there in found.items() if not there] == [
        half.rpartition("/")[2] for half in halves
    ], "the segments were there"
    assert all(there for _, there in carry_out())


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

    def compiled(**options: Any) -> Bundle:
        out = tmp_path_factory.mktemp("chosen") / "chain.bundle"
        options = {"targets": (RTX,), **options}
        compile_model(torch_models.chain(), out, options=CompileOptions(**options))
        return Bundle.open(out)

    return compiled


@pytest.mark.parametrize("choice", ["none", "all"])
def test_which_halves_get_plans_can_be_said(chosen: Callable[..., Bundle], choice: str) -> None:
    bundle = chosen(halves=choice, cuts="all")
    target = bundle.manifest.targets["tensorrt-rtx"]
    halves = list(halves_of(bundle.manifest, choice).values())
    assert len(halves) == (0 if choice == "none" else 1 + 2 * (len(bundle.manifest.cuts) - 3))
    assert target.halves == tuple(halves)
    headers = PlanStore(bundle.folder / str(target.plans)).headers()
    segments = [segment.file for segment in bundle.manifest.segments]
    assert {header.onnx for header in headers} == set(names_of(segments + halves))


def test_a_half_that_cannot_be_built_is_left_out_but_a_segment_is_an_error(
    chosen: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build = PlanStore.build
    broken = "model.onnx"

    def some(self: PlanStore, backend: Any, path: Path, **options: Any) -> Any:
        if path.name == broken:
            raise BuildError(f"{path.name}: too large for this library")
        return build(self, backend, path, **options)

    monkeypatch.setattr(PlanStore, "build", some)
    bundle = chosen(halves="auto", targets=(RTX, "jetson-orin-nx"))
    assert bundle.manifest.graph not in bundle.manifest.targets["tensorrt-rtx"].halves
    assert "its cut runs as a chain" in caplog.text
    recipe = bundle.manifest.targets["jetson-orin-nx"]
    assert bundle.manifest.graph in recipe.halves, "another library may build it"
    options = {"backend": "tensorrt-rtx", "compute_capabilities": ("sm86",)}
    plans = build_plans(bundle, target="jetson-orin-nx", **options)
    assert broken not in [plan.header.onnx for plan in plans]
    broken = "segment_0000.onnx"
    with pytest.raises(BuildError, match="too large"):
        chosen(halves="none")
    with pytest.raises(BuildError, match="too large"):
        build_plans(bundle, target="jetson-orin-nx", **options)


def test_the_plans_of_halves_are_found(planned: Bundle) -> None:
    build = BuildOptions(compute_capabilities=("sm86", "sm89"))
    backend = open_backend("tensorrt-rtx", TensorRTOptions(build=build))
    plans = BundlePlans(planned, backend)  # type: ignore[arg-type]
    sizes = {
        file: len(plans.build(planned.path(file)))
        for file in planned.manifest.targets["tensorrt-rtx"].halves
    }
    assert all(size > 0 for size in sizes.values())
    others = set(halves_of(planned.manifest, "all").values()) - set(sizes)
    for file in others:
        with pytest.raises(MissingPlanError, match="runtime build"):
            plans.build(planned.path(file))


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
    halves = planned.manifest.targets["tensorrt-rtx"].halves
    parts = [plan["part"] for plan in listed["built"]]
    assert parts.count("half") >= len(halves) > 0
    text = said(split_bundle, "inspect", path, "--target", "tensorrt-rtx")
    assert "of halves" in text
    assert f"fused halves: {', '.join(file.rpartition('/')[2] for file in halves)}" in text
    arguments = ("build", path, "--target", "tensorrt-rtx", "--for", "sm89", "--json")
    built = json.loads(said(runtime, *arguments, "--no-halves"))
    assert [plan["found"] for plan in built] == [False] * len(planned.manifest.segments)
    built = json.loads(said(runtime, *arguments))
    new = [plan["part"] for plan in built if not plan["found"]]
    assert new == ["half"] * len(halves)


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="--halves: expected one of auto, none, all"):
        CompileOptions(halves="some")
    for arguments in (["--target", "gpu"], ["--target", "jetson", "--opset", "18"]):
        result = CliRunner().invoke(
            split_compile, ["model.onnx", "-o", str(tmp_path / "o"), *arguments]
        )
        assert result.exit_code == 1
        assert len(result.output.strip().splitlines()) == 1
        assert "Traceback" not in result.output
