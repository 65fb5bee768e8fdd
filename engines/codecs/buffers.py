"""What codecs share: writing into the caller's buffer, and bytes that are stored as they are.

A codec that may fail to make its tensor smaller begins with a byte that says how the rest lies:
0, the values as codec ``identity`` has them; 1, coded. So it never takes more than one byte above
the tensor's own size.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from engines.errors import CodecError
from engines.tensors import Array

__all__ = ["CODED", "STORED", "check_bools", "missing", "opened", "put", "store"]

STORED, CODED = 0, 1


def put(name: str, scratch: memoryview, *pieces: Any) -> memoryview:
    """Write pieces one after the other and return the view of them all.

    Args:
        name: Of the codec, for the message.
        scratch: The caller's buffer.
        pieces: Things that are bytes in memory: bytes, or flat arrays.

    Raises:
        CodecError: ``scratch`` is too small.
    """
    views = [memoryview(piece).cast("B") for piece in pieces if memoryview(piece).nbytes]
    total = sum(view.nbytes for view in views)
    if scratch.nbytes < total:
        raise CodecError(f"{name}: needs {total} bytes, given {scratch.nbytes}")
    at = 0
    for view in views:
        scratch[at : at + view.nbytes] = view
        at += view.nbytes
    return scratch[:total]


def store(name: str, array: Array, scratch: memoryview) -> memoryview:
    """Write the values as they are, behind the byte that says so."""
    return put(name, scratch, bytes([STORED]), array.reshape(-1).view(np.uint8))


def opened(name: str, payload: memoryview, out: Array) -> Optional[memoryview]:
    """Read the first byte; return what is coded behind it, or none where ``out`` is filled now.

    Raises:
        CodecError: Another first byte, or stored values of another size.
    """
    if not payload.nbytes or payload[0] not in (STORED, CODED):
        raise CodecError(f"{name}: expected a first byte of 0 or 1")
    rest = payload[1:]
    if payload[0] == CODED:
        return rest
    if rest.nbytes != out.nbytes:
        raise CodecError(f"{name}: expected {out.nbytes} stored bytes, given {rest.nbytes}")
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(rest, np.uint8)
    check_bools(name, out)
    return None


def check_bools(name: str, out: Array) -> None:
    """Refuse booleans that are neither 0 nor 1: programs do anything with those.

    Raises:
        CodecError: There is one.
    """
    if out.dtype == np.bool_ and out.size and out.reshape(-1).view(np.uint8).max() > 1:
        raise CodecError(f"{name}: expected booleans of 0 or 1, given another byte")


def missing(name: str, package: str, extra: str = "codecs") -> CodecError:
    """Return the error of a codec whose library is not installed."""
    return CodecError(
        f"codec {name!r} needs {package}, which is not installed; pip install 'splitrt[{extra}]'"
    )
