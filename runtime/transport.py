"""The I/O edge: a TCP stream with deadlines, and nothing of what the bytes mean.

Every operation ends by its deadline or fails with a :class:`~engines.errors.LinkError`; no
``OSError`` escapes. Payloads are read by ``recv_into`` straight into the caller's buffer and
written by ``sendmsg`` from the caller's buffers, so tensors are not copied here.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import contextmanager, suppress
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

from engines.errors import ConnectError, DeadlineError, LinkError, SplitError
from runtime.tcp_info import read_tcp_info

__all__ = ["Counters", "Deadline", "Stream", "connect", "listen", "parse_address"]

_KEEPALIVE_IDLE_S = 15
"""A peer that vanished without a word is noticed after this and three more probes of 5 s."""

_MAX_BUFFERS = 512
"""Buffers in one ``sendmsg``; Linux takes 1024 (IOV_MAX)."""

_BATCH_BYTES = 32768
"""A reader is woken for so much, not for every segment: what computes beside it keeps its core.
Twice as much fits a receive buffer of the usual size, so the kernel changes nothing for it."""

_SMALL_BYTES = 4096
"""So little is read as it comes: the last words of a peer that goes away must not wait."""

_BATCH_S = 0.02
"""Longest that less than that waits to be read."""

_BACKLOG = 128
"""Connections that wait to be accepted: beyond it a robot's attempt is lost for a second."""

_SIOCOUTQ = 0x5411
"""Linux ioctl: bytes in the send queue that the peer has not acknowledged (tcp(7))."""

_SIOCINQ = 0x541B
"""Linux ioctl: bytes in the receive queue that have not been read (tcp(7))."""


class Deadline:
    """A point in time that several steps share.

    Args:
        timeout_s: Seconds from now; none for no deadline.
    """

    def __init__(self, timeout_s: Optional[float]) -> None:
        self._at_s = None if timeout_s is None else time.monotonic() + timeout_s

    def remaining_s(self) -> Optional[float]:
        """Seconds left, at least 0; none for no deadline."""
        return None if self._at_s is None else max(0.0, self._at_s - time.monotonic())


class Counters(NamedTuple):
    """What the kernel says of a connection at one moment.

    Attributes:
        acked_bytes: Bytes that the peer's kernel has acknowledged so far.
        received_bytes: Bytes received so far, read or not.
        outstanding_bytes: Bytes written that were not acknowledged, sent or not.
        blocked: Whether some are outstanding and none in flight: the peer takes no more.
        delivery_bps: The kernel's measure of goodput; see ``runtime.tcp_info``.
    """

    acked_bytes: int
    received_bytes: int
    outstanding_bytes: int
    blocked: bool
    delivery_bps: Optional[float]


class Stream:
    """A connected TCP socket. One thread may read while another writes.

    The socket never blocks; each operation polls for as long as its own deadline allows. (A
    socket timeout would be shared by the two threads.)

    Args:
        sock: Connected; owned by the stream from now on.
        peer: Name of the other end, for messages.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self._sock = sock
        self.bytes_read = 0
        self.bytes_written = 0
        self._batch = 1
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("KEEPIDLE", _KEEPALIVE_IDLE_S), ("KEEPINTVL", 5), ("KEEPCNT", 3)):
            option = getattr(socket, f"TCP_{name}", None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def __repr__(self) -> str:
        return f"<Stream {self.peer} read {self.bytes_read} written {self.bytes_written}>"

    def read_into(
        self, buffer: memoryview, *, deadline: Deadline, stall_s: Optional[float] = None
    ) -> None:
        """Fill ``buffer``.

        Args:
            buffer: Writable bytes.
            deadline: When all of them must be there.
            stall_s: Longest wait for the next byte.

        Raises:
            DeadlineError: The time is over. Part of the buffer may have been filled.
            LinkError: The connection is broken, or the peer closed it.
        """
        at, stalled = 0, Deadline(stall_s)
        with self._mapped("reading from"):
            while at < len(buffer):
                try:
                    count = self._sock.recv_into(buffer[at:])
                except BlockingIOError:
                    self._await_bytes(len(buffer) - at, deadline, stalled)
                    continue
                if not count:
                    raise LinkError(f"{self.peer} closed the connection")
                at += count
                self.bytes_read += count
                stalled = Deadline(stall_s)

    def write(
        self,
        buffers: "Sequence[bytes | memoryview]",
        *,
        deadline: Deadline,
        stall_s: Optional[float] = None,
    ) -> None:
        """Hand every byte of ``buffers`` to the kernel. That says nothing of their delivery.

        Raises:
            DeadlineError: The time is over. Part of the bytes may have been sent, so the
                connection must be closed.
            LinkError: The connection is broken.
        """
        left: List[memoryview] = [memoryview(b).cast("B") for b in buffers if len(b)]
        with self._mapped("writing to"):
            while left:
                try:
                    count = self._sock.sendmsg(left[:_MAX_BUFFERS])
                except BlockingIOError:
                    self._wait(select.POLLOUT, deadline, Deadline(stall_s))
                    continue
                self.bytes_written += count
                while left and count >= len(left[0]):
                    count -= len(left.pop(0))
                if count:
                    left[0] = left[0][count:]

    def unacknowledged_bytes(self) -> Optional[int]:
        """Bytes written that the peer's kernel has not acknowledged; none where unknown."""
        return self._queued(_SIOCOUTQ)

    def unread_bytes(self) -> Optional[int]:
        """Bytes that have arrived and were not read yet; none where unknown."""
        return self._queued(_SIOCINQ)

    def counters(self) -> Optional[Counters]:
        """Return the kernel's counters; none where it keeps none, or the socket is closed."""
        outstanding = self.unacknowledged_bytes()
        info = None if outstanding is None else read_tcp_info(self._sock)
        if outstanding is None or info is None:
            return None
        if info.bytes_acked is None or info.bytes_received is None:
            return None
        return Counters(
            acked_bytes=info.bytes_acked,
            received_bytes=info.bytes_received,
            outstanding_bytes=outstanding,
            blocked=bool(info.not_sent_bytes and outstanding and not info.unacked),
            delivery_bps=info.delivery_bps,
        )

    def abort(self) -> None:
        """Break the connection from any thread, waking whoever reads or writes."""
        with suppress(OSError):  # not connected any more, which is what is wanted
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break the connection and free the socket; for the thread that reads."""
        self.abort()
        self._sock.close()

    def _queued(self, request: int) -> Optional[int]:
        """Ask the kernel how long a queue is."""
        try:
            import fcntl  # noqa: PLC0415 (Unix only)

            packed = fcntl.ioctl(self._sock.fileno(), request, b"\0\0\0\0")
        except (ImportError, OSError, ValueError):
            return None
        return int(struct.unpack("i", packed)[0])

    def _await_bytes(self, wanted: int, deadline: Deadline, stalled: Deadline) -> None:
        """Wait until a batch of the wanted bytes is there, or some of them for a while."""
        batch = min(wanted, _BATCH_BYTES) if wanted > _SMALL_BYTES else 1
        if batch != self._batch and hasattr(socket, "SO_RCVLOWAT"):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, batch)
            self._batch = batch
        self._wait(select.POLLIN, deadline, stalled, None if batch == 1 else _BATCH_S)

    def _wait(
        self, event: int, deadline: Deadline, stalled: Deadline, most_s: Optional[float] = None
    ) -> None:
        """Wait for an event, or ``most_s``; ends with a timeout where a deadline comes first."""
        limits = [limit.remaining_s() for limit in (deadline, stalled)]
        left = min((limit for limit in limits if limit is not None), default=None)
        last = most_s is None or (left is not None and left <= most_s)
        wait_s = left if last else most_s
        poll = select.poll()
        poll.register(self._sock.fileno(), event)
        if not poll.poll(None if wait_s is None else wait_s * 1e3) and last:
            raise socket.timeout()

    @contextmanager
    def _mapped(self, doing: str) -> Iterator[None]:
        try:
            yield
        except socket.timeout:
            raise DeadlineError(f"{doing} {self.peer}: no progress in the time given") from None
        except OSError as exc:
            raise LinkError(f"{doing} {self.peer}: {exc.strerror or exc}") from exc
        except ValueError as exc:  # the socket was closed
            raise LinkError(f"{doing} {self.peer}: the connection is closed") from exc


def parse_address(text: str) -> Tuple[str, int]:
    """Read ``HOST:PORT`` (``[HOST]:PORT`` for IPv6).

    Raises:
        SplitError: Not such an address.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not (colon and host and 0 <= number <= 65535):
        raise SplitError(f"address {text!r}: expected HOST:PORT with a port from 0 to 65535")
    return host, number


def connect(host: str, port: int, *, deadline: Deadline) -> Stream:
    """Connect to a server.

    Raises:
        ConnectError: No connection by the deadline; the message has the system's reason.
    """
    peer = f"{host}:{port}"
    try:
        sock = socket.create_connection((host, port), timeout=deadline.remaining_s())
    except socket.timeout:
        raise ConnectError(
            f"{peer}: no answer; is the server on, and the address right?"
        ) from None
    except OSError as exc:
        raise ConnectError(
            f"{peer}: {exc.strerror or exc}; start it with `runtime serve BUNDLE --listen {peer}`"
        ) from exc
    except UnicodeError as exc:  # what Python says of a host such as "a..b"
        raise ConnectError(f"{peer}: not the name of a host") from exc
    try:
        return Stream(sock, peer)
    except OSError as exc:
        sock.close()
        raise ConnectError(f"{peer}: {exc.strerror or exc}") from exc


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        ConnectError: The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")
    except UnicodeError as exc:
        raise ConnectError(f"{host}:{port}: not the name of a host") from exc
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        raise ConnectError(
            f"{host}:{port}: cannot listen: {exc.strerror or exc}; "
            "choose another port, or end what uses it"
        ) from exc
    return sock
