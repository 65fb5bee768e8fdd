"""Which values of a graph have rows, and how these follow the rows of its input.

1. The values that are streamed in have rows: the *base* and what has as many, or a fixed multiple
   of them. Going through the nodes in order, a node all of whose inputs have rows or are constant
   is striped if the rules know how; its outputs have rows then. The first nodes without a rule end
   the striped part; what depends on them is whole.
2. Where the base's rows [0, b) are known, a value's rows [0, b * scale - lag) are, for every b
   that is a multiple of the value's ``align`` (bands of whole rows at every stride on the way).
   Rules are the same at every place of the interior, so a lag is found by asking at a far one.
3. At the picture's ends a form pads; ``least`` and ``most`` keep bounds where the interior's
   arithmetic holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from onnx import NodeProto

from compiler.graph import Node
from compiler.stripes.facts import Facts, RowAxis, Unstriped
from compiler.stripes.rule import Rule
from compiler.stripes.rules import rule_of
from engines.stripes import RowsOf, StripeEnd

__all__ = ["Extents", "Flow", "follow"]

_FAR = 1 << 16
"""Bands from the top to the place where lags are measured: far from any padding."""


@dataclass(frozen=True, slots=True)
class Flow:
    """How the rows of a value follow the base's.

    Attributes:
        axis: Dimension of the rows.
        rows: Extent.
        scale: Rows of the value for each row of the base.
        lag: Rows that it is behind.
        align: Bounds at which this holds are multiples of it.
    """

    axis: int
    rows: int
    scale: Fraction
    lag: int
    align: int

    def upto(self, bound: int) -> int:
        """Return the rows known at a bound, a multiple of ``align``, by the interior's rule."""
        rows = bound * self.scale
        assert rows.denominator == 1, f"bound {bound} is not a multiple of {self.align}"
        return int(rows) - self.lag

    def record(self) -> RowsOf:
        """Return what the manifest says of it."""
        num, den = self.scale.numerator, self.scale.denominator
        return RowsOf(axis=self.axis, rows=self.rows, num=num, den=den, lag=self.lag)


@dataclass(frozen=True, slots=True)
class Extents:
    """The striped part of a graph.

    Attributes:
        rows: Rows of the base.
        flows: Of every value that has rows.
        rules: Of every striped node, by its place in the order.
        ended_by: The first nodes without a rule.
    """

    rows: int
    flows: dict[str, Flow] = field(default_factory=dict)
    rules: dict[int, Rule] = field(default_factory=dict)
    ended_by: tuple[StripeEnd, ...] = ()

    def far(self, values: Iterable[str]) -> int:
        """Return a bound far from the top that suits all of some values."""
        return math.lcm(1, *(self.flows[name].align for name in values)) * _FAR


def follow(
    order: Sequence[Node],
    protos: Sequence[NodeProto],
    facts: Facts,
    base: Mapping[str, int],
) -> Extents:
    """Follow rows through a graph.

    Args:
        order: Nodes that depend on inputs, in topological order.
        protos: The same nodes as the file has them.
        facts: Shapes and constants.
        base: Axis of the rows of each value that is streamed in; the first has the base's rows,
            the others the same number or a multiple either way.
    """
    first = next(iter(base))
    rows = facts.shape(first)[base[first]]
    flows: dict[str, Flow] = {}
    for name, axis in base.items():
        extent = facts.shape(name)[axis]
        scale = Fraction(extent, rows)
        if 1 in (scale.numerator, scale.denominator):
            flows[name] = Flow(axis, extent, scale, 0, scale.denominator)
    rules: dict[int, Rule] = {}
    ends: list[StripeEnd] = []
    for place, (node, proto) in enumerate(zip(order, protos, strict=True)):
        computed = [name for name in node.inputs if name in flows]
        others = set(node.inputs).difference(computed, facts.free)
        if not computed or others:  # it takes something whole
            continue
        given = {name: RowAxis(flows[name].axis, flows[name].rows) for name in computed}
        try:
            rule = rule_of(proto, given, facts)
            flows.update(_outputs(node, rule, [flows[name] for name in computed], facts))
        except Unstriped as reason:
            ends.append(StripeEnd(node=node.name, operator=node.op, reason=str(reason)))
            continue
        rules[place] = rule
    return Extents(rows, flows, rules, tuple(ends))


def _outputs(node: Node, rule: Rule, given: Sequence[Flow], facts: Facts) -> dict[str, Flow]:
    """Return the flows of a striped node's outputs."""
    if len({flow.scale for flow in given}) != 1:
        raise Unstriped("its inputs have rows of different scales")
    scale = given[0].scale * rule.scale
    align = math.lcm(*(flow.align for flow in given))
    # Where the input's rows are whole multiples of what the operator steps over, too.
    align = math.lcm(align, (align * given[0].scale * rule.scale).denominator * align)
    far = align * _FAR
    known = min(flow.upto(far) for flow in given)
    lag = int(far * scale) - rule.determined(known)
    found: dict[str, Flow] = {}
    for name in node.outputs:
        shape = facts.shape(name)
        if rule.axis >= len(shape) or shape[rule.axis] < 1:
            raise Unstriped("its output has no rows")
        found[name] = Flow(rule.axis, shape[rule.axis], scale, lag, align)
    return found
