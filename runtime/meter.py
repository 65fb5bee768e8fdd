"""Reads a connection's counters while anything is under way, and tells the estimator.

A thread of its own, since whoever writes may be held up by the kernel for as long as the link is
slow, which is when readings matter. It sleeps while nothing is under way.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import Iterator, Optional

from runtime.estimator import LinkEstimator
from runtime.evidence import Reading
from runtime.transport import Stream

__all__ = ["Meter"]

_FIRST_EVERY_S = 0.001
_EVERY_S = 0.004
_LATER_EVERY_S = 0.01
"""Time between readings: short at first, for transfers that take a few milliseconds, and longer
where bytes have been under way for seconds."""

_FIRST = 10
_LATER = 500
"""Readings after which they become rarer."""


class Meter:
    """Watches the connection that a link has now. Safe across threads.

    Args:
        estimator: Told each reading.
    """

    def __init__(self, estimator: LinkEstimator) -> None:
        self._estimator = estimator
        self._stream: Optional[Stream] = None
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._closing = False
        self._writing = 0
        self._until_bytes: Optional[int] = None
        self._thread = threading.Thread(target=self._work, name="splitrt-meter", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Meter of {self._stream!r}>"

    def attach(self, stream: Optional[Stream]) -> None:
        """Watch this connection from now on; none for no connection."""
        with self._lock:
            self._stream, self._until_bytes = stream, None
        self.read()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Watch while a message is written, and on until it has been acknowledged."""
        with self._lock:
            self._writing += 1
        self._wanted.set()
        try:
            yield
        finally:
            with self._lock:
                self._writing -= 1
            self._wanted.set()

    @contextmanager
    def receiving(self, size: int) -> Iterator[None]:
        """Watch while the rest of a message is received; for the thread that reads.

        Args:
            size: Its bytes, none of which has been read. Once the kernel has them all, what the
                thread still does with them is not the link's time.
        """
        with self._lock:
            if self._stream is not None:
                self._until_bytes = self._stream.bytes_read + size
        self.read()
        self._wanted.set()
        try:
            yield
        finally:
            self.read()
            with self._lock:
                self._until_bytes = None
            self.read()

    def read(self) -> bool:
        """Read the counters now; returns whether anything is under way."""
        with self._lock:
            stream = self._stream
            if stream is None:
                return False
            counters = stream.counters()
            if counters is None:
                return False
            until = self._until_bytes
            receiving = until is not None and counters.received_bytes < until
            reading = Reading(
                at_s=time.monotonic(),
                acked_bytes=counters.acked_bytes,
                received_bytes=counters.received_bytes,
                outstanding_bytes=counters.outstanding_bytes,
                receiving=receiving,
                blocked=counters.blocked,
                delivery_bps=counters.delivery_bps,
            )
            self._estimator.take(reading)
            return bool(counters.outstanding_bytes or receiving or self._writing)

    def close(self) -> None:
        """End the thread; safe to call again."""
        self._closing = True
        self._wanted.set()
        self._thread.join()

    def _work(self) -> None:
        count = 0
        while not self._closing:
            if self.read():
                every_s = _EVERY_S if count < _LATER else _LATER_EVERY_S
                time.sleep(_FIRST_EVERY_S if count < _FIRST else every_s)
                count += 1
                continue
            count = 0
            self._wanted.wait()
            self._wanted.clear()
