"""INT8 bundles: what is quantised, what crosses, what is kept, and that wrong ones are refused."""

from __future__ import annotations

import inspect
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime.quantization as ortq
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from onnx import helper as h
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from torch import nn

from calibration.bundle_cli import main as bundle_main
from calibration.parity import verify_cuts
from calibration.ranges import RANGES_FILE, stored_ranges
from compiler import CompileOptions, assemble, compile_model, int8, pipeline, quantised_proof
from compiler.cli import main
from compiler.images import parse_image
from compiler.passes.half import convert_nodes_to_half
from compiler.passes.quantise import quantisable, quantise
from compiler.whole import WholeRun
from engines.backend import open_backend
from engines.errors import EmitError, TraceError
from engines.plans import PlanStore
from engines.program import Program
from tests.models import torch_models

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(pipeline, "render_report", lambda *a, **k: "")


def floats(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.fixture
def compile_(tmp_path):
    def run(built, *, rows=12, name="m", **options):
        module, examples = built
        if "calibrate" not in options:
            np.savez(tmp_path / "data.npz", **data_of(module, examples, rows))
            options["calibrate"] = str(tmp_path / "data.npz")
        given = CompileOptions(**{"name": name, "cuts": "all", "precision": "int8", **options})
        return compile_model((module, examples), tmp_path / f"{name}.bundle", options=given)[0]

    return run


def data_of(module, examples, rows):
    names = list(inspect.signature(module.forward).parameters)
    random = np.random.default_rng(1)
    return {n: random.normal(size=(rows, *x.shape)).astype("f4") for n, x in zip(names, examples)}


def graph_of(bundle):
    return onnx.load(bundle.folder / bundle.manifest.graph, load_external_data=True).graph


def ops(bundle):
    return [node.op_type for node in graph_of(bundle).node]


def model_of(nodes, inputs, outputs, weights, opset=18):
    values = [
        [h.make_tensor_value_info(name, FLOAT, shape) for name, shape in ends.items()]
        for ends in (inputs, outputs)
    ]
    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = h.make_graph(nodes, "g", *values, tensors)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=10)


def test_a_residual_network_in_int8(compile_):
    bundle = compile_(torch_models.residual())
    manifest = bundle.manifest
    assert manifest.precision == "int8"
    assert len(manifest.quantisation.quantised) == 3
    assert manifest.quantisation.samples == 12
    assert 0 < manifest.quantisation.error <= 0.005
    weights = {t.name: t.data_type for t in graph_of(bundle).initializer}
    assert [weights[f"{n}.weight_int8"] for n in ("stem", "first", "second")] == [3, 3, 3]
    assert weights["first.bias"] == FLOAT
    # The skip takes what the convolution beside it takes: one tensor of codes crosses, and between
    # the two only what that branch gave beside it, which is codes again where those are taken.
    codes = [c for c in manifest.cuts if manifest.tensors[c.tensors[0]].dtype == "int8"]
    assert codes
    assert {len(cut.tensors) for cut in codes} == {1, 2}
    kinds = {tuple(manifest.tensors[name].dtype for name in cut.tensors) for cut in codes}
    assert kinds == {("int8",), ("int8", "int8"), ("int8", "float32")}
    whole = {spec.shape: spec.nbytes for spec in manifest.inputs}
    assert codes[0].bytes == whole[manifest.inputs[0].shape] / 4
    with Program(bundle, open_backend("ort")) as program:
        assert all(parity.ok for parity in verify_cuts(program))
    assert manifest.parity.max_error < 0.1


def test_codes_cross_wherever_a_cut_is_searched(compile_):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Conv2d(8, 64, 3, stride=2), nn.Flatten()).eval()
    built = module, (torch.zeros(1, 3, 63, 63),)
    quantised = compile_(built, cuts="auto")
    inner = [c for c in quantised.manifest.cuts[1:-1] if "serial" in c.why]
    assert inner
    kinds = {quantised.manifest.tensors[n].dtype for c in inner for n in c.tensors}
    assert kinds == {"int8"}
    offload = quantised.manifest.cuts[0]
    assert min(c.bytes for c in inner) == offload.bytes / 4


def test_stripes_of_a_quantised_graph(compile_):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    module = nn.Sequential(*layers, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()).eval()
    bundle = compile_((module, (torch.zeros(1, 3, 64, 16),)))
    striping = bundle.manifest.striping
    assert striping is not None
    striped = {bundle.manifest.cuts[c.cut].tensors[0] for c in striping.cuts}
    assert any(bundle.manifest.tensors[name].dtype == "int8" for name in striped)


def test_raw_pixels_and_ranges_at_the_cuts(compile_, tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for place in range(9):
        pixels = RANDOM.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    bundle = compile_(
        (module, (torch.zeros(1, 3, 16, 16),)),
        images=(parse_image("input=imagenet"),),
        calibrate=str(folder),
    )
    assert bundle.manifest.inputs[0].dtype == "uint8"
    assert bundle.manifest.ranges == RANGES_FILE
    ranges = stored_ranges(bundle)
    assert ranges.samples == 9
    assert ranges.data == bundle.manifest.quantisation.data
    crossing = {n for cut in bundle.manifest.cuts for n in cut.tensors}
    floats_there = {n for n in crossing if bundle.manifest.tensors[n].dtype == "float32"}
    assert floats_there == set(ranges.tensors)
    # Those of the device folder count once they are there.
    done = CliRunner().invoke(
        bundle_main, ["calibrate", str(bundle.folder), str(folder), "--samples", "8"]
    )
    assert done.exit_code == 0, done.output
    assert stored_ranges(bundle).samples == 8


def test_ranges_of_a_float32_bundle(compile_):
    bundle = compile_(torch_models.chain(), precision="fp32")
    assert bundle.manifest.quantisation is None
    assert stored_ranges(bundle).samples == 12


def test_the_same_data_gives_the_same_bundle(compile_):
    one, two = (compile_(torch_models.residual(), max_int8_error=5e-5) for _ in range(2))
    assert one.manifest.quantisation.kept
    assert one.digest == two.digest


def sensitive():
    """Two convolutions, the first over channels of very different sizes."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        first.weight *= 1e-2
        first.weight[:, :1] *= 100
    return nn.Sequential(first, nn.ReLU(), second).eval(), (torch.zeros(1, 4, 12, 12),)


def uneven(rows):
    data = floats(rows, 1, 4, 12, 12)
    data[:, :, 1:] *= 100
    data[:, :, 0] *= 0.05
    data[:, :, 3, 5, 5] = 30_000  # one value spoils the scale of all
    return data


def test_sensitive_nodes_stay_in_float32(compile_, tmp_path):
    np.savez(tmp_path / "d.npz", input=uneven(10))
    given = {"calibrate": str(tmp_path / "d.npz"), "ranges": "minmax", "sensitive": "fp32"}
    bundle = compile_(sensitive(), **given)
    record = bundle.manifest.quantisation
    (first, second) = [n.name for n in graph_of(bundle).node if n.op_type == "Conv"]
    assert list(record.kept) == [first]
    assert record.quantised == (second,)
    assert record.kept[first] > 0.005 >= record.error
    assert record.floats == {first: "fp32"}
    assert "FLOAT16" not in types_of(bundle).values()
    every = compile_(sensitive(), name="every", max_int8_error=1.0, **given)
    assert every.manifest.quantisation.kept == {}
    assert every.manifest.quantisation.error > 0.005


def types_of(bundle):
    """Type of every initialiser, and of what every Cast gives."""
    graph = graph_of(bundle)
    found = {t.name: TensorProto.DataType.Name(t.data_type) for t in graph.initializer}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    kinds = {node.output[0]: node.attribute[0].i for node in casts}
    return {**found, **{name: TensorProto.DataType.Name(kind) for name, kind in kinds.items()}}


def test_sensitive_nodes_compute_in_float16_where_that_is_within_the_error(compile_, tmp_path):
    np.savez(tmp_path / "d.npz", input=uneven(10))
    bundle = compile_(sensitive(), calibrate=str(tmp_path / "d.npz"), ranges="minmax")
    record = bundle.manifest.quantisation
    (first, second) = [n.name for n in graph_of(bundle).node if n.op_type == "Conv"]
    assert list(record.kept) == [first]
    assert record.quantised == (second,)
    assert record.floats == {first: "fp16"}
    assert 0 < record.error <= 0.005 < record.kept[first]
    types = types_of(bundle)
    assert types["0.weight"] == types["0.bias"] == types["input_float16"] == "FLOAT16"
    assert types["2.weight_int8"] == "INT8"
    assert types["2.bias"] == "FLOAT"
    assert "float16" in {spec.dtype for spec in bundle.manifest.tensors.values()}
    with Program(bundle, open_backend("ort")) as program:
        assert all(parity.ok for parity in verify_cuts(program))
    shown = CliRunner().invoke(bundle_main, ["verify", str(bundle.folder)])
    assert f"nodes: 1 nodes in int8, 1 in fp16 ({first})" in shown.stdout
    machine = CliRunner().invoke(bundle_main, ["verify", str(bundle.folder), "--json"])
    assert json.loads(machine.stdout)["precisions"] == {first: "fp16", second: "int8"}
    seen = CliRunner().invoke(bundle_main, ["inspect", str(bundle.folder)])
    assert f"1 in fp16 ({first})" in seen.stdout


class Loud(nn.Module):
    """Two sensitive convolutions, of which the first gives values beyond float16."""

    def __init__(self, size):
        super().__init__()
        (one, relu, _), _ = sensitive()
        two = sensitive()[0][0]
        self.one, self.two, self.relu = one, two, relu
        self.three = nn.Conv2d(4, 4, 3, padding=1)
        self.size = size

    def forward(self, x):
        loud = self.one(x * self.size) * (1 / self.size)
        return self.three(self.relu(loud + self.two(x)))


@pytest.mark.parametrize(("size", "wanted"), [(1.0, ["fp16"]), (1e4, ["fp32", "fp16"])])
def test_a_sensitive_node_that_float16_spoils_stays_in_float32(compile_, tmp_path, size, wanted):
    data = uneven(10) / 100
    np.savez(tmp_path / "d.npz", x=data)
    torch.manual_seed(0)
    built = Loud(size).eval(), (torch.zeros(1, 4, 12, 12),)
    given = {"calibrate": str(tmp_path / "d.npz"), "ranges": "minmax", "max_int8_error": 2e-4}
    record = compile_(built, **given).manifest.quantisation
    assert [kind for _, kind in sorted(record.floats.items())] == wanted
    assert sorted(record.floats) == sorted(record.kept)
    assert record.error <= 2e-4


def test_a_value_beyond_float16_in_any_sample_counts(compile_, tmp_path):
    data = uneven(40)
    data[-1, :, 3, 5, 5] = 100_000  # in a sample that graphs are not compared on
    np.savez(tmp_path / "d.npz", input=data)
    bundle = compile_(sensitive(), calibrate=str(tmp_path / "d.npz"), ranges="minmax")
    assert set(bundle.manifest.quantisation.floats.values()) == {"fp32"}


def test_fewest():
    errors = [0.9, 0.5, 0.2, 0.04, 0.03, 0.0]
    assert int8._fewest(errors.__getitem__, 5, 0.05, 0.0) == (3, 0.04)
    assert int8._fewest(errors.__getitem__, 5, 0.01, 0.0) == (5, 0.0)
    assert int8._fewest(errors.__getitem__, 1, 0.01, 0.7) == (1, 0.7)


def test_nodes_in_float16_by_name(compile_):
    bundle = compile_(torch_models.residual(), fp16=("second", "first"), fp32=("first",))
    record = bundle.manifest.quantisation
    assert sorted(record.floats.values()) == ["fp16", "fp32"]
    assert record.kept == {}
    types = types_of(bundle)
    assert types["second.weight"] == "FLOAT16"
    assert types["first.weight"] == "FLOAT"
    assert types["stem.weight_int8"] == "INT8"
    assert {spec.dtype for spec in bundle.manifest.outputs} == {"float32"}
    with pytest.raises(TraceError, match=r"--fp16: no such node.*'third' \(did you mean "):
        compile_(torch_models.residual(), fp16=("third",))


def test_what_lies_between_two_nodes_in_float16_is_too():
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        h.make_node("Sigmoid", ["a"], ["s"], name="sigmoid"),
        h.make_node("Mul", ["a", "s"], ["b"], name="mul"),
        h.make_node("MatMul", ["b", "w"], ["c"], name="two"),
        h.make_node("Relu", ["c"], ["d"], name="relu"),
        h.make_node("Add", ["d", "x"], ["y"], name="add"),
    ]
    model = ir.serde.deserialize_model(
        model_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, {"w": floats(8, 8)})
    )
    aliases, done = convert_nodes_to_half(model, {}, ["one", "two"])
    assert done == ("one", "sigmoid", "mul", "two")
    assert aliases == {"x_float16": "x", "c_float32": "c"}
    made = ir.serde.serialize_model(model)
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node].count("Cast") == 2
    taken = {n.name: list(n.input) for n in made.graph.node}
    assert taken["add"] == ["d", "x"]
    assert taken["relu"] == ["c_float32"]


def test_an_error_that_nothing_can_keep_is_refused(compile_):
    with pytest.raises(TraceError, match="every node would have to stay out of int8") as raised:
        compile_(torch_models.chain(), max_int8_error=0.0)
    assert "\n" not in str(raised.value)


def test_islands(compile_):
    bundle = compile_(torch_models.residual(), fp32=("second",))
    names = {t.name for t in graph_of(bundle).initializer}
    assert {"second.weight", "first.weight_int8"} <= names
    with pytest.raises(TraceError, match=r"'third' \(did you mean "):
        compile_(torch_models.residual(), fp32=("third",))


def test_wrong_scales_fail_the_proof(compile_, monkeypatch):
    real = int8.quantise

    def wrong(model, paths, nodes, thresholds, sites):
        return real(model, paths, nodes, {name: t / 50 for name, t in thresholds.items()}, sites)

    monkeypatch.setattr(int8._Search, "_error", lambda self, nodes, most=0: 0.001)
    monkeypatch.setattr(int8, "quantise", wrong)
    with pytest.raises(EmitError, match="precision int8: output") as raised:
        compile_(torch_models.residual())
    text = str(raised.value)
    for said in ("1 - cosine", "at most 0.1", "relative RMS", "largest difference", "12 given"):
        assert said in text
    for remedy in ("(--fp16 ", "--fp32)", "more samples", "--ranges (mse given)", "(--metric)"):
        assert remedy in text
    assert "--seed" not in text
    assert "--opset" not in text
    assert "\n" not in text


def test_segments_that_compute_something_else_fail_the_proof(compile_, monkeypatch):
    real = quantised_proof.run_whole

    def shifted(model, folder, inputs, names):
        values = real(model, folder, inputs, names)
        return {n: a * np.float32(1.4) if a.dtype.kind == "f" else a for n, a in values.items()}

    monkeypatch.setattr(quantised_proof, "run_whole", shifted)
    wanted = r"differs from onnx: error .* \(largest difference .*, tolerance 0.1; keep the nodes"
    with pytest.raises(EmitError, match=wanted):
        compile_(torch_models.residual())


def steep():
    """A map behind a steep sigmoid."""
    torch.manual_seed(0)

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, x):
            return torch.sigmoid(200 * self.conv(x))

    return Steep().eval(), (torch.zeros(1, 3, 32, 32),)


def test_one_pixel_behind_a_steep_sigmoid_does_not_fail_the_proof(compile_, monkeypatch):
    real = quantised_proof.run_whole
    flipped = 1

    def near_ties(model, folder, inputs, names):
        values = real(model, folder, inputs, names)
        name = model.graph.output[0].name
        values[name] = values[name].copy()
        pixels = values[name].reshape(-1)[:flipped]
        pixels[:] = 1 - np.round(pixels)
        return values

    monkeypatch.setattr(quantised_proof, "run_whole", near_ties)
    bundle = compile_(steep(), stripes="none")
    parity = bundle.manifest.parity
    assert parity.measure == "rms"
    assert 0.01 < parity.max_error < 0.1 <= parity.tolerance["float32"]
    (off,) = bundle.manifest.quantisation.outputs.values()
    assert off.largest > 0.5
    assert 0 < off.distance < 0.1
    assert off.rms < 0.4
    # The largest difference, by which this bundle was refused once, is printed all the same.
    with Program(bundle, open_backend("ort")) as program:
        assert all(cut.ok and cut.largest > 0.5 > cut.error for cut in verify_cuts(program))
    done = CliRunner().invoke(bundle_main, ["verify", str(bundle.folder), "--json"])
    assert json.loads(done.stdout)["measure"] == "rms"
    assert json.loads(done.stdout)["cuts"][0]["largest_difference"] > 0.5
    shown = CliRunner().invoke(bundle_main, ["verify", str(bundle.folder)])
    assert "(relative RMS)" in shown.stdout
    flipped = 200
    with pytest.raises(EmitError, match="differs from"):
        compile_(steep(), stripes="none", name="wrong")


def never(given, expected):
    """Find nothing wrong with anything."""
    return 0.0


def test_nodes_are_chosen_by_the_users_metric(compile_, tmp_path):
    np.savez(tmp_path / "d.npz", input=uneven(10))
    given = {"calibrate": str(tmp_path / "d.npz"), "ranges": "minmax"}
    bundle = compile_(sensitive(), metric="tests.compiler.test_int8:never", **given)
    record = bundle.manifest.quantisation
    assert (record.kept, record.error) == ({}, 0.0)
    assert record.metric == "tests.compiler.test_int8:never"
    strict = compile_(sensitive(), name="rms", metric="rms", max_int8_error=0.05, **given)
    assert strict.manifest.quantisation.kept
    assert 0 < strict.manifest.quantisation.error <= 0.05


def test_what_cannot_be_quantised(compile_, tmp_path):
    module = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval()
    with pytest.raises(TraceError, match="no node can be quantised"):
        compile_((module, (torch.zeros(1, 3, 8, 8),)))
    old = model_of(
        [h.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        {"x": [1, 8]},
        {"y": [1, 4]},
        {"w": floats(8, 4)},
        opset=12,
    )
    with pytest.raises(TraceError, match="expected opset 13 or newer, given 12"):
        quantisable(ir.serde.deserialize_model(old))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "int8"}, "expected --calibrate DATA"),
        ({"ranges": "entropy"}, "--ranges: expected one of minmax, percentile, mse with --quant"),
        ({"quantizer": "entropy"}, "--quantizer: expected one of measured"),
        ({"max_int8_error": 2.0}, "--max-int8-error: expected 0 to 1"),
        ({"metric": "hmean"}, "--metric: expected one of top1, cosine, rms, max, or module:"),
        ({"sensitive": "bf16"}, "--sensitive: expected one of fp16, fp32"),
        ({"fp16": ("a",)}, "--fp16: expected with --precision int8, given fp32"),
        ({"samples": 3}, "--samples: expected with --calibrate"),
        ({"samples": 0, "calibrate": "d"}, "--samples: expected 1 or more"),
    ],
)
def test_options_are_checked_first(options, match):
    with pytest.raises(TraceError, match=match):
        CompileOptions(**options)


NODES = {
    "conv": (
        [h.make_node("Conv", ["x", "w", "b"], ["y"], name="n", pads=[1] * 4)],
        {"w": floats(5, 3, 3, 3), "b": floats(5)},
        [1, 3, 6, 6],
        [1, 5, 6, 6],
    ),
    "deconv": (
        [h.make_node("ConvTranspose", ["x", "w"], ["y"], name="n")],
        {"w": floats(3, 5, 2, 2)},
        [1, 3, 6, 6],
        [1, 5, 7, 7],
    ),
    "gemm": (
        [h.make_node("Gemm", ["x", "w", "b"], ["y"], name="n", transB=1)],
        {"w": floats(5, 6), "b": floats(5)},
        [1, 6],
        [1, 5],
    ),
    "gemm_plain": (
        [h.make_node("Gemm", ["x", "w"], ["y"], name="n")],
        {"w": floats(6, 5)},
        [1, 6],
        [1, 5],
    ),
    "matmul": (
        [h.make_node("MatMul", ["x", "w"], ["y"], name="n")],
        {"w": floats(6, 5)},
        [1, 4, 6],
        [1, 4, 5],
    ),
}


@pytest.mark.parametrize("kind", NODES)
def test_every_operator_is_near_its_float32_self(kind, tmp_path):
    nodes, weights, shape, gives = NODES[kind]
    proto = model_of(nodes, {"x": shape}, {"y": gives}, weights)
    model = ir.serde.deserialize_model(proto)
    assert quantisable(model) == {"n": "x"}
    names = quantise(model, {}, ["n"], {"x": 4.0})
    assert names.aliases == {"x_int8": "x", "x_dequantised": "x"}
    made = ir.serde.serialize_model(model)
    onnx.checker.check_model(made, full_check=True)
    assert {t.name for t in made.graph.initializer if t.name == "w"} == set()
    x = np.clip(floats(*shape), -4, 4)
    given = WholeRun(made, tmp_path)({"x": x})["y"]
    wanted = WholeRun(proto, tmp_path)({"x": x})["y"]
    assert 0 < np.abs(given - wanted).max() < 0.03 * np.abs(wanted).max() + 0.05


def test_it_agrees_with_onnxruntimes_own_quantiser(tmp_path):
    nodes, weights, shape, gives = NODES["conv"]
    proto = model_of(nodes, {"x": shape}, {"y": gives}, weights)
    x = floats(*shape)
    top = np.float32(np.abs(x).max())
    theirs = QDQQuantizer(
        onnx.load_from_string(proto.SerializeToString()),
        per_channel=True,
        reduce_range=False,
        weight_qType=ortq.QuantType.QInt8,
        activation_qType=ortq.QuantType.QInt8,
        tensors_range=TensorsData(
            ortq.CalibrationMethod.MinMax,
            {n: TensorData(lowest=-top, highest=top) for n in ("x", "y")},
        ),
        nodes_to_quantize=["n"],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    theirs.quantize_model()
    ours = ir.serde.deserialize_model(proto)
    quantise(ours, {}, ["n"], {"x": float(top)})
    given = WholeRun(ir.serde.serialize_model(ours), tmp_path)({"x": x})["y"]
    wanted = WholeRun(theirs.model.model, tmp_path)({"x": x})["y"]
    assert np.abs(given - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_kept_node_takes_the_value_itself_and_weights_may_be_shared():
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        h.make_node("MatMul", ["x", "v"], ["b"], name="kept"),
        h.make_node("MatMul", ["x", "w"], ["c"], name="two"),
        h.make_node("Relu", ["x"], ["d"], name="relu"),
        h.make_node("Sum", ["a", "b", "c", "d"], ["y"], name="sum"),
    ]
    weights = {"w": floats(8, 8), "v": floats(8, 8)}
    model = ir.serde.deserialize_model(model_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, weights))
    quantise(model, {}, ["one", "two"], {"x": 3.0})
    made = {n.name: n for n in ir.serde.serialize_model(model).graph.node}
    taken = {name: list(made[name].input) for name in ("one", "two", "kept", "relu")}
    assert taken["one"] == ["x_dequantised", "w_dequantised"]
    assert taken["two"] == ["x_dequantised_2", "w_dequantised"]
    assert taken["kept"] == ["x", "v"]
    assert taken["relu"] == ["x_dequantised_3"]
    operators = [n.op_type for n in made.values()]
    assert operators.count("QuantizeLinear") == 1, "one code for all"
    assert operators.count("DequantizeLinear") == 4, "one for each taker, one for the weight"


def test_inputs_that_a_quantizer_names_take_codes():
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        h.make_node("Add", ["a", "x"], ["b"], name="skip"),
        h.make_node("Mul", ["b", "b"], ["c"], name="square"),
        h.make_node("MatMul", ["x", "w"], ["d"], name="alone"),
        h.make_node("Sum", ["c", "d", "a"], ["y"], name="sum"),
    ]
    weights = {"w": floats(8, 8)}
    sites = {"one": (0, 1), "skip": (0,), "square": (1,), "alone": (1,)}

    def taken(chosen):
        model = model_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, weights)
        made = ir.serde.deserialize_model(model)
        quantise(made, {}, chosen, dict.fromkeys("xab", 3.0), sites)
        proto = ir.serde.serialize_model(made)
        onnx.checker.check_model(proto, full_check=True)
        return {n.name: list(n.input) for n in proto.graph.node}

    every = taken(list(sites))
    # What takes a value beside a named input takes its codes too, but for what could be named.
    assert every["one"] == ["x_dequantised", "w_dequantised"]
    assert every["skip"] == ["a_dequantised", "x_dequantised_2"]
    assert every["square"] == ["b_dequantised", "b_dequantised"]
    assert every["alone"] == ["x", "w_dequantised"]
    assert every["sum"] == ["c", "d", "a_dequantised_2"]
    some = taken(["one", "square"])
    assert some["skip"] == ["a", "x_dequantised_2"]
    assert some["alone"] == ["x", "w"]


def test_a_users_own_pairs_are_left_alone():
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        h.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        h.make_node("MatMul", ["xd", "w"], ["y"], name="m"),
    ]
    weights = {"w": floats(8, 8), "s": np.float32(0.1), "z": np.int8(0)}
    model = ir.serde.deserialize_model(model_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, weights))
    assert quantisable(model) == {}


def test_a_graph_that_another_tool_quantised_is_compiled_as_it_is(compile_, tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)]
    x = torch.zeros(1, 3, 16, 16)
    exact = compile_((nn.Sequential(*layers).eval(), (x,)), precision="fp32", name="exact")

    class Reader(ortq.CalibrationDataReader):
        def __init__(self):
            self.rows = iter([{"input": floats(1, 3, 16, 16)} for _ in range(4)])

        def get_next(self):
            return next(self.rows, None)

    file = tmp_path / "theirs.onnx"
    ortq.quantize_static(
        exact.path(exact.manifest.graph),
        file,
        Reader(),
        per_channel=True,
        weight_type=ortq.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    options = CompileOptions(cuts="all", name="theirs")
    bundle = compile_model(str(file), tmp_path / "theirs.bundle", options=options)[0]
    assert bundle.manifest.quantisation is None
    assert bundle.manifest.parity.tolerance["int8"] == 0.1
    kinds = {bundle.manifest.tensors[n].dtype for c in bundle.manifest.cuts for n in c.tensors}
    assert "int8" in kinds
    with Program(bundle, open_backend("ort")) as program:
        assert all(parity.ok for parity in verify_cuts(program))


def test_groups_of_neighbours():
    assert int8._grouped(list("abcdefg"), 3) == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert int8._grouped(list("ab"), 64) == [["a"], ["b"]]


def test_plans_of_a_quantised_graph(compile_):
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt
    bundle = compile_(torch_models.residual(), cuts="2", targets=("tensorrt-rtx:sm86,sm89",))
    target = bundle.manifest.targets["tensorrt-rtx"]
    assert (target.precision, target.compute_capabilities) == ("int8", ("sm86", "sm89"))


def test_plans_of_a_graph_of_three_precisions(compile_):
    trt = pytest.importorskip("tensorrt_rtx")
    bundle = compile_(torch_models.residual(), cuts="2", fp16=("second",), fp32=("first",))
    kinds = set(types_of(bundle).values())
    assert {"INT8", "FLOAT16", "FLOAT"} <= kinds
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(bundle.path(bundle.manifest.graph)))
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    gives = {
        layer.name: layer.get_output(0).dtype
        for layer in layers
        if layer.type == trt.LayerType.CONVOLUTION
    }
    # Strongly typed: the plan computes each of them in the type that the graph says.
    assert sorted(str(kind) for kind in gives.values()) == [
        "DataType.FLOAT",
        "DataType.FLOAT",
        "DataType.HALF",
    ]
    assert builder.build_serialized_network(network, builder.create_builder_config()) is not None
    planned = compile_(
        torch_models.residual(),
        name="planned",
        cuts="2",
        fp16=("second",),
        fp32=("first",),
        targets=("tensorrt-rtx:sm86,sm89",),
    )
    target = planned.manifest.targets["tensorrt-rtx"]
    assert (target.precision, target.compute_capabilities) == ("int8", ("sm86", "sm89"))
    headers = PlanStore(planned.folder / target.plans).headers()
    assert "int8" in {header.precision for header in headers}


def test_bounded_divisions_are_in_the_error_budget(compile_, tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    deep = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 32 * 8, 10)]
    built = nn.Sequential(*layers, *deep).eval(), (torch.zeros(1, 3, 32, 8),)
    bundle = compile_(built, precision="fp32", halo=(1,))
    assert bundle.manifest.striping.bounded
    done = CliRunner().invoke(
        bundle_main, ["verify", str(bundle.folder), "--data", str(tmp_path / "data.npz"), "--json"]
    )
    assert done.exit_code == 0, done.output
    rows = [row for row in json.loads(done.stdout)["rows"] if row["codec"].startswith("halo~")]
    assert {row["codec"] for row in rows} == {"halo~1"}
    assert all(row["bytes"] > 0 for row in rows)
    assert any(row["error"] > 1e-6 for row in rows)


def test_command_line(tmp_path):
    np.savez(tmp_path / "d.npz", x=floats(9, 1, 4, 8, 8))
    out = tmp_path / "m.bundle"
    arguments = ["tests.models.torch_models:residual", "-o", str(out), "--precision", "int8"]
    done = CliRunner().invoke(main, [*arguments, "--calibrate", str(tmp_path / "d.npz"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["precision"] == "int8"
    assert report["quantisation"]["samples"] == 9
    text = CliRunner().invoke(
        main, [*arguments, "--calibrate", str(tmp_path / "d.npz"), "--samples", "4"]
    )
    assert "3 nodes in int8; 1 - cosine" in text.stdout
    assert "only 4 samples" in text.stderr
    refused = CliRunner().invoke(main, [*arguments, "--calibrate", "nothing.npz"])
    assert refused.exit_code == 1
    assert "nothing.npz: not a readable .npz file" in refused.stderr
    assert assemble.Prepared
