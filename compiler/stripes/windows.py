"""Convolutions and pooling: kernels that run along the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from onnx import NodeProto

from compiler.stripes.facts import Facts, RowAxis, Unstriped
from compiler.stripes.rule import (
    Emit,
    Factory,
    Place,
    Rule,
    copied,
    slice_rows,
)

__all__ = ["RULES"]


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


RULES: dict[str, Factory] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
}
