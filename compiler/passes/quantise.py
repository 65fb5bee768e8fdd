"""Quantisation: convolutions and matrix products take 8-bit numbers, as Q/DQ pairs.

1. The data input X of a quantised node goes through ``X_int8 = QuantizeLinear(X)``, once for all
   that take X, and ``X_dequantised = DequantizeLinear(X_int8)``, once for each node that does, so
   that a cut between two of them sends codes: one scale, zero point 0. Its weights become int8
   codes with one scale for each output channel, and a DequantizeLinear. Biases stay float32, and
   so does what a node gives.
2. Other operators that take X (a skip connection, a pooling) take the dequantised value too, so
   that nothing but ``X_int8`` need cross a cut there, a quarter of the bytes of X. Nodes that
   could be quantised and are not, since that costs too much, take X itself.
   Another operator may have inputs quantised as well, where a quantizer says so.
3. Q/DQ pairs are all that TensorRT 11 and TensorRT for RTX know of int8: symmetric, per tensor
   for activations and per channel for weights. What a runtime fuses of it is its own affair.
4. Codes are made as they are written: never are there two copies of all weights.

Invariant: values are named ``NAME_int8`` and ``NAME_dequantised`` (``NAME_dequantised_2`` for the
second taker) after the one they stand for; beside those there are scales and one zero point.

Source:
    TensorRT, "Working with quantized types": explicit quantisation, and where to place Q/DQ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.ranges import quantised, scale_of
from compiler.passes.half import infer_types
from engines.errors import TraceError

__all__ = ["LEAST_OPSET", "WEIGHTED", "QuantisedNames", "quantisable", "quantise"]

LEAST_OPSET = 13
"""QuantizeLinear has scales by channel from opset 13 on."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is the weight, where that is constant."""

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class QuantisedNames:
    """The values that are new.

    Attributes:
        aliases: For every new name of an activation the name that it has in the float32 graph.
        scales: Real units per code, by the name of an activation's codes.
    """

    aliases: dict[str, str]
    scales: dict[str, float]


def quantisable(model: ir.Model, islands: Collection[str] = ()) -> dict[str, str]:
    """Return the nodes that can be quantised, each with its data input, in the file's order.

    Args:
        model: The final graph, without functions.
        islands: Names of nodes that are to be left out.

    Raises:
        TraceError: The opset is too low.
    """
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise TraceError(
            f"--precision int8: expected opset {LEAST_OPSET} or newer, given {opset}; export the "
            "model again, or convert it with onnx.version_converter"
        )
    infer_types(model)
    return {
        node.name or "": data.name or ""
        for node in model.graph
        if node.name not in islands
        for data in [_data_of(node)]
        if data is not None
    }


def quantise(
    model: ir.Model,
    paths: dict[str, str],
    nodes: Collection[str],
    thresholds: Mapping[str, float],
    sites: Mapping[str, Sequence[int]] | None = None,
) -> QuantisedNames:
    """Quantise some nodes of a model, in place.

    Args:
        model: The final graph, without functions.
        paths: Module path of the node that gives a value; those of new values are added.
        nodes: Names of nodes of ``sites``.
        thresholds: Largest |value| that a code stands for, by value.
        sites: Numbers of the inputs that take codes, values or weights, by node; by default data
            input and weight of all that :func:`quantisable` gives.
    """
    infer_types(model)
    return _Quantisation(model, paths, nodes, thresholds, sites).run()


class _Quantisation:
    """One quantisation of some nodes."""

    def __init__(
        self,
        model: ir.Model,
        paths: dict[str, str],
        nodes: Collection[str],
        thresholds: Mapping[str, float],
        sites: Mapping[str, Sequence[int]] | None,
    ) -> None:
        self._graph = model.graph
        self._paths = paths
        self._thresholds = thresholds
        everything = list(model.graph)
        self._order = {node: place for place, node in enumerate(everything)}
        able = {node for node in everything if _data_of(node) is not None}
        if sites is None:
            sites = {node.name or "": (0, 1) for node in able}
        self._chosen = [
            (node, sites[node.name or ""]) for node in everything if node.name in set(nodes)
        ]
        # What takes a value itself where it is not chosen: nothing else need cross for others.
        self._able = {(node, 0) for node in able}
        self._able |= {(n, place) for n in everything for place in sites.get(n.name or "", ())}
        self._taken = {value.name for value in self._graph.inputs}
        self._taken.update(self._graph.initializers)
        for node in ir.traversal.RecursiveGraphIterator(self._graph):
            self._taken |= {node.name, *(output.name for output in node.outputs)}
        self._names = QuantisedNames({}, {})
        self._weights: dict[tuple[ir.Value, int], ir.Value] = {}
        self._zero: ir.Value | None = None

    def run(self) -> QuantisedNames:
        """Rewrite the graph."""
        activations: dict[ir.Value, set[tuple[ir.Node, int]]] = {}
        weights: list[tuple[ir.Node, int, ir.Value]] = []
        for node, places in self._chosen:
            for place in places:
                value = node.inputs[place]
                assert value is not None, node
                if value.const_value is not None:
                    weights.append((node, place, value))
                else:
                    activations.setdefault(value, set()).add((node, place))
        for value, takers in activations.items():
            self._pair(value, takers)
        for node, place, weight in weights:
            node.replace_input_with(place, self._decoded(weight, _channel_axis(node)))
        for weight, _ in self._weights:
            if not weight.uses() and not weight.is_graph_output():
                self._graph.initializers.pop(weight.name or "", None)
        return self._names

    def _pair(self, value: ir.Value, takers: Collection[tuple[ir.Node, int]]) -> None:
        uses = sorted(value.uses(), key=lambda use: (self._order.get(use.node, -1), use.idx))
        name = value.name or ""
        scale = scale_of(self._thresholds[name])
        factor = self._constant(f"{name}_scale", scale)
        zero = self._zero_point()
        codes = self._node("QuantizeLinear", [value, factor, zero], f"{name}_int8")
        codes.type, codes.shape = ir.TensorType(ir.DataType.INT8), value.shape
        self._insert_after(value, [codes])
        self._alias(codes, name)
        self._names.scales[codes.name or ""] = float(scale)
        decoded: dict[ir.Node, ir.Value] = {}
        for use in uses:
            place = (use.node, use.idx)
            if use.node.graph is self._graph and (place in takers or place not in self._able):
                if use.node not in decoded:
                    number = f"_{len(decoded) + 1}" if decoded else ""
                    given = self._node(
                        "DequantizeLinear",
                        [codes, factor, zero],
                        f"{name}_dequantised{number}",
                    )
                    given.type, given.shape = ir.TensorType(_FLOAT), value.shape
                    producer = given.producer()
                    assert producer is not None
                    self._graph.insert_before(use.node, producer)
                    self._alias(given, name)
                    decoded[use.node] = given
                use.node.replace_input_with(use.idx, decoded[use.node])

    def _alias(self, new: ir.Value, name: str) -> None:
        self._names.aliases[new.name or ""] = name
        if name in self._paths:
            self._paths[new.name or ""] = self._paths[name]

    def _decoded(self, weight: ir.Value, axis: int) -> ir.Value:
        """Return a weight as its codes stand for it."""
        if (weight, axis) in self._weights:
            return self._weights[weight, axis]
        assert weight.const_value is not None, weight
        name = weight.name or ""
        scale = _weight_scale(weight.const_value, axis)
        factor = self._constant(f"{name}_scale", scale)
        codes_name = self._unique(f"{name}_int8")
        codes = ir.Value(
            name=codes_name,
            type=ir.TensorType(ir.DataType.INT8),
            shape=weight.shape,
            const_value=_codes(weight.const_value, scale, axis, codes_name),
        )
        self._graph.register_initializer(codes)
        decoded = self._node(
            "DequantizeLinear", [codes, factor], f"{name}_dequantised", {"axis": axis}
        )
        decoded.type, decoded.shape = ir.TensorType(_FLOAT), weight.shape
        producer = decoded.producer()
        assert producer is not None
        # In front of everything: another node that takes this weight may come before this one.
        self._graph.insert_before(self._graph[0], producer)
        self._weights[weight, axis] = decoded
        return decoded

    def _insert_after(self, value: ir.Value, given: Sequence[ir.Value]) -> None:
        nodes = [v.producer() for v in given]
        producer = value.producer()
        made = [node for node in nodes if node is not None]
        if producer is not None:
            self._graph.insert_after(producer, made)
        else:
            self._graph.insert_before(self._graph[0], made)

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Value:
        node = ir.node(op, inputs=list(inputs), attributes=dict(attributes or {}))
        output = node.outputs[0]
        output.name = self._unique(name)
        node.name = self._unique(f"{output.name}_node")
        return output

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        name = self._unique(name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        self._graph.register_initializer(value)
        return value

    def _zero_point(self) -> ir.Value:
        if self._zero is None:
            self._zero = self._constant("zero_point_int8", np.asarray(0, np.int8))
        return self._zero

    def _unique(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _data_of(node: ir.Node) -> ir.Value | None:
    """Return the data input of a node that can be quantised; none of one that cannot."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in WEIGHTED:
        return None
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None or data.const_value is not None:
        return None
    if (data.dtype, weight.dtype) != (_FLOAT, _FLOAT) or weight.const_value is None:
        return None
    maker = data.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        return None  # the user has quantised it already
    rank = len(weight.const_value.shape)
    attributes = node.attributes
    unfit = {
        "Conv": False,
        "ConvTranspose": attributes.get_int("group", 1) != 1,
        "Gemm": attributes.get_int("transA", 0) != 0,
        "MatMul": rank != 2,
    }[node.op_type]
    return None if unfit else data


def _channel_axis(node: ir.Node) -> int:
    """Return the dimension of a weight's output channels."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _weight_scale(tensor: ir.TensorProtocol, axis: int) -> NDArray[np.float32]:
    array = tensor.numpy()
    others = tuple(place for place in range(array.ndim) if place != axis)
    return scale_of(np.max(np.abs(array), axis=others, initial=0.0).astype(np.float64))


def _codes(
    tensor: ir.TensorProtocol, scale: NDArray[np.float32], axis: int, name: str
) -> ir.LazyTensor:
    """Return a weight's codes, made whenever they are written and never kept."""

    def make() -> ir.TensorProtocol:
        return ir.tensor(quantised(tensor.numpy(), scale, axis), name=name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(make, dtype=ir.DataType.INT8, shape=shape, name=name)
