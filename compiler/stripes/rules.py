"""What operators do to rows: which rows of the output some rows of the input determine.

A rule holds for the interior of a picture, where it is the same at every place; the ends are what
the forms add (``compiler.stripes.forms``). An operator without a rule ends the striped part of a
model. Nothing is approximated: an operator of which it is not certain that rows suffice has none.

With e rows of its input known, an operator has ``determined(e)`` rows of its output; for its
output from row r on it needs its input from row ``needs(r)`` on. For a convolution with kernel k,
stride s, padding p and dilation d:

    determined(e) = floor((e + p - d (k - 1) - 1) / s) + 1        needs(r) = r s - p

To add an operator: write a function (node, rows, facts) -> Rule in one of the three files below
and list it in their ``RULES``.

Source:
    The arithmetic of receptive fields; operators as the ONNX standard defines them, opset 7 to 24.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import NodeProto

from compiler.stripes import resampling, rowwise, windows
from compiler.stripes.facts import Facts, RowAxis, Unstriped
from compiler.stripes.rule import Factory, Rule

__all__ = ["RULES", "rule_of"]

RULES: dict[str, Factory] = {**rowwise.RULES, **windows.RULES, **resampling.RULES}
"""Rule by operator of the standard domain."""

_NEEDS_ALL = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization",
              "GroupNormalization")  # fmt: skip


def rule_of(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    """Return the rule of a node of which some inputs have rows.

    Args:
        node: The node.
        rows: Axis and number of rows of the values that have them.
        facts: Shapes and constants; every input that is in neither is an error.

    Raises:
        Unstriped: It has none; the message says why.
    """
    if node.domain not in ("", "ai.onnx"):
        raise Unstriped(f"operators of domain {node.domain} have no rule")
    if any(
        a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute
    ):
        raise Unstriped("it holds a graph")
    if node.op_type in _NEEDS_ALL:
        raise Unstriped("it needs every row")
    factory = RULES.get(node.op_type)
    if factory is None:
        raise Unstriped("it has no rule")
    return factory(node, rows, facts)
