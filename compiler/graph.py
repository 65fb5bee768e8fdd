"""The value graph: nodes, and the tensors between them, of the final ONNX file.

It holds names and numbers, not weights. Values that If, Loop and Scan bodies capture from the
outside count as inputs of the node that owns the body.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto

from compiler.flops import flops_of
from compiler.quiet import one_line
from engines.errors import EmitError
from engines.tensors import DTYPES, TensorSpec

__all__ = ["Node", "ValueGraph", "Values", "build_graph", "infer_values", "uses_of"]

_RANDOM = frozenset(
    (
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    )
)
"""Operators whose result differs from run to run."""

_DATA_DEPENDENT = frozenset(
    ["Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique", "SequenceAt"]
)
"""Operators whose output's shape depends on values."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        index: Place in the file.
        name: Name of the ONNX node.
        op: Operator.
        inputs: Values it takes, captured ones included, each once; initialisers excluded.
        initialisers: Initialisers it takes, captured ones included, each once.
        outputs: Values it gives.
        path: Path of the module it came from.
        flops: Floating-point operations.
        free: Whether it depends on no input of the graph: weights decoded from constants.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    initialisers: tuple[str, ...]
    outputs: tuple[str, ...]
    path: str
    flops: int
    free: bool


@dataclass(frozen=True, slots=True)
class Values:
    """What is known of the values of a graph.

    Attributes:
        specs: Those with a static shape and a dtype that may cross a cut.
        wrong: Reason for each of the others.
        unknown: Those of the others whose shape was not inferred, but may yet be measured.
    """

    specs: Mapping[str, TensorSpec]
    wrong: Mapping[str, str]
    unknown: frozenset[str]


@dataclass(frozen=True, slots=True)
class ValueGraph:
    """The final graph.

    Attributes:
        nodes: In the file's order, which is topological.
        inputs: Names of the model's inputs.
        outputs: Names of its outputs.
        values: What is known of every value.
        producer: Node that gives a value.
        weight_bytes: Size of every initialiser, in bytes.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Values
    producer: Mapping[str, int]
    weight_bytes: Mapping[str, int]


def uses_of(node: NodeProto) -> list[str]:
    """Return the names that a node takes from outside, captured ones included, each once."""
    names = dict.fromkeys(name for name in node.input if name)
    for body in _bodies(node):
        names.update(dict.fromkeys(_captured(body)))
    return list(names)


def build_graph(model: ModelProto, paths: Mapping[str, str], values: Values) -> ValueGraph:
    """Build the value graph of a model without functions and without dead nodes.

    Args:
        model: The final graph; weights need not be loaded.
        paths: Module path by the name of a value; a node without one goes by its own name.
        values: What ``infer_values`` said.

    Raises:
        EmitError: A node's result differs from run to run, or an output or input has no static
            shape.
    """
    graph = model.graph
    inputs = tuple(value.name for value in graph.input)
    outputs = tuple(value.name for value in graph.output)
    random = [f"{n.name} ({n.op_type})" for n in _all_nodes(graph) if n.op_type in _RANDOM]
    if random:
        raise EmitError(
            f"the model draws random numbers in {', '.join(random)}: no split of it can be "
            "proved; remove them from forward(), or compile it in inference mode"
        )
    ends = [f"{n}: {values.wrong[n]}" for n in (*inputs, *outputs) if n in values.wrong]
    if ends:
        raise EmitError(
            f"inputs and outputs need a static shape and dtype: {'; '.join(ends)}; "
            "fix the shapes with --input, or leave the output out of the model"
        )
    initialisers = {tensor.name for tensor in graph.initializer}
    initialisers |= {tensor.values.name for tensor in graph.sparse_initializer}
    shapes: dict[str, tuple[int, ...]] = {n: spec.shape for n, spec in values.specs.items()}
    shapes.update({t.name: tuple(t.dims) for t in graph.initializer})
    bound = set(inputs)
    nodes: list[Node] = []
    producer: dict[str, int] = {}
    for index, proto in enumerate(graph.node):
        uses = uses_of(proto)
        taken = tuple(name for name in uses if name not in initialisers)
        given = tuple(name for name in proto.output if name)
        # A node that gives an output of the model has its place in the order all the same.
        free = not bound.intersection(taken) and not set(given).intersection(outputs)
        if not free:
            bound.update(given)
        producer.update(dict.fromkeys(given, index))
        nodes.append(
            Node(
                index=index,
                name=proto.name,
                op=proto.op_type,
                inputs=taken,
                initialisers=tuple(name for name in uses if name in initialisers),
                outputs=given,
                path=(paths.get(given[0]) if given else None) or proto.name,
                flops=_flops(proto, shapes),
                free=free,
            )
        )
    sizes = {tensor.name: _tensor_bytes(tensor) for tensor in graph.initializer}
    return ValueGraph(tuple(nodes), inputs, outputs, values, producer, sizes)


def infer_values(model: ModelProto) -> Values:
    """Infer shape and dtype of every value, with ONNX's own inference.

    Raises:
        EmitError: The graph contradicts itself.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=False)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as exc:
        raise EmitError(f"shapes cannot be inferred: {one_line(exc)}") from exc
    graph = inferred.graph
    types = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    tainted = _tainted(graph)
    specs: dict[str, TensorSpec] = {}
    wrong: dict[str, str] = {}
    unknown: set[str] = set()
    names = [v.name for v in graph.input] + [o for n in graph.node for o in n.output if o]
    for name in names:
        spec, reason, open_shape = _spec(name, types.get(name))
        if spec is not None:
            specs[name] = spec
            continue
        wrong[name] = reason
        if open_shape and name not in tainted:
            unknown.add(name)
        elif open_shape:
            wrong[name] = "shape depends on values"
    return Values(specs, wrong, frozenset(unknown))


def _spec(name: str, info: ValueInfoProto | None) -> tuple[TensorSpec | None, str, bool]:
    """Return a value's specification, or why it has none and whether its shape is the reason."""
    kind = info.type.WhichOneof("value") if info is not None else None
    if info is None or kind is None:
        return None, "shape is not known", True
    if kind != "tensor_type":
        return None, f"is a {kind.removesuffix('_type')}, not a tensor", False
    tensor: TypeProto.Tensor = info.type.tensor_type
    dtype = _dtype(tensor.elem_type)
    if dtype not in DTYPES:
        return None, f"dtype {dtype or 'unknown'} cannot cross a cut", not tensor.elem_type
    dims = list(tensor.shape.dim)
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None, "shape is not static", True
    return TensorSpec(name, dtype, tuple(int(dim.dim_value) for dim in dims)), "", False


def _dtype(elem_type: int) -> str:
    """Return NumPy's name of an ONNX element type, or ONNX's own where NumPy has none."""
    if elem_type == onnx.TensorProto.UNDEFINED:
        return ""
    name = str(onnx.TensorProto.DataType.Name(elem_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _tainted(graph: GraphProto) -> set[str]:
    """Return values downstream of an operator whose shapes depend on values."""
    tainted: set[str] = set()
    for node in graph.node:
        inner = any(n.op_type in _DATA_DEPENDENT for b in _bodies(node) for n in _all_nodes(b))
        if node.op_type in _DATA_DEPENDENT or inner or tainted.intersection(uses_of(node)):
            tainted.update(name for name in node.output if name)
    return tainted


def _flops(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    attributes: dict[str, Any] = {
        a.name: onnx.helper.get_attribute_value(a)
        for a in node.attribute
        if a.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.STRING)
    }
    return flops_of(
        node.op_type,
        [shapes.get(name) if name else None for name in node.input],
        [shapes.get(name) for name in node.output],
        {k: list(v) if not isinstance(v, int | bytes | str) else v for k, v in attributes.items()},
    )


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    count: int = math.prod(tensor.dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        return count
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return count * itemsize


def _bodies(node: NodeProto) -> Iterable[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _all_nodes(graph: GraphProto) -> Iterable[NodeProto]:
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _all_nodes(body)


def _captured(graph: GraphProto) -> list[str]:
    """Return the names that a body takes from outside, in order."""
    inside = {value.name for value in graph.input}
    inside |= {tensor.name for tensor in graph.initializer}
    inside |= {tensor.values.name for tensor in graph.sparse_initializer}
    captured: dict[str, None] = {}
    for node in graph.node:
        for name in uses_of(node):
            if name not in inside:
                captured[name] = None
        inside.update(node.output)
    for value in graph.output:
        if value.name not in inside:
            captured[value.name] = None
    return list(captured)
