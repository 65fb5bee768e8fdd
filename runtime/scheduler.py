"""The server's work: requests of all robots in one queue, run one at a time.

One device runs one job at a time, in the order of arrival: a request, or one stripe of one, so
the stripes of several robots take turns. A request whose robot has gone, or that was cancelled, is
not computed when its turn comes, and given up where it is being computed. Every job is answered,
once.
``stop`` finishes what is queued.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Deque, Dict, Optional, Protocol

from engines.abort import Abort, Aborted, abortable
from engines.errors import SplitError
from engines.program import Program
from engines.tensors import Array

__all__ = ["Job", "Scheduler", "Work"]

logger = logging.getLogger(__name__)


class Work(Protocol):
    """What the scheduler runs.

    Attributes:
        cancelled: Set by whoever no longer wants it.
        arrived_s: Monotonic time of arrival.
    """

    cancelled: Abort
    arrived_s: float

    def compute(self) -> Optional[Dict[str, Array]]:
        """Do the work; returns the model's outputs, or none while more is to come."""

    @property
    def done(
        self,
    ) -> "Callable[[Optional[Dict[str, Array]], Optional[SplitError], float, float], None]":
        """Take what ``compute`` gave or the error, and the seconds waited and computed."""


@dataclass
class Job:
    """One whole request.

    Attributes:
        program: What runs it.
        cut: Index of the cut it starts from.
        tensors: The cut's frontier.
        done: Called with the model's outputs known after the run, or with the error, and the
            seconds that it waited and computed. Must not block.
        cancelled: Set by whoever no longer wants the answer.
        arrived_s: Monotonic time of arrival.
    """

    program: Program
    cut: int
    tensors: Dict[str, Array]
    done: "Callable[[Optional[Dict[str, Array]], Optional[SplitError], float, float], None]"
    cancelled: Abort = field(default_factory=Abort)
    arrived_s: float = field(default_factory=time.monotonic)

    def compute(self) -> Optional[Dict[str, Array]]:
        """Run the request from its cut to the end."""
        return self.program.run(self.tensors, self.cut)


class Scheduler:
    """Runs jobs in one thread."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._jobs: Deque[Work] = collections.deque()
        self._stopping = False
        self.served = 0
        self._thread = threading.Thread(target=self._work, name="splitrt-compute", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._jobs)

    def submit(self, job: Work) -> None:
        """Queue a job. After ``stop`` it is answered with an error at once."""
        with self._ready:
            if not self._stopping:
                self._jobs.append(job)
                self._ready.notify()
                return
        job.done(None, SplitError("the server is shutting down"), 0.0, 0.0)

    def stop(self, *, timeout_s: float) -> bool:
        """Finish what is queued, take nothing new. Returns whether all was done in time."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._jobs and not self._stopping:
                    self._ready.wait()
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            if job.cancelled.is_set():
                _answer(job, None, SplitError("cancelled"), time.monotonic() - job.arrived_s, 0.0)
                continue
            begin = time.monotonic()
            outputs: Optional[Dict[str, Array]] = None
            error: Optional[SplitError] = None
            try:
                with abortable(job.cancelled):
                    outputs = job.compute()
            except Aborted:
                error = SplitError("cancelled")
            except SplitError as exc:
                error = exc
            except Exception as exc:  # noqa: BLE001 (the process loop: log, answer, go on)
                logger.exception("a request failed by a fault of this program")
                error = SplitError(f"internal error: {type(exc).__name__}")
            if outputs is not None or error is not None:
                self.served += 1
            _answer(job, outputs, error, begin - job.arrived_s, time.monotonic() - begin)


def _answer(
    job: Work,
    outputs: Optional[Dict[str, Array]],
    error: Optional[SplitError],
    queue_s: float,
    compute_s: float,
) -> None:
    try:
        job.done(outputs, error, queue_s, compute_s)
    except Exception as exc:  # the process loop: the other robots' jobs go on
        logger.exception("an answer failed by a fault of this program")
        if outputs is not None:
            failed = SplitError(f"internal error: {type(exc).__name__}")
            _answer(job, None, failed, queue_s, compute_s)
