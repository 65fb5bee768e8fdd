"""Operators that give each row of their output from that very row of their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import NodeProto

from compiler.stripes.facts import Facts, RowAxis, Unstriped
from compiler.stripes.rule import (
    Factory,
    Place,
    Rule,
    copied,
    pointwise,
)

__all__ = ["RULES"]

# --- one row from one row -------------------------------------------------------------------


def _elementwise(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    """Align all inputs from the right, as broadcasting does."""
    rank = max(len(facts.shape(name)) for name in node.input if name)
    places = {rows[n].axis - len(facts.shape(n)) for n in node.input if n in rows}
    if len(places) != 1:
        raise Unstriped("its inputs have their rows in different dimensions")
    place = places.pop()
    if len({rows[n].rows for n in node.input if n in rows}) != 1:
        raise Unstriped("its inputs have different numbers of rows")
    for name in node.input:
        if name and name not in rows:
            shape = facts.shape(name)
            if len(shape) >= -place and shape[place] != 1:
                raise Unstriped(f"constant {name} differs from row to row")
    return pointwise(rank + place)


def _along(default: int) -> Callable[[NodeProto, Mapping[str, RowAxis], Facts], Rule]:
    """Make the rule of an operator that works along one other dimension."""

    def rule(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
        given = rows[node.input[0]]
        rank = len(facts.shape(node.input[0]))
        if facts.attribute(node, "axis", default) % rank == given.axis:
            raise Unstriped("it works along the rows")
        return pointwise(given.axis)

    return rule


def _softmax(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    if facts.opset < 13:
        raise Unstriped("before opset 13 it works over several dimensions")
    return _along(-1)(node, rows, facts)


def _quantise(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = rows[node.input[0]]
    shape = facts.shape(node.input[0])
    if facts.attribute(node, "block_size", 0):
        raise Unstriped("it quantises in blocks")
    scalar = all(extent == 1 for extent in facts.shape(node.input[1]))
    if not scalar and facts.attribute(node, "axis", 1) % len(shape) == given.axis:
        raise Unstriped("its scales differ from row to row")
    return pointwise(given.axis)


def _batch_norm(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    if facts.attribute(node, "training_mode", 0):
        raise Unstriped("it takes statistics of the whole")
    if rows[node.input[0]].axis == 1:
        raise Unstriped("its parameters differ from row to row")
    return pointwise(rows[node.input[0]].axis)


def _layer_norm(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = rows[node.input[0]]
    if facts.attribute(node, "axis", -1) % len(facts.shape(node.input[0])) <= given.axis:
        raise Unstriped("it takes statistics over the rows")
    return pointwise(given.axis)


def _channel_norm(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    if rows[node.input[0]].axis % len(facts.shape(node.input[0])) == 1:
        raise Unstriped("it works over the rows")
    return pointwise(rows[node.input[0]].axis)


def _arg(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = rows[node.input[0]]
    axis = facts.attribute(node, "axis", 0) % len(facts.shape(node.input[0]))
    if axis == given.axis:
        raise Unstriped("it works along the rows")
    gone = axis < given.axis and not facts.attribute(node, "keepdims", 1)
    return pointwise(given.axis - gone)


def _reduce(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = rows[node.input[0]]
    rank = len(facts.shape(node.input[0]))
    axes = facts.setting(node, "axes", 1)
    if axes is None and facts.attribute(node, "noop_with_empty_axes", 0):
        return pointwise(given.axis)
    reduced = {int(a) % rank for a in axes} if axes is not None else set(range(rank))
    if given.axis in reduced:
        raise Unstriped("it needs every row")
    gone = 0 if facts.attribute(node, "keepdims", 1) else sum(a < given.axis for a in reduced)
    return pointwise(given.axis - gone)


def _cumulate(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = rows[node.input[0]]
    axis = facts.constant(node.input[1])
    if axis is None or int(axis.reshape(-1)[0]) % len(facts.shape(node.input[0])) == given.axis:
        raise Unstriped("it works along the rows")
    return pointwise(given.axis)


def _concat(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = {(rows[n].axis, rows[n].rows) if n in rows else None for n in node.input}
    if len(given) != 1 or None in given:
        raise Unstriped("its inputs have not all the same rows")
    axis = rows[node.input[0]].axis
    if facts.attribute(node, "axis", 0) % len(facts.shape(node.input[0])) == axis:
        raise Unstriped("it joins rows")
    return pointwise(axis)


def _gather(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = rows.get(node.input[0])
    if given is None or node.input[1] in rows:
        raise Unstriped("it looks rows up")
    axis = facts.attribute(node, "axis", 0) % len(facts.shape(node.input[0]))
    if axis == given.axis:
        raise Unstriped("it picks rows")
    moved = len(facts.shape(node.input[1])) - 1 if axis < given.axis else 0
    return pointwise(given.axis + moved)


def _matmul(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given = rows.get(node.input[0])
    if given is None or node.input[1] in rows or len(facts.shape(node.input[1])) != 2:
        raise Unstriped("it multiplies by more than one constant matrix")
    if given.axis == len(facts.shape(node.input[0])) - 1:
        raise Unstriped("it needs every row")
    return pointwise(given.axis)


# --- the same rows in another shape ---------------------------------------------------------


def _transpose(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    rank = len(facts.shape(node.input[0]))
    order = facts.attribute(node, "perm", list(range(rank))[::-1])
    return pointwise(list(order).index(rows[node.input[0]].axis))


def _unsqueeze(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    axes = facts.setting(node, "axes", 1)
    if axes is None:
        raise Unstriped("its axes are not constant")
    rank = len(facts.shape(node.input[0])) + len(axes)
    new = {int(a) % rank for a in axes}
    left = [axis for axis in range(rank) if axis not in new]
    return pointwise(left[rows[node.input[0]].axis])


def _squeeze(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    shape = facts.shape(node.input[0])
    axes = facts.setting(node, "axes", 1)
    if axes is None:
        raise Unstriped("its axes are not constant")
    given = rows[node.input[0]].axis
    gone = {int(a) % len(shape) for a in axes}
    if given in gone:
        raise Unstriped("it drops the rows")
    return pointwise(given - sum(axis < given for axis in gone))


def _reshape(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given, before = rows[node.input[0]], facts.shape(node.input[0])
    after = facts.shape(node.output[0])
    front = int(np.prod(before[: given.axis], dtype=np.int64))
    for axis, extent in enumerate(after):
        same_front = int(np.prod(after[:axis], dtype=np.int64)) == front
        if same_front and extent == given.rows:
            break
    else:
        raise Unstriped("it mixes rows with another dimension")
    wanted = np.asarray(after, np.int64)
    wanted[axis] = -1
    if 0 in after:
        raise Unstriped("it has no elements")

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        new = copied(node, place, allowzero=None)
        new.input[1] = place.constant(wanted)
        return [new]

    return pointwise(axis, emit)


_ELEMENTWISE = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos"),
    *("Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "PRelu"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh"),
    *("Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Cast"),
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal"),
    *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul"),
    *("Or", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)

RULES: dict[str, Factory] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantise),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "CumSum": _cumulate,
    "Gather": _gather,
    "LRN": _channel_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _along(-1),
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Split": _along(0),
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
