"""Float16 bundles: what is converted, what is kept, and that the proof sees rounding."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from onnx import helper as h
from torch import nn

from compiler import CompileOptions, compile_model, pipeline, rounding
from compiler.cli import main
from compiler.images import parse_image
from compiler.passes.half import convert_to_half
from engines.errors import EmitError, TraceError
from tests.models import onnx_models, torch_models

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(
        pipeline, "render_report", lambda *a, **k: ""
    )  # they take most of a second


@pytest.fixture
def compile_(tmp_path):
    def run(model, name="m", **options):
        if isinstance(model, onnx.ModelProto):
            onnx.save(model, tmp_path / f"{name}.onnx")
            model = str(tmp_path / f"{name}.onnx")
        given = CompileOptions(**{"name": name, "cuts": "all", "precision": "fp16", **options})
        return compile_model(model, tmp_path / f"{name}.bundle", options=given)[0]

    return run


def graph_of(bundle):
    return onnx.load(bundle.folder / bundle.manifest.graph, load_external_data=True).graph


def dtypes(bundle):
    return {spec.name: spec.dtype for spec in bundle.manifest.tensors.values()}


def model_of(nodes, inputs, outputs, weights, opset=18):
    values = [
        [h.make_tensor_value_info(name, FLOAT, shape) for name, shape in ends.items()]
        for ends in (inputs, outputs)
    ]
    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = h.make_graph(nodes, "g", *values, tensors)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=9)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


TORCH = ("embedding", "transformer", "half")
ONNX = ("captures", "loops", "decoded_weights", "sequences", "value_dependent", "functions")


@pytest.mark.parametrize("name", [*TORCH, *ONNX])
def test_small_models(name, compile_):
    model = (torch_models.MODELS.get(name) or onnx_models.MODELS[name])()
    bundle = compile_(model, name)
    manifest = bundle.manifest
    assert manifest.precision == "fp16"
    assert 1e-5 < manifest.parity.max_error <= manifest.parity.tolerance["float16"] == 0.02
    assert not {"float16"} & {spec.dtype for spec in (*manifest.inputs, *manifest.outputs)}
    assert "float16" in dtypes(bundle).values()
    assert not (bundle.folder / "exact").exists()
    onnx.checker.check_model(str(bundle.folder / manifest.graph), full_check=True)


def test_activations_cross_as_float16_and_weights_take_half(compile_):
    def model():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Sigmoid()]
        return nn.Sequential(*layers).eval(), (torch.zeros(1, 3, 12, 12),)

    before, after = compile_(model(), "a", precision="fp32"), compile_(model(), "b")
    named = before.manifest.tensors
    for name in ("conv2d", "relu", "conv2d_1"):
        assert after.manifest.tensors[name].dtype == "float16"
        assert after.manifest.tensors[name].nbytes * 2 == named[name].nbytes
    sizes = [b.manifest.files[b.manifest.weights].bytes for b in (before, after)]
    assert sizes[1] < 0.6 * sizes[0]
    assert {t.data_type for t in graph_of(after).initializer} == {HALF}
    assert before.manifest.precision == "float32"


def test_pixels_stay_bytes(compile_):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    model = (module, (torch.zeros(1, 3, 8, 8),))
    bundle = compile_(model, images=(parse_image("input=imagenet"),))
    assert [spec.dtype for spec in bundle.manifest.inputs] == ["uint8"]
    assert sorted(dtypes(bundle).values()).count("float32") == 1  # the output
    (cast, *others) = [n for n in graph_of(bundle).node if n.op_type == "Cast"]
    assert (cast.attribute[0].i, [n.attribute[0].i for n in others]) == (HALF, [FLOAT])


class Overflowing(nn.Module):
    """Passes 1e5 and more from one module to the next, and gives numbers below 1."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.grow = Times(1e5)
        self.shrink = Times(1e-6)

    def forward(self, x):
        return torch.sigmoid(self.shrink(torch.relu(self.grow(self.first(x)))))


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.register_buffer("factor", torch.full((8,), factor))

    def forward(self, x):
        for _ in range(2):
            x = x * self.factor.sqrt()
        return x


def overflowing():
    torch.manual_seed(0)
    return Overflowing().eval(), (torch.zeros(1, 8),)


def test_an_overflow_is_caught_wherever_it_is_and_an_island_mends_it(compile_):
    for cuts in ("4", "2"):  # with 2 it lies inside of a segment
        with pytest.raises(
            EmitError, match=r"'mul_1' overflows float16; .* --fp32 grow, and"
        ) as e:
            compile_(overflowing(), cuts=cuts)
        assert "\n" not in str(e.value)
    bundle = compile_(overflowing(), fp32=("grow", "relu", "shrink"))
    kinds = dtypes(bundle)
    assert (kinds["linear"], kinds["mul_1"], kinds["relu"]) == ("float16", "float32", "float32")
    assert kinds["mul_3_float16"] == "float16"
    assert bundle.manifest.parity.max_error < 0.02


def test_without_rounding_the_cpu_would_hide_the_overflow(compile_, monkeypatch):
    monkeypatch.setattr(rounding, "rounded", lambda model, halves: model)
    compile_(overflowing(), cuts="2")


def test_wrong_weights_fail_the_proof(compile_, monkeypatch):
    run = rounding.run_whole

    def wrong(model, folder, inputs, names):
        values = run(model, folder, inputs, names)
        return {n: a + np.float16(0.1) if a.dtype == np.float16 else a for n, a in values.items()}

    monkeypatch.setattr(rounding, "run_whole", wrong)
    with pytest.raises(EmitError, match=r"precision fp16: tensor .* error .*, tolerance 0.02"):
        compile_(torch_models.residual())


def test_unknown_islands_are_refused_with_near_ones(compile_, tmp_path):
    with pytest.raises(TraceError, match=r"'secnd' \(did you mean .*second.*; 'x y'"):
        compile_(torch_models.residual(), fp32=("secnd", "first", "x y"))
    assert list(tmp_path.iterdir()) == []


def test_islands_need_fp16_and_precision_is_known():
    with pytest.raises(TraceError, match="--fp32: expected with --precision fp16 or int8"):
        CompileOptions(fp32=("a",))
    with pytest.raises(
        TraceError, match="--precision: expected one of fp32, fp16, int8, given 'int4'"
    ):
        CompileOptions(precision="int4")


def test_a_module_stays_in_float32(compile_):
    graph = graph_of(compile_(torch_models.residual(), fp32=("second",)))
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert (kinds["second.weight"], kinds["first.weight"]) == (FLOAT, HALF)


@pytest.mark.parametrize("island", ["two", "y", "block", "block.inner"])
def test_islands_by_node_tensor_or_module(island):
    nodes = [
        h.make_node("MatMul", ["x", "v"], ["a"], name="one"),
        h.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    weights = {"v": floats(8, 8), "w": floats(8, 8)}
    model = ir.serde.deserialize_model(model_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, weights))
    convert_to_half(model, {"a": "blocks", "y": "block.inner"}, [island])
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds == {"v": HALF, "w": FLOAT}


def test_a_weight_of_both_precisions_is_kept_in_both(compile_):
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        h.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    model = model_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, {"w": floats(8, 8)})
    graph = graph_of(compile_(model, fp32=("two",)))
    assert {t.name: t.data_type for t in graph.initializer} == {"w": FLOAT, "w_float16": HALF}
    assert [n.op_type for n in graph.node] == ["Cast", "MatMul", "Cast", "MatMul"]


def test_patterns_of_eight_bits_are_left_alone(compile_):
    codes = RANDOM.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        h.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        h.make_node("DequantizeLinear", ["codes", "sw"], ["wd"]),
        h.make_node("Conv", ["xd", "wd", "b"], ["conv"], name="conv"),
        h.make_node("Relu", ["conv"], ["act"]),
        h.make_node("QuantizeLinear", ["act", "s", "z"], ["aq"]),
        h.make_node("DequantizeLinear", ["aq", "s", "z"], ["ad"]),
        h.make_node("MaxPool", ["ad"], ["pool"], kernel_shape=[2, 2]),
        h.make_node("Sigmoid", ["pool"], ["soft"]),
        h.make_node("Conv", ["soft", "v"], ["y"], name="last"),
    ]
    weights = {
        "s": np.float32(0.05),
        "z": np.int8(0),
        "codes": codes,
        "sw": np.float32(0.01),
        "b": floats(4),
        "v": floats(2, 4, 3, 3),
    }
    bundle = compile_(model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 2, 3, 3]}, weights))
    graph = graph_of(bundle)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert (kinds["codes"], kinds["b"], kinds["v"]) == (TensorProto.INT8, FLOAT, HALF)
    ops = [node.op_type for node in graph.node]
    first = ops.index("QuantizeLinear")
    assert ops[first : first + 7] == [
        *("QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Relu"),
        *("QuantizeLinear", "DequantizeLinear"),
    ]
    assert dtypes(bundle)["soft"] == "float16"


def test_masks_and_scales_beyond_float16(compile_):
    lowest = np.float32(np.finfo(np.float32).min)
    nodes = [
        h.make_node("Greater", ["x", "zero"], ["seen"]),
        h.make_node("Where", ["seen", "x", "lowest"], ["masked"]),
        h.make_node("Softmax", ["masked"], ["share"], axis=-1),
        h.make_node("MatMul", ["share", "w"], ["mixed"]),
        h.make_node("Resize", ["mixed", "", "scales"], ["y"], mode="linear"),
    ]
    weights = {
        "zero": np.float32(0),
        "lowest": lowest,
        "w": floats(6, 4),
        "scales": np.float32([1, 1, 1, 2]),
    }
    bundle = compile_(model_of(nodes, {"x": [1, 1, 3, 6]}, {"y": [1, 1, 3, 8]}, weights))
    kinds = {tensor.name: tensor.data_type for tensor in graph_of(bundle).initializer}
    assert (kinds["lowest"], kinds["scales"], kinds["w"]) == (FLOAT, FLOAT, HALF)
    assert dtypes(bundle)["masked"] == "float32"


def test_constants_made_by_operators_are_float16(compile_):
    nodes = [
        h.make_node("Shape", ["x"], ["shape"]),
        h.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        h.make_node("Range", ["from", "to", "step"], ["steps"]),
        h.make_node("Cast", ["codes"], ["cast"], to=FLOAT),
        h.make_node("Sum", ["x", "zeros", "steps", "cast"], ["y"]),
    ]
    weights = {
        "from": np.float32(0),
        "to": np.float32(4),
        "step": np.float32(1),
        "codes": np.arange(4),
    }
    changed = ir.serde.deserialize_model(model_of(nodes, {"x": [4]}, {"y": [4]}, weights))
    aliases = convert_to_half(changed, {})
    assert aliases == {
        name: name.removesuffix("_float16") for name in ("x_float16", "steps_float16", "y_float16")
    }
    proto = ir.serde.serialize_model(changed)
    onnx.checker.check_model(proto, full_check=True)
    session = rounding.run_whole(proto, ".", {"x": np.ones(4, np.float32)}, ["y", "zeros", "cast"])
    assert session["y"].tolist() == [1, 3, 5, 7]
    assert {session[n].dtype.name for n in ("zeros", "cast")} == {"float16"}


def test_weights_are_converted_one_by_one(tmp_path):
    count, size = 12, 1 << 19
    names = [f"w{place}" for place in range(count)]
    nodes = [h.make_node("Sum", ["x", *names], ["y"])]
    weights = {name: floats(size) for name in names}
    model = ir.serde.deserialize_model(model_of(nodes, {"x": [size]}, {"y": [size]}, weights))
    del weights
    tracemalloc.start()
    convert_to_half(model, {})
    ir.save(model, tmp_path / "m.onnx", external_data="w.bin")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "w.bin").stat().st_size >= count * size * 2
    assert peak < 4 * size * 4  # of 12 weights of 4 bytes an element


def test_command_line(tmp_path):
    out = tmp_path / "m.bundle"
    arguments = ["tests.models.torch_models:residual", "-o", str(out), "--precision", "fp16"]
    done = CliRunner().invoke(main, [*arguments, "--fp32", "second", "--opset", "17", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["precision"] == "fp16"
    assert 1e-5 < report["max_error"] < 0.02
