"""Every operator that opset 18 changed: written in 17 with the same result, or refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto
from onnx import helper as h

from compiler import CompileOptions, compile_model, pipeline
from compiler.passes.lower_opset import CHANGED, lower_opset
from engines.errors import EmitError
from tests.models import onnx_models, torch_models

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(0)
NAMES = [*torch_models.MODELS, *onnx_models.MODELS]


def made(op, shape, constants=(), dtype="float32", outputs=1, computed=(), opset=18, **attributes):
    """One node over ``x`` and constants; those in ``computed`` come from an Identity."""
    names = [f"c{place}" if value is not None else "" for place, value in enumerate(constants)]
    tensors, nodes = [], []
    for place, value in enumerate(constants):
        if value is None:
            continue
        stored = f"stored{place}" if place in computed else names[place]
        tensors.append(onnx.numpy_helper.from_array(np.asarray(value), stored))
        if place in computed:
            nodes.append(h.make_node("Identity", [stored], [names[place]]))
    given = [f"y{place}" for place in range(outputs)]
    nodes.append(h.make_node(op, ["x", *names], given, name="it", **attributes))
    kind = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", kind, shape)],
        # Shape inference fills in the type; it has none for GroupNormalization.
        [
            h.make_tensor_value_info(name, kind, shape)
            if op == "GroupNormalization"
            else onnx.ValueInfoProto(name=name)
            for name in given
        ],
        tensors,
    )
    opsets = [h.make_opsetid("", opset)]
    return onnx.shape_inference.infer_shapes(
        h.make_model(graph, opset_imports=opsets, ir_version=9)
    )


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def lowered(model):
    changed = ir.serde.deserialize_model(model)
    lower_opset(changed)
    proto = ir.serde.serialize_model(changed)
    onnx.checker.check_model(proto, full_check=True)
    assert {(o.domain, o.version) for o in proto.opset_import} == {("", 17)}
    assert [o.name for o in proto.graph.output] == [o.name for o in model.graph.output]
    return proto


def ints(*values):
    return np.asarray(values, np.int64)


REDUCES = [name for name in CHANGED if name.startswith("Reduce")]
IMAGE = (1, 2, 6, 8)
SCATTER = (np.asarray([[0, 1]]), np.asarray([[5, 7]], np.float32))
LOWERED = {
    **{f"{op}-axes": made(op, (2, 3, 4), [ints(-1, 1)], keepdims=0) for op in REDUCES},
    **{f"{op}-all": made(op, (2, 3, 4)) for op in REDUCES},
    "reduce-noop": made("ReduceMean", (2, 3), [ints()], noop_with_empty_axes=1),
    "reduce-empty": made("ReduceMax", (2, 3), [ints()]),
    "split-even": made("Split", (2, 6), outputs=3, axis=-1, num_outputs=3),
    "split-uneven": made("Split", (2, 7), outputs=3, axis=1, num_outputs=3),
    "split-sizes": made("Split", (2, 7), [ints(1, 6)], outputs=2, axis=1),
    "pad-axes": made("Pad", (1, 2, 3), [ints(1, 2), np.float32(7), ints(-1)]),
    "pad-two-axes": made("Pad", (2, 4, 4), [ints(1, 2, 0, 3), None, ints(2, 1)], mode="reflect"),
    "pad": made("Pad", (2, 3), [ints(1, 0, 0, 2)]),
    "pad-computed": made("Pad", (2, 3), [ints(1, 0, 0, 2)], computed=[0]),
    "resize-scales": made("Resize", IMAGE, [None, np.float32([1, 1, 2, 1.5])], mode="linear"),
    "resize-axes": made(
        "Resize", IMAGE, [None, np.float32([2, 0.5])], mode="linear", axes=[2, -1]
    ),
    "resize-sizes": made("Resize", IMAGE, [None, None, ints(9, 4)], mode="cubic", axes=[2, 3]),
    "resize-larger": made(
        *("Resize", IMAGE, [None, None, ints(12, 12)]),
        axes=[2, 3],
        keep_aspect_ratio_policy="not_smaller",
    ),
    "resize-smaller": made(
        *("Resize", IMAGE, [None, None, ints(12, 20)]),
        axes=[2, 3],
        keep_aspect_ratio_policy="not_larger",
    ),
    "resize-plain": made("Resize", IMAGE, [None, None, ints(1, 2, 3, 4)], antialias=0),
    "scatter-nd": made("ScatterND", (4,), [ints([1], [3]), np.float32([1, 2])], reduction="add"),
    "scatter-elements": made("ScatterElements", (2, 4), SCATTER, axis=1, reduction="mul"),
    "lp-pool": made("LpPool", (1, 2, 6), kernel_shape=[2], ceil_mode=0, dilations=[1]),
    "mish": made("Mish", (2, 5)),
    "bitwise-not": made("BitwiseNot", (6,), dtype="int32"),
    "bitwise-not-unsigned": made("BitwiseNot", (6,), dtype="uint8"),
    "crop": made("CenterCropPad", (7, 6), [ints(4, 5)]),
    "crop-and-pad": made("CenterCropPad", (3, 7, 4), [ints(4, 7)], axes=[1, -1]),
    "groups": made(
        *("GroupNormalization", (2, 6, 3, 3), [np.float32([1, 2, 3]), np.float32([0, 1, -1])]),
        num_groups=3,
        epsilon=1e-3,
    ),
    "optional-get": made("OptionalGetElement", (3,)),
    "optional-has": made("OptionalHasElement", (3,)),
}
_COL = [ints(4, 4), ints(2, 2)]
REFUSED = {
    "Col2Im": (made("Col2Im", (1, 4, 9), _COL), "not in opset 17"),
    "BitwiseAnd": (made("BitwiseAnd", (2,), [ints(1, 2)], "int64"), "not in opset 17"),
    "BitwiseOr": (made("BitwiseOr", (2,), [ints(1, 2)], "int64"), "not in opset 17"),
    "BitwiseXor": (made("BitwiseXor", (2,), [ints(1, 2)], "int64"), "not in opset 17"),
    "ReduceMean": (made("ReduceMean", (2, 3), [ints(1)], computed=[0]), "axes are computed"),
    "ReduceL1": (made("ReduceL1", (2, 3), noop_with_empty_axes=1), "noop_with_empty_axes"),
    "Split": (made("Split", ("n", 3), outputs=2, num_outputs=2), "shape of x is not static"),
    "Pad": (made("Pad", (2, 3), [ints(1, 1), None, ints(0)], computed=[0]), "pads are computed"),
    "Resize": (
        made("Resize", IMAGE, [None, np.float32([1, 1, 0.5, 0.5])], mode="linear", antialias=1),
        "antialias",
    ),
    "ScatterElements": (
        made("ScatterElements", (2, 4), SCATTER, reduction="max"),
        "reduction max",
    ),
    "ScatterND": (
        made("ScatterND", (4,), [ints([1]), np.float32([1])], reduction="min"),
        "reduction min",
    ),
    "LpPool": (made("LpPool", (1, 2, 6), kernel_shape=[2], dilations=[2]), r"dilations \[2\]"),
}


def test_no_operator_that_changed_is_forgotten():
    def versions(at):
        every = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
        found = {}
        for name in every:
            try:
                found[name] = onnx.defs.get_schema(name, at, "").since_version
            except onnx.defs.SchemaError:
                found[name] = None
        return found

    old, new = versions(17), versions(18)
    assert {name for name in old if old[name] != new[name]} == set(CHANGED)


@pytest.mark.parametrize("name", LOWERED)
def test_lowered_graphs_compute_the_same(name):
    model = LOWERED[name]
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    kind = h.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = np.abs(RANDOM.standard_normal(shape) * 3 + 4).astype(kind)
    before, after = run(model, x), run(lowered(model), x)
    assert len(before) == len(after)
    for a, b in zip(before, after):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_17_cannot_say_is_refused_by_name(name):
    model, reason = REFUSED[name]
    with pytest.raises(
        EmitError, match=rf"--opset 17: 1 nodes need .*: it \({name}\): .*{reason}"
    ):
        lower_opset(ir.serde.deserialize_model(model))


def test_every_changed_operator_is_in_some_test():
    seen = {n.op_type for m in LOWERED.values() for n in m.graph.node}
    seen |= {n.op_type for m, _ in REFUSED.values() for n in m.graph.node}
    assert set(CHANGED) <= seen


def test_all_offenders_are_named_at_once_inside_of_bodies_too():
    inner = REFUSED["BitwiseAnd"][0]
    body = h.make_graph(
        inner.graph.node, "b", [], [inner.graph.output[0]], inner.graph.initializer
    )
    body.node[0].name = "inside"
    body.node[0].output[0] = body.output[0].name = "inner"
    nodes = [
        h.make_node("If", ["yes"], ["z"], name="if", then_branch=body, else_branch=body),
        h.make_node("BitwiseXor", ["z", "x"], ["y0"], name="outside"),
    ]
    del inner.graph.node[:]
    inner.graph.node.extend(nodes)
    inner.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(True), "yes"))
    with pytest.raises(EmitError) as told:
        lower_opset(ir.serde.deserialize_model(inner))
    for name in ("inside (BitwiseAnd)", "outside (BitwiseXor)"):
        assert name in str(told.value)
    assert "\n" not in str(told.value)


def test_a_newer_graph_is_refused_and_an_older_one_left():
    with pytest.raises(EmitError, match="opset 18 or less, given one of 20"):
        lower_opset(ir.serde.deserialize_model(made("Relu", (2,), opset=20)))
    older = ir.serde.deserialize_model(made("ReduceMean", (2, 3), opset=13, axes=[1]))
    lower_opset(older)
    assert older.opset_imports[""] == 13


@pytest.mark.parametrize("name", NAMES)
def test_small_models_at_opset_17(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "render_report", lambda *a, **k: "")  # takes most of a second
    # compile_model proves what it wrote against the model as it was given.
    model = (torch_models.MODELS.get(name) or onnx_models.MODELS[name])()
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, tmp_path / "m.onnx")
        model = str(tmp_path / "m.onnx")
    options = CompileOptions(name=name, cuts="2", opset=17)
    bundle, report = compile_model(model, tmp_path / "m.bundle", options=options)
    assert report.manifest.opset <= 17
    for path in sorted((bundle.folder / "graph").glob("*.onnx")):
        graph = onnx.load(path, load_external_data=False)
        assert max(o.version for o in graph.opset_import) <= 17
    onnx.checker.check_model(str(bundle.folder / bundle.manifest.graph), full_check=True)
