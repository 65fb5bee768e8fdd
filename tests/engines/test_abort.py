from __future__ import annotations

import threading

import numpy as np
import pytest

from engines.abort import Abort, Aborted, abortable, check_abort, current_abort
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.precise import PreciseClock
from engines.program import Program

Tensors = dict[str, np.ndarray]


def test_only_the_thread_that_asks_for_it_is_stopped() -> None:
    abort, others = Abort(), []
    with abortable(abort):
        assert current_abort() is abort
        thread = threading.Thread(target=lambda: others.append(current_abort()))
        thread.start()
        thread.join()
        check_abort()
        abort.set()
        with pytest.raises(Aborted):
            check_abort()
    assert others == [None]
    assert current_abort() is None
    check_abort()


def test_what_is_given_up_before_it_begins_does_not_begin() -> None:
    abort = Abort()
    abort.set()
    with pytest.raises(Aborted), abortable(abort):
        raise AssertionError("it began")
    assert current_abort() is None


def test_watchers_are_called_once_also_where_they_come_late() -> None:
    abort, calls = Abort(), []
    with abort.watched(lambda: calls.append("first")):
        abort.set()
        abort.set()
    assert calls == ["first"]
    with abort.watched(lambda: calls.append("late")):
        assert calls == ["first", "late"]


def test_a_wait_ends_when_it_is_given_up() -> None:
    abort, clock = Abort(), PreciseClock()
    timer = threading.Timer(0.05, abort.set)
    timer.start()
    with pytest.raises(Aborted), abortable(abort):
        clock.sleep_until(clock.now_s() + 3600)
    timer.join()


def test_onnx_runtime_is_stopped_inside_a_run(toy: Bundle, inputs: Tensors) -> None:
    """Its run is given the abort when it begins; a run that is over cannot be stopped."""
    with Program(toy, open_backend("ort", BackendOptions(threads=1))) as program:
        engine = program._segments[0]
        session = engine._session  # type: ignore[attr-defined]
        abort = Abort()

        class Stopping:
            def run(self, outputs: object, feed: object, options: object) -> object:
                abort.set()
                return session.run(outputs, feed, options)

        engine._session = Stopping()  # type: ignore[attr-defined]
        feed = {spec.name: inputs[spec.name] for spec in engine.inputs}
        with pytest.raises(Aborted), abortable(abort):
            engine.run(feed)
        engine._session = session  # type: ignore[attr-defined]
        assert engine.run(feed), "it can run again"


def test_a_chain_stops_between_its_segments(
    toy: Bundle, inputs: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Program(toy, open_backend("reference"), fuse=False) as program:
        abort, ran = Abort(), []
        for index, engine in program._segments.items():
            run = engine.run

            def counted(feed: Tensors, run: object = run, index: int = index) -> Tensors:
                ran.append(index)
                if len(ran) == 2:
                    abort.set()
                given: Tensors = run(feed)  # type: ignore[operator]
                return given

            monkeypatch.setattr(engine, "run", counted)
        with pytest.raises(Aborted), abortable(abort):
            program.run(inputs)
    assert len(ran) == 2
