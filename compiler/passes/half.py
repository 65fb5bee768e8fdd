"""Precision: a graph of float32 becomes one of float16.

1. Every float32 value between two nodes becomes float16 and keeps its name. Inputs and outputs of
   the model keep their dtypes: casts stand behind the first and in front of the last.
2. A node stays in float32 where it is named, where its operator's schema has no float16 for what
   it gives, where it holds a body (If, Loop, Scan), quantises, or computes between two that do
   (so that a runtime still finds the patterns of an 8-bit operator), or where a constant of it
   is too large for float16. Casts stand around it; values between two such nodes are float32.
   The other way round, some named nodes alone can become float16, and what lies between them.
3. A single input without float16 in the schema (scales of Resize) stays float32 by itself.
4. Weights are converted one by one as they are written: never is there a second copy of them.

Invariant: a value that is named ``NAME_float16`` or ``NAME_float32`` is ``NAME`` in the other
type, and nothing else is new.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from compiler.passes.islands import named_nodes

__all__ = ["LARGEST", "convert_nodes_to_half", "convert_to_half", "infer_types"]

LARGEST = float(np.finfo(np.float16).max)
"""Largest finite float16: 65504."""

_FLOAT = ir.DataType.FLOAT
_HALF = ir.DataType.FLOAT16

_QUANTISERS = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))

_FLOAT32_OPERATORS = _QUANTISERS | {"Constant"}

_DATA_ONLY = frozenset(("Resize", "Upsample"))
"""Operators whose inputs behind the first are regions and scales: coordinates, not data."""

_PASS_ON = frozenset(
    (
        *("Add", "Sub", "Mul", "Where", "Neg", "Identity", "Cast", "Concat", "Expand", "Gather"),
        *("Reshape", "Slice", "Softmax", "Squeeze", "Transpose", "Unsqueeze", "Flatten"),
    )
)
"""Operators that hand a number that is too large on; Softmax takes it and ends the chain."""

_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")


def convert_to_half(
    model: ir.Model, paths: dict[str, str], islands: Sequence[str] = ()
) -> dict[str, str]:
    """Convert a model to float16, in place.

    Args:
        model: The final graph, without functions.
        paths: Module path of the node that gives a value; those of new values are added.
        islands: Nodes, tensors or module paths that stay in float32.

    Returns:
        For every new name of a value the name that it has in the float32 graph.

    Raises:
        TraceError: No such node or module as ``islands`` names.
    """
    infer_types(model)
    conversion = _Conversion(model, paths)
    conversion.keep_islands(islands)
    return conversion.run()


def convert_nodes_to_half(
    model: ir.Model, paths: dict[str, str], nodes: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Convert some nodes of a model to float16, in place.

    Nodes that lie between two of them come along, so that no value is widened for them alone.

    Args:
        model: The final graph, without functions.
        paths: Module path of the node that gives a value; those of new values are added.
        nodes: Names of nodes; those that cannot run in float16 stay as they are.

    Returns:
        For every new name of a value the name that it has in the float32 graph; and the names of
        all nodes that are in float16 now, in the file's order.
    """
    infer_types(model)
    conversion = _Conversion(model, paths)
    halves = conversion.keep_all_but(nodes)
    return conversion.run(), tuple(node.name or "" for node in halves)


def infer_types(model: ir.Model) -> None:
    """Infer the types of values that have none."""
    values = [value for node in model.graph for value in node.outputs]
    if any(value.name and value.type is None for value in values):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)


class _Use(Protocol):
    """A node's input, as ``ir.Value.uses`` gives it."""

    @property
    def node(self) -> ir.Node: ...
    @property
    def idx(self) -> int: ...


class _Conversion:
    """One conversion: what becomes float16, then the rewriting."""

    def __init__(self, model: ir.Model, paths: dict[str, str]) -> None:
        self._graph = model.graph
        self._version = model.opset_imports.get("", 18)
        self._paths = paths
        self._aliases: dict[str, str] = {}
        self._narrowed: set[ir.Value] = set()
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._nodes = list(model.graph)
        self._taken = {value.name for value in (*self._graph.inputs,)}
        self._taken.update(self._graph.initializers)
        for node in ir.traversal.RecursiveGraphIterator(self._graph):
            self._taken |= {node.name, *(output.name for output in node.outputs)}
        self._kept = {node for node in self._nodes if self._unfit(node)}
        self._kept |= self._oversized()

    def keep_islands(self, islands: Sequence[str]) -> None:
        """Leave what the user names in float32, and 8-bit operators in disguise."""
        self._kept |= named_nodes(self._nodes, self._paths, islands)
        self._kept |= self._quantised()

    def keep_all_but(self, names: Collection[str]) -> list[ir.Node]:
        """Leave all but some nodes, and what lies between them, in float32; return those."""
        able = [node for node in self._nodes if node not in self._kept]
        chosen = {node for node in able if node.name in set(names)}
        behind = set(chosen)
        for node in able:
            floats = [v for v in node.inputs if v is not None and v.dtype == _FLOAT]
            makers = [v.producer() for v in floats if _is_data(v)]
            if makers and all(maker in behind for maker in makers):
                behind.add(node)
        for node in reversed(able):
            users = {use.node for v in node.outputs for use in v.uses()}
            ends = not users or any(v.is_graph_output() for v in node.outputs)
            if node not in chosen and (ends or not users <= behind):
                behind.discard(node)
        self._kept = {node for node in self._nodes if node not in behind}
        return [node for node in able if node in behind]

    def run(self) -> dict[str, str]:
        """Rewrite the graph; return the names that are new."""
        takes = {node: frozenset(self._narrow_inputs(node)) for node in self._nodes}
        for node in self._nodes:
            for value in self._narrow_outputs(node):
                value.type = ir.TensorType(_HALF)
                _retype(node)
        outputs = [v for node in self._nodes for v in node.outputs]
        for value in list(self._graph.initializers.values()):
            if value.dtype == _FLOAT:
                self._split_initialiser(value, takes)
        for value in [*self._graph.inputs, *outputs]:
            if value.dtype == _FLOAT or value in self._narrowed:
                self._connect(value, takes)
        return self._aliases

    def _unfit(self, node: ir.Node) -> bool:
        """Say whether a node cannot run in float16 as a whole."""
        bodies = any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
        if bodies or node.domain not in ("", "ai.onnx") or node.op_type in _FLOAT32_OPERATORS:
            return True
        values = [*node.inputs, *node.outputs]
        if any(v is not None and v.name and not isinstance(v.type, ir.TensorType) for v in values):
            return True  # a sequence, or a value of unknown type
        schema = onnx.defs.get_schema(node.op_type, self._version, "")
        return any(
            value.dtype == _FLOAT and not _allows_half(schema.outputs, place)
            for place, value in enumerate(node.outputs)
        )

    def _quantised(self) -> set[ir.Node]:
        """Return nodes between DequantizeLinear and QuantizeLinear: 8-bit ones in disguise."""
        found: set[ir.Node] = set()
        activations: set[ir.Node] = set()  # nodes whose result depends on an input
        for node in self._nodes:
            producers = [v.producer() for v in node.inputs if v is not None and _is_data(v)]
            if any(p is None or p in activations for p in producers):
                activations.add(node)
            floats = [v for v in node.inputs if v is not None and v.dtype == _FLOAT]
            makers = [v.producer() for v in floats if v.const_value is None]
            to_quantise = all(
                use.node.op_type in _QUANTISERS for v in node.outputs for use in v.uses()
            )
            decoded = [
                p is not None and (p.op_type == "DequantizeLinear" or (p in found and to_quantise))
                for p in makers
            ]
            moving = any(p in activations for p in makers if p is not None)
            if makers and all(decoded) and moving:
                found.add(node)
        return found

    def _oversized(self) -> set[ir.Node]:
        """Return nodes with a constant beyond float16, and those that hand its size on."""
        large = {
            v for v in self._graph.initializers.values() if v.dtype == _FLOAT and _is_large(v)
        }
        found: set[ir.Node] = set()
        for node in self._nodes:
            held = large.intersection(v for v in node.inputs if v is not None)
            makers = {v.producer() for v in node.inputs if v is not None}
            handed = node.op_type in _PASS_ON and any(
                p in found and p.op_type in _PASS_ON - {"Softmax"} for p in makers if p is not None
            )
            if held or handed:
                found.add(node)
        return found

    def _narrow_inputs(self, node: ir.Node) -> Iterator[int]:
        """Yield the places of the float32 inputs that a node is to take as float16."""
        if node in self._kept:
            return
        schema = onnx.defs.get_schema(node.op_type, self._version, "")
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype != _FLOAT or not _allows_half(schema.inputs, place):
                continue
            if not (place and node.op_type in _DATA_ONLY):
                yield place

    def _narrow_outputs(self, node: ir.Node) -> list[ir.Value]:
        """Return the float32 outputs that a node is to give as float16."""
        narrow = [v for v in node.outputs if v.dtype == _FLOAT and node not in self._kept]
        self._narrowed.update(narrow)
        return narrow

    def _wants(self, use: _Use, takes: Mapping[ir.Node, frozenset[int]]) -> ir.DataType:
        """Return the type that a use of a value wants; bodies want float32."""
        return _HALF if use.idx in takes.get(use.node, ()) else _FLOAT

    def _split_initialiser(self, value: ir.Value, takes: Mapping[ir.Node, frozenset[int]]) -> None:
        uses = list(value.uses())
        narrow = [use for use in uses if self._wants(use, takes) == _HALF]
        if not narrow:
            return
        assert value.const_value is not None, value
        if len(narrow) == len(uses):
            value.const_value = _half_tensor(value.const_value, value.name)
            value.type = ir.TensorType(_HALF)
            return
        name = self._unique(f"{value.name}_float16")
        half = ir.Value(
            name=name,
            type=ir.TensorType(_HALF),
            shape=value.shape,
            const_value=_half_tensor(value.const_value, name),
        )
        self._graph.register_initializer(half)
        for use in narrow:
            use.node.replace_input_with(use.idx, half)

    def _connect(self, value: ir.Value, takes: Mapping[ir.Node, frozenset[int]]) -> None:
        """Give every use of a value the type that it wants."""
        uses = [(use, self._wants(use, takes)) for use in value.uses()]
        own = value.dtype
        if own == _HALF and value.is_graph_output():
            self._restore_output(value)
        for use, wanted in uses:
            if wanted != own:
                use.node.replace_input_with(use.idx, self._cast(value, wanted))

    def _restore_output(self, value: ir.Value) -> None:
        """Give a float16 output of the model as float32, under the name that it has."""
        name = value.name or ""
        value.name = self._unique(f"{name}_float16")
        self._new_name(value.name, name)
        output = self._cast(value, _FLOAT, name=name)
        for place, given in enumerate(self._graph.outputs):
            if given is value:
                self._graph.outputs[place] = output

    def _cast(self, value: ir.Value, wanted: ir.DataType, *, name: str = "") -> ir.Value:
        if (value, wanted) in self._casts:
            return self._casts[value, wanted]
        old = value.name or ""
        if not name:
            name = self._unique(f"{old}_{'float16' if wanted == _HALF else 'float32'}")
            self._new_name(name, old)
        node = ir.node("Cast", inputs=[value], attributes={"to": int(wanted)})
        node.name = self._unique(f"{name}_cast")
        output = node.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(wanted), value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        self._casts[value, wanted] = output
        return output

    def _new_name(self, name: str, old: str) -> None:
        self._aliases[name] = self._aliases.get(old, old)
        if old in self._paths:
            self._paths[name] = self._paths[old]

    def _unique(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _allows_half(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], place: int) -> bool:
    """Say whether a parameter of a schema may be float16; the last may be variadic."""
    return "tensor(float16)" in parameters[min(place, len(parameters) - 1)].types


def _is_data(value: ir.Value) -> bool:
    return value.const_value is None


def _is_large(value: ir.Value) -> bool:
    """Say whether a constant has finite numbers that float16 has not."""
    assert value.const_value is not None, value
    array = value.const_value.numpy()
    if not array.size:
        return False
    largest = max(abs(float(array.max())), abs(float(array.min())))
    if not np.isfinite(largest):  # infinities and NaN are themselves in float16
        finite = np.abs(array[np.isfinite(array)])
        largest = float(finite.max()) if finite.size else 0.0
    return largest > LARGEST


def _half_tensor(tensor: ir.TensorProtocol, name: str | None) -> ir.LazyTensor:
    """Return a tensor as float16, converted whenever it is written and never kept."""

    def convert() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float16), name=name)

    return ir.LazyTensor(convert, dtype=_HALF, shape=ir.Shape(tensor.shape.numpy()), name=name)


def _retype(node: ir.Node) -> None:
    """Make attributes that say float32 say float16."""
    for name in _TYPE_ATTRIBUTES:
        if name in node.attributes and node.attributes.get_int(name) == int(_FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(_HALF))
    if node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        array = np.zeros(1) if attribute is None else attribute.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(np.float16)))
