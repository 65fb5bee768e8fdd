"""Whose turn it is to compute on the robot: one inference at a time, the oldest first.

With several frames in flight, the next one begins when the one before has done its head. A frame
whose server failed computes its tail before newer ones begin.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Iterator, List

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
    def turn(self, number: int) -> Iterator[None]:
        """Hold the turn. One thread at a time may hold or wait for it under one number."""
        with self._changed:
            if number not in self._waiting:
                self._waiting.append(number)
            self._changed.wait_for(lambda: not self._busy and min(self._waiting) == number)
            self._waiting.remove(number)
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
