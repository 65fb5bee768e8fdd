"""Who writes: the codecs of one connection, with calibrated ranges and streams.

What a stream writes must arrive, in that order and with nothing left out: :meth:`Encoders.message`
holds whoever codes until it is written, and begins all streams anew where it is not certain that
the peer has the message before.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import MappingProxyType
from typing import Dict, Iterator, Mapping, NamedTuple, Optional, Tuple, cast

from engines.codecs import CALIBRATED, codec_names_here, is_stream, open_codec
from engines.codecs.base import Codec, StreamCodec
from engines.codecs.int8 import Calibrated
from engines.errors import DeadlineError
from engines.tensors import Array

__all__ = ["NO_RANGES", "Encoders", "ValueRange"]


class ValueRange(NamedTuple):
    """The values of a tensor that codes stand for; others are clipped.

    Attributes:
        least: float64, one or one a channel.
        most: The same; none is below ``least``.
    """

    least: Array
    most: Array


NO_RANGES: Mapping[Tuple[str, str], ValueRange] = MappingProxyType({})
"""Nothing was calibrated."""


class Encoders:
    """Opens codecs for writing what goes over one connection. Safe across threads.

    Args:
        ranges: By tensor and by codec, of ``engines.codecs.CALIBRATED``.
    """

    def __init__(self, ranges: Mapping[Tuple[str, str], ValueRange] = NO_RANGES) -> None:
        self._ranges = ranges
        self._bound: Dict[Tuple[str, str], Codec] = {}
        self._order = threading.Lock()
        self._coding: Optional[int] = None
        self._streams: Dict[str, Tuple[str, Codec]] = {}
        self._restarts = self._restarted = 0

    def __repr__(self) -> str:
        return f"<Encoders {len(self._ranges)} ranges, {len(self._streams)} streams>"

    def names(self, tensor: str) -> Tuple[str, ...]:
        """Return the codecs that may be tried for a tensor here, identity among them."""
        here = codec_names_here()
        more = (name for name in CALIBRATED if (tensor, name) in self._ranges)
        return (*here, *(name for name in more if name.partition(":")[0] in here))

    def open(self, name: str, tensor: str) -> Optional[Codec]:
        """Return a codec for a tensor; none where it wants a range that is not known.

        Within :meth:`message` one that has streams is the tensor's stream; elsewhere it refers to
        nothing that was sent before.

        Raises:
            CodecError: No codec has this name, or not this quality.
        """
        codec = open_codec(name)
        if name in CALIBRATED:
            return self._calibrated(name, tensor, codec)
        if not is_stream(name) or self._coding != threading.get_ident():
            return codec
        known = self._streams.get(tensor)
        if known is None or known[0] != name:
            known = self._streams[tensor] = name, cast(StreamCodec, codec).stream()
        return known[1]

    @contextmanager
    def message(
        self, codecs: Mapping[str, str], *, timeout_s: Optional[float] = None
    ) -> Iterator[None]:
        """Code a message and write it, within the context.

        With a codec that has streams among its codecs, one message at a time. If the context ends
        with an exception the message is taken not to have been sent.

        Args:
            codecs: Names of codecs by tensor.
            timeout_s: Longest wait for the message before; none for as long as it takes.

        Raises:
            DeadlineError: That was too short; nothing was coded.
        """
        streams = {tensor: name for tensor, name in codecs.items() if is_stream(name)}
        if not streams:
            self.restart()
            yield
            return
        if not self._order.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0)):
            raise DeadlineError("another message is still being written, and this one's coding "
                                "depends on it")  # fmt: skip
        try:
            asked = self._restarts
            if asked != self._restarted:
                self._streams.clear()
            self._restarted = asked
            for tensor in [t for t, (name, _) in self._streams.items() if streams.get(t) != name]:
                del self._streams[tensor]
            self._coding = threading.get_ident()
            yield
        except BaseException:
            self._streams.clear()
            raise
        finally:
            self._coding = None
            self._order.release()

    def restart(self) -> None:
        """Begin all streams anew with the next message: the peer may lack the one before."""
        self._restarts += 1

    def _calibrated(self, name: str, tensor: str, codec: Codec) -> Optional[Codec]:
        key = (tensor, name)
        found = self._bound.get(key)
        if found is None and key in self._ranges:
            assert isinstance(codec, Calibrated)
            found = self._bound[key] = codec.within(*self._ranges[key])
        return found
