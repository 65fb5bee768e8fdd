"""Codec ``runs``: lossless; how often each value is repeated. For label maps.

Bytes: 0 and the values as codec ``identity`` has them; or 1, then for every run of equal values
in row-major order its length, 1 to 65535, as uint16, little-endian, then for every run its value
in the dtype's own width. A longer run is several.
"""

from __future__ import annotations

import numpy as np

from engines.codecs.buffers import CODED, check_bools, opened, put, store
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["RunsCodec"]

_LONGEST = 65535


class RunsCodec:
    """Stores each run of equal integers once."""

    name = "runs"
    lossless = True

    def __init__(self, wire_id: int) -> None:
        self.wire_id = wire_id

    def applies(self, spec: TensorSpec) -> bool:
        """Integers and booleans."""
        return spec.dtype == "bool" or "int" in spec.dtype

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """One byte more than the tensor."""
        return spec.nbytes + 1

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Write the runs of ``array`` into ``scratch``, or store it where that is not smaller."""
        flat = array.reshape(-1)
        if not flat.size:
            return store(self.name, array, scratch)
        ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
        lengths = np.diff(ends, prepend=0)
        pieces = -(-lengths // _LONGEST)
        if (2 + flat.itemsize) * int(pieces.sum()) >= flat.nbytes:
            return store(self.name, array, scratch)
        values = np.repeat(flat[ends - 1], pieces)
        shorts = np.full(values.size, _LONGEST, "<u2")
        shorts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
        return put(self.name, scratch, bytes([CODED]), shorts, values.view(np.uint8))

    def decode(self, payload: memoryview, out: Array) -> None:
        """Repeat the values of ``payload`` into ``out``."""
        coded = opened(self.name, payload, out)
        if coded is None:
            return
        runs, rest = divmod(coded.nbytes, 2 + out.itemsize)
        if rest:
            raise CodecError(f"{self.name}: {coded.nbytes} bytes are no whole number of runs")
        lengths = np.frombuffer(coded[: 2 * runs], "<u2")
        total = int(lengths.sum(dtype=np.int64))
        if total != out.size or (runs and lengths.min() == 0):
            raise CodecError(f"{self.name}: expected runs of {out.size} elements, given {total}")
        values = np.frombuffer(coded[2 * runs :], out.dtype)
        check_bools(self.name, values)
        out.reshape(-1)[:] = np.repeat(values, lengths)
