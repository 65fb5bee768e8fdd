"""The wire: a message of one activation against the plainest socket code, on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import numpy as np
from benches.row import Row, medians

from engines.tensors import TensorSpec
from runtime.messages import Channel
from runtime.payload import pack_tensors, read_tensors
from runtime.protocol import Role, State
from runtime.transport import Deadline, Stream
from runtime.wire import Infer, Kind

SPEC = TensorSpec("activation", "float32", (1, 256, 64, 64))
"""4 MiB: the size of an early activation."""


def run() -> list[Row]:
    """Time one 4 MiB request, received whole, three ways."""
    array = np.random.default_rng(0).standard_normal(SPEC.shape).astype(SPEC.dtype)
    ours, end_ours = _channel_pair(array)
    plain, end_plain = _plain_pair(array, _read_into)
    grown, end_grown = _plain_pair(array, _read_growing)
    ours_s, plain_s, grown_s = medians(ours, plain, grown, runs=60, warmup=5)
    for end in (end_ours, end_plain, end_grown):
        end()
    what = "one 4 MiB tensor, loopback"
    return [
        Row(
            "wire",
            what,
            ours_s * 1e3,
            "ms",
            f"bare sendall + recv_into {plain_s * 1e3:.2f} ms",
            ours_s / plain_s,
            "at most 1.25",
            ours_s / plain_s <= 1.25,
        ),
        Row(
            "wire",
            what,
            ours_s * 1e3,
            "ms",
            f"growing bytearray {grown_s * 1e3:.2f} ms",
            ours_s / grown_s,
            "below 1",
            ours_s < grown_s,
        ),
    ]


def _sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def _channel_pair(array: np.ndarray) -> tuple[Callable[[], None], Callable[[], None]]:
    near, far = _sockets()
    robot = Channel(Stream(near, "server"), Role.ROBOT)
    server = Channel(Stream(far, "robot"), Role.SERVER)
    for channel in (robot, server):
        channel._protocol.state = State.OPEN  # the handshake is not what is measured
    received = threading.Semaphore(0)

    def receive() -> None:
        while True:
            message = server.receive()
            if message.header.kind is Kind.GOODBYE:
                return
            assert isinstance(message.meta, Infer)
            deadline = Deadline(None)
            read_tensors(server.stream, [SPEC], message.meta.parts, deadline=deadline, stall_s=2)
            received.release()

    thread = threading.Thread(target=receive)
    thread.start()

    def once() -> None:
        parts, payload = pack_tensors([SPEC], {SPEC.name: array})
        robot.send(Kind.INFER, Infer(parts), request=1, tensors=1, payload=payload)
        received.acquire()

    def end() -> None:
        robot.send(Kind.GOODBYE)
        thread.join()
        robot.stream.close()
        server.stream.close()

    return once, end


def _plain_pair(
    array: np.ndarray, read: Callable[[socket.socket, int], bool]
) -> tuple[Callable[[], None], Callable[[], None]]:
    near, far = _sockets()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = threading.Semaphore(0)

    def receive() -> None:
        while read(far, array.nbytes):
            received.release()

    thread = threading.Thread(target=receive)
    thread.start()

    def once() -> None:
        near.sendall(array)
        received.acquire()

    def end() -> None:
        near.close()
        thread.join()
        far.close()

    return once, end


def _read_into(sock: socket.socket, size: int) -> bool:
    view = memoryview(np.empty(size, np.uint8))
    at = 0
    while at < size:
        count = sock.recv_into(view[at:])
        if not count:
            return False
        at += count
    return True


def _read_growing(sock: socket.socket, size: int) -> bool:
    buffer = bytearray()
    while len(buffer) < size:
        data = sock.recv(65536)
        if not data:
            return False
        buffer += data
    np.frombuffer(bytes(buffer[:size]), np.float32)
    del buffer[:size]
    return True
