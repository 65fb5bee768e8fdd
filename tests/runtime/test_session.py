"""Clients that misbehave, and a robot beside them that must not notice."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from engines.bundle import Bundle
from engines.program import Program
from runtime import Robot, Server, messages, session
from runtime import server as server_module
from runtime.wire import Error, Hello, Infer, Kind, Part, Result, Welcome
from tests.runtime.helpers import (
    PATIENCE_S,
    Message,
    Peer,
    address,
    assert_right,
    eventually,
    ours,
)

Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server lose patience with a bad client in tenths of seconds."""
    monkeypatch.setattr(session, "HANDSHAKE_S", 0.4)
    for module in (session, messages):
        monkeypatch.setattr(module, "STALL_S", 0.4)


class GatedProgram:
    """The toy program, which computes only when it is let."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.gate = threading.Event()
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def run(self, *args: Any) -> Any:
        assert self.gate.wait(PATIENCE_S)
        self.runs += 1
        return self._program.run(*args)


@pytest.fixture
def gated(toy: Bundle, program: Program) -> Iterator[tuple[Server, GatedProgram]]:
    wrapped = GatedProgram(program)
    wrapped.gate.set()
    with Server([wrapped]) as server:  # type: ignore[list-item]
        wrapped.gate.clear()
        yield server, wrapped
        wrapped.gate.set()


def _frontier(program: Program, inputs: Tensors, index: int) -> Tensors:
    env = program.run(inputs, 0, index)
    return {name: env[name] for name in program.bundle.manifest.cuts[index].tensors}


def _infer_bytes(payload: int, parts: list[list[int]], cut: int = 0, tensors: int = 1) -> bytes:
    """Write an INFER that ``encode`` would refuse to write."""
    meta = msgspec.msgpack.encode({"parts": parts})
    fixed = (b"SPRT", 1, 3, 0, 1, cut, 0, 1, tensors, 0, len(meta), payload)
    return struct.pack("<4sBBHQIHHHHIQ", *fixed) + meta


# What a hostile client does after the connection is there: (peer, bundle) -> nothing.
def _after_hello(act: Callable[[Peer, Bundle], object]) -> Callable[[Peer, Bundle], object]:
    def greeted(peer: Peer, bundle: Bundle) -> object:
        assert isinstance(peer.greet(bundle).meta, Welcome)
        return act(peer, bundle)

    return greeted


def _cut_number(bundle: Bundle, index: int) -> int:
    return int(bundle.manifest.cuts[index].id, 16)


HOSTILE: dict[str, Callable[[Peer, Bundle], object]] = {
    "says nothing": lambda p, b: None,
    "random bytes": lambda p, b: p.say(random.Random(1).randbytes(5000)),
    "http": lambda p, b: p.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3),
    "half a header": lambda p, b: p.say(b"SPRT\x01\x01\0\0\0\0"),
    "half a hello": lambda p, b: p.say(
        b"SPRT\x01\x01" + bytes(14) + b"\0\0\1\0" + bytes(4) + b"\xff\0\0\0" + bytes(8) + b"\x83"
    ),
    "a huge hello": lambda p, b: p.say(
        b"SPRT\x01\x01" + bytes(14) + b"\0\0\1\0" + bytes(4) + b"\xff" * 4 + bytes(8)
    ),
    "a deep hello": lambda p, b: p.say(
        b"SPRT\x01\x01" + bytes(14) + b"\0\0\1\0" + bytes(4) + (200_003).to_bytes(4, "little")
        + bytes(8) + b"\x81\xa1x" + b"\x91" * 200_000
    ),
    "a hello of another bundle": lambda p, b: p.send(Kind.HELLO, Hello("f" * 64, "\n\x1b[31m")),
    "a request before hello": lambda p, b: p.say(_infer_bytes(0, [], tensors=0)),
    "hello twice": _after_hello(lambda p, b: p.send(Kind.HELLO, Hello(b.digest, "again"))),
    "a result": _after_hello(lambda p, b: p.send(Kind.RESULT, Result((), 0, 0, 0))),
    "an unknown cut": _after_hello(lambda p, b: p.say(_infer_bytes(4, [[0, 4]], cut=1))),
    "the last cut": _after_hello(
        lambda p, b: p.say(_infer_bytes(4, [[0, 4]], cut=_cut_number(b, 7)))
    ),
    "4 GiB declared": _after_hello(
        lambda p, b: p.say(_infer_bytes(2**32, [[0, 2**32]], cut=_cut_number(b, 0)))
    ),
    "16 EiB declared": _after_hello(
        lambda p, b: p.say(_infer_bytes(2**64 - 1, [[0, 2**64 - 1]], cut=_cut_number(b, 0)))
    ),
    "a thousand tensors": _after_hello(
        lambda p, b: p.say(
            _infer_bytes(3072, [[0, 3]] * 1024, cut=_cut_number(b, 0), tensors=1024)
        )
    ),
    "parts that do not add up": _after_hello(
        lambda p, b: p.say(_infer_bytes(10, [[0, 3072]], cut=_cut_number(b, 0)))
    ),
    "an unknown codec": _after_hello(
        lambda p, b: p.say(_infer_bytes(3072, [[77, 3072]], cut=_cut_number(b, 0)))
    ),
    "a payload that stops": _after_hello(
        lambda p, b: p.say(_infer_bytes(3072, [[0, 3072]], cut=_cut_number(b, 0)) + bytes(100))
    ),
    "a header that stops": _after_hello(lambda p, b: p.say(b"SPRT\x01\x03")),
    "a ping that stops": _after_hello(
        lambda p, b: p.say(
            b"SPRT\x01\x06" + bytes(14) + b"\0\0\1\0" + bytes(8) + b"\0\x80" + bytes(6) + bytes(99)
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("act", HOSTILE)
def test_a_bad_client_is_thrown_out_and_a_good_one_served_throughout(
    toy: Bundle, server: Server, inputs: Tensors, expected: Tensors, act: str
) -> None:
    cut = toy.manifest.cuts[2].id
    with Robot(toy, server=address(server), cut=cut, threads=1) as robot:
        robot.infer(inputs)
        tracemalloc.start()
        try:
            with Peer.of(server) as bad:
                with contextlib.suppress(OSError):
                    HOSTILE[act](bad, toy)
                for _ in range(5):
                    result = robot.infer(inputs)
                    assert_right(result, expected)
                    assert result.answered_by == "remote", result.reason
                assert bad.hangs_up(), "the server is rid of it without its help"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 << 20, "nothing of what it declared was allocated"
        eventually(lambda: server.clients == 1, "one client")
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "remote"


@pytest.mark.parametrize(
    ("act", "code", "says"),
    [
        ("http", "protocol", "is the other end SplitRT"),
        ("a huge hello", "protocol", "bytes of metadata, at most 262144"),
        ("a deep hello", "protocol", "malformed metadata"),
        ("a hello of another bundle", "bundle", "give both ends the same bundle"),
        ("hello twice", "protocol", "sent HELLO when the connection was open"),
        ("an unknown cut", "protocol", "no cut 00000001"),
        ("the last cut", "protocol", "no cut"),
        ("4 GiB declared", "protocol", "at most 3072 bytes as identity, given 4294967296"),
        ("a thousand tensors", "protocol", "expected 1 tensors, given 1024"),
        ("an unknown codec", "protocol", "codec id 77"),
    ],
)
def test_it_is_told_why(toy: Bundle, server: Server, act: str, code: str, says: str) -> None:
    with Peer.of(server) as bad:
        HOSTILE[act](bad, toy)
        try:
            message = bad.hear()
        except ConnectionResetError:
            pytest.skip("the reset that follows unread bytes was quicker than the reason")
    assert message.header.kind is Kind.ERROR
    assert isinstance(message.meta, Error)
    assert message.header.request == 0
    assert message.meta.code == code
    assert says in message.meta.message


def test_slow_loris_holds_up_nobody(
    toy: Bundle, server: Server, inputs: Tensors, expected: Tensors
) -> None:
    over = threading.Event()

    def drip(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            for byte in b"SPRT\x01\x01" + bytes(34):
                peer.say(bytes([byte]))
                if over.wait(0.1):
                    return

    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer.of(server)) for _ in range(10)]
        threads = [threading.Thread(target=drip, args=(peer,)) for peer in peers]
        for thread in threads:
            thread.start()
        with Robot(toy, server=address(server), cut="offload", threads=1) as robot:
            for _ in range(20):
                result = robot.infer(inputs)
                assert_right(result, expected)
                assert result.answered_by == "remote"
            eventually(lambda: server.clients == 1, "the end of the slow ones")
        over.set()
        for thread in threads:
            thread.join()


def test_connecting_and_leaving_a_hundred_times_leaves_no_thread(
    toy: Bundle, server: Server, inputs: Tensors, expected: Tensors
) -> None:
    before = len(ours())
    for number in range(100):
        with Peer.of(server) as peer:
            if number % 4 == 1:
                peer.say(b"SPRT")
            elif number % 4 == 2:
                peer.send(Kind.HELLO, Hello(toy.digest, "test"))
            elif number % 4 == 3:
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: server.clients == 0, "no client")
    eventually(lambda: len(ours()) == before, "no thread more than before")
    with Robot(toy, server=address(server), cut="offload", threads=1) as robot:
        result = robot.infer(inputs)
    assert_right(result, expected)
    assert result.answered_by == "remote"


def test_a_client_that_never_reads_its_answers_is_thrown_out(
    toy: Bundle, program: Program, inputs: Tensors, expected: Tensors
) -> None:
    with Server([program]) as server:
        server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        bad = socket.socket()
        bad.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        bad.connect(server.address)
        tensors = _frontier(program, inputs, 6)
        with (
            Peer(bad) as peer,
            Robot(toy, server=address(server), cut="offload", threads=1) as robot,
        ):
            peer.greet(toy)
            # The reset may never reach a client whose window is shut: it gives up by itself.
            peer.sock.settimeout(2.0)
            number = 0
            with contextlib.suppress(OSError):
                while number < 1_000_000:
                    number += 1
                    peer.infer(number, toy.manifest.cuts[6], toy.manifest, tensors)
                    if number % 200 == 0:
                        result = robot.infer(inputs)
                        assert_right(result, expected)
                        assert result.answered_by == "remote", result.reason
            eventually(lambda: server.clients == 1, "the end of the one that never reads")


class TestRequests:
    def test_several_under_way_are_answered_in_order_each_with_its_own(
        self, toy: Bundle, server: Server, program: Program
    ) -> None:
        from tests.toy import toy_outputs

        draws = [
            {"x": np.random.default_rng(seed).standard_normal((1, 3, 16, 16)).astype(np.float32)}
            for seed in range(4)
        ]
        with Peer.of(server) as peer:
            welcome = peer.greet(toy).meta
            assert isinstance(welcome, Welcome)
            assert welcome.pending == 4
            assert welcome.table is not None
            assert len(welcome.table.segments_s) == 7
            for number, inputs in enumerate(draws):
                peer.infer(number, toy.manifest.cuts[0], toy.manifest, inputs)
            for number, inputs in enumerate(draws):
                message = peer.hear()
                assert message.header.kind is Kind.RESULT
                assert message.header.request == number
                assert message.header.cut == int(toy.manifest.cuts[0].id, 16)
                pooled = np.frombuffer(message.payload[:32], np.float32)
                expected = toy_outputs(inputs)["pooled"].reshape(-1)
                np.testing.assert_allclose(pooled, expected, atol=1e-5)

    def test_a_request_id_under_way_is_not_to_be_used_again(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors
    ) -> None:
        server, _ = gated
        with Peer.of(server) as peer:
            peer.greet(toy)
            for _ in range(2):
                peer.infer(5, toy.manifest.cuts[0], toy.manifest, inputs)
            message = peer.hear()
            assert message.header.kind is Kind.ERROR
            assert "request 5 is under way already" in message.meta.message

    def test_a_cancelled_request_is_answered_and_not_computed(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors
    ) -> None:
        server, program = gated
        with Peer.of(server) as peer:
            peer.greet(toy)
            for number in (1, 2):
                peer.infer(number, toy.manifest.cuts[0], toy.manifest, inputs)
            peer.send(Kind.CANCEL, request=2)
            peer.send(Kind.CANCEL, request=99)
            peer.send(Kind.PING, request=3)
            assert peer.hear().header.kind is Kind.PONG, "the cancel was read"
            program.gate.set()
            first, second = peer.hear(), peer.hear()
        assert (first.header.kind, first.header.request) == (Kind.RESULT, 1)
        assert (second.header.kind, second.header.request) == (Kind.ERROR, 2)
        assert second.meta.message == "cancelled"
        assert program.runs == 1

    def test_what_cannot_be_decoded_is_answered_and_the_connection_goes_on(
        self, toy: Bundle, server: Server, inputs: Tensors, program: Program
    ) -> None:
        cut = toy.manifest.cuts[3]
        frontier = _frontier(program, inputs, 3)
        with Peer.of(server) as peer:
            peer.greet(toy)
            fields = {"request": 1, "cut": int(cut.id, 16), "tensors": 2}
            payload = frontier["b"].tobytes() + b"\x02" * 2048
            peer.send(Kind.INFER, Infer((Part(0, 8192), Part(0, 2048))), payload, **fields)
            message = peer.hear()
            assert (message.header.kind, message.meta.code) == (Kind.ERROR, "request")
            assert "'m'" in message.meta.message
            peer.infer(2, cut, toy.manifest, frontier)
            message = peer.hear()
            assert (message.header.kind, message.header.request) == (Kind.RESULT, 2)

    def test_a_program_that_fails_is_told_and_the_connection_goes_on(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        server, program = gated
        right = program.run

        def fail(*_: Any) -> Any:
            monkeypatch.setattr(program, "run", right)
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(program, "run", fail)
        program.gate.set()
        with Peer.of(server) as peer:
            peer.greet(toy)
            for number, kind in ((1, Kind.ERROR), (2, Kind.RESULT)):
                peer.infer(number, toy.manifest.cuts[0], toy.manifest, inputs)
                message = peer.hear()
                assert (message.header.kind, message.header.request) == (kind, number)
                if kind is Kind.ERROR:
                    assert message.meta == Error("engine", "internal error: ZeroDivisionError")

    def test_memory_of_one_client_is_bounded(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors
    ) -> None:
        """Beyond 4 requests the server stops reading, and TCP holds the client back."""
        server, program = gated
        with Peer.of(server) as peer:
            peer.greet(toy)
            for number in range(20):
                peer.infer(number, toy.manifest.cuts[0], toy.manifest, inputs)
            eventually(lambda: server._scheduler.waiting == 3, "a full queue")
            time.sleep(0.1)
            assert server._scheduler.waiting == 3, "and one that computes"
            program.gate.set()
            assert [peer.hear().header.request for _ in range(20)] == list(range(20))

    def test_probes_are_answered_while_a_request_computes(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors
    ) -> None:
        server, _ = gated
        with Peer.of(server) as peer:
            peer.greet(toy)
            peer.infer(1, toy.manifest.cuts[0], toy.manifest, inputs)
            for number, size in ((2, 0), (3, 1), (4, 65536)):
                peer.send(Kind.PING, payload=bytes(size), request=number)
                message = peer.hear()
                assert (message.header.kind, message.header.request) == (Kind.PONG, number)

    def test_a_robot_that_leaves_takes_its_requests_along(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors
    ) -> None:
        server, program = gated
        with Peer.of(server) as peer:
            peer.greet(toy)
            for number in range(4):
                peer.infer(number, toy.manifest.cuts[0], toy.manifest, inputs)
            eventually(lambda: server._scheduler.waiting == 3, "three waiting")
        eventually(lambda: server.clients == 0, "no client")
        program.gate.set()
        eventually(lambda: server._scheduler.waiting == 0, "an empty queue")
        assert program.runs <= 1, "only the one that had begun"


class TestClosing:
    def test_what_is_queued_is_answered_before_goodbye(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors
    ) -> None:
        server, program = gated
        with Peer.of(server) as peer:
            peer.greet(toy)
            for number in range(4):
                peer.infer(number, toy.manifest.cuts[0], toy.manifest, inputs)
            eventually(lambda: server._scheduler.waiting == 3, "three waiting")
            closing = threading.Thread(target=server.close)
            closing.start()
            time.sleep(0.1)
            program.gate.set()
            heard = [peer.hear() for _ in range(5)]
            assert peer.hangs_up()
            closing.join(PATIENCE_S)
        kinds = [message.header.kind for message in heard]
        assert kinds == [Kind.RESULT] * 4 + [Kind.GOODBYE]
        assert server.served == 4

    def test_a_flood_of_requests_does_not_hold_it_open(
        self, toy: Bundle, server: Server, program: Program, inputs: Tensors
    ) -> None:
        """The reader may wait for a slot that nobody gives back any more."""
        tensors = _frontier(program, inputs, 6)
        stop = threading.Event()

        def flood(peer: Peer) -> None:
            number = 0
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    number += 1
                    peer.infer(number, toy.manifest.cuts[6], toy.manifest, tensors)

        def drain(peer: Peer) -> None:
            with contextlib.suppress(OSError, EOFError):
                while True:
                    peer.hear()

        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer.of(server)) for _ in range(3)]
            threads = []
            for peer in peers:
                peer.greet(toy)
                threads += [threading.Thread(target=act, args=(peer,)) for act in (flood, drain)]
            for thread in threads:
                thread.start()
            time.sleep(0.3)
            server.close()
            left = [name for name in ours() if "load-halves" not in name]
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert left == []

    def test_a_late_request_wakes_a_reader_that_waits_for_a_slot(
        self, toy: Bundle, gated: tuple[Server, GatedProgram], inputs: Tensors
    ) -> None:
        server, program = gated
        with Peer.of(server) as peer:
            peer.greet(toy)
            for number in range(30):
                peer.infer(number, toy.manifest.cuts[0], toy.manifest, inputs)
            eventually(lambda: server._scheduler.waiting == 3, "three waiting")
            server.close(drain_s=0.1)  # too short: the first request is still computing
            assert [name for name in ours() if "read" in name or "write" in name] == []
            program.gate.set()

    def test_idle_and_half_open_connections_do_not_hold_it_open(
        self, toy: Bundle, server: Server
    ) -> None:
        with Peer.of(server) as greeted, Peer.of(server) as silent, Peer.of(server) as half:
            greeted.greet(toy)
            half.say(b"SPRT\x01")
            server.close()
            assert greeted.hear().header.kind is Kind.GOODBYE
            assert silent.hangs_up()
            assert half.hangs_up()


class TestServer:
    def test_one_client_too_many_is_turned_away_until_another_leaves(
        self, toy: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_module, "MAX_CLIENTS", 3)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer.of(server)) for _ in range(3)]
            for peer in peers:
                assert isinstance(peer.greet(toy).meta, Welcome)
            with Peer.of(server) as fourth:
                assert fourth.hangs_up()
            peers[0].send(Kind.GOODBYE)
            assert peers[0].hangs_up()
            eventually(lambda: server.clients == 2, "a free place")
            with Peer.of(server) as fourth:
                assert isinstance(fourth.greet(toy).meta, Welcome)

    def test_a_closed_server_can_be_closed_and_shown_again(self, program: Program) -> None:
        server = Server([program])
        host, port = server.address
        server.close()
        server.close()
        assert server.address == (host, port)
        assert f"{host}:{port}" in repr(server)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((host, port), timeout=5)

    def test_no_bundle_is_refused(self) -> None:
        from engines.errors import SplitError

        with pytest.raises(SplitError, match="at least one bundle"):
            Server([])

    def test_what_fails_while_it_starts_frees_the_port(
        self, program: Program, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(server_module, "table_for", fail)
        with pytest.raises(MemoryError):
            Server([program])

    def test_it_survives_running_out_of_descriptors(
        self, toy: Bundle, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        import resource

        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket()
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        hogs = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    hogs.append(os.dup(0))
            client.connect(server.address)
            eventually(lambda: "accept: " in caplog.text, "the complaint")
            time.sleep(0.3)
            complaints = caplog.text.count("accept: ")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for hog in hogs:
                os.close(hog)
        assert complaints < 20, "it does not spin"
        with Peer(client) as peer:
            assert isinstance(peer.greet(toy).meta, Welcome)


def test_messages_of_the_helpers_are_whole(toy: Bundle, server: Server) -> None:
    with Peer.of(server) as peer:
        message = peer.greet(toy)
        assert isinstance(message, Message)
        assert message.payload == b""
