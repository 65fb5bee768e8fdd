"""The ends: inputs and outputs get their names, and every output a node of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from engines.errors import TraceError

__all__ = ["name_ends"]


def name_ends(model: ir.Model, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """Name the inputs and outputs; other values that have such a name get another.

    An output that is an input, an initialiser or another output too is given by an Identity
    node. ONNX demands it of the first and the last; cuts need it of all three.

    Raises:
        TraceError: The graph's inputs or outputs are not those that were expected.
    """
    graph = model.graph
    if len(graph.inputs) != len(input_names) or len(graph.outputs) != len(output_names):
        raise TraceError(
            f"expected inputs {', '.join(input_names)} and outputs {', '.join(output_names)}, "
            f"the exporter gave {', '.join(str(v.name) for v in graph.inputs)} and "
            f"{', '.join(str(v.name) for v in graph.outputs)}"
        )
    seen: set[ir.Value] = set()
    for place, value in enumerate(graph.outputs):
        if value.producer() is None or value in seen:
            graph.outputs[place] = _identity(graph, value)
        seen.add(value)
    wanted = _distinct(output_names, set(input_names))
    ends = [*zip(graph.inputs, input_names), *zip(graph.outputs, wanted)]
    _rename(graph, ends)


def _identity(graph: ir.Graph, value: ir.Value) -> ir.Value:
    node = ir.node("Identity", inputs=[value])
    output = node.outputs[0]
    output.name = f"{value.name}_output"
    output.type = value.type
    output.shape = value.shape
    if value.const_value is not None:
        output.type = ir.TensorType(value.const_value.dtype)
        output.shape = ir.Shape(value.const_value.shape.numpy())
    graph.append(node)
    return output


def _distinct(names: Sequence[str], taken: set[str]) -> list[str]:
    """Return ``names``, each with ``_out`` appended until it is alone."""
    distinct: list[str] = []
    for name in names:
        unique = name
        while unique in taken:
            unique += "_out"
        taken.add(unique)
        distinct.append(unique)
    return distinct


def _rename(graph: ir.Graph, ends: Sequence[tuple[ir.Value, str]]) -> None:
    own = {value for value, _ in ends}
    wanted = {name for _, name in ends}
    others = [
        *graph.initializers.values(),
        *(o for node in ir.traversal.RecursiveGraphIterator(graph) for o in node.outputs),
    ]
    taken = wanted | {value.name or "" for value in others}
    for value in others:
        if value in own or value.name not in wanted:
            continue
        value.name = _distinct([f"{value.name}_inner"], taken)[0]
    for place, (value, _) in enumerate(ends):  # first out of each other's way
        value.name = _distinct([f"end_{place}"], taken)[0]
    for value, name in ends:
        value.name = name
