"""Decisions that are made in the pause before an inference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Optional

import numpy as np
import pytest

from calibration.objectives import LATENCY, Objective, parse_objective
from engines.bundle import Bundle
from runtime import Robot, Server
from runtime import ahead as ahead_module
from runtime.ahead import Ahead, Basis
from runtime.decision import Decision
from runtime.evidence import QueueTime
from runtime.selector import SplitRT
from tests.runtime.helpers import address, assert_right, eventually

Tensors = dict[str, np.ndarray]

BASIS = Basis(None, 7, True, 0, LATENCY, None)
ENERGY = parse_objective("energy")


class Chooser:
    """Chooses cut 3, and counts how often."""

    def __init__(self) -> None:
        self.basis = BASIS
        self.asked: list[tuple[Objective, Optional[int]]] = []

    def __call__(self, objective: Objective, in_flight: Optional[int]) -> tuple[Basis, Decision]:
        self.asked.append((objective, in_flight))
        until_s = time.thread_time() + 0.001
        while time.thread_time() < until_s:
            pass
        return self.basis, Decision(3, "chosen", None)


@pytest.fixture
def chooser() -> Chooser:
    return Chooser()


@pytest.fixture
def ahead(chooser: Chooser, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ahead]:
    monkeypatch.setattr(ahead_module, "_FRESH_S", 60.0)
    made = Ahead(chooser)
    made._ended_s = time.monotonic() - 1.0
    yield made
    made.close()


def _once(ahead: Ahead, objective: Objective = LATENCY, in_flight: Optional[int] = None) -> None:
    with ahead.inference(objective, in_flight):
        pass


def _made(ahead: Ahead) -> None:
    eventually(lambda: ahead._made is not None, "a choice")


def test_after_a_pause_the_next_is_chosen(ahead: Ahead, chooser: Chooser) -> None:
    _once(ahead, ENERGY, 2)
    _made(ahead)
    assert chooser.asked == [(ENERGY, 2)]
    assert ahead.take(lambda: BASIS) == Decision(3, "chosen", None)
    assert ahead.spent_s() >= 0.001, "what it took is told"
    assert ahead.spent_s() == 0, "once"
    assert ahead.take(lambda: BASIS) is None, "once only"


@pytest.mark.parametrize(
    "other",
    [
        BASIS._replace(evidence=8),
        BASIS._replace(up=False),
        BASIS._replace(backlog_bytes=9),
        BASIS._replace(objective=ENERGY),
        BASIS._replace(in_flight=2),
    ],
    ids=str,
)
def test_it_is_not_taken_for_another_basis(ahead: Ahead, other: Basis) -> None:
    _once(ahead)
    _made(ahead)
    assert ahead.take(lambda: other) is None
    assert ahead.spent_s() > 0, "in vain, but it is counted"


def test_it_is_not_taken_when_it_is_old(
    ahead: Ahead, chooser: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    _once(ahead)
    _made(ahead)
    monkeypatch.setattr(ahead_module, "_FRESH_S", 0.0)
    time.sleep(0.001)
    assert ahead.take(lambda: BASIS) is None


def test_without_pauses_nothing_is_chosen(
    ahead: Ahead, chooser: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead_module, "_PAUSE_S", 60.0)
    monkeypatch.setattr(ahead, "_ended_s", time.monotonic())
    for _ in range(5):
        _once(ahead)
    time.sleep(5 * ahead_module._SETTLE_S)
    assert not chooser.asked


def test_in_a_pause_that_outlasts_a_choice_none_is_made(
    ahead: Ahead, chooser: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead_module, "_FRESH_S", 0.5)
    _once(ahead)  # after a second
    time.sleep(5 * ahead_module._SETTLE_S)
    assert not chooser.asked


def test_where_there_is_nothing_to_choose_none_is_made(ahead: Ahead, chooser: Chooser) -> None:
    with ahead.inference(LATENCY, None, chosen=False):
        pass
    time.sleep(5 * ahead_module._SETTLE_S)
    assert not chooser.asked
    assert ahead._thread is None


def test_without_a_thread_nothing_is_made(
    ahead: Ahead, chooser: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", fail)
    _once(ahead)
    ahead.close()
    assert not chooser.asked


def test_nothing_is_chosen_beside_another_inference(ahead: Ahead, chooser: Chooser) -> None:
    with ahead.inference(LATENCY, None):
        _once(ahead)
        time.sleep(5 * ahead_module._SETTLE_S)
        assert not chooser.asked
    _made(ahead)


def test_an_inference_that_fails_has_ended(ahead: Ahead) -> None:
    with pytest.raises(ValueError, match="bad"), ahead.inference(LATENCY, None):
        raise ValueError("bad")
    _made(ahead)


def test_who_cannot_choose_ahead_does_it_in_time(
    ahead: Ahead, chooser: Chooser, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> tuple[Basis, Decision]:
        raise RuntimeError("no tables")

    ahead._choose = fail
    _once(ahead)
    eventually(lambda: "nothing was decided ahead" in caplog.text, "the word")
    assert ahead.take(lambda: BASIS) is None


def test_it_is_told_once_it_is_closed(chooser: Chooser) -> None:
    ahead = Ahead(chooser)
    ahead.close()
    _once(ahead)
    ahead.close()
    assert ahead._thread is None
    assert not chooser.asked


class TestOnARobot:
    """A robot with pauses between its inferences."""

    @pytest.fixture(autouse=True)
    def _patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ahead_module, "_FRESH_S", 1e9)

    def test_it_decides_ahead_as_it_would_in_time(
        self, toy: Bundle, server: Server, inputs: Tensors, expected: Tensors
    ) -> None:
        splitrt = SplitRT(toy.manifest)
        taken: list[bool] = []
        with Robot(toy, server=address(server), threads=1) as robot:
            take = robot._ahead.take

            def noting(basis: Callable[[], Basis]) -> Optional[Decision]:
                found = take(basis)
                taken.append(found is not None)
                return found

            robot._ahead.take = noting  # type: ignore[method-assign]
            for _ in range(40):
                result = robot.infer(inputs)
                assert_right(result, expected)
                decision = result.decision
                assert decision is not None
                assert decision.situation is not None
                again = splitrt.decide(decision.situation)
                assert (again.cut, again.plan) == (decision.cut, decision.plan)
                time.sleep(0.06)
        assert sum(taken) >= 5, "most of 40; a busy machine learns late of an answer"

    def test_what_it_took_counts_in_the_energy(
        self, toy: Bundle, inputs: Tensors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Robot(toy, threads=1) as robot:
            plain = robot.infer(inputs)
            monkeypatch.setattr(robot._ahead, "spent_s", lambda: 2.0)
            result = robot.infer(inputs)
        assert result.decision is not None
        assert result.decision.ahead_s == 2
        assert plain.energy_j < 13.35
        assert result.energy_j >= 2 * (13.35 - 4.04), "on top of idling in the pause"

    def test_a_link_that_went_down_in_the_pause_is_not_chosen(
        self, toy: Bundle, server: Server, inputs: Tensors, expected: Tensors
    ) -> None:
        with Robot(toy, server=address(server), threads=1, selector="offload") as robot:
            link = robot.link
            assert link is not None
            robot.infer(inputs)
            time.sleep(0.05)
            robot.infer(inputs)
            _made(robot._ahead)
            server.close()
            eventually(lambda: not link.up, "the link's end")
            result = robot.infer(inputs)
            assert_right(result, expected)
            assert result.decision is not None
            assert result.decision.cut == len(toy.manifest.cuts) - 1

    def test_new_evidence_is_heeded(self, toy: Bundle, server: Server, inputs: Tensors) -> None:
        with Robot(toy, server=address(server), threads=1) as robot:
            link = robot.link
            assert link is not None
            robot.infer(inputs)
            time.sleep(0.05)
            robot.infer(inputs)
            _made(robot._ahead)
            link.estimator.take(QueueTime(time.monotonic(), 50.0))
            result = robot.infer(inputs)
        assert result.decision is not None
        assert result.decision.situation is not None
        assert result.decision.situation.queue_s > 1
