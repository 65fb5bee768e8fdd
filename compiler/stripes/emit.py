"""Writes the striped forms of a bundle's segments, and says what there is of them.

A segment is striped if all of its nodes are. A cut has a striped head if all of its segments are
and every tensor of its frontier has rows. A row split follows a cut if from its frontier on every
node is striped, down to outputs that have rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from compiler.cuts import Boundaries
from compiler.graph import Node, ValueGraph
from compiler.segments import write_graph
from compiler.stripes.bounded import write_bounded
from compiler.stripes.extents import Extents, follow
from compiler.stripes.facts import Facts
from compiler.stripes.forms import Former, carries
from engines.manifest import ImageLayout
from engines.stripes import BoundedCut, RowSplit, StripedCut, StripedSegment, Striping

__all__ = [
    "SplitFound",
    "Streams",
    "find_streams",
    "mean_rows",
    "split_rows",
    "write_stripes",
]

_FEWEST_ROWS = 8
"""Rows below which a dimension is not worth dividing."""

_MOST_SEGMENTS = 64
"""Segments above which stripes would cost more launches than they hide."""


@dataclass(frozen=True, slots=True)
class Streams:
    """How rows flow from a model's inputs.

    Attributes:
        facts: Shapes and constants of the graph.
        order: The nodes that are not free.
        extents: The striped part; none of the nodes where no input has rows.
    """

    facts: Facts
    order: tuple[Node, ...]
    extents: Extents | None


def find_streams(
    model: ModelProto, graph: ValueGraph, images: Mapping[str, ImageLayout]
) -> Streams:
    """Find along which dimension of the inputs most of a model can be striped.

    Args:
        model: The whole graph, its weights not loaded.
        graph: Its value graph.
        images: Inputs that take raw pixels: their rows are the picture's.
    """
    facts = Facts.of(model, graph)
    order = tuple(node for node in graph.nodes if not node.free)
    protos = [model.graph.node[node.index] for node in order]
    best: Extents | None = None
    for base in _bases(graph.inputs, facts, images):
        extents = follow(order, protos, facts, base)
        if best is None or _work(extents, order) > _work(best, order):
            best = extents
    return Streams(facts, order, best if best is not None and best.rules else None)


def _work(extents: Extents, order: Sequence[Node]) -> tuple[int, int]:
    return sum(order[place].flops for place in extents.rules), len(extents.rules)


def _bases(
    names: Sequence[str], facts: Facts, images: Mapping[str, ImageLayout] = {}
) -> Iterator[dict[str, int]]:
    """Yield axes for all of some values to be streamed along."""
    for leader in names:
        shape = facts.shapes.get(leader, ())
        axes = [axis for axis in range(1, len(shape)) if shape[axis] >= _FEWEST_ROWS]
        if leader in images:
            axes = [1 if images[leader].layout == "NHWC" else 2]
        axes = [axis for axis in axes if len(shape) >= 3]
        for axis in axes:
            base = {leader: axis}
            for other in names:
                if other == leader:
                    continue
                extents = facts.shapes.get(other, ())
                if len(extents) > axis and extents[axis] == shape[axis]:
                    base[other] = axis
            yield base
        if axes:
            return


def write_stripes(
    folder: Path,
    model: ModelProto,
    graph: ValueGraph,
    boundaries: Boundaries,
    streams: Streams,
    *,
    halos: Sequence[int] = (),
    progress: Callable[[int, int], None],
) -> Striping | None:
    """Write every striped form into ``folder``.

    Args:
        folder: The bundle's folder, with the weights file in its place.
        model: The whole graph, its weights not loaded.
        graph: Its value graph.
        boundaries: Its cuts and segments.
        streams: From :func:`find_streams`.
        halos: Rows of halo for which to make bounded divisions.
        progress: Called with (parts done, parts in all).

    Returns:
        What there is; none where nothing can be striped.
    """
    splits = list(_row_splits(folder, model, graph, boundaries, streams))
    extents = streams.extents
    if len(boundaries.segments) > _MOST_SEGMENTS:
        extents = None
    bounded: tuple[BoundedCut, ...] = ()
    crossing: set[str] = set()
    if halos and streams.extents is not None:
        whole = Former(model, graph, boundaries.order, streams.extents)
        bounded, crossing = write_bounded(folder, whole, graph, boundaries, streams.extents, halos)
    if extents is None:
        if not splits and not bounded:
            return None
        flows = {} if streams.extents is None else streams.extents.flows
        return Striping(
            rows=1 if streams.extents is None else streams.extents.rows,
            tensors={n: flows[n].record() for n in sorted(crossing)},
            segments=(),
            cuts=(),
            row_splits=tuple(splits),
            ended_by=(),
            bounded=bounded,
        )
    former = Former(model, graph, boundaries.order, extents)
    writer = _Writer(folder, former, graph, boundaries, extents)
    total = len(boundaries.segments) + len(boundaries.cuts)
    for index in range(len(boundaries.segments)):
        writer.segment(index)
        progress(index + 1, total)
    for index in range(len(boundaries.cuts) - 1):
        writer.cut(index)
        progress(len(boundaries.segments) + index + 1, total)
    if not writer.segments and not splits and not bounded:
        return None
    return Striping(
        rows=extents.rows,
        tensors={n: extents.flows[n].record() for n in sorted(writer.tensors | crossing)},
        segments=tuple(writer.segments.values()),
        cuts=tuple(writer.cuts) if writer.segments else (),
        row_splits=tuple(splits),
        ended_by=extents.ended_by,
        bounded=bounded,
    )


class _Writer:
    """Writes the forms of segments and cuts."""

    def __init__(
        self,
        folder: Path,
        former: Former,
        graph: ValueGraph,
        boundaries: Boundaries,
        extents: Extents,
    ) -> None:
        self._folder = folder
        self._former = former
        self._graph = graph
        self._boundaries = boundaries
        self._extents = extents
        self._kept: dict[int, dict[str, int]] = {}
        self.segments: dict[int, StripedSegment] = {}
        self.cuts: list[StripedCut] = []
        self.tensors: set[str] = set()

    def segment(self, index: int) -> None:
        """Write the forms of a segment, if it can be striped."""
        places = self._boundaries.segments[index]
        if any(place not in self._extents.rules for place in places):
            return
        outputs = self._outputs(places)
        kept = self._former.kept(places)
        band = self._former.band(places, kept)
        if band.empty:
            return
        files: dict[str, str] = {}
        for form, top, bottom in (
            ("first", "first", "more"),
            ("middle", "carry", "more"),
            ("last", "carry", "last"),
        ):
            files[form] = f"graph/segment_{index:04d}_{form}.onnx"
            piece = self._former.form(
                places,
                outputs,
                top=top,
                bottom=bottom,
                owners=dict.fromkeys(places, index),
                kept={index: kept},
            )
            write_graph(self._folder / files[form], piece)
        self._kept[index] = kept
        inputs = [n for p in places for n in self._boundaries.order[p].inputs]
        given = {n for p in places for n in self._boundaries.order[p].outputs}
        taken = [n for n in inputs if n in self._extents.flows and n not in given]
        self.tensors.update(taken, outputs)
        self.segments[index] = StripedSegment(
            index=index,
            band=band.step,
            least=band.least,
            most=band.most,
            carries=carries(kept),
            **files,
        )

    def cut(self, index: int) -> None:
        """Write what the server needs to compute a part of a cut's head."""
        cut = self._boundaries.cuts[index]
        flows = self._extents.flows
        if any(name not in flows for name in cut.frontier):
            return
        self.tensors.update(cut.frontier)
        mine = [i for i, a in enumerate(self._boundaries.segments) if cut.nodes.issuperset(a)]
        if not mine:
            self.cuts.append(
                StripedCut(cut=index, band=1, least=1, most=self._extents.rows - 1, lag=0, halo=0)
            )
            return
        if any(i not in self.segments for i in mine):
            return
        places = sorted(cut.nodes)
        striped = [self.segments[i] for i in mine]
        kept_all: dict[str, int] = {}
        for i in mine:
            for name, rows in self._kept[i].items():
                kept_all[name] = max(rows, kept_all.get(name, 0))
        band = self._former.band(places, kept_all)
        if band.empty:
            return
        starts = self._former.starts(places, cut.frontier)
        halo = self._halo(starts)
        starts.update({n: int(halo * flows[n].scale) for n in self._graph.inputs if n in starts})
        least = self._former.entry_least(places, starts, band)
        least = -(-max(least, halo) // band.step) * band.step
        entry: dict[str, str | None] = {"entry": None, "rest": None}
        computed = [name for name in cut.frontier if name not in self._graph.inputs]
        if least <= band.most:
            owners = {p: i for i in mine for p in self._boundaries.segments[i]}
            kept: dict[int | None, dict[str, int]] = {i: self._kept[i] for i in mine}
            for form, bottom in (("entry", "more"), ("rest", "last")):
                file = f"graph/{form}_{cut.id}.onnx"
                piece = self._former.form(
                    places,
                    computed,
                    top="entry",
                    bottom=bottom,
                    owners=owners,
                    kept=kept,
                    starts=starts,
                )
                write_graph(self._folder / file, piece)
                entry[form] = file
        self.cuts.append(
            StripedCut(
                cut=index,
                band=band.step,
                least=max(s.least for s in striped),
                most=min(s.most for s in striped),
                lag=max(-int(-flows[n].lag / flows[n].scale // 1) for n in cut.frontier),
                halo=halo,
                entry=entry["entry"],
                rest=entry["rest"],
                entry_least=least,
                extra=tuple(self._extra(i, starts) for i in mine),
            )
        )

    def _halo(self, starts: Mapping[str, int]) -> int:
        """Return the rows of the base above a bound that give every input its rows."""
        halo, step = 0, 1
        for name in self._graph.inputs:
            if name in starts:
                scale = self._extents.flows[name].scale
                halo = max(halo, -int(-starts[name] / scale // 1))
                step = math.lcm(step, scale.denominator)
        return -(-halo // step) * step

    def _extra(self, segment: int, starts: Mapping[str, int]) -> float:
        places = self._boundaries.segments[segment]
        return mean_rows(places, self._boundaries.order, self._extents, starts)

    def _outputs(self, places: Sequence[int]) -> list[str]:
        """Return what some nodes give that is taken elsewhere, in order."""
        inside = set(places)
        wanted = set(self._graph.outputs)
        for place, node in enumerate(self._boundaries.order):
            if place not in inside:
                wanted.update(node.inputs)
        return [n for p in places for n in self._boundaries.order[p].outputs if n in wanted]


def mean_rows(
    places: Sequence[int],
    order: Sequence[Node],
    extents: Extents,
    starts: Mapping[str, int] | None,
) -> float:
    """Return rows of the base, the mean of some nodes weighted by their operations.

    Args:
        places: The nodes.
        order: All nodes.
        extents: How their rows flow.
        starts: From where an entry computes each value: what it computes beyond a stripe. None
            for how far the nodes lag.
    """
    total = weights = 0.0
    for place in places:
        name = order[place].outputs[0]
        flow = extents.flows[name]
        rows = flow.lag if starts is None else starts.get(name, flow.lag) - flow.lag
        weight = float(order[place].flops or 1)
        total += weight * rows / float(flow.scale)
        weights += weight
    return round(total / weights, 3) if weights else 0.0


def _row_splits(
    folder: Path,
    model: ModelProto,
    graph: ValueGraph,
    boundaries: Boundaries,
    streams: Streams,
) -> Iterator[RowSplit]:
    """Write the forms of every row split."""
    if not any(len(streams.facts.shapes.get(name, ())) >= 3 for name in graph.outputs):
        return
    for index, cut in enumerate(boundaries.cuts[:-1]):
        found = split_rows(
            model,
            graph,
            boundaries.order,
            streams.facts,
            nodes=cut.nodes,
            frontier=cut.frontier,
            results=cut.results,
        )
        if found is None:
            continue
        former, extents, places = found.former, found.extents, found.places
        owners = dict.fromkeys(places, None)
        files: dict[str, str] = {}
        for form, top, bottom in (
            ("top", "first", "more"),
            ("last", "carry", "last"),
            ("bottom", "entry", "last"),
        ):
            files[form] = f"graph/rows_{cut.id}_{form}.onnx"
            piece = former.form(
                places,
                cut.results,
                top=top,
                bottom=bottom,
                owners=owners,
                kept={None: found.kept},
                starts=found.starts,
            )
            write_graph(folder / files[form], piece)
        flows = extents.flows
        yield RowSplit(
            cut=index,
            rows=extents.rows,
            band=found.step,
            least=found.least,
            most=found.most,
            lag=max(-int(-flows[n].lag / flows[n].scale // 1) for n in cut.results),
            halo=max(-int(-found.starts[n] / flows[n].scale // 1) for n in cut.frontier),
            tensors={n: flows[n].record() for n in (*cut.frontier, *cut.results)},
            starts={n: found.starts[n] for n in cut.frontier},
            carries=carries(found.kept),
            mean_lag=mean_rows(places, boundaries.order, extents, None),
            mean_extra=mean_rows(places, boundaries.order, extents, found.starts),
            **files,
        )


@dataclass(frozen=True, slots=True)
class SplitFound:
    """A row split that can be made.

    Attributes:
        former: Makes its forms.
        extents: How rows flow from the frontier.
        places: The nodes after the cut.
        kept: Rows that the robot keeps where it goes on alone.
        starts: Rows above the bound that the server needs, by value.
        step: Bounds are multiples of it.
        least: Smallest bound.
        most: Largest bound.
    """

    former: Former
    extents: Extents
    places: list[int]
    kept: dict[str, int]
    starts: dict[str, int]
    step: int
    least: int
    most: int


def split_rows(
    model: ModelProto,
    graph: ValueGraph,
    order: Sequence[Node],
    facts: Facts,
    *,
    nodes: frozenset[int],
    frontier: Sequence[str],
    results: Sequence[str],
) -> SplitFound | None:
    """Find the best dimension to divide what follows a cut by rows, if there is one.

    Args:
        model: The whole graph, its weights not loaded.
        graph: Its value graph.
        order: The nodes that are not free.
        facts: Shapes and constants of the graph.
        nodes: Places in the order of the nodes before the cut.
        frontier: What crosses it.
        results: Outputs of the model that are computed after it.
    """
    places = [place for place in range(len(order)) if place not in nodes]
    rest = [order[place] for place in places]
    protos = [model.graph.node[node.index] for node in rest]
    best: SplitFound | None = None
    for base in _bases(frontier, facts):
        if len(base) < len(frontier):
            continue
        found = follow(rest, protos, facts, base)
        if len(found.rules) < len(rest) or any(name not in found.flows for name in results):
            continue
        rules = {places[place]: rule for place, rule in found.rules.items()}
        extents = Extents(found.rows, found.flows, rules)
        former = Former(model, graph, order, extents)
        kept = former.kept(places)
        band = former.band(places, kept)
        if band.empty:
            continue
        starts = former.starts(places, results)
        starts.update({name: starts.get(name, 0) for name in frontier})
        least = former.entry_least(places, starts, band)
        if least > band.most:
            continue
        split = SplitFound(former, extents, places, kept, starts, band.step, least, band.most)
        if best is None or _lost(split, frontier) < _lost(best, frontier):
            best = split
    return best


def _lost(split: SplitFound, frontier: Sequence[str]) -> float:
    """Return which part of the frontier's rows both sides compute."""
    return max(split.starts[name] / split.extents.flows[name].rows for name in frontier)
