"""The meter over loopback: what it reads, and that it rests when nothing is under way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from engines.errors import LinkError
from runtime.estimator import LinkEstimator
from runtime.evidence import Connected, Evidence, Reading
from runtime.meter import Meter
from runtime.transport import Deadline, Stream
from tests.runtime.helpers import eventually


class Setup:
    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.stream = Stream(socket.create_connection(listening.getsockname()), "peer")
            self.peer, _ = listening.accept()
        self.taken: list[Evidence] = []
        self.estimator = LinkEstimator(self.taken.append)
        self.estimator.take(Connected(0.0))
        self.meter = Meter(self.estimator)
        self.meter.attach(self.stream)

    @property
    def readings(self) -> list[Reading]:
        return [one for one in self.taken if isinstance(one, Reading)]


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    try:
        if made.stream.counters() is None:
            pytest.skip("this kernel has no counters")
        yield made
    finally:
        made.meter.close()
        made.meter.close()
        made.stream.close()
        made.peer.close()


def test_it_rests_until_something_is_sent_and_rests_again(setup: Setup) -> None:
    assert len(setup.readings) == 1, "when it was attached"
    with setup.meter.sending():
        setup.stream.write([bytes(1000)], deadline=Deadline(10))
    assert len(setup.peer.recv(2000)) == 1000
    eventually(lambda: setup.readings[-1].acked_bytes >= 1000, "the receipt")
    eventually(lambda: not setup.meter.read(), "rest")
    assert setup.estimator.refused == 0


def test_it_reads_on_while_bytes_are_outstanding_though_the_writer_has_gone(setup: Setup) -> None:
    with setup.meter.sending(), pytest.raises(LinkError):
        setup.stream.write([bytes(50_000_000)], deadline=Deadline(0.2))
    before = len(setup.readings)
    eventually(lambda: len(setup.readings) > before + 20, "more readings")
    assert setup.readings[-1].outstanding_bytes > 0
    assert setup.readings[-1].blocked


def test_what_is_being_received_is_marked_from_its_begin_to_its_end(setup: Setup) -> None:
    sending = threading.Thread(target=setup.peer.sendall, args=(bytes(3_000_000),))
    sending.start()
    with setup.meter.receiving(3_000_000):
        setup.stream.read_into(memoryview(bytearray(3_000_000)), deadline=Deadline(30))
    sending.join()
    marked = [reading for reading in setup.readings if reading.receiving]
    assert marked
    assert marked[-1].received_bytes < 3_000_000
    assert setup.readings[-1].received_bytes == 3_000_000
    assert not setup.readings[-1].receiving


def test_without_a_connection_there_is_nothing_to_read(setup: Setup) -> None:
    setup.meter.attach(None)
    before = len(setup.readings)
    assert not setup.meter.read()
    with setup.meter.sending(), setup.meter.receiving(5):
        pass
    assert len(setup.readings) == before
