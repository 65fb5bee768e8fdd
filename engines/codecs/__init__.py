"""Codecs: a tensor's values <-> the bytes that cross the wire. One file per codec.

A codec's ``wire_id`` goes on the wire, so an id is never given to another codec. To add one,
write ``engines/codecs/<name>.py``, document its bytes there, and add a line to ``CODECS``.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, Dict, Tuple

from engines.codecs.base import Codec
from engines.errors import CodecError
from engines.tensors import TensorSpec

__all__ = ["CODECS", "Codec", "codec_by_id", "default_codec", "open_codec"]

CODECS: Dict[int, Tuple[str, str]] = {
    0: ("identity", "engines.codecs.identity:IdentityCodec"),
    1: ("bitpack", "engines.codecs.bitpack:BitpackCodec"),
}
"""Wire id -> name and ``module:Class``; imported only when it is asked for."""


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
    module, _, cls = entry[1].partition(":")
    factory: Any = getattr(importlib.import_module(module), cls)
    codec: Codec = factory(wire_id)
    return codec


def open_codec(name: str) -> Codec:
    """Return the codec called ``name``.

    Raises:
        CodecError: No codec has this name.
    """
    for wire_id, (known, _) in CODECS.items():
        if known == name:
            return codec_by_id(wire_id)
    names = ", ".join(known for known, _ in CODECS.values())
    raise CodecError(f"codec {name!r}: expected one of {names}")


def default_codec(spec: TensorSpec) -> Codec:
    """Return the lossless codec for tensors of which only the specification is known."""
    return open_codec("bitpack" if spec.dtype == "bool" else "identity")
