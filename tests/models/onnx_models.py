"""Small ONNX models that no exporter of ours would write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx import helper as h

FLOAT = TensorProto.FLOAT


def _model(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    *,
    functions: list[FunctionProto] | None = None,
    opset: int = 18,
) -> ModelProto:
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    graph = h.make_graph(nodes, "made", inputs, outputs, tensors)
    domains = [h.make_opsetid("", opset)]
    domains += [h.make_opsetid("local", 1)] if functions else []
    model = h.make_model(
        graph, opset_imports=domains, functions=functions or [], ir_version=9, doc_string="made"
    )
    onnx.checker.check_model(model)
    return model


def _value(name: str, *shape: int | str, dtype: int = FLOAT) -> ValueInfoProto:
    return h.make_tensor_value_info(name, dtype, shape)


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def captures() -> ModelProto:
    """An If whose branches capture an initialiser and an intermediate value from outside."""
    then = h.make_graph(
        [h.make_node("MatMul", ["mid", "w"], ["then_out"])],
        "then",
        [],
        [_value("then_out", 1, 16)],
    )
    other = h.make_graph(
        [h.make_node("Add", ["mid", "bias"], ["sum"]), h.make_node("Neg", ["sum"], ["else_out"])],
        "else",
        [],
        [_value("else_out", 1, 16)],
    )
    nodes = [
        h.make_node("Tanh", ["x"], ["mid"]),
        h.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        h.make_node("Greater", ["total", "zero"], ["positive"]),
        h.make_node("Abs", ["x"], ["size"]),
        h.make_node("If", ["positive"], ["chosen"], then_branch=then, else_branch=other),
        h.make_node("Add", ["chosen", "size"], ["y"]),
    ]
    weights = {"w": _weights(16, 16), "bias": _weights(16), "zero": np.float32(0).reshape(())}
    return _model(nodes, [_value("x", 1, 16)], [_value("y", 1, 16)], weights)


def loops() -> ModelProto:
    """A Loop whose body captures a value from outside."""
    body = h.make_graph(
        [
            h.make_node("Add", ["state", "step"], ["next"]),
            h.make_node("Identity", ["cond"], ["cond_out"]),
        ],
        "body",
        [
            _value("i", dtype=TensorProto.INT64),
            _value("cond", dtype=TensorProto.BOOL),
            _value("state", 1, 4),
        ],
        [_value("cond_out", dtype=TensorProto.BOOL), _value("next", 1, 4)],
    )
    nodes = [
        h.make_node("Relu", ["x"], ["start"]),
        h.make_node("Neg", ["x"], ["step"]),
        h.make_node("Loop", ["count", "yes", "start"], ["end"], body=body),
        h.make_node("Mul", ["end", "x"], ["y"]),
    ]
    weights = {"count": np.int64(3).reshape(()), "yes": np.bool_(True).reshape(())}
    return _model(nodes, [_value("x", 1, 4)], [_value("y", 1, 4)], weights)


def constants() -> ModelProto:
    """Constant nodes of several kinds, unnamed nodes, and an old opset."""
    nodes = [
        h.make_node("Constant", [], ["two"], value_float=2.0),
        h.make_node("Mul", ["x", "two"], ["doubled"]),
        h.make_node("Constant", [], ["shape"], value_ints=[2, 8]),
        h.make_node("Reshape", ["doubled", "shape"], ["folded"]),
        h.make_node("Relu", ["folded"], ["y"]),
    ]
    return _model(nodes, [_value("x", 1, 16)], [_value("y", 2, 8)], opset=13)


def functions() -> ModelProto:
    """A function of the model's own, called twice."""
    scale = h.make_function(
        "local",
        "ScaleAndShift",
        ["a", "w"],
        ["c"],
        [h.make_node("Mul", ["a", "w"], ["b"]), h.make_node("Add", ["b", "a"], ["c"])],
        [h.make_opsetid("", 18)],
    )
    nodes = [
        h.make_node("ScaleAndShift", ["x", "w"], ["m"], domain="local"),
        h.make_node("Relu", ["m"], ["r"]),
        h.make_node("ScaleAndShift", ["r", "w"], ["y"], domain="local"),
    ]
    return _model(
        nodes, [_value("x", 1, 8)], [_value("y", 1, 8)], {"w": _weights(8)}, functions=[scale]
    )


def output_used_later() -> ModelProto:
    """An intermediate value that is an output and is used again; an input without use."""
    nodes = [
        h.make_node("Relu", ["x"], ["early"]),
        h.make_node("MatMul", ["early", "w"], ["mid"]),
        h.make_node("Sigmoid", ["mid"], ["late"]),
        h.make_node("Neg", ["x"], ["other"]),
    ]
    inputs = [_value("x", 1, 24), _value("unused", 3)]
    outputs = [_value("late", 1, 24), _value("early", 1, 24), _value("other", 1, 24)]
    return _model(nodes, inputs, outputs, {"w": _weights(24, 24)})


def decoded_weights() -> ModelProto:
    """Weights that are decoded from integers: a subgraph that depends on no input.

    The table is too large for the optimiser to fold it. Each half has one MatMul with it, which
    ONNX Runtime makes one operator of less accuracy, if it is let.
    """
    codes = np.random.default_rng(0).integers(-127, 128, (128, 128)).astype(np.int8)
    nodes = [
        h.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("Relu", ["a"], ["b"]),
        h.make_node("MatMul", ["b", "w"], ["c"]),
        h.make_node("Tanh", ["c"], ["y"]),
    ]
    weights = {"codes": codes, "scale": np.float32(0.001).reshape(())}
    return _model(nodes, [_value("x", 1, 128)], [_value("y", 1, 128)], weights)


def value_dependent() -> ModelProto:
    """A value whose shape depends on values, between two whose shapes do not."""
    nodes = [
        h.make_node("Relu", ["x"], ["a"]),
        h.make_node("NonZero", ["a"], ["where"]),
        h.make_node("Cast", ["where"], ["floats"], to=FLOAT),
        h.make_node("ReduceSum", ["floats"], ["total"], keepdims=0),
        h.make_node("Neg", ["total"], ["y"]),
    ]
    return _model(nodes, [_value("x", 1, 8)], [_value("y")])


def sequences() -> ModelProto:
    """A sequence in the middle, which cannot cross a cut."""
    nodes = [
        h.make_node("Relu", ["x"], ["a"]),
        h.make_node("SplitToSequence", ["a"], ["pieces"], axis=1, keepdims=0),
        h.make_node("ConcatFromSequence", ["pieces"], ["b"], axis=0, new_axis=1),
        h.make_node("Neg", ["b"], ["y"]),
    ]
    return _model(nodes, [_value("x", 1, 4)], [_value("y", 4, 1)])


def dynamic() -> ModelProto:
    """A dynamic batch, and shapes computed from it at run time."""
    nodes = [
        h.make_node("Shape", ["x"], ["shape"], end=1),
        h.make_node("Concat", ["shape", "rest"], ["target"], axis=0),
        h.make_node("Relu", ["x"], ["r"]),
        h.make_node("Reshape", ["r", "target"], ["flat"]),
        h.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = {"rest": np.array([-1], np.int64), "w": _weights(16, 4)}
    return _model(nodes, [_value("x", "batch", 4, 4)], [_value("y", "batch", 4)], weights)


def dynamic_length() -> ModelProto:
    """A dynamic axis that nobody can guess."""
    return _model(
        [h.make_node("Relu", ["x"], ["y"])],
        [_value("x", 1, "length", 2)],
        [_value("y", 1, "length", 2)],
    )


MODELS: dict[str, Callable[[], ModelProto]] = {
    build.__name__: build
    for build in (
        captures,
        loops,
        constants,
        functions,
        output_used_later,
        decoded_weights,
        value_dependent,
        sequences,
        dynamic,
    )
}
"""Every model that compiles as it is, by name."""
