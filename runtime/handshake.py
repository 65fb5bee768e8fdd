"""The robot's side of the handshake: HELLO, and what comes back instead of WELCOME."""

from __future__ import annotations

from typing import Union

from engines.errors import ConnectError, DeadlineError, LinkError, RemoteProtocolError
from runtime.messages import Channel
from runtime.transport import Deadline
from runtime.wire import MAGIC, Error, Hello, Kind, Welcome

__all__ = ["HANDSHAKE_S", "shake_hands"]

HANDSHAKE_S = 2.0
"""Time for connecting and for the server's WELCOME, each."""

_PROVOKED_S = 0.3
"""Time for a server of another protocol to complain."""


def shake_hands(channel: Channel, hello: Hello) -> "Union[Welcome, LinkError]":
    """Greet a server.

    Returns:
        Its WELCOME; or the error, where trying again is of no use: it is not a SplitRT server, or
        it refuses this robot.

    Raises:
        LinkError: It may yet come: the connection broke, or nothing was said in time.
    """
    peer = channel.stream.peer
    deadline = Deadline(HANDSHAKE_S)
    channel.send(Kind.HELLO, hello, deadline=deadline)
    try:
        message = channel.receive(deadline=deadline)
    except DeadlineError:
        said = _provoke(channel)
        if said:
            return RemoteProtocolError(f"{peer}: not a SplitRT server: it answered {said!r}")
        raise ConnectError(
            f"{peer}: accepted the connection but sent no WELCOME in {HANDSHAKE_S:.0f} s; "
            "is it a SplitRT server, and alive?"
        ) from None
    except RemoteProtocolError as exc:
        return RemoteProtocolError(f"{peer}: not a SplitRT server: {exc}")
    if isinstance(message.meta, Error):
        return ConnectError(f"{peer}: refused: {message.meta.message}")
    assert isinstance(message.meta, Welcome)  # the state machine lets nothing else through
    return message.meta


def _provoke(channel: Channel) -> bytes:
    """Return what a silent peer says to an empty line; nothing if it is a SplitRT server.

    Servers of protocols by lines, HTTP first of all, wait for the end of one and then complain.
    """
    stream = channel.stream
    if stream.bytes_read:
        return b""
    said = bytearray(len(MAGIC))
    try:
        stream.write([b"\r\n\r\n"], deadline=Deadline(_PROVOKED_S))
        stream.read_into(memoryview(said), deadline=Deadline(_PROVOKED_S))
    except LinkError:
        said = said[: stream.bytes_read]
    return b"" if said == MAGIC else bytes(said)
