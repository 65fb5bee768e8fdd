"""Live sources: the newest frame wins.

1. A thread opens the camera and takes frame after frame into a place for one. A frame that is
   still there when the next one comes is dropped, and counted.
2. Whoever asks gets the newest frame with the moment at which it was taken. It waits for one no
   longer than ``frame_timeout_s``: a camera that hangs is an error of one line, not a robot that
   stands still.
3. A frame becomes pixels only when somebody wants it.
4. Only that thread touches the camera. If the driver hangs, the thread is left to it.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, Callable, Iterator, NamedTuple, Optional, Protocol

from engines.errors import SourceError
from runtime.frames import Frame
from runtime.sources.base import Fit, Sample, Source

__all__ = ["Grabber", "LiveSource", "Picture"]

Picture = Callable[[], Any]
"""Gives the pixels of one frame, RGB uint8 [H, W, 3]."""

OPEN_TIMEOUT_S = 15.0
"""Longest wait for a camera to open and give its first frame."""

FRAME_TIMEOUT_S = 5.0
"""Longest wait for the next."""

_JOIN_S = 2.0


class Grabber(Protocol):
    """A camera."""

    def grab(self) -> Optional[Picture]:
        """Wait for the next frame; none where the stream has ended. Raises SourceError."""

    def close(self) -> None:
        """Let go of the camera."""


class _Taken(NamedTuple):
    number: int
    taken_s: float
    picture: Picture


class LiveSource(Source):
    """A camera's frames. Ends with its stream, or never.

    Args:
        name: What it is called.
        open_grabber: Opens the camera; raises SourceError.
        fit: Makes a model's inputs of a picture.
        open_timeout_s: Longest wait for the first frame.
        frame_timeout_s: Longest wait for each one after.
        clock: Seconds that only grow.

    Raises:
        SourceError: The camera cannot be opened, or gives no frame in time.
    """

    def __init__(
        self,
        name: str,
        open_grabber: Callable[[], Grabber],
        fit: Fit,
        *,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        frame_timeout_s: float = FRAME_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(self._frames)
        self._name = name
        self._open_grabber = open_grabber
        self._fit = fit
        self._timeout_s = frame_timeout_s
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: Optional[_Taken] = None
        self._asked = False
        self._ended = False
        self._trouble: Optional[SourceError] = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="splitrt-camera", daemon=True)
        self._thread.start()
        try:
            self._wait(open_timeout_s)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<LiveSource {self._name} {self.dropped} dropped>"

    @property
    def samples(self) -> Iterator[Sample]:
        """The newest frame, again and again."""
        return self._frames()

    def take(self, count: Optional[int] = None) -> Iterator[Sample]:
        """Return the next ``count`` newest frames; without a count, as long as there are any."""
        return itertools.islice(self._frames(), count)

    def close(self) -> None:
        """End the thread, unless the driver holds it; safe to call again."""
        self._stop.set()
        self._thread.join(_JOIN_S)

    def _frames(self) -> Iterator[Sample]:
        while True:
            taken = self._wait(self._timeout_s, take=True)
            if taken is None:
                return
            inputs = self._fit(taken.picture())
            yield Sample(f"{self._name}#{taken.number}", Frame(inputs, taken.taken_s))

    def _wait(self, timeout_s: float, *, take: bool = False) -> Optional[_Taken]:
        """Wait for a frame; none where the stream has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended, timeout_s)
            taken = self._newest
            if take:
                self._newest, self._asked = None, True
            if taken is not None:
                return taken
            if self._trouble is not None:
                raise self._trouble
            if not self._ended:
                raise SourceError(
                    f"{self._name}: expected a frame within {timeout_s:g} s, got none; "
                    "is the camera connected, and used by nobody else?"
                )
            return None

    def _run(self) -> None:
        trouble: Optional[SourceError] = SourceError(f"{self._name}: reading it broke off")
        try:
            grabber = self._open_grabber()
            try:
                self._grab(grabber)
            finally:
                grabber.close()
            trouble = None
        except SourceError as exc:
            trouble = exc
        finally:
            with self._changed:
                self._trouble, self._ended = trouble, True
                self._changed.notify_all()

    def _grab(self, grabber: Grabber) -> None:
        for number in itertools.count():
            picture = None if self._stop.is_set() else grabber.grab()
            if picture is None:
                return
            taken = _Taken(number, self._clock(), picture)
            with self._changed:
                # What came while the models were loaded was nobody's to miss.
                if self._newest is not None and self._asked:
                    self.dropped += 1
                self._newest = taken
                self._changed.notify_all()
