"""Codecs ``int8`` and ``int8-channel``: floats as eight-bit codes. Lossy: see ``quantized``.

Bytes: for every range its ``low``, then for every range its ``step``, as float32, little-endian;
then a code for every element in row-major order. ``int8`` has one range. ``int8-channel`` has one
for each channel, which is axis 1 of tensors with four or more axes and the last axis of others.
NaN, infinity and values beyond float32 cannot be encoded.

``int8:mse`` and the like are the same bytes, written by ranges that calibration chose: see
``encoders``.
"""

from __future__ import annotations

import copy
from typing import Optional, TypeVar

import numpy as np

from engines.codecs.buffers import put
from engines.codecs.quantized import (
    Grid,
    Steps,
    channel_grid,
    dequantize,
    quantize,
    steps_between,
    tensor_grid,
)
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["Calibrated", "Int8ChannelCodec", "Int8Codec"]

_FLOATS = ("float16", "float32", "float64")
_RANGE_BYTES = 8

C = TypeVar("C", bound="Calibrated")

_FEWEST = 16
"""Elements of a channel below which its range costs more than its codes save."""


class Calibrated:
    """What codecs share that can write by a range that is given, not looked for.

    Args:
        wire_id: Number on the wire.
        base: Name of the codec.
        method: How calibration chose the range; none to look for it in what is sent.
    """

    lossless = False

    def __init__(self, wire_id: int, base: str, method: str = "") -> None:
        self.wire_id = wire_id
        self.name = f"{base}:{method}" if method else base
        self._bound = not method
        self._given: Optional[Steps] = None

    def within(self: C, least: Array, most: Array) -> C:
        """Return this codec for one tensor, by its range: float64, one or one a channel.

        Raises:
            CodecError: The range is not finite.
        """
        found = copy.copy(self)
        found._given, found._bound = steps_between(self.name, least, most), True
        return found

    def _steps(self, grid: Grid) -> Optional[Steps]:
        """Return the given steps for a tensor; none where they are to be looked for.

        Raises:
            CodecError: There should be some, and there are none, or of another tensor.
        """
        if not self._bound:
            raise CodecError(f"{self.name}: expected a tensor whose range was calibrated")
        if self._given is not None and self._given.low.size != grid[1]:
            raise CodecError(
                f"{self.name}: expected {self._given.low.size} channels, given {grid[1]}"
            )
        return self._given


class _Int8(Calibrated):
    def _grid(self, spec: TensorSpec) -> Grid:
        return tensor_grid(spec.size)

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """The ranges, and a byte an element: exactly."""
        return _RANGE_BYTES * self._grid(spec)[1] + spec.size

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Quantize ``array`` into ``scratch``."""
        grid = self._grid(TensorSpec("", array.dtype.name, array.shape))
        head = _RANGE_BYTES * grid[1]
        size = head + array.size
        if scratch.nbytes < size:
            raise CodecError(f"{self.name}: needs {size} bytes, given {scratch.nbytes}")
        codes = np.frombuffer(scratch[:size], np.uint8)[head:]
        low, step = quantize(self.name, array, grid, codes, self._steps(grid))
        put(self.name, scratch, low.astype("<f4"), step.astype("<f4"))
        return scratch[:size]

    def decode(self, payload: memoryview, out: Array) -> None:
        """Give ``out`` the values that the codes stand for."""
        grid = self._grid(TensorSpec("", out.dtype.name, out.shape))
        head = _RANGE_BYTES * grid[1]
        if payload.nbytes != head + out.size:
            raise CodecError(
                f"{self.name}: expected {head + out.size} bytes, given {payload.nbytes}"
            )
        low, step = np.frombuffer(payload[:head], "<f4").reshape(2, grid[1])
        codes = np.frombuffer(payload, np.uint8)[head:]
        dequantize(self.name, codes, grid, low, step, out)


class Int8Codec(_Int8):
    """One range for the whole tensor."""

    def __init__(self, wire_id: int, method: str = "") -> None:
        super().__init__(wire_id, "int8", method)

    def applies(self, spec: TensorSpec) -> bool:
        """Floats."""
        return spec.dtype in _FLOATS


class Int8ChannelCodec(_Int8):
    """One range for each channel."""

    def __init__(self, wire_id: int, method: str = "") -> None:
        super().__init__(wire_id, "int8-channel", method)

    def _grid(self, spec: TensorSpec) -> Grid:
        return channel_grid(spec)

    def applies(self, spec: TensorSpec) -> bool:
        """Floats with enough elements a channel."""
        return spec.dtype in _FLOATS and spec.size >= _FEWEST * channel_grid(spec)[1] > 0
