"""A request to the server while it is under way, and what the server answered."""

from __future__ import annotations

import threading
import time
from typing import Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from engines.errors import LinkError
from engines.stripe_plans import Plan, messages
from engines.tensors import Array, TensorSpec
from runtime.messages import Channel
from runtime.payload import NO_CODECS
from runtime.transport import Deadline
from runtime.wire import Result

__all__ = ["Answer", "Request"]


class Answer(NamedTuple):
    """A server's answer.

    Attributes:
        tensors: The cut's results by name.
        result: The server's times.
        bytes_up: Size of the request's message.
        bytes_down: Size of the answer's message.
        elapsed_s: From the first byte sent to the last received.
        reading_s: From its header to its last byte.
    """

    tensors: Dict[str, Array]
    result: Result
    bytes_up: int
    bytes_down: int
    elapsed_s: float
    reading_s: float = 0.0


class Request:
    """A request under way. Created by :meth:`Link.begin`.

    Attributes:
        channel: The connection that it is on.
        number: Its id there.
        cut: Index of the cut.
        plan: How it is striped; none for a whole request.
        results: What the server sends back.
        unsent: Messages of it that have not been written yet.
        bytes_up: Sent so far.
        sending_s: Seconds spent on coding and writing.
        alone: Whether no other request was under way at any time.
        codecs: Codecs by tensor, of what is sent and of what is wished for in return.
        expected_s: How long it should take; none where nobody knows.
    """

    def __init__(
        self,
        channel: Channel,
        number: int,
        cut: int,
        plan: Optional[Plan] = None,
        results: Tuple[TensorSpec, ...] = (),
        codecs: Mapping[str, str] = NO_CODECS,
        expected_s: Optional[float] = None,
    ) -> None:
        self.expected_s = expected_s
        self.channel = channel
        self.number = number
        self.cut = cut
        self.plan = plan
        self.results = results
        self.codecs = codecs
        self.stripes = 1 if plan is None else messages(plan)
        self.unsent = self.stripes
        self.begin_s = time.monotonic()
        self.bytes_up = 0
        self.sending_s = 0.0
        self.alone = True
        self._settling = threading.Lock()
        self._settled = threading.Event()
        self._answer: Optional[Answer] = None
        self._error: Optional[LinkError] = None
        self._watcher: Optional[Callable[[], None]] = None

    @property
    def wishes(self) -> Tuple[str, ...]:
        """Names of the codecs of the results, in their order; nothing where there is none."""
        names = tuple(self.codecs.get(spec.name, "") for spec in self.results)
        return names if any(names) else ()

    @property
    def over(self) -> bool:
        """Whether it was answered or has failed."""
        return self._settled.is_set()

    def wait(self, deadline: Deadline) -> Optional[Answer]:
        """Return the answer; none if the deadline came first.

        Raises:
            LinkError: The request failed: the connection broke or the server could not do it.
        """
        if not self._settled.wait(deadline.remaining_s()):
            return None
        if self._error is not None:
            raise self._error
        assert self._answer is not None  # settled without an error
        return self._answer

    def settle(self, answer: Optional[Answer], error: Optional[LinkError] = None) -> bool:
        """Give the waiting thread its answer or error; returns whether it was the first one."""
        with self._settling:
            if self._settled.is_set():
                return False
            self._answer, self._error = answer, error
            self._settled.set()
            watcher = self._watcher
        if answer is not None and watcher is not None:
            watcher()
        return True

    def when_answered(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once there is an answer: at once where there is one.

        It is called in the thread that reads the connection, and must not wait.
        """
        with self._settling:
            self._watcher = watcher
            answered = self._answer is not None
        if answered:
            watcher()
