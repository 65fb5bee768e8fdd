from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from engines.errors import DeadlineError, LinkError, LocalProtocolError, RemoteProtocolError
from runtime import messages
from runtime.messages import Channel
from runtime.protocol import Role, State
from runtime.transport import Deadline, Stream, connect, listen
from runtime.wire import Hello, Infer, Kind, Part, Welcome


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """Give an open connection's two ends: robot and server."""
    with listen("127.0.0.1", 0) as listening:
        stream = connect("127.0.0.1", listening.getsockname()[1], deadline=Deadline(10))
        accepted, _ = listening.accept()
    robot = Channel(stream, Role.ROBOT)
    server = Channel(Stream(accepted, "robot"), Role.SERVER)
    robot.send(Kind.HELLO, Hello("b", "s"))
    assert server.receive(deadline=Deadline(10)).meta == Hello("b", "s")
    server.send(Kind.WELCOME, Welcome("s"))
    assert robot.receive(deadline=Deadline(10)).meta == Welcome("s")
    yield robot, server
    robot.stream.close()
    server.stream.close()


Channels = tuple[Channel, Channel]


def test_a_message_arrives_with_its_size_told(channels: Channels) -> None:
    robot, server = channels
    before = robot.stream.bytes_written
    size = robot.send(
        Kind.INFER, Infer((Part(0, 3),)), request=9, cut=7, tensors=1, payload=[memoryview(b"abc")]
    )
    assert robot.stream.bytes_written - before == size
    header, meta = server.receive(deadline=Deadline(10))
    assert (header.kind, header.request, header.cut, header.payload_bytes) == (Kind.INFER, 9, 7, 3)
    assert meta == Infer((Part(0, 3),))
    payload = bytearray(3)
    server.stream.read_into(memoryview(payload), deadline=Deadline(10))
    assert payload == b"abc"


def test_messages_of_many_threads_are_never_mixed(channels: Channels) -> None:
    robot, server = channels

    def work(number: int) -> None:
        for _ in range(50):
            body = bytes([number]) * (number * 500)
            robot.send(Kind.PING, request=number, payload=[memoryview(body)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for _ in range(400):
        header, _ = server.receive(deadline=Deadline(30))
        payload = bytearray(header.payload_bytes)
        server.stream.read_into(memoryview(payload), deadline=Deadline(30))
        assert payload == bytes([header.request]) * (header.request * 500)
    for thread in threads:
        thread.join()


def test_a_message_that_is_not_allowed_is_not_written(channels: Channels) -> None:
    robot, _ = channels
    before = robot.stream.bytes_written
    with pytest.raises(LocalProtocolError):
        robot.send(Kind.WELCOME, Welcome("s"))
    assert robot.stream.bytes_written == before


def test_the_deadline_is_that_of_the_first_byte(channels: Channels) -> None:
    robot, _ = channels
    with pytest.raises(DeadlineError):
        robot.receive(deadline=Deadline(0.05))


@pytest.mark.parametrize("said", [b"S", b"SPRT\x01\x09" + bytes(20)])
def test_a_peer_that_stops_within_a_message_is_gone(
    channels: Channels, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(messages, "STALL_S", 0.1)
    robot, server = channels
    server.stream.write([said], deadline=Deadline(5))
    with pytest.raises(DeadlineError):
        robot.receive()


def test_a_message_out_of_turn_is_the_peers_fault(channels: Channels) -> None:
    robot, server = channels
    server.stream.write([b"SPRT\x01\x03" + bytes(14) + b"\0\0\1\0" + bytes(16)],
                        deadline=Deadline(5))  # fmt: skip
    with pytest.raises(RemoteProtocolError, match="the server sent INFER"):
        robot.receive(deadline=Deadline(5))


def test_waiting_for_ones_turn_ends_by_the_deadline_and_harms_nobody(channels: Channels) -> None:
    """A long message of one thread is not broken off by another that is in a hurry."""
    robot, server = channels
    with robot._write_lock, pytest.raises(DeadlineError, match="still being written"):
        robot.send(Kind.CANCEL, deadline=Deadline(0.05))
    robot.send(Kind.PING, request=5)
    assert server.receive(deadline=Deadline(5)).header.request == 5


def test_a_message_that_gets_stuck_breaks_the_connection_off(channels: Channels) -> None:
    robot, _server = channels
    body = memoryview(bytes(1 << 25))
    with pytest.raises(DeadlineError):
        robot.send(
            Kind.INFER, Infer((Part(0, 1 << 25),)), tensors=1, payload=[body],
            deadline=Deadline(0.2),
        )  # fmt: skip
    with pytest.raises(LinkError):
        robot.send(Kind.PING)


def test_a_probe_is_answered_whatever_its_size(channels: Channels) -> None:
    robot, server = channels
    for size in (0, 1, 65536):
        robot.send(Kind.PING, request=size, payload=[memoryview(bytes(size))])
        server.answer_ping(server.receive(deadline=Deadline(5)))
        header, _ = robot.receive(deadline=Deadline(5))
        assert (header.kind, header.request) == (Kind.PONG, size)


def test_goodbye_ends_it_on_both_sides(channels: Channels) -> None:
    robot, server = channels
    robot.send(Kind.GOODBYE)
    assert server.receive(deadline=Deadline(5)).header.kind is Kind.GOODBYE
    assert robot.state is server.state is State.CLOSED
    with pytest.raises(LocalProtocolError):
        server.send(Kind.PING)
