"""What operators do to rows: which rows of the output some rows of the input determine.

A rule holds for the interior of a picture, where it is the same at every place; the ends are what
the forms add (``compiler.stripes.forms``). An operator without a rule ends the striped part of a
model. Nothing is approximated: an operator of which it is not certain that rows suffice has none.

With e rows of its input known, an operator has ``determined(e)`` rows of its output; for its
output from row r on it needs its input from row ``needs(r)`` on. For a convolution with kernel k,
stride s, padding p and dilation d:

    determined(e) = floor((e + p - d (k - 1) - 1) / s) + 1        needs(r) = r s - p

To add an operator: write a function (node, rows, facts) -> Rule and list it in ``RULES``.

Source:
    The arithmetic of receptive fields; operators as the ONNX standard defines them, opset 7 to 24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto
from onnx.helper import make_attribute, make_node

from compiler.stripes.facts import Facts, RowAxis, Unstriped

__all__ = ["RULES", "Place", "Rule", "rule_of"]

_END = np.iinfo(np.int64).max
"""ONNX's word for the end of an axis in a Slice."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its form a node is emitted.

    The numbers hold for one place; only their differences are used, which are the same at every
    place.

    Attributes:
        top: Whether the rows begin at the picture's top.
        bottom: Whether they end at its bottom.
        begin: First row of the input that the node is given.
        end: Row behind the last.
        out_begin: First row of the output that is wanted.
        out_end: Row behind the last.
        inputs: Names of the inputs as prepared.
        constant: Makes an initialiser and returns its name.
    """

    top: bool
    bottom: bool
    begin: int
    end: int
    out_begin: int
    out_end: int
    inputs: Sequence[str]
    constant: Callable[[np.ndarray], str]


Emit = Callable[[NodeProto, Place], list[NodeProto]]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one node treats rows.

    Attributes:
        axis: Dimension of the output's rows, by output.
        scale: Rows of the output for each row of the input.
        determined: Rows of the output for so many known rows of the input.
        needs: First row of the input for the output from this row on.
        emit: Gives the nodes of a form.
        ends: Row of the input behind the last that the output up to this row needs, where the
            node must be given no more than that; none where surplus rows do no harm.
        least_rows: Fewest rows of the input with which a form that pads can begin.
    """

    axis: int
    scale: Fraction
    determined: Callable[[int], int]
    needs: Callable[[int], int]
    emit: Emit
    ends: Callable[[int], int] | None = None
    least_rows: int = 1


def _same(row: int) -> int:
    return row


def copied(node: NodeProto, place: Place, **attributes: Any) -> NodeProto:
    """Return a copy of ``node`` with the inputs of ``place``, and some attributes replaced."""
    new = NodeProto()
    new.CopyFrom(node)
    del new.input[:]
    new.input.extend(place.inputs)
    for name, value in attributes.items():
        kept = [a for a in new.attribute if a.name != name]
        del new.attribute[:]
        new.attribute.extend(kept)
        if value is not None:
            new.attribute.append(make_attribute(name, value))
    return new


def cropped(node: NodeProto, place: Place, axis: int, top: int, bottom: int) -> list[NodeProto]:
    """Return ``node``, its output less some rows at both ends."""
    assert min(top, bottom) >= 0, f"{node.op_type} {node.name}: too few rows"
    if not (top or bottom):
        return [node]
    name = node.output[0]
    node.output[0] = f"uncropped:{name}"
    crop = slice_rows(f"uncropped:{name}", name, axis, top, bottom, place.constant)
    return [node, crop]


def slice_rows(
    source: str,
    result: str,
    axis: int,
    top: int,
    bottom: int,
    constant: Callable[[np.ndarray], str],
) -> NodeProto:
    """Return a Slice that leaves out rows at both ends."""
    start, end = np.asarray([top], np.int64), np.asarray([-bottom if bottom else _END], np.int64)
    return make_node(
        "Slice",
        [source, constant(start), constant(end), constant(np.asarray([axis], np.int64))],
        [result],
        name=f"slice:{result}",
    )


def _plain(node: NodeProto, place: Place) -> list[NodeProto]:
    return [copied(node, place)]


def pointwise(axis: int, emit: Emit = _plain) -> Rule:
    """Return the rule of an operator that gives each row from that very row."""
    return Rule(axis, Fraction(1), _same, _same, emit, _same)


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


# --- windows --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Window:
    """A kernel along the rows, and the padding of every spatial dimension, made explicit."""

    index: int
    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, ...] = field(default=())

    @property
    def reach(self) -> int:
        """Rows that the kernel spans, less one."""
        return self.dilation * (self.kernel - 1)

    @property
    def top(self) -> int:
        return self.pads[self.index]


def _window(
    node: NodeProto, axis: int, kernel: Sequence[int], facts: Facts, *, transposed: bool = False
) -> _Window:
    index, count = axis - 2, len(kernel)
    if index < 0:
        raise Unstriped("its kernel does not run along the rows")
    strides = list(facts.attribute(node, "strides", [1] * count))
    dilations = list(facts.attribute(node, "dilations", [1] * count))
    pads = list(facts.attribute(node, "pads", [0] * (2 * count)))
    mode = facts.attribute(node, "auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    given, result = facts.shape(node.input[0])[2:], facts.shape(node.output[0])[2:]
    extra = list(facts.attribute(node, "output_padding", [0] * count))
    if transposed and (mode.startswith("SAME") or facts.attribute(node, "output_shape", None)):
        for i in range(count):
            span = (given[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 + extra[i]
            total = span - result[i]
            less = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[i], pads[i + count] = less, total - less
    elif mode.startswith("SAME"):
        for i in range(count):
            span = (result[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1
            total = max(span - given[i], 0)
            less = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[i], pads[i + count] = less, total - less
    elif mode == "VALID":
        pads = [0] * (2 * count)
    if min(pads) < 0:
        raise Unstriped("it has negative padding")
    return _Window(index, int(kernel[index]), strides[index], dilations[index], tuple(pads))


def _padded(window: _Window, place: Place) -> list[int]:
    pads = list(window.pads)
    count = len(pads) // 2
    pads[window.index] = pads[window.index] if place.top else 0
    pads[window.index + count] = pads[window.index + count] if place.bottom else 0
    return pads


def _windowed(window: _Window, axis: int, emit: Emit) -> Rule:
    top, reach, stride = window.top, window.reach, window.stride
    return Rule(
        axis,
        Fraction(1, stride),
        lambda e: (e + top - reach - 1) // stride + 1,
        lambda row: row * stride - top,
        emit,
    )


def _conv(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    if node.input[0] not in rows or any(name in rows for name in node.input[1:]):
        raise Unstriped("its weights are computed")
    axis = rows[node.input[0]].axis
    window = _window(node, axis, facts.shape(node.input[1])[2:], facts)

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        return [copied(node, place, pads=_padded(window, place), auto_pad=None)]

    return _windowed(window, axis, emit)


def _pool(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    if len([name for name in node.output if name]) > 1:
        raise Unstriped("it gives places in the whole picture")
    axis = rows[node.input[0]].axis
    window = _window(node, axis, facts.attribute(node, "kernel_shape", []), facts)
    whole_windows = facts.attribute(node, "ceil_mode", 0) == 0
    count = len(window.pads) // 2

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        # With ceil_mode the other dimensions may have a partial window too: only the rows of the
        # last stripe may, so that the others are cut to whole ones.
        new = copied(node, place, pads=_padded(window, place), auto_pad=None)
        if whole_windows or place.bottom:
            return [new]
        wanted = (place.out_end - place.out_begin - 1) * window.stride + window.reach + 1
        padding = window.top if place.top else 0
        surplus = place.end - place.begin + padding - wanted
        if count == 1:
            return [copied(new, place, ceil_mode=0)]
        name = f"whole:{node.output[0]}"
        trim = slice_rows(place.inputs[0], name, axis, 0, surplus, place.constant)
        if surplus:
            new.input[0] = name
        return [trim, new] if surplus else [new]

    return _windowed(window, axis, emit)


def _conv_transpose(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    if node.input[0] not in rows or any(name in rows for name in node.input[1:]):
        raise Unstriped("its weights are computed")
    axis = rows[node.input[0]].axis
    window = _window(node, axis, facts.shape(node.input[1])[2:], facts, transposed=True)
    top, reach, stride = window.top, window.reach, window.stride
    count, index = len(window.pads) // 2, window.index
    extra = list(facts.attribute(node, "output_padding", [0] * count))
    if reach + 1 < stride:
        raise Unstriped("its kernel is smaller than its stride")

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        pads, more = list(window.pads), list(extra)
        # Row r of the result is row r + top - begin * stride of what this stripe gives unpadded.
        pads[index] = place.out_begin + top - place.begin * stride
        if not place.bottom:
            pads[index + count] = reach + 1 - stride
            more[index] = 0
        assert min(pads) >= 0, f"{node.name}: negative padding"
        new = copied(node, place, pads=pads, auto_pad=None, output_shape=None)
        return [copied(new, place, output_padding=more)]

    return Rule(
        axis,
        Fraction(stride),
        lambda e: e * stride - top,
        lambda row: -((reach - row - top) // stride),
        emit,
    )


# --- rows more or fewer ---------------------------------------------------------------------


def _resize(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given, axis = facts.shape(node.input[0]), rows[node.input[0]].axis
    result = facts.shape(node.output[0])
    factor, left = divmod(result[axis], given[axis])
    if left or not factor:
        raise Unstriped("it does not resize by an integer factor")
    if facts.attribute(node, "antialias", 0) or facts.attribute(node, "exclude_outside", 0):
        raise Unstriped("it filters")
    scales = _scales(node, facts, given, result, axis)
    determined, needs = _interpolated(node, facts, factor, given[axis])

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        new = copied(node, place, axes=None)
        del new.input[1:]
        new.input.extend(["", place.constant(np.asarray(scales, np.float32))])
        above = 0 if place.top else place.out_begin - place.begin * factor
        below = 0 if place.bottom else place.end * factor - place.out_end
        return cropped(new, place, axis, above, below)

    return Rule(axis, Fraction(factor), determined, needs, emit)


def _interpolated(
    node: NodeProto, facts: Facts, factor: int, rows: int
) -> tuple[Callable[[int], int], Callable[[int], int]]:
    """Return ``determined`` and ``needs`` of a Resize by an integer factor."""
    mode = facts.text(node, "mode", "nearest")
    where = facts.text(node, "coordinate_transformation_mode", "half_pixel")
    half = where in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")
    if not half and where != "asymmetric":
        raise Unstriped(f"coordinates {where} depend on the picture's height")
    if factor == 1 or mode == "nearest":
        if mode == "nearest" and not _whole_blocks(node, facts, factor, rows, half=half):
            raise Unstriped("it does not repeat rows evenly")
        return lambda e: e * factor, lambda row: row // factor
    if mode != "linear":
        raise Unstriped(f"mode {mode} is not exact by rows")
    if factor & (factor - 1):
        raise Unstriped("linear by a factor that is no power of two is not exact")
    # Row r lies at (2 r - shift) / (2 factor) of the input, between that row and the next.
    shift = factor - 1 if half else 0
    return (
        lambda e: (2 * factor * (e - 1) + shift + 1) // 2,
        lambda row: (2 * row - shift) // (2 * factor),
    )


def _scales(
    node: NodeProto, facts: Facts, given: Sequence[int], result: Sequence[int], axis: int
) -> list[float]:
    """Return the scale of every dimension; the sizes, where these were given, must be theirs."""
    if len(node.input) > 2 and node.input[2]:
        stated = facts.constant(node.input[2])
        if stated is None:
            raise Unstriped("its scales are not constant")
        if stated.size:
            axes = facts.attribute(node, "axes", list(range(len(given))))
            scales = [1.0] * len(given)
            for place, value in zip(axes, stated.reshape(-1), strict=True):
                scales[place % len(given)] = float(value)
            if scales[axis] != result[axis] / given[axis]:
                raise Unstriped("its scale and its sizes differ")
            return scales
    if facts.text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unstriped("its scales follow from a policy")
    uneven = [a for a, (i, o) in enumerate(zip(given, result, strict=True)) if o % i and i % o]
    if uneven:
        raise Unstriped("it resizes another dimension by a broken factor")
    return [o / i for i, o in zip(given, result, strict=True)]


def _whole_blocks(node: NodeProto, facts: Facts, factor: int, rows: int, *, half: bool) -> bool:
    """Say whether nearest interpolation takes row r // factor for row r, everywhere."""
    row = np.arange(rows * factor, dtype=np.float32)
    scale = np.float32(factor)
    at = (row + np.float32(0.5)) / scale - np.float32(0.5) if half else row / scale
    rounding = facts.text(node, "nearest_mode", "round_prefer_floor")
    picked = {
        "round_prefer_floor": np.ceil(at - np.float32(0.5)),
        "round_prefer_ceil": np.floor(at + np.float32(0.5)),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }[rounding]
    return bool(np.array_equal(np.clip(picked, 0, rows - 1), np.arange(rows * factor) // factor))


def _blocks_to_space(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    axis, block = rows[node.input[0]].axis, facts.attribute(node, "blocksize", 1)
    if axis < 2:
        raise Unstriped("it mixes rows with channels")

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        above = 0 if place.top else place.out_begin - place.begin * block
        below = 0 if place.bottom else place.end * block - place.out_end
        return cropped(copied(node, place), place, axis, above, below)

    return Rule(axis, Fraction(block), lambda e: e * block, lambda row: row // block, emit)


def _space_to_blocks(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    axis, block = rows[node.input[0]].axis, facts.attribute(node, "blocksize", 1)
    if axis < 2:
        raise Unstriped("it mixes rows with channels")
    return Rule(
        axis,
        Fraction(1, block),
        lambda e: e // block,
        lambda row: row * block,
        _plain,
        lambda row: row * block,
    )


def _slice(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    given, shape = rows.get(node.input[0]), facts.shape(node.input[0])
    if given is None:
        raise Unstriped("it takes rows of a constant")
    axis = given.axis
    starts, ends = facts.setting(node, "starts", 1), facts.setting(node, "ends", 2)
    if starts is None or ends is None:
        raise Unstriped("its limits are not constant")
    axes = facts.setting(node, "axes", 3)
    steps = facts.setting(node, "steps", 4)
    axes = list(range(len(starts))) if axes is None else [int(a) % len(shape) for a in axes]
    steps = [1] * len(starts) if steps is None else [int(s) for s in steps]
    limits = {a: (int(s), int(e), p) for a, s, e, p in zip(axes, starts, ends, steps, strict=True)}
    start, end, step = limits.pop(axis, (0, _END, 1))
    if step < 1:
        raise Unstriped("it turns rows round")
    start = slice(start, min(end, shape[axis]), 1).indices(shape[axis])[0]

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        # What it is given begins and ends where it should: only steps are left to take.
        every = {**limits, axis: (0, _END, step)} if step > 1 else limits
        if not every:
            return [make_node("Identity", place.inputs[:1], node.output, name=node.name)]
        columns = [[a, *limit] for a, limit in sorted(every.items())]
        wanted = [np.asarray(column, np.int64) for column in zip(*columns, strict=True)]
        names = [place.constant(wanted[i]) for i in (1, 2, 0, 3)]
        return [make_node("Slice", [place.inputs[0], *names], node.output, name=node.name)]

    return Rule(
        axis,
        Fraction(1, step),
        lambda e: (e - start - 1) // step + 1,
        lambda row: start + row * step,
        emit,
        lambda row: start + (row - 1) * step + 1,
    )


def _pad(node: NodeProto, rows: Mapping[str, RowAxis], facts: Facts) -> Rule:
    axis, rank = rows[node.input[0]].axis, len(facts.shape(node.input[0]))
    mode = facts.text(node, "mode", "constant")
    stated = facts.setting(node, "pads", 1)
    if stated is None or (len(node.input) > 2 and node.input[2] in rows):
        raise Unstriped("its padding is not constant")
    axes = facts.setting(node, "axes", 3)
    axes = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    pads = [0] * (2 * rank)
    for place, a in enumerate(axes):
        pads[a], pads[a + rank] = int(stated[place]), int(stated[place + len(axes)])
    above, below = pads[axis], pads[axis + rank]
    if mode not in ("constant", "edge", "reflect") or (mode != "constant" and above < 0 > below):
        raise Unstriped(f"mode {mode} needs rows of the other end")
    # Rows above the first that reflection at the bottom looks back to.
    back = below if mode == "reflect" and below > 0 else 0

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        wanted = list(pads)
        wanted[axis] = max(above, 0) if place.top else 0
        wanted[axis + rank] = below if place.bottom else 0
        new = copied(node, place)
        del new.input[1:]
        value = list(node.input[2:3]) or [""]
        new.input.extend([place.constant(np.asarray(wanted, np.int64)), *value])
        while not new.input[-1]:
            del new.input[-1]
        return cropped(new, place, axis, 0 if place.top else back, 0)

    return Rule(
        axis,
        Fraction(1),
        lambda e: e + above,
        lambda row: row - above - back,
        emit,
        least_rows=max(above, below) + 1 if mode == "reflect" else 1,
    )


_Factory = Callable[[NodeProto, Mapping[str, RowAxis], Facts], Rule]

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

RULES: dict[str, _Factory] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantise),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "CumSum": _cumulate,
    "DepthToSpace": _blocks_to_space,
    "Gather": _gather,
    "LRN": _channel_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _along(-1),
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_blocks,
    "Split": _along(0),
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
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
