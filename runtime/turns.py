"""Whose turn it is to compute on the robot: one inference at a time, the oldest first.

With several frames in flight, the next one begins when the one before has done its head. A frame
whose server failed computes its tail before newer ones begin.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Callable, Iterator, List

__all__ = ["Turns"]


class Turns:
    """A lock that goes to the smallest number that waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: List[int] = []
        self._busy = False

    def reserve(self, number: int) -> None:
        """Wait in advance: no larger number gets a turn before this one had its first."""
        with self._changed:
            self._waiting.append(number)

    def withdraw(self, number: int) -> None:
        """Give up what was reserved, if its turn has not come."""
        with self._changed:
            if number in self._waiting:
                self._waiting.remove(number)
                self._changed.notify_all()

    @contextmanager
    def turn(self, number: int, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Hold the turn. One thread at a time may hold or wait for it under one number.

        Args:
            number: The inference's.
            unless: Says that the turn is not needed any more; it is asked on each change, and when
                somebody says :meth:`look`.

        Yields:
            Whether the turn is held; if not, nothing is to be computed.
        """
        with self._changed:
            if number not in self._waiting:
                self._waiting.append(number)
            self._changed.wait_for(
                lambda: unless() or (not self._busy and min(self._waiting) == number)
            )
            self._waiting.remove(number)
            held = not unless()
            self._busy = self._busy or held
            if not held:
                self._changed.notify_all()
        try:
            yield held
        finally:
            if held:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def look(self) -> None:
        """Let whoever waits ask again whether it still needs its turn."""
        with self._changed:
            self._changed.notify_all()
