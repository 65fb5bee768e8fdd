"""A request that comes in stripes, at the server.

The reader checks each message against the plan and hands its tensors on as a job; the compute
thread runs it on the request's own state. Whichever comes first, the outputs, an error or the
robot's CANCEL, answers the request, once, and frees its state. Stripes that were on their way to
a request that failed are read and dropped.
"""

from __future__ import annotations

import threading
import time
from typing import Dict, List, Mapping, NamedTuple, Optional, Protocol, Tuple

from engines.abort import Abort
from engines.bounded_runs import BoundedTailRun
from engines.errors import RemoteProtocolError, SplitError
from engines.manifest import Manifest
from engines.row_runs import BottomRun
from engines.stripe_plans import (
    BoundedPlan,
    Plan,
    RowPlan,
    messages,
    sent,
    trouble,
    wire_order,
)
from engines.stripe_runs import TailRun
from engines.striped import StripedProgram
from engines.tensors import Array, TensorSpec
from runtime.wire import Header, Infer

__all__ = ["Answerer", "Receipt", "StripedRequest", "check_plan"]


class Receipt(NamedTuple):
    """How long a payload was on its way.

    Attributes:
        nbytes: Its bytes.
        early: Those of them that were there before anyone looked.
        seconds: In which the others came.
        decoding_s: Seconds of decoding them, beside those.
    """

    nbytes: int = 0
    early: int = 0
    seconds: float = 0.0
    decoding_s: float = 0.0

    @property
    def whole_s(self) -> float:
        """Seconds that all of it took, at the pace at which the others came."""
        timed = self.nbytes - self.early
        return self.seconds * self.nbytes / timed if timed > 0 else self.seconds

    def plus(self, other: Receipt) -> Receipt:
        """Return both together."""
        return Receipt(
            self.nbytes + other.nbytes,
            self.early + other.early,
            self.seconds + other.seconds,
            self.decoding_s + other.decoding_s,
        )


class Answerer(Protocol):
    """Hands a request's answer to whoever sends it. Called once, from any thread."""

    def __call__(
        self,
        outputs: Optional[Dict[str, Array]],
        error: Optional[SplitError],
        queue_s: float,
        compute_s: float,
        *,
        receive_s: float,
    ) -> None: ...


class StripedRequest:
    """One request with a plan.

    Args:
        header: Of its first message.
        plan: As :func:`check_plan` has accepted it.
        manifest: The bundle's manifest.
        answer: What answers it.
    """

    def __init__(self, header: Header, plan: Plan, manifest: Manifest, answer: Answerer) -> None:
        self.number = header.request
        self.cancelled = Abort()
        self.told = False
        self._plan = plan
        self._manifest = manifest
        self._cut = header.cut
        self._answer = answer
        self._lock = threading.Lock()
        self._run: "Optional[TailRun | BottomRun | BoundedTailRun]" = None
        self._order: Tuple[int, ...] = wire_order(plan)
        self._received = 0
        self._answered = False
        self._ended_s = 0.0
        self._receipt = Receipt()
        self._times: List[float] = [0.0, 0.0]

    def __repr__(self) -> str:
        return f"<StripedRequest {self.number} {self._received} of {len(self._order)} stripes>"

    @property
    def complete(self) -> bool:
        """Whether every stripe was received."""
        return self._received == len(self._order)

    @property
    def answered(self) -> bool:
        """Whether it needs no more computing."""
        return self._answered

    def begin(self, striped: StripedProgram) -> None:
        """Load what it needs and take the memory for it.

        Raises:
            EngineError: A form cannot be loaded here.
        """
        run = _run_of(self._plan, striped)
        with self._lock:
            if not self._answered:
                self._run = run

    def expect(self, header: Header, meta: Infer) -> Tuple[TensorSpec, ...]:
        """Check a message of the request; returns the tensors that it must carry.

        Raises:
            RemoteProtocolError: Not the stripe that comes next by the plan.
        """
        what = f"INFER: stripe {header.stripe} of request {self.number}"
        if self.cancelled.is_set():
            raise RemoteProtocolError(f"{what}, which was cancelled")
        if self.complete:
            raise RemoteProtocolError(f"{what}, of which all {len(self._order)} stripes came")
        if self._received and meta.plan is not None:
            raise RemoteProtocolError(f"{what} has a plan; only the first message has")
        if header.cut != self._cut or header.stripes != len(self._order):
            raise RemoteProtocolError(
                f"{what}: expected cut {self._cut:08x} and {len(self._order)} stripes, "
                f"given {header.cut:08x} and {header.stripes}"
            )
        due = self._order[self._received]
        if header.stripe != due:
            raise RemoteProtocolError(f"{what}: expected stripe {due} by its plan")
        return sent(self._plan, self._manifest, due)

    def received(self, receipt: Receipt) -> None:
        """Note that the message that was expected has been read."""
        self._received += 1
        self._receipt = self._receipt.plus(receipt)
        self._times[1] += receipt.decoding_s

    def settle(
        self, outputs: Optional[Dict[str, Array]], error: Optional[SplitError] = None
    ) -> None:
        """Answer the request and free its state; the first answer counts."""
        with self._lock:
            self._run = None
            if self._answered:
                return
            self._answered = True
        queue_s, compute_s = self._times
        receive_s = self._receipt.whole_s
        self._answer(outputs, error, queue_s, compute_s, receive_s=receive_s)

    def drop(self) -> None:
        """Free the state of a request whose robot has gone: nobody is to be answered."""
        self.cancelled.set()
        with self._lock:
            self._run, self._answered = None, True

    def job(self, stripe: int, tensors: Mapping[str, Array]) -> "_StripeJob":
        """Return the job that computes what a stripe allows."""
        return _StripeJob(self, stripe, tensors)

    def take(self, stripe: int, tensors: Mapping[str, Array]) -> Optional[Dict[str, Array]]:
        """Compute what a stripe allows, in the compute thread."""
        with self._lock:
            run = self._run
        return None if run is None else run.take(stripe, tensors)

    def computed(self, arrived_s: float, queue_s: float, compute_s: float) -> None:
        """Add up the times. Waiting for the request's own stripes is not waiting for others."""
        begin_s = arrived_s + queue_s
        self._times[0] += max(begin_s - max(arrived_s, self._ended_s), 0.0)
        self._times[1] += compute_s
        self._ended_s = begin_s + compute_s


class _StripeJob:
    """One stripe for the scheduler."""

    def __init__(self, request: StripedRequest, stripe: int, tensors: Mapping[str, Array]) -> None:
        self.cancelled = request.cancelled
        self.arrived_s = time.monotonic()
        self._request = request
        self._stripe = stripe
        self._tensors = tensors

    def compute(self) -> Optional[Dict[str, Array]]:
        return self._request.take(self._stripe, self._tensors)

    def done(
        self,
        outputs: Optional[Dict[str, Array]],
        error: Optional[SplitError],
        queue_s: float,
        compute_s: float,
    ) -> None:
        self._request.computed(self.arrived_s, queue_s, compute_s)
        if outputs is not None or error is not None:
            self._request.settle(outputs, error)


def _run_of(plan: Plan, striped: StripedProgram) -> "TailRun | BottomRun | BoundedTailRun":
    if isinstance(plan, RowPlan):
        return BottomRun(striped, plan)
    if isinstance(plan, BoundedPlan):
        return BoundedTailRun(striped, plan)
    return TailRun(striped, plan)


def check_plan(header: Header, plan: Plan, manifest: Manifest) -> None:
    """Check a peer's plan against the bundle, before anything is allocated for it.

    Raises:
        RemoteProtocolError: It does not fit the bundle, or the header does not fit it.
    """
    what = f"INFER: plan of request {header.request}"
    wrong = trouble(plan, manifest)
    if wrong:
        raise RemoteProtocolError(f"{what}: {wrong}")
    if plan.cut == len(manifest.cuts) - 1:
        raise RemoteProtocolError(f"{what}: after cut {plan.cut} nothing is left to compute")
    cut = int(manifest.cuts[plan.cut].id, 16)
    stripes = messages(plan)
    if (header.cut, header.stripes) != (cut, stripes):
        raise RemoteProtocolError(
            f"{what}: expected cut {cut:08x} and {stripes} stripes in the header, "
            f"given {header.cut:08x} and {header.stripes}"
        )
