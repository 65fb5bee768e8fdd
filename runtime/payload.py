"""Tensors <-> the payload of a message: which codec, how many bytes, into which arrays."""

from __future__ import annotations

import logging
import time
from types import MappingProxyType
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from engines.codecs import Codec, codec_by_id, codec_ids_here, default_codec, open_codec
from engines.codecs.decoders import Decoders
from engines.codecs.encoders import Encoders
from engines.errors import CodecError, RemoteProtocolError
from engines.tensors import Array, TensorSpec
from runtime.transport import Deadline, Stream
from runtime.wire import Part

__all__ = [
    "NO_CODECS",
    "UNCALIBRATED",
    "Clock",
    "check_parts",
    "known_codecs",
    "pack_tensors",
    "read_tensors",
    "wished_codecs",
]

logger = logging.getLogger(__name__)

NO_CODECS: Mapping[str, str] = MappingProxyType({})
"""Every tensor by its default codec."""

UNCALIBRATED = Encoders()
"""Opens codecs where nothing is known of the tensors, and for no connection: without streams."""

IDENTITY = 0
"""Wire id of the codec whose bytes are the array's own: read without a copy."""


class Clock:
    """Adds up the seconds that decoding took."""

    def __init__(self) -> None:
        self.decoding_s = 0.0


def pack_tensors(
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, Array],
    codecs: Mapping[str, str] = NO_CODECS,
    encoders: Encoders = UNCALIBRATED,
) -> Tuple[Tuple[Part, ...], List[memoryview]]:
    """Encode tensors.

    Args:
        specs: Which tensors, in the order of the wire.
        tensors: Arrays by name; left alone until the buffers are written.
        codecs: Names of codecs by tensor. A tensor without one, or to which its codec does not
            apply, has its default codec; so has one whose values its codec cannot encode.
        encoders: What opens them.

    Returns:
        How each tensor is coded, and its bytes: a buffer a tensor.
    """
    parts: List[Part] = []
    buffers: List[memoryview] = []
    for spec in specs:
        array = np.ascontiguousarray(tensors[spec.name])
        codec, coded = _coded(spec, array, codecs.get(spec.name), encoders)
        parts.append(Part(codec.wire_id, coded.nbytes))
        buffers.append(coded)
    return tuple(parts), buffers


def wished_codecs(specs: Sequence[TensorSpec], names: Sequence[str]) -> Dict[str, str]:
    """Return the codecs that a peer would have tensors in, less those that are not here."""
    return {spec.name: name for spec, name in zip(specs, names) if name and _is_here(name)}


def known_codecs(codecs: Mapping[str, str], ids: Sequence[int]) -> Dict[str, str]:
    """Return those of some codecs by tensor that are here and among a peer's ``ids``."""
    return {
        tensor: name
        for tensor, name in codecs.items()
        if _is_here(name) and open_codec(name).wire_id in ids
    }


def _is_here(name: str) -> bool:
    try:
        return open_codec(name).wire_id in codec_ids_here()
    except CodecError:
        return False


def _coded(
    spec: TensorSpec, array: Array, name: Optional[str], encoders: Encoders
) -> Tuple[Codec, memoryview]:
    usual = default_codec(spec)
    if name is not None and name != usual.name:
        try:
            codec = encoders.open(name, spec.name)
            if codec is not None and codec.applies(spec):
                return codec, _encoded(codec, spec, array)
        except CodecError as exc:
            logger.debug("tensor %r as %s: %s", spec.name, usual.name, exc)
    return usual, _encoded(usual, spec, array)


def _encoded(codec: Codec, spec: TensorSpec, array: Array) -> memoryview:
    size = 0 if codec.wire_id == IDENTITY else codec.max_encoded_bytes(spec)
    return codec.encode(array, np.empty(size, np.uint8).data)


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
    clock: Optional[Clock] = None,
    decoders: Optional[Decoders] = None,
) -> Dict[str, Array]:
    """Read a payload into new arrays, those of codec ``identity`` without a copy.

    Args:
        stream: At the first byte of the payload.
        specs: The tensors, in the order of the wire.
        parts: How they are coded; :func:`check_parts` has accepted them.
        deadline: When all must be there.
        stall_s: Longest wait for the next byte.
        clock: Told how long decoding takes.
        decoders: What the connection's streams have come to; none where it has none.

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
            coded = np.empty(part.nbytes, np.uint8).data
            stream.read_into(coded, deadline=deadline, stall_s=stall_s)
            begin = time.perf_counter()
            try:
                codec = (
                    codec_by_id(part.codec)
                    if decoders is None
                    else decoders.open(part.codec, spec.name)
                )
                codec.decode(coded, array)
            except CodecError as exc:
                wrong.append(f"tensor {spec.name!r}: {exc}")
            if clock is not None:
                clock.decoding_s += time.perf_counter() - begin
        tensors[spec.name] = array
    if wrong:
        raise CodecError("; ".join(wrong))
    return tensors
