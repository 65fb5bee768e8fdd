"""The striped forms of a set of nodes: one ONNX graph of dynamic height for each.

A form is told apart by its two ends. At the top it is ``first`` (the picture's top: padding, no
rows before), ``carry`` (rows of the stripe before are carried in) or ``entry`` (begins inside the
picture, with rows from further up instead). At the bottom it is ``more`` (another stripe follows;
rows are kept for it) or ``last`` (the picture's bottom: padding).

1. Every value has, in a form, the rows [begin, end): what is carried in, then what is new. A node
   is given those that its new output needs, exactly: a Slice cuts off the others.
2. All numbers are worked out at one place of the picture. Those that enter the graph are
   differences, the same at every place between ``least`` and ``most``: so one graph does for all.
3. A value that lags less than another with which it is joined is simply kept longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto
from onnx.helper import make_node, make_tensor_value_info

from compiler.graph import Node, ValueGraph
from compiler.segments import Extractor, elem_type
from compiler.stripes.extents import Extents
from compiler.stripes.rule import Place, slice_rows
from engines.stripes import Carry, carry_name, kept_name

__all__ = ["Band", "Former", "Kept", "carries"]

Kept = Mapping[str, int]
"""Rows of each value that are kept from one stripe to the next."""


@dataclass(frozen=True, slots=True)
class Band:
    """Where the bounds of some nodes' stripes may lie.

    Attributes:
        step: They are multiples of it.
        least: Smallest.
        most: Largest but the end; below ``least`` where there is no room for one.
    """

    step: int
    least: int
    most: int

    @property
    def empty(self) -> bool:
        """Whether nothing can be divided."""
        return self.least > self.most


class Former:
    """Makes the forms of sets of nodes.

    Args:
        model: The whole graph, its weights not loaded.
        graph: Its value graph.
        order: The nodes that are not free.
        extents: How rows flow through them.
    """

    def __init__(
        self, model: ModelProto, graph: ValueGraph, order: Sequence[Node], extents: Extents
    ) -> None:
        self._graph = graph
        self._order = order
        self._extents = extents
        self._protos = {place: model.graph.node[node.index] for place, node in enumerate(order)}
        self._extractor = Extractor(model, graph, order)

    # --- what the nodes ask of the bounds ---------------------------------------------------

    def values(self, places: Iterable[int]) -> list[str]:
        """Return the values with rows that some nodes take or give, each once."""
        found: dict[str, None] = {}
        for place in places:
            node = self._order[place]
            found.update(dict.fromkeys((*node.inputs, *node.outputs)))
        return [name for name in found if name in self._extents.flows]

    def kept(self, places: Sequence[int]) -> dict[str, int]:
        """Return how many rows of each value the next stripe needs again, in these nodes."""
        far = self._extents.far(self.values(places))
        needed: dict[str, int] = {}
        for place in places:
            begin = self._extents.rules[place].needs(self._known(place, far))
            for name in self.rowed(place):
                rows = self._extents.flows[name].upto(far) - begin
                needed[name] = max(rows, needed.get(name, 0))
        return {name: rows for name, rows in needed.items() if rows > 0}

    def band(self, places: Sequence[int], kept: Kept) -> Band:
        """Return where bounds may lie."""
        flows = self._extents.flows
        values = self.values(places)
        step = math.lcm(1, *(flows[name].align for name in values))
        rows = self._extents.rows
        least = 1
        most = (rows - 1) // step * step
        for name in values:
            flow = flows[name]
            wanted = max(1, kept.get(name, 0))
            # upto(b) = b * scale - lag, so the first b with upto(b) >= wanted is:
            least = max(least, -int(-(wanted + flow.lag) / flow.scale // 1))
            most = min(most, int((flow.rows - 1 + flow.lag) / flow.scale))
        for place in places:
            rule = self._extents.rules[place]
            for name in self.rowed(place):
                flow = flows[name]
                least = max(least, -int(-(rule.least_rows + flow.lag) / flow.scale // 1))
        least = -(-least // step) * step
        return Band(step, least, most // step * step)

    def starts(
        self, places: Sequence[int], wanted: Iterable[str], *, exactly: bool = False
    ) -> dict[str, int]:
        """Return from which row on an entry form takes and computes each value.

        Args:
            places: The nodes, ascending.
            wanted: Values that are wanted from the bound on, by their own lag.
            exactly: They are wanted from their place at the bound on, without lag.

        Returns:
            Rows above the value's own place at the bound (bound * scale), by value.
        """
        flows = self._extents.flows
        far = self._extents.far(self.values(places))
        begin = {name: flows[name].upto(far) for name in wanted}
        if exactly:
            begin = {name: int(far * flows[name].scale) for name in begin}
        for place in reversed(places):
            node = self._order[place]
            own = [begin[name] for name in node.outputs if name in begin]
            if not own:
                continue
            start = min(own)
            begin.update({name: start for name in node.outputs if name in flows})
            needs = self._extents.rules[place].needs(start)
            for name in self.rowed(place):
                begin[name] = min(needs, begin.get(name, needs))
        return {n: int(far * flows[n].scale) - b for n, b in begin.items() if n in flows}

    def entry_least(self, places: Sequence[int], starts: Mapping[str, int], band: Band) -> int:
        """Return the smallest bound from which an entry form needs no padding at the top."""
        flows = self._extents.flows
        least = band.least
        far = self._extents.far(self.values(places))
        for place in places:
            outputs = [name for name in self._order[place].outputs if name in starts]
            if not outputs:
                continue
            begin = min(int(far * flows[n].scale) - starts[n] for n in outputs)
            first = self._extents.rules[place].needs(begin)
            for name in self.rowed(place):
                # The row that is taken first, above the value's place at the bound.
                above = int(far * flows[name].scale) - first
                least = max(least, -int(-above / flows[name].scale // 1))
        return -(-least // band.step) * band.step

    # --- the graphs -------------------------------------------------------------------------

    def form(
        self,
        places: Sequence[int],
        outputs: Sequence[str],
        *,
        top: str,
        bottom: str,
        owners: Mapping[int, int | None],
        kept: Mapping[int | None, Kept],
        starts: Mapping[str, int] | None = None,
    ) -> ModelProto:
        """Return one form as a model.

        Args:
            places: The nodes, ascending.
            outputs: Values to give, out of those that they take or give.
            top: ``first``, ``carry`` or ``entry``.
            bottom: ``more`` or ``last``.
            owners: Segment of each node, for the names of what is kept.
            kept: Rows to keep, by segment and value.
            starts: For ``entry``: from :meth:`starts`.
        """
        piece = self._extractor.extract(places, [])
        writer = _Writer(self, places, top, bottom, owners, kept, starts or {})
        nodes = writer.nodes(outputs)
        ours = {self._order[place].outputs[0] for place in places}
        free = [node for node in piece.graph.node if ours.isdisjoint(node.output)]
        del piece.graph.node[:]
        piece.graph.node.extend([*free, *nodes])
        used = {name for node in piece.graph.node for name in node.input}
        constants = [t for t in piece.graph.initializer if t.name in used]
        del piece.graph.initializer[:]
        piece.graph.initializer.extend([*constants, *writer.constants])
        infos = [value for value in piece.graph.input if value.name in self._extents.flows]
        del piece.graph.input[:]
        piece.graph.input.extend(self._info(value.name) for value in infos)
        for name, owner in writer.carried:
            rows = kept[owner][name]
            piece.graph.input.append(self._info(name, carry_name(name, owner), rows))
        del piece.graph.output[:]
        piece.graph.output.extend(self._info(name) for name in outputs)
        for name, owner in writer.handed_on:
            rows = kept[owner][name]
            piece.graph.output.append(self._info(name, kept_name(name, owner), rows))
        return piece

    def rowed(self, place: int) -> list[str]:
        """Return the inputs of a node that have rows."""
        return [name for name in self._order[place].inputs if name in self._extents.flows]

    def _known(self, place: int, bound: int) -> int:
        """Return the rows of a node's output that are known at a bound."""
        return self._extents.flows[self._order[place].outputs[0]].upto(bound)

    def _info(self, name: str, title: str = "", rows: int | None = None) -> ValueInfoProto:
        spec, flow = self._graph.values.specs[name], self._extents.flows[name]
        shape: list[int | str] = list(spec.shape)
        shape[flow.axis] = f"rows of {name}" if rows is None else rows
        return make_tensor_value_info(title or name, elem_type(spec), shape)


class _Writer:
    """Writes the nodes of one form."""

    def __init__(
        self,
        former: Former,
        places: Sequence[int],
        top: str,
        bottom: str,
        owners: Mapping[int, int | None],
        kept: Mapping[int | None, Kept],
        starts: Mapping[str, int],
    ) -> None:
        self._former = former
        self._places = places
        self._top, self._last = top, bottom == "last"
        self._owners = owners
        self._kept = kept
        self.constants: list[onnx.TensorProto] = []
        self.carried: dict[tuple[str, int | None], None] = {}
        self.handed_on: dict[tuple[str, int | None], None] = {}
        self._buffers: dict[tuple[str, int | None], str] = {}
        self._written: list[NodeProto] = []
        extents = former._extents
        values = former.values(places)
        self._flows = extents.flows
        # Where the numbers are worked out: far inside, or at the last bound before the end.
        far = extents.far(values)
        if self._last and top != "first":
            kept_all: dict[str, int] = {}
            for rows in kept.values():
                for name, count in rows.items():
                    kept_all[name] = max(count, kept_all.get(name, 0))
            self._low = former.band(places, kept_all).most
        else:
            self._low = 0 if top == "first" else far
        self._high = self._low + far
        self._begin = {name: self._first_row(name, starts) for name in values}
        self._end = {
            n: self._flows[n].rows if self._last else self._flows[n].upto(self._high)
            for n in values
        }

    def _first_row(self, name: str, starts: Mapping[str, int]) -> int:
        """Return the first new row of a value."""
        if self._top == "first":
            return 0
        if self._top == "entry":
            flow = self._flows[name]
            return int(self._low * flow.scale) - starts.get(name, flow.lag)
        return self._flows[name].upto(self._low)

    def nodes(self, outputs: Sequence[str]) -> list[NodeProto]:
        """Return the nodes, the carried rows joined in front and kept ones cut off behind."""
        former = self._former
        for place in self._places:
            self._node(place, former._protos[place])
        if not self._last:
            for owner, values in self._kept.items():
                for name in values:
                    self._keep(name, owner)
        for name in outputs:
            self._cut_front(name)
        return self._written

    def _cut_front(self, name: str) -> None:
        """Leave out of an output the rows that only this form's own nodes needed."""
        if self._top == "first":
            return
        above = self._flows[name].upto(self._low) - self._begin[name]
        if above <= 0:
            return
        longer = f"longer:{name}"
        for node in self._written:
            node.input[:] = [longer if given == name else given for given in node.input]
            node.output[:] = [longer if given == name else given for given in node.output]
        axis = self._flows[name].axis
        self._written.append(slice_rows(longer, name, axis, above, 0, self._constant))

    def _node(self, place: int, proto: NodeProto) -> None:
        former, rule = self._former, self._former._extents.rules[place]
        owner = self._owners[place]
        node = former._order[place]
        out_begin, out_end = self._begin[node.outputs[0]], self._end[node.outputs[0]]
        names = [*proto.input]
        span = (0, 0)
        for name in former.rowed(place):
            source, begin = self._buffer(name, owner)
            first = (
                max(rule.needs(out_begin), 0) if self._top == "first" else rule.needs(out_begin)
            )
            skip = first - begin
            surplus = 0 if rule.ends is None else self._end[name] - rule.ends(out_end)
            if skip < 0 or surplus < 0:
                raise AssertionError(
                    f"{node.name}: rows of {name} are missing ({skip}, {surplus})"
                )
            source = self._cut(source, name, skip, surplus)
            names = [source if given == name else given for given in names]
            span = (first, self._end[name] - surplus)
        at = Place(
            top=self._top == "first",
            bottom=self._last,
            begin=span[0],
            end=span[1],
            out_begin=out_begin,
            out_end=out_end,
            inputs=names,
            constant=self._constant,
        )
        self._written.extend(rule.emit(proto, at))

    def _buffer(self, name: str, owner: int | None) -> tuple[str, int]:
        """Return what holds a value's rows in a form, and its first row."""
        rows = self._kept.get(owner, {}).get(name, 0)
        begin = self._begin[name]
        if self._top != "carry" or not rows:
            return name, begin
        key = (name, owner)
        if key not in self._buffers:
            self.carried[key] = None
            joined = f"rows:{name}@{owner}"
            parts = [carry_name(name, owner), name]
            axis = self._flows[name].axis
            self._written.append(make_node("Concat", parts, [joined], name=joined, axis=axis))
            self._buffers[key] = joined
        return self._buffers[key], begin - rows

    def _keep(self, name: str, owner: int | None) -> None:
        """Hand the last rows of a value on to the next stripe."""
        source, begin = self._buffer(name, owner)
        rows = self._kept[owner][name]
        surplus = self._end[name] - begin - rows
        assert surplus >= 0, f"{name}: fewer rows than are kept"
        result = kept_name(name, owner)
        axis = np.asarray([self._flows[name].axis], np.int64)
        start, end = np.asarray([-rows], np.int64), np.asarray([np.iinfo(np.int64).max], np.int64)
        limits = [self._constant(start), self._constant(end), self._constant(axis)]
        self._written.append(make_node("Slice", [source, *limits], [result], name=result))
        self.handed_on[(name, owner)] = None

    def _cut(self, source: str, name: str, above: int, below: int) -> str:
        if not (above or below):
            return source
        key = f"{source}[{above}:-{below}]"
        if all(key not in node.output for node in self._written):
            axis = self._flows[name].axis
            self._written.append(slice_rows(source, key, axis, above, below, self._constant))
        return key

    def _constant(self, values: np.ndarray) -> str:
        name = f"rows:{values.dtype.name}{values.tolist()}"
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(onnx.numpy_helper.from_array(values, name))
        return name


def carries(kept: Kept) -> tuple[Carry, ...]:
    """Return what the manifest says of the rows that are kept."""
    return tuple(Carry(name, rows) for name, rows in kept.items())
