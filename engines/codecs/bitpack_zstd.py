"""Codec ``bitpack-zstd``: one bit per element, compressed. For sparse occupancy grids.

Bytes: 0 and the bits as codec ``bitpack`` has them; or 1 and one Blosc2 chunk (see ``chunks``) of
those bytes, without a filter, by Zstd at level 1.
"""

from __future__ import annotations

import numpy as np

from engines.codecs.bitpack import BitpackCodec
from engines.codecs.buffers import CODED, STORED, put
from engines.codecs.chunks import LARGEST, ZSTD, pack_chunk, unpack_chunk
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["BitpackZstdCodec"]


class BitpackZstdCodec:
    """Packs 0/1 values into bits and compresses those."""

    name = "bitpack-zstd"
    lossless = True

    def __init__(self, wire_id: int) -> None:
        self.wire_id = wire_id
        self._bits = BitpackCodec(wire_id)

    def applies(self, spec: TensorSpec) -> bool:
        """What ``bitpack`` applies to."""
        return self._bits.applies(spec) and spec.size <= LARGEST

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """One byte more than the bits."""
        return 1 + self._bits.max_encoded_bytes(spec)

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Pack and compress ``array`` into ``scratch``."""
        packed = np.empty((array.size + 7) // 8, np.uint8)
        self._bits.encode(array, packed.data)
        if packed.size:
            chunk = pack_chunk(self.name, packed, ZSTD, shuffle=False)
            if len(chunk) < packed.size:
                return put(self.name, scratch, bytes([CODED]), chunk)
        return put(self.name, scratch, bytes([STORED]), packed)

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decompress and unpack ``payload`` into ``out``."""
        if not payload.nbytes or payload[0] not in (STORED, CODED):
            raise CodecError(f"{self.name}: expected a first byte of 0 or 1")
        if payload[0] == STORED:
            self._bits.decode(payload[1:], out)
            return
        if not out.size:
            raise CodecError(f"{self.name}: compressed bytes of an empty tensor")
        packed = np.empty((out.size + 7) // 8, np.uint8)
        unpack_chunk(self.name, payload[1:], packed, ZSTD, shuffle=False)
        self._bits.decode(packed.data, out)
