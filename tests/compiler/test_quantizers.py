"""Quantizers: ModelOpt's placement in the compiler's form, proved like any other.

The package itself where it is installed (``pip install 'splitrt[modelopt]'``), and a stand-in of
the signature that it documents, which has ONNX Runtime quantise.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime.quantization as ortq
import pytest
import torch
from click.testing import CliRunner
from onnxruntime.quantization.calibrate import CalibraterBase
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry
from torch import nn

from calibration.metrics import cosine_distance
from calibration.parity import verify_cuts
from calibration.samples import open_samples
from compiler import CompileOptions, compile_model, int8, pipeline
from compiler.cli import main
from compiler.quantizers import QUANTIZERS, modelopt, open_quantizer
from compiler.quantizers.modelopt import read_placement
from compiler.whole import WholeRun
from engines.backend import open_backend
from engines.errors import EmitError, TraceError
from engines.program import Program

INSTALLED = importlib.util.find_spec("modelopt") is not None
ORT_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul", "Add"],
}


class Wide(nn.Module):
    """A residual network of as many channels as ModelOpt quantises."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.first = nn.Conv2d(16, 16, 3, 1, 1)
        self.second = nn.Conv2d(16, 16, 3, 1, 1)
        self.label = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.second(torch.relu(self.first(x)))
        return self.label(torch.relu(x + y).mean((2, 3)))


def wide():
    torch.manual_seed(0)
    return Wide().eval(), (torch.zeros(1, 3, 32, 32),)


class Stub:
    """What the package documents, with ONNX Runtime's quantiser behind it."""

    def __init__(self):
        self.calls = []
        self.samples = []
        self.change = lambda path: None
        self.ops = ["Conv", "Add"]
        self.options = {}

    def quantize(
        self,
        onnx_path,
        quantize_mode="int8",
        calibration_data=None,
        calibration_method=None,
        calibration_cache_path=None,
        calibration_data_reader=None,
        calibration_shapes=None,
        calibration_eps=("cpu", "cuda:0", "trt"),
        override_shapes=None,
        op_types_to_quantize=None,
        op_types_to_exclude=None,
        nodes_to_quantize=None,
        nodes_to_exclude=None,
        use_external_data_format=False,
        keep_intermediate_files=False,
        output_path=None,
        log_level="INFO",
        log_file=None,
        high_precision_dtype="fp16",
    ):
        sys.stdout.write("what a library says on standard output")
        sys.stderr.write("and on the other one")
        self.calls.append((calibration_method, tuple(calibration_eps), high_precision_dtype))
        assert calibration_data_reader.get_first() is not None
        while (inputs := calibration_data_reader.get_next()) is not None:
            self.samples.append(inputs)
        calibration_data_reader.rewind()
        given = onnx.load(onnx_path)
        left_out = [
            node.name
            for node in given.graph.node
            if any(re.match(pattern, node.name) for pattern in nodes_to_exclude)
        ]
        ortq.quantize_static(
            given,
            output_path,
            calibration_data_reader,
            per_channel=True,
            weight_type=ortq.QuantType.QInt8,
            op_types_to_quantize=self.ops,
            nodes_to_exclude=left_out,
            extra_options={**ORT_OPTIONS, **self.options},
        )
        self.change(Path(output_path))
        # As the package does.
        QDQQuantizer.check_opset_version = None
        QDQRegistry.pop("Relu")


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["modelopt.onnx.quantization"].quantize = made.quantize
    return made


@pytest.fixture(params=["stub", "package"])
def either(request):
    """ModelOpt, and what stands in for it."""
    if request.param == "stub":
        return request.getfixturevalue("stub")
    if not INSTALLED:
        pytest.skip("nvidia-modelopt is not installed: pip install 'splitrt[modelopt]'")
    return None


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=random.normal(size=(12, 1, 3, 32, 32)).astype("f4"))
    return str(tmp_path / "d.npz")


@pytest.fixture
def compile_(tmp_path, monkeypatch, data):
    monkeypatch.setattr(pipeline, "render_report", lambda *a, **k: "")

    def run(name="m", **options):
        given = {"name": name, "cuts": "all", "precision": "int8", "calibrate": data, **options}
        if given["precision"] == "int8":
            given = {"quantizer": "modelopt", **given}
        out = tmp_path / f"{name}.bundle"
        return compile_model(wide(), out, options=CompileOptions(**given))[0]

    return run


def graph_of(bundle):
    return onnx.load(bundle.folder / bundle.manifest.graph, load_external_data=True).graph


def test_what_modelopt_places_is_proved_and_crosses_as_codes(compile_, either):
    bundle = compile_()
    manifest = bundle.manifest
    record = manifest.quantisation
    assert (record.quantizer, record.method, record.samples) == ("modelopt", "entropy", 12)
    assert 0 < record.error <= 0.005
    (output,) = record.outputs.values()
    assert 0 < output.distance < 0.005
    assert 0 < output.rms < 0.1
    graph = graph_of(bundle)
    (label,) = [node.name for node in graph.node if node.op_type == "Gemm"]
    assert record.floats == {label: "fp32"}
    assert len(record.quantised) == 4  # three convolutions and the sum
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name in ("stem", "first", "second"):
        assert weights[f"{name}.weight_int8"].dtype == np.int8
        assert weights[f"{name}.weight_scale"].shape == (16,)
        assert f"{name}.weight" not in weights
    zeros = [n.input[2] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert {weights[name].dtype.name for name in zeros} == {"int8"}
    assert not any(weights[name].any() for name in zeros)
    codes = [c for c in manifest.cuts if manifest.tensors[c.tensors[0]].dtype == "int8"]
    assert codes
    assert any(len(cut.tensors) == 1 and cut.bytes == 16 * 16 * 16 for cut in codes)
    assert manifest.opset == 18
    assert "nvidia-modelopt" in manifest.producer
    with Program(bundle, open_backend("ort")) as program:
        assert all(parity.ok for parity in verify_cuts(program))


@pytest.mark.parametrize("method", ["entropy", "minmax"])
def test_it_is_given_every_sample_once(compile_, stub, method, data):
    compile_(ranges=method, fp32=("first",))
    assert stub.calls == [({"minmax": "max"}.get(method, method), ("cpu",), "fp32")]
    given = np.stack([inputs["x"] for inputs in stub.samples])
    assert np.array_equal(given, np.load(data)["x"])


def test_nodes_that_the_user_names_are_left_out(compile_, either):
    record = compile_(fp32=("first",), fp16=("second",)).manifest.quantisation
    assert sorted(record.floats.values()) == ["fp16", "fp32", "fp32"]
    assert record.quantised
    assert not set(record.quantised) & set(record.floats)


def test_sensitive_nodes_are_left_out_as_of_any_quantizer(compile_, either):
    free = compile_().manifest.quantisation
    assert free.kept == {}
    held = compile_("held", max_int8_error=free.error / 2, sensitive="fp32").manifest.quantisation
    assert held.error <= free.error / 2
    assert held.kept
    assert set(held.kept) < set(free.quantised)
    assert set(held.kept) <= set(held.floats)


def test_wrong_scales_fail_the_proof(compile_, stub, monkeypatch):
    def shrink(path):
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_scale") and not tensor.dims:
                scale = onnx.numpy_helper.to_array(tensor) / 50
                tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
        onnx.save(model, path)

    stub.change = shrink
    monkeypatch.setattr(int8._Search, "_error", lambda self, nodes, most=0: 0.001)
    with pytest.raises(EmitError, match=r"precision int8: output .* 1 - cosine"):
        compile_()


def rename(path):
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = f"renamed_{node.name}"
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("options", "change"), [({"ActivationSymmetric": False}, None), ({}, rename)]
)
def test_what_tensorrt_would_not_take_is_refused(compile_, stub, options, change):
    stub.options, stub.change = options, change or stub.change
    with pytest.raises(TraceError, match=r"expected symmetric int8, .* something else at") as told:
        compile_()
    assert "\n" not in str(told.value)


def test_it_quantises_nothing(compile_, stub):
    stub.ops = ["MatMul"]
    with pytest.raises(TraceError, match="--quantizer modelopt: it quantises nothing"):
        compile_()


def test_a_failure_of_its_own_is_one_line(compile_, stub):
    def fail(path):
        raise AssertionError("first line\nsecond line")

    stub.change = fail
    with pytest.raises(TraceError, match=r"ModelOpt failed \(AssertionError: first") as told:
        compile_()
    assert "\n" not in str(told.value)


def test_a_graph_with_pairs_is_refused(compile_, stub, data, tmp_path):
    bundle = compile_(quantizer="measured")
    file = bundle.path(bundle.manifest.graph)
    samples = open_samples(data, bundle.manifest.inputs, {})
    with pytest.raises(TraceError, match="expected a graph without Q/DQ pairs"):
        open_quantizer("modelopt").place(
            ir.load(file), file, samples, left_out=(), method="entropy"
        )
    assert stub.calls == []


def test_it_is_asked_for_and_missing(tmp_path, monkeypatch, data):
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", None)
    out = tmp_path / "m.bundle"
    arguments = [f"{__file__}:wide", "-o", str(out), "--calibrate", data, "--precision", "int8"]
    traced = []
    monkeypatch.setattr("compiler.trace.trace", lambda *a, **k: traced.append(a))
    done = CliRunner().invoke(main, [*arguments, "--quantizer", "modelopt"])
    assert done.exit_code == 1
    assert "--quantizer modelopt needs the package nvidia-modelopt" in done.stderr
    assert 'pip install "splitrt[modelopt]"' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
    assert traced == []  # found out before anything that takes long


def test_standard_output_is_for_results(tmp_path, stub, data):
    out = tmp_path / "m.bundle"
    arguments = [f"{__file__}:wide", "-o", str(out), "--calibrate", data, "--precision", "int8"]
    more = ["--quantizer", "modelopt", "--json", "--cuts", "2"]
    done = CliRunner().invoke(main, [*arguments, *more])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["quantisation"]["quantizer"] == "modelopt"
    assert "on the other one" not in done.stderr


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"quantizer": "onnx"}, "--quantizer: expected one of measured, modelopt, given 'onnx"),
        ({"quantizer": "modelopt"}, "--quantizer modelopt: expected with --precision int8, given"),
        (
            {"quantizer": "modelopt", "precision": "int8", "calibrate": "d", "ranges": "mse"},
            "--ranges: expected one of entropy, minmax with --quantizer modelopt, given 'mse'",
        ),
    ],
)
def test_options_are_checked_first(options, match):
    with pytest.raises(TraceError, match=match):
        CompileOptions(**options)


def test_onnxruntimes_own_quantiser_is_as_it_was(compile_, either):
    kept = (QDQQuantizer, CalibraterBase)
    before = dict(QDQRegistry), [dict(vars(owner)) for owner in kept]
    compile_()
    assert (QDQRegistry, [dict(vars(owner)) for owner in kept]) == before


def test_every_quantizer_has_its_default_among_its_methods():
    assert all(spec.default in spec.methods for spec in QUANTIZERS.values())


def test_an_operator_whose_weight_is_no_weight_of_ours_is_left_alone(tmp_path):
    """A product with constants of rank 3, which cannot have a scale for each output channel."""
    h = onnx.helper
    graph = h.make_graph(
        [
            h.make_node("MatMul", ["x", "w"], ["a"], name="stack"),
            h.make_node("MatMul", ["a", "v"], ["b"], name="plain"),
            h.make_node("Add", ["b", "c"], ["y"], name="shift"),
        ],
        "g",
        [h.make_tensor_value_info("x", 1, [2, 4, 8])],
        [h.make_tensor_value_info("y", 1, [2, 4, 8])],
        [
            onnx.numpy_helper.from_array(np.ones(shape, "f4"), name)
            for name, shape in (("w", (2, 8, 8)), ("v", (8, 8)), ("c", (8,)))
        ],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)
    rows = iter([{"x": np.ones((2, 4, 8), "f4")}])

    class Reader(ortq.CalibrationDataReader):
        def get_next(self):
            return next(rows, None)

    ortq.quantize_static(
        onnx.load_from_string(model.SerializeToString()),
        tmp_path / "made.onnx",
        Reader(),
        weight_type=ortq.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Add"],
        extra_options=ORT_OPTIONS,
    )
    placement = read_placement(
        onnx.load(tmp_path / "made.onnx"), ir.serde.deserialize_model(model)
    )
    assert placement.sites == {"plain": (0, 1), "shift": (0,)}
    assert {"a", "b"} <= set(placement.thresholds)


@pytest.mark.skipif(not INSTALLED, reason="nvidia-modelopt: pip install 'splitrt[modelopt]'")
def test_the_graph_computes_what_modelopts_own_does(compile_, data, tmp_path):
    from modelopt.onnx.quantization import quantize

    exact = compile_("exact", precision="fp32")
    ours = compile_("ours", max_int8_error=1.0)
    source = tmp_path / "source.onnx"
    onnx.save(onnx.load(exact.path(exact.manifest.graph)), source)
    rows = np.load(data)["x"]
    with modelopt._put_back("onnxruntime.quantization"):
        quantize(
            str(source),
            quantize_mode="int8",
            calibration_data={"x": rows[:, 0]},
            calibration_method="entropy",
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(tmp_path / "theirs.onnx"),
            log_level="CRITICAL",
        )
    graphs = [
        onnx.load(path)
        for path in (tmp_path / "theirs.onnx", ours.path(ours.manifest.graph), source)
    ]
    theirs, made, floats = (
        [WholeRun(graph, tmp_path)({"x": row}) for row in rows] for graph in graphs
    )
    apart = [cosine_distance(a, b) for a, b in zip(made, theirs)]
    rounding = [cosine_distance(a, b) for a, b in zip(theirs, floats)]
    assert max(apart) < 0.1 * np.mean(rounding)
