"""The robot begins what is the server's part itself: when, and what becomes of the other answer.

The robot's engines are replayed, so that it is slow and can be stopped; servers are scripted.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from calibration.objectives import Objective
from engines.bundle import Bundle
from engines.program import Program
from engines.replay_table import ReplayTable
from runtime import Robot
from runtime.decision import KnownLink, Situation
from runtime.evidence import Reading
from runtime.hedging import promise
from runtime.link_state import LinkState
from runtime.payload import pack_tensors
from runtime.selector import open_selector
from runtime.wire import Error, Kind, Table, Welcome
from runtime.wire import Result as WireResult
from tests.hand_tables import LAST, MODEL, PLANS
from tests.runtime.helpers import FakeServer, Message, Peer, assert_right, eventually
from tests.toy import toy_outputs

Tensors = dict[str, np.ndarray]

SEGMENT_MS = 40.0
"""Of the robot; the server says that it takes next to nothing."""


@pytest.fixture
def slow(toy: Bundle, inputs: Tensors, tmp_path: Path) -> str:
    """Give the name of a backend that takes its time and gives the right outputs."""
    np.savez(tmp_path / "values.npz", **{**inputs, **toy_outputs(inputs)})
    table = ReplayTable(
        bundle=toy.digest,
        device="slow",
        floor_ms=0.0,
        segments_ms=((SEGMENT_MS,),) * len(toy.manifest.segments),
        values="values.npz",
    )
    path = tmp_path / "slow.json"
    path.write_bytes(msgspec.json.encode(table))
    return f"replay:{path}"


class Scripted:
    """A server that is quick by its table; what it does with requests is up to the test."""

    def __init__(self, toy: Bundle, outputs: Tensors) -> None:
        self.log: list[Message] = []
        self.silent = False
        self.answer_now = threading.Event()
        self.on_cancel = "error"
        self._toy = toy
        self._outputs = outputs
        segments = len(toy.manifest.segments)
        self._table = Table(segments_s=(1e-6,) * segments, device="quick")
        self._open: dict[int, Message] = {}

    def __call__(self, peer: Peer) -> None:
        peer.hear()
        peer.send(Kind.WELCOME, Welcome("fake", self._table, 4))
        while True:
            message = peer.hear()
            self.log.append(message)
            kind, number = message.header.kind, message.header.request
            if kind is Kind.PING and not self.silent:
                peer.send(Kind.PONG, request=number)
            elif kind is Kind.INFER:
                self._open[number] = message
                if self.answer_now.is_set():
                    self.answer(peer, number)
                elif not self.silent:
                    threading.Thread(target=self._when_told, args=(peer, number)).start()
            elif kind is Kind.CANCEL:
                if self.on_cancel == "error" and self._open.pop(number, None):
                    peer.send(Kind.ERROR, Error("engine", "cancelled"), request=number)
                elif self.on_cancel == "answer":
                    self.answer(peer, number)

    def _when_told(self, peer: Peer, number: int) -> None:
        if self.answer_now.wait(5):
            self.answer(peer, number)

    def answer(self, peer: Peer, number: int) -> None:
        """Answer a request that was neither answered nor cancelled."""
        asked = self._open.pop(number, None)
        if asked is None:
            return
        header = asked.header
        manifest = self._toy.manifest
        cut = next(c for c in manifest.cuts if int(c.id, 16) == header.cut)
        parts, buffers = pack_tensors(manifest.specs(cut.results), self._outputs)
        meta = WireResult(parts, 0.0, 0.0, 0.0)
        fields = {"request": header.request, "cut": header.cut, "tensors": len(parts)}
        peer.send(Kind.RESULT, meta, b"".join(buffers), **fields)

    def said(self, kind: Kind) -> int:
        return sum(message.header.kind is kind for message in self.log)


def test_the_robot_answers_where_the_server_does_not_and_tells_it(
    toy: Bundle, inputs: Tensors, expected: Tensors, slow: str
) -> None:
    server = Scripted(toy, expected)
    with FakeServer(server) as fake, Robot(toy, server=fake.address, backend=slow) as robot:
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "fallback"
        assert result.reason.endswith("; the robot was quicker")
        assert result.decision is not None
        assert result.decision.bound is not None
        local_s = 7 * SEGMENT_MS / 1e3
        assert result.bound_s == pytest.approx(1.2 * local_s, rel=0.1)
        assert result.decision.bound.hedge_s == pytest.approx(0.1 * local_s, rel=0.1)
        # All of it was computed beside the waiting, and has its price.
        assert result.hedge_s == pytest.approx(result.robot_s, rel=0.2)
        assert result.energy_j > 13.35 * local_s
        eventually(lambda: server.said(Kind.CANCEL) == 1, "a cancel")
        assert robot.link is not None
        assert robot.link.up
        assert fake.connections == 1
        server.answer_now.set()
        eventually(lambda: robot.infer(inputs).answered_by == "remote", "an answer")
        assert fake.connections == 1


def test_an_answer_stops_the_robot_in_the_middle(
    toy: Bundle, inputs: Tensors, expected: Tensors, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Scripted(toy, expected)
    run, began = Program.run, []

    def running(
        program: Program, tensors: Tensors, start: int = 0, stop: int | None = None
    ) -> Tensors:
        if (start, stop) == (0, program.last):
            began.append(True)
            server.answer_now.set()
        return run(program, tensors, start, stop)

    with FakeServer(server) as fake, Robot(toy, server=fake.address, backend=slow) as robot:
        monkeypatch.setattr(Program, "run", running)
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert began
        assert result.answered_by == "remote"
        assert 0 < result.hedge_s < 7 * SEGMENT_MS / 1e3
        assert server.said(Kind.CANCEL) == 0


def test_an_answer_that_comes_after_the_cancel_is_dropped(
    toy: Bundle, inputs: Tensors, expected: Tensors, slow: str
) -> None:
    server = Scripted(toy, expected)
    server.on_cancel = "answer"
    with FakeServer(server) as fake, Robot(toy, server=fake.address, backend=slow) as robot:
        for _ in range(2):
            result = robot.infer(inputs)
            assert_right(result, expected)
            assert result.answered_by == "fallback"
        server.answer_now.set()
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "remote"
        assert fake.connections == 1
        assert robot.link is not None
        assert not robot.link.under_way


def test_a_server_that_has_gone_silent_is_left_and_tried_again(
    toy: Bundle, inputs: Tensors, expected: Tensors, slow: str
) -> None:
    server = Scripted(toy, expected)
    server.silent, server.on_cancel = True, ""
    with FakeServer(server) as fake, Robot(toy, server=fake.address, backend=slow) as robot:
        assert robot.link is not None
        eventually(lambda: robot.link.up, "a connection")
        assert_right(robot.infer(inputs, cut=toy.manifest.cuts[0].id, deadline_s=1.0), expected)
        eventually(lambda: fake.connections > 1, "another connection")


def test_without_hedging_it_waits_with_patience(
    toy: Bundle, inputs: Tensors, expected: Tensors, slow: str
) -> None:
    server = Scripted(toy, expected)
    with (
        FakeServer(server) as fake,
        Robot(toy, server=fake.address, backend=slow, hedge=False, patience_s=0.3) as robot,
    ):
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "fallback"
        assert "no answer within 300 ms" in result.reason
        assert (result.bound_s, result.hedge_s) == (None, 0.0)


def test_a_link_that_is_down_is_not_used(
    toy: Bundle, inputs: Tensors, expected: Tensors, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Scripted(toy, expected)
    server.answer_now.set()
    monkeypatch.setattr("runtime.link.Link._break_off", lambda *_: None)
    with FakeServer(server) as fake, Robot(toy, server=fake.address, backend=slow) as robot:
        eventually(lambda: robot.infer(inputs).answered_by == "remote", "an answer")
        assert robot.link is not None
        now_s = time.monotonic()
        for later_s in (1.0, 2.0, 3.0):
            reading = Reading(now_s + later_s, 1 << 40, 1 << 40, outstanding_bytes=100_000)
            robot.link.estimator.take(reading)
        assert robot.link.estimate.state is LinkState.DOWN
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "local"
        assert result.reason.startswith("link down: none of 100000 bytes acknowledged")
        assert result.bound_s == pytest.approx(1.2 * 7 * SEGMENT_MS / 1e3, rel=0.1)


class TestPromise:
    """By hand: the robot alone takes 1 s (``tests.hand_tables``)."""

    def situation(self, goodput_bps: float = 25e6, **changes: object) -> Situation:
        return Situation(PLANS, KnownLink(goodput_bps), 0.0, **changes)  # type: ignore[arg-type]

    def test_every_selector_of_its_own_promises(self) -> None:
        for name in ("splitrt", "neurosurgeon", "dads", "spso_ga"):
            decision = open_selector(name, MODEL).decide(self.situation())
            bound = promise(decision, self.situation(), last=LAST, local_s=1.0)
            assert bound is not None
            assert bound.latency_s == pytest.approx(1.2)

    def test_what_the_user_named_is_waited_for(self) -> None:
        for name in ("offload", MODEL.cuts[3].id):
            decision = open_selector(name, MODEL).decide(self.situation())
            assert promise(decision, self.situation(), last=LAST, local_s=1.0) is None
        alone = open_selector("local", MODEL).decide(self.situation())
        bound = promise(alone, self.situation(), last=LAST, local_s=1.0)
        assert bound is not None
        assert bound.hedge_s is None

    def test_without_a_link_the_robots_own_table_will_do(self) -> None:
        situation = Situation(None, None, 0.0, Objective("deadline", limit=2.0))
        decision = open_selector("splitrt", MODEL).decide(situation)
        bound = promise(decision, situation, last=LAST, local_s=1.0)
        assert bound is not None
        assert bound.latency_s == 2.0

    def test_nothing_without_hedging(self) -> None:
        situation = self.situation(promised=False)
        decision = open_selector("splitrt", MODEL).decide(situation)
        assert promise(decision, situation, last=LAST, local_s=1.0) is None
