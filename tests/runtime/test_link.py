from __future__ import annotations

import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from engines.bundle import Bundle
from engines.errors import DeadlineError, LinkError
from runtime import Server
from runtime import link as link_module
from runtime import prober as prober_module
from runtime.estimator import LinkState
from runtime.evidence import Reading
from runtime.link import Link, Request
from runtime.messages import Channel
from runtime.probing import DEPTH_BYTES, LEAST_BYTES
from runtime.transport import Deadline, Stream
from runtime.wire import Kind
from tests.runtime.helpers import (
    FakeServer,
    Message,
    Peer,
    Proxy,
    eventually,
    ours,
    polite_until,
)

Tensors = dict[str, np.ndarray]


def _link(toy: Bundle, where: "Server | FakeServer | str") -> Link:
    if isinstance(where, Server):
        host, port = where.address
    else:
        text = where if isinstance(where, str) else where.address
        host, _, number = text.rpartition(":")
        port = int(number)
    return Link(host, port, manifest=toy.manifest, digest=toy.digest)


def _probe_every(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober_module, "PROBE_EVERY_S", seconds)
    monkeypatch.setattr(link_module, "_WATCH_EVERY_S", seconds / 4)


def test_it_comes_up_with_an_estimate_and_the_servers_table(toy: Bundle, server: Server) -> None:
    link = _link(toy, server)
    try:
        assert link.wait_settled(30)
        assert link.up
        assert "up" in repr(link)
        assert link.server_table is not None
        assert len(link.server_table.segments_s) == 7
        assert link.estimator.estimate.goodput_bps is not None
        assert link.estimator.estimate.rtt_s > 0
    finally:
        link.close()
    assert not link.up


def test_several_requests_are_matched_with_their_answers(
    toy: Bundle, server: Server, inputs: Tensors, expected: Tensors
) -> None:
    link = _link(toy, server)
    try:
        assert link.wait_settled(30)
        requests = [link.send(0, inputs, deadline=Deadline(30)) for _ in range(4)]
        assert len({request.number for request in requests}) == 4
        for request in reversed(requests):
            answer = request.wait(Deadline(30))
            assert answer is not None
            np.testing.assert_allclose(answer.tensors["logits"], expected["logits"], atol=1e-5)
            assert answer.elapsed_s > 0
    finally:
        link.close()


class TestClosing:
    def test_right_after_it_was_made_leaves_nothing_however_far_it_came(
        self, toy: Bundle, server: Server
    ) -> None:
        """close() may find it connecting, shaking hands or just open."""
        for number in range(150):
            link = _link(toy, server)
            time.sleep(number * 2e-5)
            link.close()
            link.close()
            left = [name for name in ours() if name in ("splitrt-link", "splitrt-watch")]
            assert left == [], number

    def test_within_the_handshake_it_does_not_wait_for_its_end(self, toy: Bundle) -> None:
        with FakeServer(Peer.hangs_up) as fake:
            link = _link(toy, fake)
            eventually(lambda: link._shaking is not None, "the handshake")
            begin = time.monotonic()
            link.close()
            assert ours() == []
            assert time.monotonic() - begin < link_module.HANDSHAKE_S

    def test_while_the_server_accepts_but_reads_nothing(
        self, toy: Bundle, inputs: Tensors
    ) -> None:
        held = threading.Event()

        def hold(peer: Peer, _: Message) -> None:
            held.wait(30)

        with FakeServer(polite_until(hold)) as fake:
            link = _link(toy, fake)
            assert link.wait_settled(30)
            requests = [link.send(0, inputs, deadline=Deadline(1)) for _ in range(3)]
            link.close()
            held.set()
            for request in requests:
                with pytest.raises(LinkError, match="the connection broke"):
                    request.wait(Deadline(30))
            assert ours() == []

    def test_a_closed_link_refuses_requests(
        self, toy: Bundle, server: Server, inputs: Tensors
    ) -> None:
        link = _link(toy, server)
        assert link.wait_settled(30)
        link.close()
        with pytest.raises(LinkError):
            link.send(0, inputs, deadline=Deadline(1))

    def test_it_says_goodbye(self, toy: Bundle) -> None:
        heard: list[Kind] = []

        def handle(peer: Peer) -> None:
            polite_until(lambda *_: None)(peer)
            heard.append(Kind.GOODBYE)  # it returns on that only

        with FakeServer(handle) as fake:
            link = _link(toy, fake)
            assert link.wait_settled(30)
            link.close()
            eventually(lambda: heard == [Kind.GOODBYE], "the goodbye")


def test_abandoning_a_request_leaves_the_next_connection_alone(
    toy: Bundle, inputs: Tensors
) -> None:
    """By the time a robot gives up, its request's connection may be gone and another up."""
    answered = threading.Event()

    def break_first(peer: Peer, _: Message) -> None:
        if not answered.is_set():
            answered.set()
            peer.sock.shutdown(2)

    with FakeServer(polite_until(break_first)) as fake:
        link = _link(toy, fake)
        try:
            assert link.wait_settled(30)
            request = link.send(0, inputs, deadline=Deadline(5))
            with pytest.raises(LinkError):
                request.wait(Deadline(30))
            eventually(lambda: link.up and fake.connections == 2, "the second connection")
            channel = link._channel
            link.abandon(request)
            time.sleep(0.2)
            assert link._channel is channel
            assert fake.connections == 2
        finally:
            link.close()


def test_a_probe_of_a_lost_connection_is_not_waited_for_on_the_next(
    toy: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober_module, "STALL_S", 0.2)
    link = _link(toy, server)
    try:
        assert link.wait_settled(30)
        lost = link._channel
        assert lost is not None
        lost.stream.abort()
        eventually(lambda: link.up and link._channel is not lost, "the second connection")
        eventually(lambda: not link._prober.under_way, "its first probes")
        second = link._channel
        with pytest.raises(LinkError):
            link._ping(lost, 0)
        assert not link._prober.under_way
        time.sleep(0.8)
        assert link._channel is second, "it was not broken off"
    finally:
        link.close()


def test_a_failed_probe_is_forgotten(toy: Bundle, server: Server) -> None:
    link = _link(toy, server)
    try:
        assert link.wait_settled(30)
        eventually(lambda: not link._prober.under_way, "its first probes")
        channel = link._channel
        assert channel is not None
        with link._lock:  # nobody notices that the stream is gone
            channel.stream._sock.shutdown(1)
        with pytest.raises(LinkError):
            link._ping(channel, 100)
        assert not link._prober.under_way
    finally:
        link.close()


def test_a_server_that_froze_is_noticed_by_the_probes(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober_module, "STALL_S", 0.2)
    _probe_every(0.2, monkeypatch)
    frozen = threading.Event()

    def handle(peer: Peer) -> None:
        if frozen.is_set():
            peer.hangs_up()
        polite = polite_until(lambda *_: None)
        hear = peer.hear

        def hear_until_frozen() -> Message:
            message = hear()
            if frozen.is_set():
                peer.hangs_up()
                raise EOFError
            return message

        peer.hear = hear_until_frozen  # type: ignore[method-assign]
        polite(peer)

    with FakeServer(handle) as fake:
        link = _link(toy, fake)
        try:
            assert link.wait_settled(30)
            frozen.set()
            eventually(lambda: not link.up, "the link's end")
        finally:
            link.close()


def test_probes_keep_an_idle_estimate_fresh_within_their_budget(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    _probe_every(0.1, monkeypatch)
    monkeypatch.setattr("runtime.probing.MOST_BYTES_PER_S", 100_000.0)
    sizes: list[int] = []

    def handle(peer: Peer) -> None:
        hear = peer.hear

        def noting() -> Message:
            message = hear()
            if message.header.kind is Kind.PING:
                sizes.append(message.header.payload_bytes)
            return message

        peer.hear = noting  # type: ignore[method-assign]
        polite_until(lambda *_: None)(peer)

    with FakeServer(handle) as fake:
        begin = time.monotonic()
        link = _link(toy, fake)
        try:
            eventually(lambda: sum(size > 0 for size in sizes) >= 4, "four probes")
            assert sizes[0] == 0, "the round trip comes first"
            assert 0 < sizes[1] < DEPTH_BYTES
            assert link.estimate.goodput_bps is not None
            spent, seconds = link.probe_bytes, time.monotonic() - begin
            assert spent >= sum(sizes[:-1])
            assert spent <= DEPTH_BYTES + 100_000 * seconds
        finally:
            link.close()


def test_a_new_connection_is_probed_again_as_the_first_may_queue_behind_what_was_left(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.probing.MOST_BYTES_PER_S", 1e7)
    monkeypatch.setattr("runtime.probing.SHARE", 1.0)
    sizes: list[list[int]] = []

    def handle(peer: Peer) -> None:
        hear, mine = peer.hear, []  # type: ignore[var-annotated]
        sizes.append(mine)

        def slow() -> Message:
            message = hear()
            if message.header.kind is Kind.PING:
                mine.append(message.header.payload_bytes)
                if len(sizes) == 2 and len(mine) == 2:
                    time.sleep(0.4)  # as if bytes of the last connection were before it
            return message

        peer.hear = slow  # type: ignore[method-assign]
        polite_until(lambda *_: None)(peer)

    with FakeServer(handle) as fake:
        link = _link(toy, fake)
        try:
            assert link.wait_settled(30)
            eventually(lambda: not link._prober.under_way, "the first probes")
            eventually(lambda: link._prober._budget._left_bytes >= DEPTH_BYTES, "a budget for two")
            lost = link._channel
            assert lost is not None
            lost.stream.abort()
            eventually(lambda: len(sizes) == 2 and len(sizes[1]) >= 3, "a second probe")
            assert sizes[1][:3] == [0, LEAST_BYTES, LEAST_BYTES]
            eventually(lambda: not link._prober.under_way, "its answer")
            queued_bps = 8 * LEAST_BYTES / 0.4
            assert (link.estimate.goodput_bps or 0.0) > 5 * queued_bps
        finally:
            link.close()


def test_an_upload_is_measured_while_it_is_under_way(toy: Bundle) -> None:
    """Through a proxy that takes 4 Mbps: readings follow it long before it ends."""
    if not _metered():
        pytest.skip("this kernel has no counters")
    with FakeServer(polite_until(lambda *_: None)) as fake, Proxy(fake.address) as proxy:
        link = _link(toy, proxy.address)
        try:
            assert link.wait_settled(30)
            eventually(lambda: not link._prober.under_way, "the first probes")
            assert link.estimate.state is LinkState.UP
            readings: list[Reading] = []
            link.estimator.record = lambda e: readings.append(e) if isinstance(e, Reading) else 0
            proxy.bps = 4e6
            channel = link._channel
            assert channel is not None
            sending = threading.Thread(target=_flood, args=(link, channel))
            sending.start()
            eventually(lambda: sum(r.outstanding_bytes > 0 for r in readings) > 50, "readings")
            assert sending.is_alive(), "the transfer is under way"
            acked = [reading.acked_bytes for reading in readings]
            assert acked == sorted(acked)
            assert acked[-1] > acked[0]
            assert link.estimator.refused == 0
        finally:
            link.close()
            sending.join(30)


def test_a_proxy_that_stalls_degrades_the_link_before_it_breaks(toy: Bundle) -> None:
    if not _metered():
        pytest.skip("this kernel has no counters")
    with FakeServer(polite_until(lambda *_: None)) as fake, Proxy(fake.address) as proxy:
        link = _link(toy, proxy.address)
        try:
            assert link.wait_settled(30)
            eventually(lambda: not link._prober.under_way, "the first probes")
            proxy.stalled.set()
            channel = link._channel
            assert channel is not None
            sending = threading.Thread(target=_flood, args=(link, channel))
            sending.start()
            eventually(lambda: link.estimate.state is not LinkState.UP, "another state")
            assert link.estimate.why not in ("", "connected")
            eventually(lambda: link.estimate.state is LinkState.DOWN, "the end of it")
            proxy.stalled.clear()
            eventually(lambda: link.estimate.state is LinkState.UP, "a new connection")
        finally:
            proxy.stalled.clear()
            link.close()
            sending.join(30)


def _metered() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sock = socket.create_connection(listening.getsockname())
        stream = Stream(sock, "itself")
        try:
            return stream.counters() is not None
        finally:
            stream.close()


def _flood(link: Link, channel: Channel) -> None:
    """Write far more than buffers hold, as a large frame would be."""
    with contextlib.suppress(LinkError):
        for _ in range(400):
            link._ping(channel, 60_000)


def test_trouble_says_what_is_wrong(toy: Bundle) -> None:
    with FakeServer(lambda _: None) as fake:
        nobody = fake.address
    link = _link(toy, nobody)
    try:
        assert not link.wait_settled(30)
        assert nobody in link.trouble
        assert "down" in repr(link)
        assert link.fatal is None
    finally:
        link.close()


class TestRequest:
    def test_the_first_outcome_counts(self) -> None:
        request = Request(None, 1, 0)  # type: ignore[arg-type]
        request.settle(None, LinkError("first"))
        request.settle(None, LinkError("second"))
        with pytest.raises(LinkError, match="first"):
            request.wait(Deadline(1))

    def test_a_deadline_that_comes_first_gives_none(self) -> None:
        assert Request(None, 1, 0).wait(Deadline(0.01)) is None  # type: ignore[arg-type]


def test_an_upload_that_stalls_is_ended_by_its_deadline(toy: Bundle, inputs: Tensors) -> None:
    """Against a server that reads nothing, with far more than its buffers hold."""

    def hold(peer: Peer) -> None:
        polite = polite_until(lambda *_: None)
        hear = peer.hear
        count = [0]

        def three_only() -> Message:
            count[0] += 1
            if count[0] > 3:
                time.sleep(1.5)
                raise EOFError
            return hear()

        peer.hear = three_only  # type: ignore[method-assign]
        polite(peer)

    with FakeServer(hold) as fake:
        link = _link(toy, fake)
        try:
            assert link.wait_settled(30)

            def flood() -> None:
                for _ in range(100_000):
                    link.send(0, inputs, deadline=Deadline(0.2))

            with pytest.raises((DeadlineError, LinkError)):
                flood()
        finally:
            link.close()
