"""The courses that one inference can take on the robot.

Every course has the same steps. ``head`` is the robot's part; a striped one sends while it
computes, and in no case does the inference itself wait for the link to take its bytes. ``ask``
waits for the answer, ``joined`` puts the model's outputs together from both sides, and ``alone``
does what was the server's part, from what the head left: nothing that was computed is computed
again, but for a bounded division, of which nothing is of use for the exact result. ``alone`` may
run while the answer is awaited (``runtime.race``).
"""

from __future__ import annotations

from typing import Callable, Dict, Generic, Mapping, Optional, Protocol, TypeVar

from engines.bounded_runs import BoundedHeadRun
from engines.errors import LinkError
from engines.program import Program
from engines.row_runs import TopRun
from engines.stripe_plans import Plan, messages, mode_of
from engines.stripe_runs import HeadRun
from engines.tensors import Array
from runtime.link import Link
from runtime.payload import NO_CODECS
from runtime.requests import Answer, Request
from runtime.sender import Sender
from runtime.transport import Deadline

__all__ = ["BoundedCourse", "Course", "RowCourse", "SerialCourse", "StripedCourse"]

Run = TypeVar("Run")

_MOST_WAITING = 256
"""Messages that wait for the sender: several frames in many stripes. With more the link is stuck,
and they are of frames that have been answered otherwise."""


class Course(Protocol):
    """One inference on its way.

    Attributes:
        cut: Index of the cut.
        mode: See ``Result.mode``.
        stripes: Messages of the request; 0 for none.
    """

    cut: int
    mode: str
    stripes: int

    @property
    def bytes_up(self) -> int:
        """Bytes sent so far."""

    @property
    def sending_s(self) -> float:
        """Seconds spent on coding and writing beside the computing."""

    def head(self) -> None:
        """Compute the robot's part, and hand what is to be sent to the sender."""

    def ask(self, deadline: Deadline) -> Optional[Answer]:
        """Wait for the server's answer; none where the deadline came first.

        Raises:
            LinkError: There will be none.
        """

    def when_answered(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once the answer is there, from another thread; it must not wait."""

    def cancel(self) -> None:
        """Want no answer any more, and tell the server so."""

    def abandon(self) -> None:
        """Give the answer up, and the connection with it."""

    def joined(self, answer: Answer) -> Dict[str, Array]:
        """Return the outputs from the robot's part and the answer."""

    def alone(self) -> Dict[str, Array]:
        """Compute what is missing on the robot and return the outputs.

        An answer may still be joined afterwards, or after this was given up in the middle.
        """


class _Remote:
    """What the courses share: a request whose messages the sender writes."""

    def __init__(
        self,
        link: Optional[Link],
        sender: Optional[Sender],
        cut: int,
        plan: Optional[Plan],
        codecs: Mapping[str, str],
        expected_s: Optional[float],
    ) -> None:
        self.cut = cut
        self._codecs = codecs
        self._expected_s = expected_s
        self._link = link
        self._sender = sender
        self._plan = plan
        self._request: Optional[Request] = None
        self._trouble: Optional[LinkError] = None

    @property
    def bytes_up(self) -> int:
        """Bytes sent so far."""
        return 0 if self._request is None else self._request.bytes_up

    @property
    def sending_s(self) -> float:
        """Seconds that the sender took for it."""
        return 0.0 if self._request is None else self._request.sending_s

    @property
    def _failed(self) -> bool:
        return self._request is None or self._request.over

    def _open(self) -> None:
        """Open the request; where that cannot be, ``ask`` says why."""
        link, sender = self._link, self._sender
        assert link is not None, "a request without a link"
        assert sender is not None, "a request without a sender"
        try:
            if sender.waiting > _MOST_WAITING:
                raise LinkError("the link has not taken what was sent before")
            self._request = link.begin(
                self.cut, self._plan, codecs=self._codecs, expected_s=self._expected_s
            )
        except LinkError as exc:
            self._trouble = exc

    def _submit(self, stripe: int, tensors: Mapping[str, Array]) -> None:
        link, sender, request = self._link, self._sender, self._request
        if request is not None and link is not None and sender is not None:
            sender.submit(lambda: link.send_stripe(request, stripe, tensors))

    def ask(self, deadline: Deadline) -> Optional[Answer]:
        """Wait for the answer to what is being sent."""
        request = self._request
        if request is None:
            assert self._trouble is not None  # why there is no request
            raise self._trouble
        try:
            return request.wait(deadline)
        except LinkError:
            self.cancel()
            raise

    def when_answered(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once the answer is there."""
        if self._request is not None:
            self._request.when_answered(watcher)

    def cancel(self) -> None:
        """Tell the server to forget the request, after the message that is being written."""
        link, sender, request = self._link, self._sender, self._request
        if request is not None and link is not None and sender is not None:
            request.settle(None, LinkError("given up by this robot"))
            sender.submit(lambda: link.cancel(request))

    def abandon(self) -> None:
        """Break the connection off."""
        if self._request is not None and self._link is not None:
            self._link.abandon(self._request)


class SerialCourse(_Remote):
    """The head on the robot, then the frontier to the server; or all of it on the robot.

    Args:
        program: What computes.
        link: The link; none only where the cut is the last.
        sender: Writes the frontier; the same.
        cut: Index of the cut.
        inputs: The model's inputs.
        codecs: Names of codecs by tensor.
        expected_s: How long the request should take; none where nobody knows.
    """

    def __init__(
        self,
        program: Program,
        link: Optional[Link],
        sender: Optional[Sender],
        cut: int,
        inputs: Mapping[str, Array],
        codecs: Mapping[str, str] = NO_CODECS,
        expected_s: Optional[float] = None,
    ) -> None:
        super().__init__(link, sender, cut, None, codecs, expected_s)
        self.mode = "local" if cut == program.last else "split" if cut else "frame"
        self.stripes = 0 if cut == program.last else 1
        self._program = program
        self._env: Dict[str, Array] = dict(inputs)

    def head(self) -> None:
        """Run the head and have its frontier sent."""
        self._env = self._program.run(self._env, 0, self.cut)
        if self.stripes:
            self._open()
            frontier = self._program.bundle.manifest.cuts[self.cut].tensors
            self._submit(0, {name: self._env[name] for name in frontier})

    def joined(self, answer: Answer) -> Dict[str, Array]:
        """Add the answer to what the head gave."""
        return {**self._env, **answer.tensors}

    def alone(self) -> Dict[str, Array]:
        """Run the tail from the frontier that was kept."""
        return self._program.run(self._env, self.cut, self._program.last)


class _Streaming(_Remote, Generic[Run]):
    """What the courses with a plan share: they send while they compute.

    Args:
        run: What computes the robot's part of the plan.
        link: The link.
        sender: Writes the messages.
        plan: A valid plan.
        codecs: Names of codecs by tensor.
        expected_s: How long the request should take; none where nobody knows.
    """

    def __init__(
        self,
        run: Run,
        link: Link,
        sender: Sender,
        plan: Plan,
        codecs: Mapping[str, str] = NO_CODECS,
        expected_s: Optional[float] = None,
    ) -> None:
        super().__init__(link, sender, plan.cut, plan, codecs, expected_s)
        self.mode = mode_of(plan)
        self.stripes = messages(plan)
        self._run = run

    def _begin(self, compute: Callable[[], None]) -> None:
        """Open the request and compute; whatever goes wrong in that, the server is told."""
        self._open()
        try:
            compute()
        except BaseException:
            self.cancel()
            raise


class StripedCourse(_Streaming[HeadRun]):
    """The head stripe by stripe; each goes out while the next is computed, raw ones first."""

    def head(self) -> None:
        """Compute and send stripe by stripe, for as long as the request lives."""
        self._begin(self._stream)

    def _stream(self) -> None:
        for stripe in range(self._run.robot, self.stripes):
            self._submit(stripe, self._run.raw(stripe))
        for stripe in range(self._run.robot):
            if self._failed:  # ``alone`` does the rest in one go
                return
            self._submit(stripe, self._run.step())

    def joined(self, answer: Answer) -> Dict[str, Array]:
        """Add the answer to the outputs that the head gave."""
        return {**self._run.known(), **answer.tensors}

    def alone(self) -> Dict[str, Array]:
        """Finish the head from the stripe that it had come to, then run the tail."""
        return self._run.alone()


class RowCourse(_Streaming[TopRun]):
    """The rows above a bound on the robot, those below on the server, at the same time."""

    def head(self) -> None:
        """Send what the server needs, and compute the robot's rows meanwhile."""
        self._begin(self._compute)

    def _compute(self) -> None:
        self._submit(0, self._run.sent())
        self._run.run()

    def joined(self, answer: Answer) -> Dict[str, Array]:
        """Put the rows of both sides together."""
        return self._run.joined(answer.tensors)

    def alone(self) -> Dict[str, Array]:
        """Carry on below the bound."""
        return self._run.finish()


class BoundedCourse(_Streaming[BoundedHeadRun]):
    """The head divided in two with a bounded halo, both parts at the same time. Lossy."""

    def head(self) -> None:
        """Send the raw rows, compute the robot's part meanwhile and send that."""
        self._begin(self._compute)

    def _compute(self) -> None:
        self._submit(1, self._run.raw())
        if not self._failed:
            self._submit(0, self._run.run())

    def joined(self, answer: Answer) -> Dict[str, Array]:
        """Return the answer: all outputs come from the server."""
        return dict(answer.tensors)

    def alone(self) -> Dict[str, Array]:
        """Run the whole model, exactly."""
        return self._run.alone()
