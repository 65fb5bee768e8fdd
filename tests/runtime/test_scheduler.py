from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engines.errors import EngineError, SplitError
from runtime.scheduler import Job, Scheduler
from tests.runtime.helpers import eventually


class FakeProgram:
    """Does what its tensors say: a gate to wait for, or an error to raise."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.gate = threading.Event()

    def run(self, tensors: dict[str, Any], cut: int) -> dict[str, Any]:
        self.ran.append(tensors["name"])
        if tensors.get("wait"):
            assert self.gate.wait(30)
        if "error" in tensors:
            raise tensors["error"]
        return {"cut": cut, "name": tensors["name"]}


class Answers:
    """Collects what jobs are answered."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, Any, float, float]] = []

    def __call__(self, outputs: Any, error: Any, queue_s: float, compute_s: float) -> None:
        self.got.append((outputs, error, queue_s, compute_s))


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    running = Scheduler()
    yield running
    assert running.stop(timeout_s=30)


def _job(program: FakeProgram, name: str, done: Any, **more: Any) -> Job:
    return Job(program, 3, {"name": name, **more}, done)  # type: ignore[arg-type]


def test_jobs_run_one_at_a_time_in_the_order_of_arrival(scheduler: Scheduler) -> None:
    program, answers = FakeProgram(), Answers()
    scheduler.submit(_job(program, "first", answers, wait=True))
    for number in range(20):
        scheduler.submit(_job(program, str(number), answers))
    assert scheduler.waiting >= 20
    assert len(program.ran) <= 1
    program.gate.set()
    eventually(lambda: len(answers.got) == 21, "all answers")
    assert program.ran == ["first", *map(str, range(20))]
    assert [outputs["name"] for outputs, *_ in answers.got] == program.ran
    assert all(outputs["cut"] == 3 for outputs, *_ in answers.got)
    assert all(queue_s >= 0 and compute_s >= 0 for *_, queue_s, compute_s in answers.got)
    assert scheduler.served == 21


def test_a_cancelled_job_is_answered_and_not_run(scheduler: Scheduler) -> None:
    program, answers, cancelled = FakeProgram(), Answers(), Answers()
    scheduler.submit(_job(program, "first", answers, wait=True))
    job = _job(program, "cancelled", cancelled)
    scheduler.submit(job)
    scheduler.submit(_job(program, "last", answers))
    job.cancelled.set()
    program.gate.set()
    eventually(lambda: len(answers.got) == 2, "both answers")
    assert program.ran == ["first", "last"]
    ((outputs, error, _, _),) = cancelled.got
    assert outputs is None
    assert str(error) == "cancelled"


def test_an_error_is_answered_as_it_is(scheduler: Scheduler) -> None:
    program, answers = FakeProgram(), Answers()
    wrong = EngineError("no memory")
    scheduler.submit(_job(program, "wrong", answers, error=wrong))
    scheduler.submit(_job(program, "right", answers))
    eventually(lambda: len(answers.got) == 2, "both answers")
    assert answers.got[0][:2] == (None, wrong)
    assert answers.got[1][0]["name"] == "right"


@pytest.mark.parametrize("fault", [KeyError("x"), MemoryError(), RuntimeError("secret path")])
def test_a_fault_is_answered_logged_and_survived(
    scheduler: Scheduler, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    program, answers = FakeProgram(), Answers()
    scheduler.submit(_job(program, "wrong", answers, error=fault))
    scheduler.submit(_job(program, "right", answers))
    eventually(lambda: len(answers.got) == 2, "both answers")
    outputs, error, *_ = answers.got[0]
    assert outputs is None
    assert isinstance(error, SplitError)
    assert str(error) == f"internal error: {type(fault).__name__}"
    assert answers.got[1][0]["name"] == "right"
    assert "Traceback" in caplog.text


def test_an_answer_that_fails_is_told_as_an_error_and_survived(scheduler: Scheduler) -> None:
    """As when the outputs cannot be coded: the robot must not wait for ever."""
    program, answers = FakeProgram(), Answers()
    told: list[Any] = []

    def failing(outputs: Any, error: Any, *_: float) -> None:
        told.append((outputs, error))
        if outputs is not None:
            raise KeyError("logits")

    def hopeless(*_: Any) -> None:
        raise ValueError

    scheduler.submit(_job(program, "a", failing))
    scheduler.submit(_job(program, "b", hopeless))
    scheduler.submit(_job(program, "c", answers))
    eventually(lambda: answers.got, "the answer after the failing ones")
    assert told[-1][0] is None
    assert str(told[-1][1]) == "internal error: KeyError"


def test_stop_finishes_what_is_queued_and_takes_nothing_new() -> None:
    scheduler, program, answers, late = Scheduler(), FakeProgram(), Answers(), Answers()
    scheduler.submit(_job(program, "first", answers, wait=True))
    for number in range(5):
        scheduler.submit(_job(program, str(number), answers))
    assert not scheduler.stop(timeout_s=0.05), "the first is still running"
    scheduler.submit(_job(program, "late", late))
    ((outputs, error, *_),) = late.got
    assert outputs is None
    assert "shutting down" in str(error)
    program.gate.set()
    assert scheduler.stop(timeout_s=30)
    assert len(answers.got) == 6
    assert "late" not in program.ran


def test_an_idle_scheduler_stops_at_once_and_again() -> None:
    scheduler = Scheduler()
    assert scheduler.stop(timeout_s=30)
    assert scheduler.stop(timeout_s=30)
