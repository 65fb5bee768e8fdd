"""Builder torch-tensorrt, with a Torch-TensorRT that records what it is given."""

from __future__ import annotations

import json
import logging
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from compiler import CompileOptions, compile_model, targets, trace
from compiler.cli import main as split_compile
from compiler.target_specs import TORCH_TENSORRT
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.bundle_plans import BundlePlans
from engines.errors import BuildError, IncompatibleError, TraceError
from engines.plans import PlanStore
from engines.tensorrt import api, memory
from engines.tensorrt.named import split_plan
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.trt import MAGIC, fake_tensorrt
from tests.models import torch_models

FX = CompileOptions(targets=("tensorrt",), builder=TORCH_TENSORRT, cuts="all")


class FakeTorchTensorRT(types.ModuleType):
    """Converts additions and doublings into a plan of the fake TensorRT."""

    __version__ = "2.13.0+fake"

    def __init__(self) -> None:
        super().__init__("torch_tensorrt")
        self.given: list[tuple[Any, Any, dict[str, Any]]] = []
        self.output = "output"
        self.dynamo = types.SimpleNamespace(
            convert_exported_program_to_serialized_trt_engine=self.convert
        )

    def convert(self, program: Any, *, arg_inputs: Any, **settings: Any) -> bytes:
        self.given.append((program, arg_inputs, settings))
        module = program.module()
        inputs, operations = [], {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                inputs.append([node.target, "float32", list(node.meta["val"].shape)])
            elif node.op == "call_function" and "scalar_tensor" not in str(node.target):
                kind = {"aten.add.Tensor": "add", "aten.mul.Tensor": "double"}.get(
                    str(node.target)
                )
                if kind is None:
                    logging.getLogger("torch_tensorrt.dynamo").error("not to be seen")
                    raise RuntimeError(f"No converter\nfor {node.target}")
                taken = [n.target for n in node.all_input_nodes if n.op == "placeholder"]
                operations[node] = (kind, taken)
        outputs = []
        (results,) = next(n for n in module.graph.nodes if n.op == "output").args
        for place, node in enumerate(results):
            shape = list(node.meta["val"].shape)
            outputs.append([f"{self.output}{place}", "float32", shape, *operations[node]])
        return MAGIC + json.dumps({"inputs": inputs, "outputs": outputs, "targets": []}).encode()


class Sums(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((x + y) * 2) + x


def sums() -> Any:
    return Sums().eval(), (torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    """Give a GPU, and a TensorRT 11 on it."""
    fake = FakeMemory()
    monkeypatch.setitem(api._found, "tensorrt", api.Api(fake_tensorrt("11", fake)))
    monkeypatch.setattr(memory, "_opened", fake)
    return fake


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeTorchTensorRT:
    fake = FakeTorchTensorRT()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)
    return fake


def test_every_segment_is_converted_and_its_plan_found_again(
    gpu: FakeMemory, library: FakeTorchTensorRT, tmp_path: Path
) -> None:
    compile_model(sums(), tmp_path / "b", options=FX)
    bundle = Bundle.open(tmp_path / "b")
    segments = bundle.manifest.segments
    assert len(library.given) == len(segments) == 3
    for (program, inputs, settings), segment in zip(library.given, segments, strict=True):
        assert isinstance(program, torch.export.ExportedProgram)
        assert [tuple(i.shape) for i in inputs] == [
            bundle.manifest.tensors[name].shape for name in segment.inputs
        ]
        assert settings == {
            "workspace_size": 0,
            "disable_tf32": True,
            "require_full_compilation": True,
            "truncate_double": False,
            "immutable_weights": True,
        }
    target = bundle.manifest.targets["tensorrt"]
    assert target.plans is not None
    store = PlanStore(bundle.folder / target.plans)
    for header, segment in zip(store.headers(), segments, strict=True):
        assert header.options["builder"] == "torch-tensorrt"
        assert header.options["torch_tensorrt"] == "2.13.0+fake"
        assert [spec.name for spec in header.inputs] == list(segment.inputs)
        assert [spec.name for spec in header.outputs] == list(segment.outputs)
        plan, names = split_plan(store.open(header.key, open_backend("tensorrt").fingerprint()))
        assert plan.startswith(MAGIC)
        assert list(names.values()) == [*segment.inputs, *segment.outputs]
    assert gpu.leaked == 0


def test_a_bundle_runs_on_such_plans(
    gpu: FakeMemory, library: FakeTorchTensorRT, tmp_path: Path
) -> None:
    compile_model(sums(), tmp_path / "b", options=FX)
    bundle = Bundle.open(tmp_path / "b")
    backend = BundlePlans(bundle, open_backend("tensorrt"))  # type: ignore[arg-type]
    tensors, expected = bundle.parity_vectors()
    for segment in bundle.manifest.segments:
        path = bundle.path(segment.file)
        engine = backend.load(backend.build(path), folder=path.parent)
        assert [spec.name for spec in engine.inputs] == list(segment.inputs)
        for _ in range(3):  # the third is launched as a graph
            given = engine.run({name: tensors[name] for name in segment.inputs})
        tensors.update(given)
        engine.close()
    assert np.allclose(tensors["output"], expected["output"], atol=1e-6)
    assert gpu.leaked == 0


def test_the_workspace_is_passed_on_and_part_of_the_key(
    gpu: FakeMemory, library: FakeTorchTensorRT, tmp_path: Path
) -> None:
    options = CompileOptions(targets=("tensorrt",), builder=TORCH_TENSORRT, workspace=1 << 20)
    compile_model(sums(), tmp_path / "b", options=options)
    assert library.given[0][2]["workspace_size"] == 1 << 20
    (header, *_) = PlanStore(tmp_path / "b" / "plans" / "tensorrt").headers()
    assert header.options["workspace_bytes"] == str(1 << 20)


def test_other_binding_names_are_refused(
    gpu: FakeMemory, library: FakeTorchTensorRT, tmp_path: Path
) -> None:
    library.output = "result"
    with pytest.raises(
        BuildError, match=r"expected a plan with .*output0 \[2, 3\], given .*result0"
    ):
        compile_model(sums(), tmp_path / "b", options=FX)
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_converted_says_so_in_one_line(
    gpu: FakeMemory,
    library: FakeTorchTensorRT,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(BuildError) as caught:
        compile_model(torch_models.residual(), tmp_path / "b", options=FX)
    said = str(caught.value)
    assert "cannot convert it: No converter for aten.conv2d.default; leave --builder out" in said
    assert "\n" not in said
    assert "not to be seen" not in caplog.text


def test_segments_that_do_not_map_are_refused_before_anything_is_built(
    gpu: FakeMemory, library: FakeTorchTensorRT, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=r"segment_0002.onnx: 'val_3' has no fx node"):
        compile_model(torch_models.transformer(), tmp_path / "b", options=FX)
    assert library.given == []


def test_a_model_without_an_fx_program_is_refused(
    gpu: FakeMemory, library: FakeTorchTensorRT, tmp_path: Path
) -> None:
    import onnx

    from tests.models.onnx_models import constants

    onnx.save(constants(), tmp_path / "m.onnx")
    with pytest.raises(TraceError, match=r"without an fx program .*leave --builder out"):
        compile_model(str(tmp_path / "m.onnx"), tmp_path / "b", options=FX)


def test_without_the_library_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(IncompatibleError, match=r"needs the Python module torch_tensorrt"):
        compile_model(sums(), tmp_path / "b", options=FX)
    model = "tests.models.torch_models:chain"
    arguments = [model, "-o", str(tmp_path / "b"), "--target", "tensorrt"]
    result = CliRunner().invoke(split_compile, [*arguments, "--builder", "torch-tensorrt"])
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    assert "splitrt[torch-tensorrt]" in result.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"targets": ("cpu",)}, "expected with --target tensorrt, given --target cpu"),
        ({"targets": ("tensorrt",), "precision": "fp16"}, "expected --precision fp32"),
    ],
)
def test_it_goes_with_its_target_and_fp32(more: dict[str, Any], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        CompileOptions(builder=TORCH_TENSORRT, **more)
    with pytest.raises(TraceError, match="--builder: expected one of onnx, torch-tensorrt"):
        CompileOptions(builder="onnx2")


@pytest.mark.parametrize("builder", ["onnx", TORCH_TENSORRT])
def test_the_fx_program_is_kept_for_this_builder_only(
    builder: str,
    gpu: FakeMemory,
    library: FakeTorchTensorRT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[Any] = []
    alive: list[bool] = []

    def traced(source: Any, options: Any) -> Any:
        found = trace.trace(source, options)
        kept.append(weakref.ref(found.program))
        return found

    def build(*_: Any, fx: Any, **__: Any) -> dict[str, Any]:
        alive.append(kept[0]() is not None)
        assert (fx is None) == (builder == "onnx")
        return {}

    stand_in = types.SimpleNamespace(TraceOptions=trace.TraceOptions, trace=traced)
    monkeypatch.setitem(sys.modules, "compiler.trace", stand_in)
    monkeypatch.setattr(targets, "build_targets", build)
    options = CompileOptions(targets=("tensorrt",), builder=builder)
    compile_model(sums(), tmp_path / "b", options=options)
    assert alive == [builder == TORCH_TENSORRT]
