"""Blosc2 chunks, written and read with care.

A chunk is what ``blosc2_compress_ctx`` of c-blosc2 writes, format 5: a header of 32 bytes, then
compressed blocks. Blosc2 knows user-defined codecs and filters, dictionaries, lazy chunks and
chunks of unwritten memory; none of these may come from a peer. So every field of the header is
compared with what our own encoder writes before the library sees the chunk:

    offset  size  field        expected
         0     1  version      5
         1     1  codec's      1
         2     1  flags        bits 0 and 2 set, bit 3 clear; bit 1: copied as it is; bits 5 to
                               7: the codec, 1 LZ4, 4 Zstd
         3     1  typesize     bytes of an element
         4     4  nbytes       the tensor's
         8     4  blocksize    1 to nbytes
        12     4  cbytes       the chunk's
        16     6  filters      byte shuffle (1) in one slot or nothing, 0 elsewhere
        22     1  codec        as in flags
        23     8  parameters   0
        31     1  flags        0, or 16 where every byte is 0
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

import numpy as np

from engines.codecs.buffers import missing
from engines.errors import CodecError
from engines.tensors import Array

__all__ = ["HEADER_BYTES", "LARGEST", "LZ4", "ZSTD", "pack_chunk", "unpack_chunk"]

HEADER_BYTES = 32
LARGEST = (1 << 31) - 1 - HEADER_BYTES
"""Bytes of a chunk's contents at most."""

LZ4, ZSTD = 1, 5
"""The codecs' numbers in Blosc2."""

_IN_FLAGS = {LZ4: 1, ZSTD: 4}
_LAYOUT = struct.Struct("<BBBBIII6sBB6sBB")
assert _LAYOUT.size == HEADER_BYTES


@lru_cache(maxsize=None)
def _library(name: str) -> Any:
    try:
        import blosc2
    except ImportError as exc:
        raise missing(name, "blosc2") from exc
    return blosc2


def pack_chunk(name: str, values: Array, codec: int, *, shuffle: bool) -> bytes:
    """Compress a flat, non-empty array into one chunk, in this thread alone."""
    blosc2 = _library(name)
    chunk: bytes = blosc2.compress2(
        values,
        codec=blosc2.Codec(codec),
        clevel=1,
        typesize=values.itemsize,
        filters=[blosc2.Filter.SHUFFLE if shuffle else blosc2.Filter.NOFILTER],
        filters_meta=[0],
        nthreads=1,
    )
    return chunk


def unpack_chunk(name: str, chunk: memoryview, out: Array, codec: int, *, shuffle: bool) -> None:
    """Decompress a chunk into ``out``, flat and not empty.

    Raises:
        CodecError: Not a chunk that :func:`pack_chunk` writes for such an array.
    """
    wrong = _header_trouble(chunk, out, codec, shuffle=shuffle)
    if wrong:
        raise CodecError(f"{name}: {wrong}")
    blosc2 = _library(name)
    try:
        blosc2.decompress2(chunk, dst=out.view(np.uint8), nthreads=1)
    except (RuntimeError, ValueError, TypeError) as exc:
        raise CodecError(f"{name}: the compressed bytes are damaged") from exc


def _header_trouble(chunk: memoryview, out: Array, codec: int, *, shuffle: bool) -> str:
    if chunk.nbytes < HEADER_BYTES:
        return f"expected a header of {HEADER_BYTES} bytes, given {chunk.nbytes}"
    version, codec_version, flags, typesize, nbytes, blocksize, cbytes, *rest = _LAYOUT.unpack(
        chunk[:HEADER_BYTES]
    )
    filters, coder, meta, filter_meta, reserved, more = rest
    if (version, codec_version, typesize, nbytes, cbytes) != (
        5,
        1,
        out.itemsize,
        out.nbytes,
        chunk.nbytes,
    ):
        return (
            f"expected {out.nbytes} bytes of {out.dtype.name} in a chunk of {chunk.nbytes}, "
            f"its header says {nbytes} in {cbytes}"
        )
    copied = bool(flags & 2)
    wanted = {bytes(6)} if not shuffle else {b"\1" + bytes(5), bytes(5) + b"\1"}
    plain = not (meta or any(filter_meta) or reserved) and more in (0, 16)
    if flags & 0b1101 != 0b0101 or filters not in wanted or coder != codec or not plain:
        return "a chunk of another kind"
    if not copied and flags >> 5 != _IN_FLAGS[codec]:
        return "a chunk of another codec"
    if not 0 < blocksize <= max(nbytes, out.itemsize) or blocksize % out.itemsize:
        return f"blocks of {blocksize} bytes in {nbytes}"
    if more and cbytes != HEADER_BYTES:
        return "bytes after a chunk of zeros"
    if copied and cbytes != HEADER_BYTES + nbytes:
        return f"expected {nbytes} copied bytes, given {cbytes - HEADER_BYTES}"
    return ""
