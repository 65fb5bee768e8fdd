"""Messages over a stream: what the robot's link and the server's sessions share.

A ``Channel`` ties the pieces of one connection together: the protocol's state machine, the wire
format and the stream. Its reader is one thread; writers take turns under a lock, so a message
is never cut in two by another.
"""

from __future__ import annotations

import threading
from typing import List, NamedTuple, Optional, Sequence

import msgspec

from engines.errors import DeadlineError, LinkError
from runtime.protocol import Protocol, Role, State
from runtime.transport import Deadline, Stream
from runtime.wire import (
    HEADER_BYTES,
    MAX_PROBE_BYTES,
    Header,
    Kind,
    Nothing,
    decode_header,
    decode_meta,
    encode,
)

__all__ = ["STALL_S", "Channel", "Message"]

STALL_S = 2.0
"""Longest pause within a message, in seconds: a peer that stops in the middle is gone."""


class Message(NamedTuple):
    """A received header and its metadata; the payload, if any, is still to be read."""

    header: Header
    meta: msgspec.Struct


class Channel:
    """One connection, message by message."""

    def __init__(self, stream: Stream, role: Role) -> None:
        self.stream = stream
        self._protocol = Protocol(role)
        self._state_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._header = bytearray(HEADER_BYTES)
        self._discard = memoryview(bytearray(MAX_PROBE_BYTES))

    def __repr__(self) -> str:
        return f"<Channel {self._protocol!r} {self.stream!r}>"

    @property
    def state(self) -> State:
        """How far the connection has come."""
        return self._protocol.state

    def send(
        self,
        kind: Kind,
        meta: msgspec.Struct = Nothing(),
        *,
        request: int = 0,
        cut: int = 0,
        stripe: int = 0,
        stripes: int = 1,
        tensors: int = 0,
        payload: Sequence[memoryview] = (),
        deadline: Optional[Deadline] = None,
    ) -> int:
        """Write one message and return its size in bytes.

        Raises:
            LinkError: It could not be written whole. The connection is broken off, since the
                peer may have seen a part of it; unless its turn to be written never came.
        """
        size = sum(part.nbytes for part in payload)
        head = encode(
            kind,
            meta,
            request=request,
            cut=cut,
            stripe=stripe,
            stripes=stripes,
            tensors=tensors,
            payload_bytes=size,
        )
        deadline = deadline or Deadline(STALL_S)
        buffers: List["bytes | memoryview"] = [head, *payload]
        left = deadline.remaining_s()
        if not self._write_lock.acquire(timeout=-1 if left is None else left):
            # Nothing of this message was written: the one under way may go on.
            raise DeadlineError(
                f"writing to {self.stream.peer}: another message is still being written"
            )
        try:
            with self._state_lock:
                self._protocol.sent(kind)
            self.stream.write(buffers, deadline=deadline, stall_s=STALL_S)
        except LinkError:
            self.stream.abort()
            raise
        finally:
            self._write_lock.release()
        return len(head) + size

    def receive(self, *, deadline: Optional[Deadline] = None) -> Message:
        """Read the next header and its metadata. The caller must read the payload next.

        Args:
            deadline: When the message must begin; none to wait for as long as it takes.

        Raises:
            LinkError: The connection broke, or the peer broke the protocol.
        """
        view = memoryview(self._header)
        self.stream.read_into(view[:1], deadline=deadline or Deadline(None))
        within = Deadline(STALL_S)
        self.stream.read_into(view[1:], deadline=within)
        header = decode_header(self._header)
        with self._state_lock:
            self._protocol.received(header.kind)
        meta = memoryview(bytearray(header.meta_bytes))
        self.stream.read_into(meta, deadline=within)
        return Message(header, decode_meta(header, meta))

    def answer_ping(self, message: Message) -> None:
        """Read and drop the probe's payload, then answer it."""
        payload = self._discard[: message.header.payload_bytes]
        self.stream.read_into(payload, deadline=Deadline(None), stall_s=STALL_S)
        self.send(Kind.PONG, request=message.header.request)
