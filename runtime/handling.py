"""What a message takes from the computing that goes on beside it, learned from striped requests.

Coding, writing and reading go on in threads of their own; where cores are few they hold the
computing up all the same. What robot and server took beyond what their tables say, over the
messages that were handled meanwhile, is that cost. It is not measured beforehand: it depends on
the machine's cores and on its network driver as much as on the program.
"""

from __future__ import annotations

import math
import threading

from calibration.schedule import ROBOT, SERVER, Handling
from runtime.result import Result

__all__ = ["HandlingEstimator"]

_WEIGHT = 0.15

_MOST_S = 1e-3
"""More than this for a message is a fault of the tables, not the messages'."""

_FADES_S = 20.0
"""Without news what is known halves about as often: else plans that were once found dear would
never be tried again."""


class HandlingEstimator:
    """Keeps the cost of messages. Safe across threads."""

    def __init__(self) -> None:
        self._known = Handling()
        self._at_s = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<HandlingEstimator {self._known}>"

    def at(self, now_s: float) -> Handling:
        """Return what is known at a moment, in steps of 10 microseconds."""
        with self._lock:
            return Handling(*(round(value, 5) for value in self._faded(now_s)))

    def take(self, now_s: float, result: Result) -> None:
        """Learn from an inference that the server answered, with no other under way.

        Args:
            now_s: Seconds of a clock that never goes back.
            result: What it gave; one that was not striped, or not predicted, tells nothing.
        """
        decision, predicted = result.decision, result.predicted
        if decision is None or predicted is None or predicted.plan is None:
            return
        plans = None if decision.situation is None else decision.situation.plans
        if plans is None or result.answered_by != "remote" or result.hedge_s:
            return
        work, known = plans.choice(predicted.cut, predicted.plan).work, plans.handling
        robot, server = work.messages(ROBOT), work.messages(SERVER)
        with self._lock:
            robot_s, server_s = self._faded(now_s)
            if robot:
                beyond_s = (result.robot_s - predicted.robot_s) / robot
                robot_s = _nearer(robot_s, known.robot_s + beyond_s)
            if server:
                beyond_s = (result.server_s - predicted.server_s) / server
                server_s = _nearer(server_s, known.server_s + beyond_s)
            self._known, self._at_s = Handling(robot_s, server_s), now_s

    def _faded(self, now_s: float) -> Handling:
        left = math.exp(-math.log(2.0) * max(now_s - self._at_s, 0.0) / _FADES_S)
        return Handling(self._known.robot_s * left, self._known.server_s * left)


def _nearer(known_s: float, observed_s: float) -> float:
    return known_s + _WEIGHT * (min(max(observed_s, 0.0), _MOST_S) - known_s)
