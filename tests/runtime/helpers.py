"""Helpers of the runtime's tests: waiting, counting what is left behind, peers that misbehave."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from engines.bundle import Bundle
from engines.manifest import Cut, Manifest
from runtime import Result, Server
from runtime.payload import pack_tensors
from runtime.wire import (
    HEADER_BYTES,
    Header,
    Hello,
    Infer,
    Kind,
    Nothing,
    Table,
    Welcome,
    decode_header,
    decode_meta,
    encode,
)

PATIENCE_S = 30.0
"""Far longer than anything here takes: a test that reaches it has found something that hangs."""


def ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("splitrt-")]


def sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return count


def eventually(
    condition: Callable[[], object], what: str, *, within_s: float = PATIENCE_S
) -> None:
    """Wait until ``condition()`` holds."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(0.01)


def address(server: Server) -> str:
    return "{}:{}".format(*server.address)


def assert_right(result: Result, expected: dict[str, np.ndarray]) -> None:
    assert set(result.outputs) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(result.outputs[name], array, atol=1e-5)


class Message(NamedTuple):
    """A whole message as a peer sees it."""

    header: Header
    meta: Any
    payload: bytes


class Peer:
    """One end of a connection, with no rules of its own: it says what the test makes it say."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self.sock = sock

    @classmethod
    def of(cls, server: Server) -> Peer:
        return cls(socket.create_connection(server.address, timeout=PATIENCE_S))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send(self, kind: Kind, meta: Any = Nothing(), payload: bytes = b"", **fields: int) -> None:
        self.say(encode(kind, meta, payload_bytes=len(payload), **fields) + payload)

    def greet(self, bundle: Bundle) -> Message:
        self.send(Kind.HELLO, Hello(bundle.digest, "test"))
        return self.hear()

    def infer(
        self, request: int, cut: Cut, manifest: Manifest, tensors: dict[str, np.ndarray]
    ) -> None:
        parts, buffers = pack_tensors(manifest.specs(cut.tensors), tensors)
        fields = {"request": request, "cut": int(cut.id, 16), "tensors": len(parts)}
        self.send(Kind.INFER, Infer(parts), b"".join(buffers), **fields)

    def hear(self) -> Message:
        header = decode_header(self._exactly(HEADER_BYTES))
        meta = decode_meta(header, self._exactly(header.meta_bytes))
        return Message(header, meta, self._exactly(header.payload_bytes))

    def hangs_up(self) -> bool:
        """Read whatever comes until the other end closes; false if it does not."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError(f"closed after {len(data)} of {size} bytes")
            data += more
        return data


class FakeServer:
    """Listens, and treats each connection as ``handle`` says, in a thread of its own."""

    def __init__(self, handle: Callable[[Peer], object], port: int = 0) -> None:
        self._handle = handle
        self._listening = socket.create_server(("127.0.0.1", port))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections = 0
        self._peers: list[Peer] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listening.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(PATIENCE_S)
        for peer in self._peers:
            peer.sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(Peer(sock))
            thread = threading.Thread(target=self._treat, args=(self._peers[-1],))
            self._threads.append(thread)
            thread.start()

    def _treat(self, peer: Peer) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._handle(peer)
        with contextlib.suppress(OSError):
            peer.sock.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Stands between a robot and a server, and is as slow as it is told to be.

    Attributes:
        bps: Bits per second towards the server; none for no limit.
        stalled: Set while nothing at all passes towards the server.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self.bps: float | None = None
        self.stalled = threading.Event()
        self._closing = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for sock in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for sock in (self._listening, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                robot, _ = self._listening.accept()
                server = socket.create_connection(self._server, timeout=PATIENCE_S)
            except OSError:
                return
            self._sockets += [robot, server]
            for pair in ((robot, server, True), (server, robot, False)):
                thread = threading.Thread(target=self._pump, args=pair)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                while up and self.stalled.is_set() and not self._closing.is_set():
                    time.sleep(0.01)
                data = source.recv(8192)
                if not data:
                    break
                sink.sendall(data)
                if up and self.bps is not None:
                    time.sleep(len(data) * 8 / self.bps)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def polite_until(
    on_infer: Callable[[Peer, Message], None], *, table: Table | None = None
) -> Callable[[Peer], None]:
    """Greet and answer probes as a server does; treat each INFER as ``on_infer`` says."""

    def handle(peer: Peer) -> None:
        assert isinstance(peer.hear().meta, Hello)
        peer.send(Kind.WELCOME, Welcome("fake", table, 4))
        while True:
            message = peer.hear()
            if message.header.kind is Kind.PING:
                peer.send(Kind.PONG, request=message.header.request)
            elif message.header.kind is Kind.INFER:
                on_infer(peer, message)
            elif message.header.kind is Kind.GOODBYE:
                return

    return handle
