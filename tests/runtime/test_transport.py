from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from engines.errors import ConnectError, DeadlineError, LinkError, SplitError
from runtime.transport import Deadline, Stream, connect, listen, parse_address

Pair = tuple[Stream, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give a stream and the plain socket at its other end."""
    with listen("127.0.0.1", 0) as listening:
        stream = connect("127.0.0.1", listening.getsockname()[1], deadline=Deadline(10))
        peer, _ = listening.accept()
    with peer:
        yield stream, peer
        stream.close()


def _read(stream: Stream, size: int, deadline_s: float | None = 10.0) -> bytes:
    buffer = bytearray(size)
    stream.read_into(memoryview(buffer), deadline=Deadline(deadline_s))
    return bytes(buffer)


class TestDeadline:
    def test_it_counts_down_to_zero_and_no_further(self) -> None:
        deadline = Deadline(10)
        left = deadline.remaining_s()
        assert left is not None
        assert 9 < left <= 10
        assert Deadline(0).remaining_s() == 0
        assert Deadline(-5).remaining_s() == 0

    def test_none_never_comes(self) -> None:
        assert Deadline(None).remaining_s() is None


class TestReading:
    def test_what_has_arrived_can_be_asked_for(self, pair: Pair) -> None:
        stream, peer = pair
        peer.sendall(b"abcdef")
        assert select.select([stream._sock], [], [], 10)[0]
        assert stream.unread_bytes() == 6
        _read(stream, 4)
        assert stream.unread_bytes() == 2
        stream.close()
        assert stream.unread_bytes() is None

    def test_bytes_arrive_in_pieces(self, pair: Pair) -> None:
        stream, peer = pair

        def trickle() -> None:
            for byte in b"abcdef":
                peer.send(bytes([byte]))
                time.sleep(0.01)

        thread = threading.Thread(target=trickle)
        thread.start()
        assert _read(stream, 4) == b"abcd"
        assert _read(stream, 2) == b"ef"
        thread.join()
        assert stream.bytes_read == 6

    def test_nothing_to_read_is_read_at_once(self, pair: Pair) -> None:
        assert _read(pair[0], 0, 0.0) == b""

    def test_the_deadline_ends_it(self, pair: Pair) -> None:
        stream, peer = pair
        peer.send(b"ab")
        begin = time.monotonic()
        with pytest.raises(DeadlineError, match=r"reading from 127\.0\.0\.1"):
            _read(stream, 3, 0.1)
        assert 0.09 <= time.monotonic() - begin < 10

    def test_a_trickle_does_not_put_the_deadline_off(self, pair: Pair) -> None:
        stream, peer = pair
        over = threading.Event()

        def trickle() -> None:
            while not over.wait(0.02):
                peer.send(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(DeadlineError):
                stream.read_into(memoryview(bytearray(10**6)), deadline=Deadline(0.3), stall_s=0.2)
        finally:
            over.set()
            thread.join()

    def test_a_stall_ends_it_before_the_deadline(self, pair: Pair) -> None:
        begin = time.monotonic()
        with pytest.raises(DeadlineError):
            pair[0].read_into(memoryview(bytearray(1)), deadline=Deadline(None), stall_s=0.1)
        assert time.monotonic() - begin < 10

    def test_a_peer_that_closes_is_a_link_error(self, pair: Pair) -> None:
        stream, peer = pair
        peer.send(b"a")
        peer.close()
        with pytest.raises(LinkError, match="closed the connection"):
            _read(stream, 2)

    def test_a_peer_that_resets_is_a_link_error(self, pair: Pair) -> None:
        stream, peer = pair
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(LinkError):
            _read(stream, 1)

    def test_abort_wakes_a_reader_in_another_thread(self, pair: Pair) -> None:
        stream, _ = pair
        threading.Timer(0.1, stream.abort).start()
        with pytest.raises(LinkError):
            _read(stream, 1, 30)

    @pytest.mark.parametrize("action", ["read", "write"])
    def test_a_closed_stream_is_a_link_error(self, pair: Pair, action: str) -> None:
        stream, _ = pair
        stream.close()
        stream.close()
        stream.abort()
        actions = {
            "read": lambda: _read(stream, 1),
            "write": lambda: stream.write([b"x"], deadline=Deadline(1)),
        }
        with pytest.raises(LinkError):
            actions[action]()
        assert stream.unacknowledged_bytes() is None


class TestWriting:
    def test_many_buffers_of_any_size_arrive_in_order(self, pair: Pair) -> None:
        """More buffers than one system call takes, empty ones among them."""
        stream, peer = pair
        buffers = [bytes([i % 256]) * (i % 7) for i in range(2000)]
        stream.write(buffers, deadline=Deadline(10))
        whole = b"".join(buffers)
        peer.settimeout(10)
        got = b""
        while len(got) < len(whole):
            got += peer.recv(1 << 16)
        assert got == whole
        assert stream.bytes_written == len(whole)

    def test_partial_writes_go_on_where_they_stopped(self, pair: Pair) -> None:
        stream, peer = pair
        big = bytes(range(256)) * (1 << 16)
        got = bytearray()

        def slow_reader() -> None:
            while len(got) < len(big) * 2 + 3:
                time.sleep(0.001)
                got.extend(peer.recv(1 << 20))

        thread = threading.Thread(target=slow_reader)
        thread.start()
        stream.write([b"abc", memoryview(big), big], deadline=Deadline(30))
        thread.join(30)
        assert bytes(got) == b"abc" + big + big

    @pytest.mark.parametrize("limits", [(0.2, None), (None, 0.2)])
    def test_a_peer_that_does_not_read_ends_it(
        self, pair: Pair, limits: tuple[float | None, float | None]
    ) -> None:
        stream, _ = pair
        with pytest.raises(DeadlineError, match="writing to"):
            stream.write([bytes(1 << 26)], deadline=Deadline(limits[0]), stall_s=limits[1])
        assert (stream.unacknowledged_bytes() or 0) > 0

    def test_a_peer_that_left_is_a_link_error(self, pair: Pair) -> None:
        stream, peer = pair
        peer.close()
        with pytest.raises(LinkError, match="writing to"):  # noqa: PT012 (the first may pass)
            for _ in range(100):
                stream.write([bytes(1 << 16)], deadline=Deadline(5))

    def test_everything_acknowledged_is_zero_left(self, pair: Pair) -> None:
        stream, peer = pair
        stream.write([b"abc"], deadline=Deadline(5))
        assert peer.recv(3) == b"abc"
        until = time.monotonic() + 10
        while stream.unacknowledged_bytes() != 0:
            assert time.monotonic() < until

    def test_small_messages_are_not_held_back(self, pair: Pair) -> None:
        assert pair[0]._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("127.0.0.1:7447", ("127.0.0.1", 7447)),
            ("robot.local:0", ("robot.local", 0)),
            ("[::1]:65535", ("::1", 65535)),
            ("::1:80", ("::1", 80)),
            ("h:00080", ("h", 80)),
        ],
    )
    def test_read(self, text: str, address: tuple[str, int]) -> None:
        assert parse_address(text) == address

    @pytest.mark.parametrize(
        "text",
        ["", ":", "host", "host:", ":80", "host:x", "host:-1", "host:65536", "host:1.5",
         "host:\u00b2", "host:\u0663", "[]:80", "host: 80", "host:" + "9" * 5000],
    )  # fmt: skip
    def test_refused_in_one_line(self, text: str) -> None:
        with pytest.raises(SplitError, match="expected HOST:PORT"):
            parse_address(text)

    def test_over_ipv6(self) -> None:
        try:
            listening = listen("::1", 0)
        except ConnectError as exc:
            pytest.skip(f"no IPv6 here: {exc}")
        with listening:
            stream = connect("::1", listening.getsockname()[1], deadline=Deadline(10))
            stream.close()


class TestConnecting:
    def test_nobody_there_says_how_to_start_it(self) -> None:
        with listen("127.0.0.1", 0) as listening:
            port = listening.getsockname()[1]
        with pytest.raises(ConnectError, match=f"127.0.0.1:{port}: .*runtime serve"):
            connect("127.0.0.1", port, deadline=Deadline(10))

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70, "a b"])
    def test_a_host_that_is_none_is_a_connect_error(self, host: str) -> None:
        with pytest.raises(ConnectError, match=host[:5]):
            connect(host, 80, deadline=Deadline(10))
        with pytest.raises(ConnectError, match=host[:5]):
            listen(host, 0)

    def test_a_port_in_use_is_a_connect_error(self) -> None:
        with listen("127.0.0.1", 0) as listening:
            port = listening.getsockname()[1]
            with pytest.raises(ConnectError, match=f"127.0.0.1:{port}: cannot listen: .*another"):
                listen("127.0.0.1", port)
        listen("127.0.0.1", port).close()


def test_the_kernels_counters(pair: Pair) -> None:
    stream, peer = pair
    before = stream.counters()
    if before is None:
        pytest.skip("this kernel has none")
    assert (before.outstanding_bytes, before.blocked) == (0, False)
    stream.write([bytes(1000)], deadline=Deadline(10))
    peer.sendall(bytes(70))
    assert len(_read(stream, 70)) == 70
    until = time.monotonic() + 10
    while stream.unacknowledged_bytes() and time.monotonic() < until:
        time.sleep(0.01)
    after = stream.counters()
    assert after is not None
    assert after.acked_bytes - before.acked_bytes == 1000
    assert after.received_bytes - before.received_bytes == 70
    assert after.outstanding_bytes == 0


def test_a_peer_that_takes_nothing_blocks(pair: Pair) -> None:
    stream, _ = pair
    if stream.counters() is None:
        pytest.skip("this kernel has none")
    with pytest.raises(DeadlineError):
        stream.write([bytes(50_000_000)], deadline=Deadline(10), stall_s=0.3)
    counters = stream.counters()
    assert counters is not None
    assert counters.outstanding_bytes > 0
    assert counters.blocked


def test_a_closed_stream_has_no_counters(pair: Pair) -> None:
    stream, _ = pair
    stream.close()
    assert stream.counters() is None
