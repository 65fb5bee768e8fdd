"""Codec ``identity``: the values as they lie in memory.

Bytes: every element in row-major order, little-endian, in the dtype's own width; a boolean is
one byte, 0 or 1.
"""

from __future__ import annotations

import numpy as np

from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["IdentityCodec"]


class IdentityCodec:
    """Sends the array's own memory; copies nothing when encoding."""

    name = "identity"
    lossless = True

    def __init__(self, wire_id: int) -> None:
        self.wire_id = wire_id

    def applies(self, spec: TensorSpec) -> bool:
        """Every tensor."""
        return True

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """Exactly the tensor's size."""
        return spec.nbytes

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Return a view of the array's own bytes."""
        return array.reshape(-1).view(np.uint8).data

    def decode(self, payload: memoryview, out: Array) -> None:
        """Copy ``payload`` into ``out``."""
        if payload.nbytes != out.nbytes:
            raise CodecError(
                f"identity: expected {out.nbytes} bytes for {out.dtype.name} {list(out.shape)}, "
                f"given {payload.nbytes}"
            )
        values = np.frombuffer(payload, dtype=np.uint8)
        if out.dtype == np.bool_ and values.size and values.max() > 1:
            raise CodecError("identity: expected booleans of 0 or 1, given another byte")
        out.reshape(-1).view(np.uint8)[:] = values
