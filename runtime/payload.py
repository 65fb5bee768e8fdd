"""Tensors <-> the payload of a message: which codec, how many bytes, into which arrays."""

from __future__ import annotations

from typing import Dict, List, Mapping, Sequence, Tuple

import numpy as np

from engines.codecs import codec_by_id, default_codec
from engines.errors import CodecError, RemoteProtocolError
from engines.tensors import Array, TensorSpec
from runtime.transport import Deadline, Stream
from runtime.wire import Part

__all__ = ["check_parts", "pack_tensors", "read_tensors"]

IDENTITY = 0
"""Wire id of the codec whose bytes are the array's own: read without a copy."""


def pack_tensors(
    specs: Sequence[TensorSpec], tensors: Mapping[str, Array]
) -> Tuple[Tuple[Part, ...], List[memoryview]]:
    """Encode tensors with their default codecs.

    Args:
        specs: Which tensors, in the order of the wire.
        tensors: Arrays by name; left alone until the buffers are written.

    Returns:
        How each tensor is coded, and its bytes: a buffer a tensor.
    """
    parts: List[Part] = []
    buffers: List[memoryview] = []
    for spec in specs:
        codec = default_codec(spec)
        array = np.ascontiguousarray(tensors[spec.name])
        size = 0 if codec.wire_id == IDENTITY else codec.max_encoded_bytes(spec)
        coded = codec.encode(array, memoryview(bytearray(size)))
        parts.append(Part(codec.wire_id, coded.nbytes))
        buffers.append(coded)
    return tuple(parts), buffers


def check_parts(specs: Sequence[TensorSpec], parts: Sequence[Part]) -> None:
    """Check that a peer's parts can be these tensors, before anything is allocated.

    Raises:
        RemoteProtocolError: Another number of tensors, an unknown codec or a size beyond what
            the codec can make of the tensor.
    """
    if len(specs) != len(parts):
        raise RemoteProtocolError(f"expected {len(specs)} tensors, given {len(parts)}")
    for spec, part in zip(specs, parts):
        try:
            codec = codec_by_id(part.codec)
        except CodecError as exc:
            raise RemoteProtocolError(f"tensor {spec.name!r}: {exc}") from exc
        if not codec.applies(spec):
            raise RemoteProtocolError(f"tensor {spec}: codec {codec.name} does not apply")
        limit = codec.max_encoded_bytes(spec)
        if part.nbytes > limit:
            raise RemoteProtocolError(
                f"tensor {spec}: at most {limit} bytes as {codec.name}, given {part.nbytes}"
            )


def read_tensors(
    stream: Stream,
    specs: Sequence[TensorSpec],
    parts: Sequence[Part],
    *,
    deadline: Deadline,
    stall_s: float,
) -> Dict[str, Array]:
    """Read a payload into new arrays, those of codec ``identity`` without a copy.

    Args:
        stream: At the first byte of the payload.
        specs: The tensors, in the order of the wire.
        parts: How they are coded; :func:`check_parts` has accepted them.
        deadline: When all must be there.
        stall_s: Longest wait for the next byte.

    Raises:
        LinkError: The connection broke.
        CodecError: Bytes that are not an encoding. The whole payload was read all the same, so
            the connection can go on.
    """
    tensors: Dict[str, Array] = {}
    wrong: List[str] = []
    for spec, part in zip(specs, parts):
        array = np.empty(spec.shape, spec.dtype)
        direct = part.codec == IDENTITY and spec.dtype != "bool" and part.nbytes == array.nbytes
        if direct:
            raw = array.reshape(-1).view(np.uint8).data
            stream.read_into(raw, deadline=deadline, stall_s=stall_s)
        else:
            coded = memoryview(bytearray(part.nbytes))
            stream.read_into(coded, deadline=deadline, stall_s=stall_s)
            try:
                codec_by_id(part.codec).decode(coded, array)
            except CodecError as exc:
                wrong.append(f"tensor {spec.name!r}: {exc}")
        tensors[spec.name] = array
    if wrong:
        raise CodecError("; ".join(wrong))
    return tensors
