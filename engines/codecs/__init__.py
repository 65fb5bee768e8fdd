"""Codecs: a tensor's values <-> the bytes that cross the wire. One file per codec.

A codec's ``wire_id`` goes on the wire, so an id is never given to another codec. To add one,
write ``engines/codecs/<name>.py``, document its bytes there, and add a line to ``CODECS``.

What a decoder needs beyond dtype and shape (scales, sizes) is in the coded bytes themselves, so
that the two ends need not agree on anything else. The quality of a lossy picture is the sender's
business: ``jpeg:80`` is codec ``jpeg`` written at quality 80, and any ``jpeg`` reads it. So are
calibrated ranges: ``int8:mse`` is codec ``int8`` written by the range that calibration chose for
the tensor.

The two ends of a connection open codecs by ``encoders.Encoders`` and ``decoders.Decoders``: those
know the calibrated ranges, and keep the streams of codecs that refer to what was sent before.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache
from typing import Any, Dict, Tuple

import numpy as np

from engines.codecs.base import Codec
from engines.errors import CodecError
from engines.tensors import TensorSpec

__all__ = [
    "CALIBRATED",
    "CANDIDATES",
    "CODECS",
    "METHODS",
    "NEEDS",
    "STREAMS",
    "Codec",
    "codec_by_id",
    "codec_ids_here",
    "codec_names_here",
    "default_codec",
    "extra_of",
    "is_stream",
    "open_codec",
    "preload_codecs",
]

CODECS: Dict[int, Tuple[str, str]] = {
    0: ("identity", "engines.codecs.identity:IdentityCodec"),
    1: ("bitpack", "engines.codecs.bitpack:BitpackCodec"),
    2: ("fp16", "engines.codecs.fp16:Fp16Codec"),
    3: ("int8", "engines.codecs.int8:Int8Codec"),
    4: ("int8-channel", "engines.codecs.int8:Int8ChannelCodec"),
    5: ("lz4", "engines.codecs.shuffled:Lz4Codec"),
    6: ("zstd", "engines.codecs.shuffled:ZstdCodec"),
    7: ("int8-zstd", "engines.codecs.int8_zstd:Int8ZstdCodec"),
    8: ("webp-lossless", "engines.codecs.webp:WebpLosslessCodec"),
    9: ("jpeg", "engines.codecs.jpeg:JpegCodec"),
    10: ("webp", "engines.codecs.webp:WebpCodec"),
    11: ("runs", "engines.codecs.runs:RunsCodec"),
    12: ("bitpack-zstd", "engines.codecs.bitpack_zstd:BitpackZstdCodec"),
    13: ("video", "engines.codecs.video:VideoCodec"),
}
"""Wire id -> name and ``module:Class``; imported only when it is asked for."""

NEEDS: Dict[str, str] = {
    "lz4": "blosc2",
    "zstd": "blosc2",
    "int8-zstd": "blosc2",
    "bitpack-zstd": "blosc2",
    "webp-lossless": "PIL",
    "jpeg": "PIL",
    "webp": "PIL",
    "video": "av",
}
"""Codec -> the module that it cannot do without; see :func:`extra_of`."""

STREAMS = ("video",)
"""Codecs that refer to what was sent before, where they have a stream (``base.StreamCodec``)."""

_QUALITIES: Dict[str, Tuple[int, ...]] = {
    "jpeg": (75, 90, 95),
    "webp": (75, 90),
    "video": (60, 85),
}
"""Qualities that are measured, of the codecs that have one."""

CANDIDATES: Tuple[str, ...] = tuple(
    name if quality is None else f"{name}:{quality}"
    for name, _ in CODECS.values()
    for quality in _QUALITIES.get(name, (None,))
)
"""Codecs that are measured and may be chosen, by the name that :func:`open_codec` takes."""

METHODS: Tuple[str, ...] = ("minmax", "percentile", "mse")
"""How calibration chooses a range: nothing is clipped, 0.01% is, or what has the least squared
error."""

_BY_RANGE = ("int8", "int8-channel", "int8-zstd")

CALIBRATED: Tuple[str, ...] = tuple(f"{name}:{method}" for name in _BY_RANGE for method in METHODS)
"""What may be chosen beside those for a tensor that was calibrated."""


@lru_cache(maxsize=None)
def codec_by_id(wire_id: int) -> Codec:
    """Return the codec that ``wire_id`` names.

    Raises:
        CodecError: No codec has this id.
    """
    entry = CODECS.get(wire_id)
    if entry is None:
        raise CodecError(
            f"codec id {wire_id}: expected one of {sorted(CODECS)}; "
            "the peer runs another version of SplitRT"
        )
    codec: Codec = _factory(entry[1])(wire_id)
    return codec


@lru_cache(maxsize=256)
def open_codec(name: str) -> Codec:
    """Return the codec called ``name``, or ``name:quality`` where it has a quality.

    One of :data:`CALIBRATED` has no range yet, so that it encodes nothing.

    Raises:
        CodecError: No codec has this name, or not this quality.
    """
    base, colon, quality = name.partition(":")
    for wire_id, (known, where) in CODECS.items():
        if known != base:
            continue
        if not colon:
            return codec_by_id(wire_id)
        if base in _BY_RANGE:
            if quality not in METHODS:
                raise CodecError(f"codec {name!r}: expected one of {', '.join(METHODS)}")
            calibrated: Codec = _factory(where)(wire_id, quality)
            return calibrated
        if base not in _QUALITIES:
            raise CodecError(f"codec {name!r}: {base} has no quality")
        if not (quality.isascii() and quality.isdigit() and 1 <= int(quality) <= 100):
            raise CodecError(f"codec {name!r}: expected a quality from 1 to 100")
        codec: Codec = _factory(where)(wire_id, int(quality))
        return codec
    names = ", ".join(known for known, _ in CODECS.values())
    raise CodecError(f"codec {name!r}: expected one of {names}")


def codec_ids_here() -> Tuple[int, ...]:
    """Return the ids of the codecs whose libraries are installed here."""
    return tuple(
        wire_id
        for wire_id, (name, _) in CODECS.items()
        if name not in NEEDS or _installed(NEEDS[name])
    )


@lru_cache(maxsize=None)
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def codec_names_here() -> Tuple[str, ...]:
    """Return those of :data:`CANDIDATES` whose libraries are installed here."""
    here = {CODECS[wire_id][0] for wire_id in codec_ids_here()}
    return tuple(name for name in CANDIDATES if name.partition(":")[0] in here)


def preload_codecs() -> None:
    """Import what codecs need now: the first inference is not to wait for it."""
    array = np.zeros((2, 2, 3), np.uint8)
    for name in codec_names_here():
        codec, spec = open_codec(name), TensorSpec("", "uint8", array.shape)
        if codec.applies(spec):
            codec.encode(array, np.empty(codec.max_encoded_bytes(spec), np.uint8).data)


def is_stream(name: str) -> bool:
    """Whether a codec refers to what was sent before."""
    return name.partition(":")[0] in STREAMS


def extra_of(name: str) -> str:
    """Return the extra of ``splitrt`` that brings what a codec needs."""
    return "video" if NEEDS.get(name.partition(":")[0]) == "av" else "codecs"


def default_codec(spec: TensorSpec) -> Codec:
    """Return the lossless codec for tensors of which only the specification is known."""
    return open_codec("bitpack" if spec.dtype == "bool" else "identity")


def _factory(where: str) -> Any:
    module, _, cls = where.partition(":")
    return getattr(importlib.import_module(module), cls)
