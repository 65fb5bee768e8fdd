"""Decides on the next inference in the pause before it.

Deciding takes a few tenths of a millisecond where caches have gone cold, which is the case after a
pause: then there is time for it, too.

1. Where the pauses between inferences are long enough, a thread chooses once an inference has
   ended, as the next one would.
2. That one takes the choice if nothing has been learned since: it is what it would choose itself,
   but for how much wider an estimate grows with its age, which is why a choice is not kept long.
3. What it took the processor, taken or not, counts in the energy of the next inference, on top of
   the pause's idling.

Nothing is done ahead with inferences back to back, several of them under way, or pauses in which a
choice would go stale.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import Callable, Iterator, NamedTuple, Optional, Tuple

from calibration.objectives import Objective
from calibration.prepared import PreparedPlans
from runtime.decision import Decision

__all__ = ["Ahead", "Basis"]

logger = logging.getLogger(__name__)

_PAUSE_S = 0.015
"""A shorter pause is left to the caller."""

_SETTLE_S = 0.006
"""Time for what is still learned of an inference after its answer is out."""

_FRESH_S = 0.4
"""A choice that is older is not taken, so none is made where the pauses are longer."""


class Basis(NamedTuple):
    """What a choice rests on: of the same, the same is chosen.

    Attributes:
        plans: All that may be done.
        evidence: Pieces of evidence that the estimate rests on.
        up: Whether there is a connection.
        backlog_bytes: What is still on its way.
        objective: What to be best at.
        in_flight: Inferences under way at a time, where the caller says so.
    """

    plans: Optional[PreparedPlans]
    evidence: int
    up: bool
    backlog_bytes: int
    objective: Objective
    in_flight: Optional[int]


Choose = Callable[[Objective, Optional[int]], Tuple[Basis, Decision]]


class Ahead:
    """Keeps the choice for the next inference. Safe across threads.

    Args:
        choose: Chooses now; called by a thread of this object.
    """

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._lock = threading.Lock()
        self._made: Optional[Tuple[float, Basis, Decision]] = None
        self._under_way = 0
        self._ended_s = 0.0
        self._pause_s = 0.0
        self._spent_s = 0.0
        self._next: Optional[Tuple[Objective, Optional[int]]] = None
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __repr__(self) -> str:
        return f"<Ahead {self._made!r}>"

    @contextmanager
    def inference(
        self, objective: Objective, in_flight: Optional[int], *, chosen: bool = True
    ) -> Iterator[None]:
        """Be told of an inference while it is under way; the next one is taken to be like it.

        Args:
            objective: What it is to be best at.
            in_flight: Inferences under way at a time, where the caller says so.
            chosen: Whether there is anything to choose ahead.
        """
        with self._lock:
            self._under_way += 1
            if self._under_way == 1:
                self._pause_s = time.monotonic() - self._ended_s
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._ended_s = time.monotonic()
                self._next = objective, in_flight
                if chosen and not self._under_way and _PAUSE_S <= self._pause_s <= _FRESH_S:
                    self._begin()

    def take(self, basis: Callable[[], Basis]) -> Optional[Decision]:
        """Return the choice for an inference; none if there is none.

        Args:
            basis: Gives the inference's basis; asked only where there is a choice.
        """
        with self._lock:
            made, self._made = self._made, None
        if made is None:
            return None
        at_s, its, decision = made
        fresh = time.monotonic() - at_s <= _FRESH_S
        return decision if fresh and its == basis() else None

    def spent_s(self) -> float:
        """Return the processor's seconds since the last time that this was asked."""
        with self._lock:
            spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def close(self) -> None:
        """End the thread; safe to call again."""
        self._closing.set()
        self._wanted.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        if self._closing.is_set():
            return
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="splitrt-ahead", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # no more threads: whoever decides in time needs none
                logger.debug("nothing is decided ahead: %s", exc)
                return
            self._thread = thread
        self._wanted.set()

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._closing.wait(_SETTLE_S):
                return
            with self._lock:
                wanted = None if self._under_way else self._next
            if wanted is None:
                continue
            began_s = time.thread_time()
            made: Optional[Tuple[float, Basis, Decision]] = None
            try:
                basis, decision = self._choose(*wanted)
                made = time.monotonic(), basis, decision
            except Exception:  # whoever decides in time will hear of it
                logger.exception("nothing was decided ahead")
            with self._lock:
                self._made = made
                self._spent_s += time.thread_time() - began_s
