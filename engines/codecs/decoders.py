"""Who reads: the codecs of one connection, with what their streams have come to."""

from __future__ import annotations

from typing import Dict, Tuple, cast

from engines.codecs import codec_by_id, is_stream
from engines.codecs.base import Codec, StreamCodec

__all__ = ["Decoders"]


class Decoders:
    """Opens codecs for reading what comes over one connection, in its order. For one thread.

    Keeps a stream a tensor at most, so that a peer cannot make it keep more.
    """

    def __init__(self) -> None:
        self._streams: Dict[str, Tuple[int, Codec]] = {}

    def __repr__(self) -> str:
        return f"<Decoders {len(self._streams)} streams>"

    def open(self, wire_id: int, tensor: str) -> Codec:
        """Return the codec of an id for a tensor.

        Raises:
            CodecError: No codec has this id.
        """
        codec = codec_by_id(wire_id)
        if not is_stream(codec.name):
            return codec
        known = self._streams.get(tensor)
        if known is None or known[0] != wire_id:
            known = self._streams[tensor] = wire_id, cast(StreamCodec, codec).stream()
        return known[1]
