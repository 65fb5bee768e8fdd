"""Codec ``fp16``: floats in half precision. Lossy: about 3 digits.

Bytes: every element in row-major order as an IEEE 754 binary16, little-endian, rounded to the
nearest, ties to even. Finite values beyond 65504 cannot be encoded.
"""

from __future__ import annotations

import numpy as np

from engines.codecs.buffers import put
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["Fp16Codec"]

_HALF = np.dtype("<f2")

_BLOCK = 1 << 16
"""Elements worked on at a time: they stay in the cache."""


class Fp16Codec:
    """Rounds to half precision."""

    name = "fp16"
    lossless = False

    def __init__(self, wire_id: int) -> None:
        self.wire_id = wire_id

    def applies(self, spec: TensorSpec) -> bool:
        """Floats that are longer."""
        return spec.dtype in ("float32", "float64")

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """Two bytes an element."""
        return 2 * spec.size

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Round ``array`` into ``scratch``."""
        size = 2 * array.size
        if scratch.nbytes < size:
            raise CodecError(f"fp16: needs {size} bytes, given {scratch.nbytes}")
        if not size:
            return put(self.name, scratch)
        view = scratch[:size]
        halves = np.frombuffer(view, _HALF)
        flat = array.reshape(-1)
        for at in range(0, flat.size, _BLOCK):
            part, given = halves[at : at + _BLOCK], flat[at : at + _BLOCK]
            with np.errstate(over="ignore"):
                part[:] = given
            beyond = np.isinf(part)
            if beyond.any() and np.isfinite(given[beyond]).any():
                raise CodecError("fp16: expected values up to 65504, given larger ones")
        return view

    def decode(self, payload: memoryview, out: Array) -> None:
        """Widen ``payload`` into ``out``."""
        if payload.nbytes != 2 * out.size:
            raise CodecError(f"fp16: expected {2 * out.size} bytes, given {payload.nbytes}")
        with np.errstate(invalid="ignore"):  # a signalling NaN is a value too
            out.reshape(-1)[:] = np.frombuffer(payload, _HALF)
