"""The robot's sender: writes stripes while the inference computes on.

One thread does what it is told, in order: the stripes of one frame follow those of the frame
before. Its queue takes no memory of its own: what waits there are rows that the inference keeps
for its fallback anyway, and coding makes one stripe's bytes at a time. So an inference never waits
for a slow link; it computes on, and gives up by its patience.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Callable, Optional

__all__ = ["Sender"]

logger = logging.getLogger(__name__)


class Sender:
    """A thread that writes. ``close`` ends it once what it is writing is written or broken off."""

    def __init__(self) -> None:
        self._acts: "queue.Queue[Optional[Callable[[], None]]]" = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="splitrt-send", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Sender {self._acts.qsize()} waiting>"

    @property
    def waiting(self) -> int:
        """Acts that have not begun."""
        return self._acts.qsize()

    def submit(self, act: Callable[[], None]) -> None:
        """Queue something to write; what waits when the sender is closed is not written."""
        self._acts.put(act)

    def close(self) -> None:
        """End the thread; safe to call again. Break the connection off first."""
        self._closing.set()
        self._acts.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            act = self._acts.get()
            if act is None or self._closing.is_set():
                return
            try:
                act()
            except Exception:  # the sender's loop: other inferences go on
                logger.exception("a stripe was not sent by a fault of this program")
            del act  # holds a stripe's rows, and the next may be long in coming
