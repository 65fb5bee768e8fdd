"""Operators that repeat, leave out, add or regroup rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from onnx import NodeProto
from onnx.helper import make_node

from compiler.stripes.facts import Facts, RowAxis, Unstriped
from compiler.stripes.rule import (
    END,
    Factory,
    Place,
    Rule,
    copied,
    cropped,
    plain,
)

__all__ = ["RULES"]


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
        plain,
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
    start, end, step = limits.pop(axis, (0, END, 1))
    if step < 1:
        raise Unstriped("it turns rows round")
    start = slice(start, min(end, shape[axis]), 1).indices(shape[axis])[0]

    def emit(node: NodeProto, place: Place) -> list[NodeProto]:
        # What it is given begins and ends where it should: only steps are left to take.
        every = {**limits, axis: (0, END, step)} if step > 1 else limits
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


RULES: dict[str, Factory] = {
    "DepthToSpace": _blocks_to_space,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_blocks,
}
