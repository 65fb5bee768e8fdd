"""Codec ``int8-zstd``: the codes of ``int8``, entropy coded. Lossy like ``int8``.

Bytes: ``low`` and ``step`` as codec ``int8`` has them, then one Blosc2 chunk (see ``chunks``) of
the codes, without a filter, by Zstd at level 1; no chunk where there are no elements.
"""

from __future__ import annotations

import numpy as np

from engines.codecs.buffers import put
from engines.codecs.chunks import HEADER_BYTES, LARGEST, ZSTD, pack_chunk, unpack_chunk
from engines.codecs.int8 import Calibrated
from engines.codecs.quantized import dequantize, quantize, tensor_grid
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["Int8ZstdCodec"]

_HEAD = 8


class Int8ZstdCodec(Calibrated):
    """Quantizes by one range and compresses the codes."""

    def __init__(self, wire_id: int, method: str = "") -> None:
        super().__init__(wire_id, "int8-zstd", method)

    def applies(self, spec: TensorSpec) -> bool:
        """Floats."""
        return spec.dtype in ("float16", "float32", "float64") and spec.size <= LARGEST

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """The range, a chunk's header, and a byte an element."""
        return _HEAD + (HEADER_BYTES + spec.size if spec.size else 0)

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Quantize and compress ``array`` into ``scratch``."""
        codes = np.empty(array.size, np.uint8)
        grid = tensor_grid(array.size)
        low, step = quantize(self.name, array, grid, codes, self._steps(grid))
        chunk = pack_chunk(self.name, codes, ZSTD, shuffle=False) if codes.size else b""
        return put(self.name, scratch, low.astype("<f4"), step.astype("<f4"), chunk)

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decompress ``payload`` and give ``out`` the values that the codes stand for."""
        if payload.nbytes < _HEAD or (payload.nbytes > _HEAD) != (out.size > 0):
            raise CodecError(f"{self.name}: {payload.nbytes} bytes for {out.size} elements")
        low, step = np.frombuffer(payload[:_HEAD], "<f4").reshape(2, 1)
        codes = np.empty(out.size, np.uint8)
        if out.size:
            unpack_chunk(self.name, payload[_HEAD:], codes, ZSTD, shuffle=False)
        dequantize(self.name, codes, tensor_grid(out.size), low, step, out)
