"""Codecs ``int8`` and ``int8-channel``: floats as eight-bit codes. Lossy: see ``quantized``.

Bytes: for every range its ``low``, then for every range its ``step``, as float32, little-endian;
then a code for every element in row-major order. ``int8`` has one range. ``int8-channel`` has one
for each channel, which is axis 1 of tensors with four or more axes and the last axis of others.
NaN, infinity and values beyond float32 cannot be encoded.
"""

from __future__ import annotations

import numpy as np

from engines.codecs.buffers import put
from engines.codecs.quantized import Grid, channel_grid, dequantize, quantize, tensor_grid
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["Int8ChannelCodec", "Int8Codec"]

_FLOATS = ("float16", "float32", "float64")
_RANGE_BYTES = 8

_FEWEST = 16
"""Elements of a channel below which its range costs more than its codes save."""


class _Int8:
    lossless = False

    def __init__(self, wire_id: int, name: str) -> None:
        self.wire_id = wire_id
        self.name = name

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
        low, step = quantize(self.name, array, grid, codes)
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

    def __init__(self, wire_id: int) -> None:
        super().__init__(wire_id, "int8")

    def applies(self, spec: TensorSpec) -> bool:
        """Floats."""
        return spec.dtype in _FLOATS


class Int8ChannelCodec(_Int8):
    """One range for each channel."""

    def __init__(self, wire_id: int) -> None:
        super().__init__(wire_id, "int8-channel")

    def _grid(self, spec: TensorSpec) -> Grid:
        return channel_grid(spec)

    def applies(self, spec: TensorSpec) -> bool:
        """Floats with enough elements a channel."""
        return spec.dtype in _FLOATS and spec.size >= _FEWEST * channel_grid(spec)[1] > 0
