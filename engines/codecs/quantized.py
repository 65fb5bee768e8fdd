"""Eight-bit codes of floats, by one range for the whole tensor or one for each channel.

A range is a float32 ``low`` and a float32 ``step``; code ``c`` of 0 to 255 stands for
``low + c * step``. Both come from a least and a greatest value, moved by less than half a step
where those are on both sides of 0, so that 0 itself stays exact. The two are those of the tensor,
or the stripe, that is sent; or they are given, and what lies outside them is clipped. A value
within comes back with an error of at most one step, half a step where nothing was moved.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np

from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = [
    "Grid",
    "Steps",
    "channel_grid",
    "dequantize",
    "quantize",
    "steps_between",
    "tensor_grid",
]

Grid = Tuple[int, int, int]
"""How a tensor is seen: outer extent, channels, inner extent."""

_BLOCK = 1 << 16
"""Elements worked on at a time: they and what is made of them stay in the cache."""

_TINY = float(np.finfo(np.float32).tiny)


def tensor_grid(size: int) -> Grid:
    """Return the grid of a tensor with one range."""
    return (1, 1, size)


def channel_grid(spec: TensorSpec) -> Grid:
    """Return the grid of a tensor with a range a channel.

    The channels are axis 1 of tensors with four or more axes, [N, C, H, W] and the like, and the
    last axis of those with fewer, [N, T, C].
    """
    shape = spec.shape
    axis = 1 if len(shape) >= 4 else max(len(shape) - 1, 0)
    outer = inner = 1
    for extent in shape[:axis]:
        outer *= extent
    for extent in shape[axis + 1 :]:
        inner *= extent
    return (outer, shape[axis] if shape else 1, inner)


class Steps(NamedTuple):
    """What codes stand for.

    Attributes:
        low: Value of code 0, float32, one a channel.
        step: From a code to the next, likewise; 0 where all codes stand for ``low``.
    """

    low: Array
    step: Array


def steps_between(name: str, least: Array, most: Array) -> Steps:
    """Return the steps from the least values to the greatest, one of each a channel.

    Args:
        name: Of the codec, for the message.
        least: float64 [C].
        most: float64 [C], none below ``least``.

    Raises:
        CodecError: A bound is NaN, infinite or beyond float32.
    """
    limit = float(np.finfo(np.float32).max)
    if not (np.isfinite(least) & np.isfinite(most)).all() or max(-least.min(), most.max()) > limit:
        raise CodecError(f"{name}: expected finite values of float32's range")
    step = ((most - least) / 255).astype(np.float32)
    step[step < _TINY] = 0
    low = least.astype(np.float32)
    around = (least < 0) & (most > 0) & (step > 0)
    zero = np.rint(-least[around] / step[around]).astype(np.float32)
    low[around] = -zero * step[around]
    return Steps(low, step)


def quantize(
    name: str, array: Array, grid: Grid, codes: Array, given: Optional[Steps] = None
) -> Steps:
    """Write the codes of ``array`` into ``codes`` and return what they stand for.

    Args:
        name: Of the codec, for the message.
        array: Floats, C-contiguous.
        grid: How to see them.
        codes: uint8, flat, as many as elements; written.
        given: What codes are to stand for: values beyond are clipped. By default the least and
            the greatest value of each channel are looked for.

    Raises:
        CodecError: There is a NaN, an infinity or a value beyond float32.
    """
    channels = grid[1]
    if not array.size:
        return given or Steps(np.zeros(channels, np.float32), np.zeros(channels, np.float32))
    seen = array.reshape(grid)
    found = given
    if found is None:
        least = seen.min(axis=(0, 2)).astype(np.float64)
        most = seen.max(axis=(0, 2)).astype(np.float64)
        found = steps_between(name, least, most)
    low, step = found
    inverse = np.zeros_like(step)
    np.divide(np.float32(1), step, out=inverse, where=step > 0)
    target = codes.reshape(grid)
    scratch = np.empty(min(_BLOCK, array.size), np.float32)
    for part, size, shape in _blocks(grid):
        block = scratch[:size].reshape(shape)
        which = part[1]
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(
                seen[part], low[which, None], out=block, dtype=np.float32, casting="same_kind"
            )
            block *= inverse[which, None]
            # Nobody has looked at these values: one that is not finite shows in the sum.
            if given is not None and not np.isfinite(scratch[:size].sum()):
                raise CodecError(f"{name}: expected finite values of float32's range")
        np.rint(block, out=block)
        np.clip(block, 0, 255, out=block)
        target[part] = block
    return found


def dequantize(name: str, codes: Array, grid: Grid, low: Array, step: Array, out: Array) -> None:
    """Write the values of ``codes`` into ``out``.

    Args:
        name: Of the codec, for the message.
        codes: uint8, flat, as many as elements.
        grid: How to see them.
        low: float32, one a channel, as a peer sent them.
        step: Likewise.
        out: Floats, C-contiguous; written.

    Raises:
        CodecError: A range that no encoder writes, or beyond the dtype.
    """
    limit = float(min(np.finfo(out.dtype).max, np.finfo(np.float32).max))
    with np.errstate(invalid="ignore", over="ignore"):
        top = low.astype(np.float64) + 255.0 * step.astype(np.float64)
        fine = (step >= 0) & (np.abs(low) <= limit) & (top <= limit * (1 + 1e-6))
    if not fine.all():
        raise CodecError(f"{name}: expected ranges of finite values within {out.dtype.name}")
    if not out.size:
        return
    seen, target = codes.reshape(grid), out.reshape(grid)
    scratch = np.empty(min(_BLOCK, out.size), np.float32)
    for part, size, shape in _blocks(grid):
        block = scratch[:size].reshape(shape)
        which = part[1]
        with np.errstate(over="ignore"):
            np.multiply(seen[part], step[which, None], out=block, dtype=np.float32)
            np.add(block, low[which, None], out=block)
            np.clip(block, -limit, limit, out=block)
        target[part] = block


def _blocks(grid: Grid) -> "Iterator[Tuple[Tuple[slice, slice, slice], int, Grid]]":
    """Yield index, size and shape of parts of at most ``_BLOCK`` elements that cover a grid."""
    outer, channels, inner = grid
    a = max(1, min(outer, _BLOCK // max(channels * inner, 1)))
    b = max(1, min(channels, _BLOCK // inner))
    c = min(inner, _BLOCK)
    if b < channels:
        a = 1
    if c < inner:
        b = 1
    for i in range(0, outer, a):
        for j in range(0, channels, b):
            for k in range(0, inner, c):
                shape = (min(a, outer - i), min(b, channels - j), min(c, inner - k))
                part = (slice(i, i + a), slice(j, j + b), slice(k, k + c))
                yield part, shape[0] * shape[1] * shape[2], shape
