"""Waiting until a point in time, to a few tens of microseconds, without spinning.

The kernel wakes a sleeper late: by its timer slack, and by the time that a processor takes to
come back. Both are about the same from one time to the next, so a sleep ends early by what the
last ones were late. A wait that nothing disturbs is then as often too short as too long.
"""

from __future__ import annotations

import time
from typing import Protocol

from engines.abort import check_abort, current_abort

__all__ = ["Clock", "PreciseClock"]

_FIRST_LATE_S = 60e-6
"""Linux's default timer slack is 50 us."""

_MOST_LATE_S = 300e-6
"""A sleeper that comes later than this was kept waiting by others: nothing to learn from."""

_LEARN = 0.1


class Clock(Protocol):
    """Tells the time and waits; replaced in tests."""

    def now_s(self) -> float:
        """Return the time in seconds, from any origin."""

    def sleep_until(self, deadline_s: float) -> None:
        """Return once it is so late; at once if it is already.

        Raises:
            Aborted: This thread's computation was given up meanwhile (``engines.abort``).
        """


class PreciseClock:
    """``time.perf_counter``, and sleeps that end when they should. Safe across threads."""

    def __init__(self) -> None:
        self.late_s = _FIRST_LATE_S

    def now_s(self) -> float:
        return time.perf_counter()

    def sleep_until(self, deadline_s: float) -> None:
        early_s = self.late_s
        wanted_s = deadline_s - early_s
        left_s = wanted_s - time.perf_counter()
        if left_s <= 0:  # less than a sleep can be short
            return
        abort = current_abort()
        if abort is None:
            time.sleep(left_s)
        elif abort.wait(left_s):
            check_abort()
        late_s = time.perf_counter() - wanted_s
        if 0 <= late_s <= _MOST_LATE_S:
            self.late_s += _LEARN * (late_s - self.late_s)
