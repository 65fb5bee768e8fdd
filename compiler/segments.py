"""Segments and halves: subgraphs of the model as ONNX files over its one weights file.

A subgraph is a run of nodes in the graph's order, with the free nodes that these need. Tensors
in the weights file are referred to, never read, so that a file costs kilobytes and the time of
copying its nodes. Loaders follow such references only within the file's own folder: all lie in
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from compiler.cuts import Boundaries
from compiler.graph import Node, ValueGraph
from engines.manifest import Cut, Segment
from engines.tensors import TensorSpec

__all__ = [
    "GRAPH_FILE",
    "WEIGHTS_FILE",
    "Emitted",
    "Extractor",
    "elem_type",
    "emit",
    "write_graph",
]

GRAPH_FILE = "graph/model.onnx"
WEIGHTS_FILE = "graph/weights.bin"


@dataclass(frozen=True, slots=True)
class Emitted:
    """The files of every cut and segment, as the manifest lists them."""

    cuts: tuple[Cut, ...]
    segments: tuple[Segment, ...]


class Extractor:
    """Cuts runs of nodes out of a model.

    Args:
        model: The whole graph, its weights not loaded.
        graph: Its value graph.
        order: The nodes that are not free.
    """

    def __init__(self, model: ModelProto, graph: ValueGraph, order: Sequence[Node]) -> None:
        self._model = model
        self._graph = graph
        self._order = tuple(order)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}

    def extract(self, places: Iterable[int], outputs: Iterable[str]) -> ModelProto:
        """Return some nodes of the order as a model.

        Its inputs are the values that they take and do not give, inputs of the model first.

        Args:
            places: Their places in the order.
            outputs: Values to give, out of those that the nodes give.
        """
        nodes = self._with_free([self._order[place] for place in places])
        given = {name for node in nodes for name in node.outputs}
        taken = dict.fromkeys(n for node in nodes for n in node.inputs if n not in given)
        inputs = sorted(taken, key=self._rank)
        piece = ModelProto(
            ir_version=self._model.ir_version,
            producer_name=self._model.producer_name,
            opset_import=self._model.opset_import,
        )
        piece.graph.name = self._model.graph.name
        piece.graph.node.extend(self._model.graph.node[node.index] for node in nodes)
        names = dict.fromkeys(name for node in nodes for name in node.initialisers)
        piece.graph.initializer.extend(self._tensors[n] for n in names if n in self._tensors)
        piece.graph.sparse_initializer.extend(self._sparse[n] for n in names if n in self._sparse)
        piece.graph.input.extend(self._info(name) for name in inputs)
        piece.graph.output.extend(self._info(name) for name in sorted(outputs, key=self._rank))
        return piece

    def _with_free(self, nodes: Sequence[Node]) -> list[Node]:
        """Add the free nodes that ``nodes`` need, in the file's order."""
        free: dict[int, Node] = {}
        pending = [name for node in nodes for name in node.inputs]
        while pending:
            place = self._graph.producer.get(pending.pop())
            if place is None or place in free or not self._graph.nodes[place].free:
                continue
            free[place] = self._graph.nodes[place]
            pending.extend(free[place].inputs)
        return sorted([*free.values(), *nodes], key=lambda node: node.index)

    def _rank(self, name: str) -> tuple[int, int]:
        """Order of the values: inputs as the model has them, then by producer."""
        place = self._graph.producer.get(name)
        if place is None:
            return (-1, self._graph.inputs.index(name))
        return (place, self._graph.nodes[place].outputs.index(name))

    def _info(self, name: str) -> ValueInfoProto:
        spec = self._graph.values.specs[name]
        return onnx.helper.make_tensor_value_info(name, elem_type(spec), spec.shape)


def emit(
    folder: Path,
    model: ModelProto,
    graph: ValueGraph,
    boundaries: Boundaries,
    *,
    progress: Callable[[int, int], None],
) -> Emitted:
    """Write every segment, and head and tail of every cut, into ``folder``.

    Args:
        folder: The bundle's folder, in which the whole graph and the weights file lie already.
        model: The whole graph, its weights not loaded.
        graph: Its value graph.
        boundaries: Its cuts.
        progress: Called with (cuts done, cuts in all).
    """
    extractor = Extractor(model, graph, boundaries.order)
    segments = [
        _segment(folder, extractor, graph, boundaries, index)
        for index in range(len(boundaries.segments))
    ]
    last = len(boundaries.cuts) - 1
    specs = graph.values.specs
    ends = set(graph.outputs)
    everything = frozenset(range(len(boundaries.order)))
    cuts: list[Cut] = []
    for index, cut in enumerate(boundaries.cuts):
        mine = [i for i, atom in enumerate(boundaries.segments) if cut.nodes.issuperset(atom)]
        others = sorted(set(range(len(segments))).difference(mine))
        head: str | None = GRAPH_FILE if index == last else None
        tail: str | None = GRAPH_FILE if index == 0 else None
        if len(mine) == 1 and others:
            head = segments[mine[0]].file
        elif 0 < index < last:
            head = f"graph/head_{cut.id}.onnx"
            kept = ends.union(cut.frontier)
            places = sorted(cut.nodes)
            wanted = [n for n in _given([boundaries.order[p] for p in places]) if n in kept]
            write_graph(folder / head, extractor.extract(places, wanted))
        if len(others) == 1 and mine:
            tail = segments[others[0]].file
        elif 0 < index < last:
            tail = f"graph/tail_{cut.id}.onnx"
            rest = sorted(everything - cut.nodes)
            write_graph(folder / tail, extractor.extract(rest, cut.results))
        cuts.append(
            Cut(
                id=cut.id,
                index=index,
                tensors=cut.frontier,
                bytes=sum(specs[name].nbytes for name in cut.frontier),
                results=cut.results,
                result_bytes=sum(specs[name].nbytes for name in cut.results),
                flops_robot=cut.flops_robot,
                flops_server=cut.flops_server,
                after=cut.after,
                why=cut.why,
                head=head,
                tail=tail,
                robot_segments=tuple(mine),
                refused=cut.refused,
            )
        )
        progress(index + 1, last + 1)
    return Emitted(tuple(cuts), tuple(segments))


def _segment(
    folder: Path, extractor: Extractor, graph: ValueGraph, boundaries: Boundaries, index: int
) -> Segment:
    places = boundaries.segments[index]
    nodes = [boundaries.order[place] for place in places]
    inside = set(places)
    kept = set(graph.outputs)
    for place, node in enumerate(boundaries.order):
        if place not in inside:
            kept.update(node.inputs)
    outputs = [name for name in _given(nodes) if name in kept]
    piece = extractor.extract(places, outputs)
    file = f"graph/segment_{index:04d}.onnx"
    write_graph(folder / file, piece)
    return Segment(
        index=index,
        file=file,
        inputs=tuple(value.name for value in piece.graph.input),
        outputs=tuple(outputs),
        operators=tuple(node.op for node in nodes),
        flops=sum(node.flops for node in nodes),
    )


def _given(nodes: Sequence[Node]) -> list[str]:
    return [name for node in nodes for name in node.outputs]


def write_graph(path: Path, model: ModelProto) -> None:
    """Write a graph, whose weights lie elsewhere, the same bytes for the same graph."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def elem_type(spec: TensorSpec) -> int:
    """Return ONNX's number of a tensor's dtype."""
    named = {"float32": "FLOAT", "float64": "DOUBLE"}.get(spec.dtype, spec.dtype.upper())
    return int(TensorProto.DataType.Value(named))
