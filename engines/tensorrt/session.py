"""What the engines of one backend share on the device."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Iterator, Optional

from engines.tensorrt.memory import DeviceMemory

__all__ = ["Session"]


class Session:
    """What the engines of a backend share: device memory, a stream and a lock.

    The stream is made for the first engine and freed with the last. ``waits`` counts how often
    all that was on it was waited for.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.lock = threading.RLock()
        self.waits = 0
        self._stream: Optional[int] = None
        self._users = 0

    @contextmanager
    def use(self) -> Iterator[int]:
        """Hold the device in this thread; gives the stream."""
        with self.lock, self.memory.current():
            if self._stream is None:
                raise AssertionError("a session without engines was used")
            yield self._stream

    def wait(self, stream: int) -> None:
        """Wait until everything on the stream is done."""
        self.memory.synchronize(stream)
        self.waits += 1

    def join(self) -> None:
        """Count an engine in."""
        with self.lock, self.memory.current():
            if self._stream is None:
                self._stream = self.memory.create_stream()
            self._users += 1

    def leave(self) -> None:
        """Count an engine out."""
        with self.lock, self.memory.current():
            self._users -= 1
            if self._users == 0 and self._stream is not None:
                stream, self._stream = self._stream, None
                self.memory.destroy_stream(stream)
