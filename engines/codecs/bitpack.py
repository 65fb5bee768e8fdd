"""Codec ``bitpack``: one bit per element, for booleans and for grids of 0 and 1.

Bytes: the elements in row-major order, eight to a byte, the first in the most significant bit;
the bits after the last element are 0. A value other than 0 and 1 cannot be encoded.
"""

from __future__ import annotations

import numpy as np

from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["BitpackCodec"]


class BitpackCodec:
    """Packs booleans and 0/1 integers into bits."""

    name = "bitpack"
    lossless = True

    def __init__(self, wire_id: int) -> None:
        self.wire_id = wire_id

    def applies(self, spec: TensorSpec) -> bool:
        """Booleans and integers; whether integers are all 0 or 1 shows when encoding."""
        return spec.dtype == "bool" or "int" in spec.dtype

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """One bit per element, rounded up to a byte."""
        return (spec.size + 7) // 8

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Pack ``array`` into ``scratch``."""
        flat = array.reshape(-1)
        if flat.dtype != np.bool_ and flat.size and (flat.min() < 0 or flat.max() > 1):
            raise CodecError(
                f"bitpack: expected values of 0 and 1, given {flat.min()} to {flat.max()}"
            )
        packed = np.packbits(flat.astype(np.bool_, copy=False))
        if scratch.nbytes < packed.size:
            raise CodecError(f"bitpack: needs {packed.size} bytes, given {scratch.nbytes}")
        view = scratch[: packed.size]
        view[:] = packed.data
        return view

    def decode(self, payload: memoryview, out: Array) -> None:
        """Unpack ``payload`` into ``out``."""
        expected = (out.size + 7) // 8
        if payload.nbytes != expected:
            raise CodecError(
                f"bitpack: expected {expected} bytes for {out.size} elements, "
                f"given {payload.nbytes}"
            )
        packed = np.frombuffer(payload, dtype=np.uint8)
        padding = expected * 8 - out.size
        if padding and packed[-1] & ((1 << padding) - 1):
            raise CodecError("bitpack: expected the bits after the last element to be 0")
        out.reshape(-1)[:] = np.unpackbits(packed, count=out.size)
