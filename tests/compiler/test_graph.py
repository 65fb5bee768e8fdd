from __future__ import annotations

import json

import onnx
import onnx_ir as ir
import pytest
from onnx import helper as h

import compiler
from compiler.graph import build_graph, infer_values, uses_of
from compiler.passes.ends import name_ends
from compiler.passes.provenance import strip_provenance, take_provenance
from engines.errors import EmitError, TraceError
from tests.models import onnx_models


def test_uses_include_what_bodies_capture():
    captures = onnx_models.captures()
    branch = next(node for node in captures.graph.node if node.op_type == "If")
    assert uses_of(branch) == ["positive", "bias", "mid", "w"] or set(uses_of(branch)) == {
        *("positive", "bias", "mid", "w")
    }
    loop = next(node for node in onnx_models.loops().graph.node if node.op_type == "Loop")
    assert set(uses_of(loop)) == {"count", "yes", "start", "step"}


def test_what_cannot_cross_says_why():
    values = infer_values(onnx_models.value_dependent())
    assert values.wrong["where"] == "shape depends on values"
    assert "where" not in values.unknown
    assert infer_values(onnx_models.sequences()).wrong["pieces"] == "is a sequence, not a tensor"
    graph = onnx_models.captures()
    nodes = [h.make_node("Cast", ["x"], ["b"], to=onnx.TensorProto.BFLOAT16)]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    assert infer_values(graph).wrong["b"] == "dtype bfloat16 cannot cross a cut"


def test_an_output_without_a_static_shape_is_refused():
    model = onnx_models.dynamic_length()
    with pytest.raises(EmitError, match="static shape"):
        build_graph(model, {}, infer_values(model))


def test_ends_are_named_and_others_make_way():
    x = h.make_tensor_value_info("x", 1, (2,))
    nodes = [h.make_node("Relu", ["x"], ["y"]), h.make_node("Neg", ["y"], ["z"])]
    outputs = [h.make_tensor_value_info(n, 1, (2,)) for n in ("z", "x")]
    model = ir.from_proto(h.make_model(h.make_graph(nodes, "g", [x], outputs)))
    name_ends(model, ["y"], ["y", "x"])
    assert [v.name for v in model.graph.inputs] == ["y"]
    assert [v.name for v in model.graph.outputs] == ["y_out", "x"]
    assert [n.op_type for n in model.graph] == ["Relu", "Neg", "Identity"]
    assert next(iter(model.graph)).outputs[0].name == "y_inner"
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    with pytest.raises(TraceError, match="expected inputs"):
        name_ends(model, ["y", "z"], ["y", "x"])


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        (["", "layer.0", "layer.0.conv", "conv2d"], "layer.0.conv"),
        (["", "relu"], "relu"),
        (None, "name"),
        ("not a list", "name"),
        ([], "name"),
    ],
)
def test_provenance_is_the_innermost_module(scopes, path):
    node = ir.node("Relu", inputs=[ir.Value(name="x")], name="name")
    node.outputs[0].name = "y"
    if scopes is not None:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = str(scopes)
    graph = ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 18})
    assert take_provenance(ir.Model(graph, ir_version=9)) == {"y": path}


def test_strip_reaches_into_bodies():
    model = onnx_models.captures()
    model.doc_string = "secret"
    for node in model.graph.node:
        node.doc_string = "secret"
        node.metadata_props.add(key="secret", value="secret")
        for attribute in node.attribute:
            for inner in attribute.g.node:
                inner.doc_string = "secret"
    for tensor in model.graph.initializer:
        tensor.doc_string = "secret"
    strip_provenance(model)
    assert b"secret" not in model.SerializeToString()


def test_public_names_exist():
    assert all(hasattr(compiler, name) for name in compiler.__all__)


def test_report_is_plain_json(compiled):
    report = compiled("dense").report.to_json()
    assert json.loads(json.dumps(report)) == report
    assert {*report} == {
        *("bundle", "model", "inputs", "outputs", "cuts", "segments", "refused", "seconds"),
        *("weights_bytes", "bundle_bytes", "precision", "max_error", "bounded", "quantisation"),
    }
    assert {*report["cuts"][1]} == {
        *("id", "index", "tensors", "bytes", "flops_robot", "flops_server", "after", "why"),
        *("results", "result_bytes", "robot_segments", "refused"),
    }
    assert report["refused"][0]["reason"] == "5 tensors cross, more than 4"
