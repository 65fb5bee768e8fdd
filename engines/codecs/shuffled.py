"""Codecs ``lz4`` and ``zstd``: lossless; the bytes of all elements sorted by place, compressed.

Bytes: 0 and the values as codec ``identity`` has them; or 1 and one Blosc2 chunk (see ``chunks``)
with the byte shuffle as its only filter and LZ4 or Zstd at level 1. The shuffle puts the first
byte of every element of a block first, then the second ones, and so on: sign and exponent of
floats repeat, and so do the high bytes of small integers.
"""

from __future__ import annotations

from engines.codecs.buffers import CODED, check_bools, opened, put, store
from engines.codecs.chunks import LARGEST, LZ4, ZSTD, pack_chunk, unpack_chunk
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["Lz4Codec", "ZstdCodec"]


class _Shuffled:
    lossless = True

    def __init__(self, wire_id: int, name: str, codec: int) -> None:
        self.wire_id = wire_id
        self.name = name
        self._codec = codec

    def applies(self, spec: TensorSpec) -> bool:
        """Every tensor that fits one chunk."""
        return spec.nbytes <= LARGEST

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """One byte more than the tensor."""
        return spec.nbytes + 1

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Compress ``array`` into ``scratch``, or store it where that is not smaller."""
        if array.size:
            chunk = pack_chunk(self.name, array.reshape(-1), self._codec, shuffle=True)
            if len(chunk) < array.nbytes:
                return put(self.name, scratch, bytes([CODED]), chunk)
        return store(self.name, array, scratch)

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decompress ``payload`` into ``out``."""
        chunk = opened(self.name, payload, out)
        if chunk is None:
            return
        if not out.size:
            raise CodecError(f"{self.name}: compressed bytes of an empty tensor")
        unpack_chunk(self.name, chunk, out.reshape(-1), self._codec, shuffle=True)
        check_bools(self.name, out)


class Lz4Codec(_Shuffled):
    """Byte shuffle and LZ4: quick."""

    def __init__(self, wire_id: int) -> None:
        super().__init__(wire_id, "lz4", LZ4)


class ZstdCodec(_Shuffled):
    """Byte shuffle and Zstd: smaller."""

    def __init__(self, wire_id: int) -> None:
        super().__init__(wire_id, "zstd", ZSTD)
