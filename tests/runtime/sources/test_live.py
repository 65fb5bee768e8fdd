"""Cameras that give what the test tells them: no clock, no device."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from engines.bundle import Bundle
from engines.errors import SourceError
from engines.tensors import Array
from runtime import Robot
from runtime.frames import Frame, taken_of
from runtime.sources.live import LiveSource, Picture
from tests.runtime.helpers import eventually
from tests.runtime.sources.helpers import grey


class FakeCamera:
    """Gives the frames that are put into it."""

    def __init__(self) -> None:
        self._frames: queue.Queue[object] = queue.Queue()
        self.grabbed = self.closed = self.made = 0

    def give(self, *frames: object) -> None:
        for frame in frames:
            self._frames.put(frame)

    def grab(self) -> Picture | None:
        frame = self._frames.get(timeout=30)
        self.grabbed += 1
        if isinstance(frame, Exception):
            raise frame
        if frame is None:
            return None

        def pixels() -> object:
            self.made += 1
            return grey(int(str(frame)))

        return pixels

    def close(self) -> None:
        self.closed += 1


def _fit(picture: object) -> dict[str, Array]:
    assert isinstance(picture, np.ndarray)
    return {"x": picture}


def _live(camera: FakeCamera, **more: object) -> LiveSource:
    return LiveSource("cam", lambda: camera, _fit, **more)  # type: ignore[arg-type]


def _settled(camera: FakeCamera, grabbed: int) -> None:
    """Wait until the thread has put away frame number ``grabbed`` and waits for the next."""
    eventually(lambda: camera.grabbed >= grabbed and camera._frames.empty(), "the frames")


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    camera = FakeCamera()
    camera.give(1)
    ticks = iter(range(100, 200))
    with _live(camera, clock=lambda: float(next(ticks))) as source:
        samples = source.samples
        assert next(samples).inputs["x"][0, 0, 0] == 1
        camera.give(2, 3, 4)
        eventually(lambda: source.dropped == 2, "two dropped frames")
        newest = next(samples)
        assert newest.inputs["x"][0, 0, 0] == 4
        assert newest.name == "cam#3"
        assert isinstance(newest.inputs, Frame)
        assert newest.inputs.taken_s == 103.0  # when it was taken, not when it was asked for
        assert camera.made == 2  # nobody made pixels of what was dropped
        camera.give(5, None)
        assert next(samples).inputs["x"][0, 0, 0] == 5
        assert next(samples, None) is None
        assert source.dropped == 2
    assert camera.closed == 1


def test_what_came_before_anybody_asked_is_not_counted() -> None:
    camera = FakeCamera()
    camera.give(1, 2, 3, 4)
    with _live(camera) as source:
        _settled(camera, 4)
        eventually(lambda: source._newest is not None and source._newest.number == 3, "frame 3")
        assert next(source.samples).inputs["x"][0, 0, 0] == 4
        assert source.dropped == 0
        camera.give(None)


def test_it_ends_with_its_stream_or_after_the_count() -> None:
    camera = FakeCamera()
    camera.give(1)
    with _live(camera) as source:
        assert source.size is None
        assert len(list(source.take(1))) == 1
        camera.give(2, None)
        eventually(lambda: source._ended, "the end")
        assert [int(s.inputs["x"][0, 0, 0]) for s in source.take()] == [2]
        assert list(source.take()) == []


def _opens_with(trouble: Exception) -> Callable[[], FakeCamera]:
    def fail() -> FakeCamera:
        raise trouble

    return fail


def test_one_that_cannot_be_opened_is_told_at_once() -> None:
    with pytest.raises(SourceError, match="no such device"):
        LiveSource("cam", _opens_with(SourceError("camera cam: no such device")), _fit)


def test_one_that_fails_later_gives_what_it_had_and_then_its_error() -> None:
    camera = FakeCamera()
    camera.give(1, SourceError("camera cam: unplugged"))
    with _live(camera) as source:
        eventually(lambda: source._ended, "the end")
        samples = source.samples
        assert next(samples).inputs["x"][0, 0, 0] == 1
        with pytest.raises(SourceError, match="unplugged"):
            next(samples)
    assert camera.closed == 1


def test_one_that_gives_nothing_is_an_error_in_time() -> None:
    camera = FakeCamera()
    opening = threading.Thread(target=lambda: (time.sleep(0.2), camera.give(None)))
    opening.start()
    with pytest.raises(SourceError, match=r"cam: expected a frame within 0\.01 s, got none"):
        _live(camera, open_timeout_s=0.01)
    opening.join()
    assert camera.closed == 1


def test_one_that_stops_is_an_error_in_time() -> None:
    camera = FakeCamera()
    camera.give(1)
    with _live(camera, frame_timeout_s=0.01) as source:
        samples = source.samples
        next(samples)
        with pytest.raises(SourceError, match=r"expected a frame within 0\.01 s"):
            next(samples)
        camera.give(None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_a_driver_is_not_the_end_of_the_stream() -> None:
    camera = FakeCamera()
    camera.give(1, ZeroDivisionError())
    with _live(camera) as source:
        eventually(lambda: source._ended, "the end")
        samples = source.samples
        next(samples)
        with pytest.raises(SourceError, match="broke off"):
            next(samples)


def test_age_counts_from_when_the_frame_was_taken(
    toy: Bundle, inputs: dict[str, np.ndarray]
) -> None:
    assert taken_of(Frame(inputs, 3.0)) == 3.0
    with Robot(toy, threads=1) as robot:
        frame = Frame(inputs, time.monotonic() - 50.0)
        assert robot.infer(frame).age_s >= 50.0
        (result,) = robot.stream([frame], in_flight=2)
        assert result.age_s >= 50.0 > result.latency_s
        assert robot.infer(inputs).age_s < 50.0
