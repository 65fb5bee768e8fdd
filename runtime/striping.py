"""The robot's striped side: its forms, its sender, and whether a plan can be carried out now."""

from __future__ import annotations

import threading
import time
from typing import Mapping, Optional

from calibration.plan_text import plan_text
from engines.bounded_runs import BoundedHeadRun
from engines.errors import EngineError
from engines.program import Program
from engines.row_runs import TopRun
from engines.stripe_plans import BoundedPlan, Plan, RowPlan, trouble
from engines.stripe_runs import HeadRun
from engines.striped import Side, StripedProgram, form_files
from engines.tensors import Array
from runtime.courses import BoundedCourse, Course, RowCourse, SerialCourse, StripedCourse
from runtime.link import Link
from runtime.selector import Decision
from runtime.sender import Sender

__all__ = ["Stripes"]

_PAUSE_S = 0.01


class Stripes:
    """What a robot needs for plans. Safe across threads.

    Args:
        program: The loaded bundle.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._striped = StripedProgram(program)
        self._sender: Optional[Sender] = None
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Stripes {self._striped!r} {self._sender!r}>"

    def trouble(self, plan: Plan, link: Optional[Link], *, whole: bool) -> str:
        """Say why a plan cannot be carried out now; an empty string if it can.

        What is missing on either end is loaded in the background.

        Args:
            plan: The plan, perhaps not a valid one.
            link: The link, if there is a server.
            whole: Whether this robot may run the whole model.
        """
        if link is None or not link.up:
            return "no connection"
        wrong = trouble(plan, self._striped.manifest)
        if wrong:
            return f"plan refused: {wrong}"
        if not self._striped.offered:
            return f"no stripes: backend {self._program.backend.name!r} runs no striped forms"
        if not self.usable(plan):
            text = plan_text(plan, self._striped.manifest)
            return f"no stripes: no plans of its forms; `runtime build BUNDLE --stripes {text}`"
        if not link.takes_stripes:
            return "no stripes: the server takes none"
        if isinstance(plan, RowPlan) and not whole:
            return "no row split: this robot may not run the whole model"
        return "" if self._ready(plan, link) else "stripes are being prepared"

    def usable(self, plan: Plan) -> bool:
        """Whether the robot's side of a valid plan can be loaded here."""
        return self._striped.loadable(plan, Side.ROBOT)

    def prepare(self, plan: Plan, link: Link, timeout_s: float) -> bool:
        """Load a valid plan's forms and wait for the server to have its own.

        Raises:
            EngineError: A form cannot be loaded here.
        """
        if not self._striped.offered:
            return False
        self._striped.forms(plan, Side.ROBOT)
        until_s = time.monotonic() + timeout_s
        while not self._ready(plan, link):
            if (link.up and not link.takes_stripes) or time.monotonic() > until_s:
                return False
            time.sleep(_PAUSE_S)
        return True

    def course(
        self, decision: Decision, link: Optional[Link], inputs: Mapping[str, Array]
    ) -> Course:
        """Return the course of a decision; its plan is one that :meth:`trouble` let through.

        Raises:
            TensorMismatchError: An input does not fit.
        """
        plan, codecs, predicted = decision.plan, decision.codecs, decision.prediction
        late_s = None if predicted is None else predicted.latency_s
        if plan is None:
            writer = None if decision.cut == self._program.last else self._writer()
            return SerialCourse(self._program, link, writer, decision.cut, inputs, codecs, late_s)
        assert link is not None, "a plan without a link"
        sender = self._writer()
        if isinstance(plan, RowPlan):
            top = TopRun(self._striped, plan, inputs)
            return RowCourse(top, link, sender, plan, codecs, late_s)
        if isinstance(plan, BoundedPlan):
            part = BoundedHeadRun(self._striped, plan, inputs)
            return BoundedCourse(part, link, sender, plan, codecs, late_s)
        head = HeadRun(self._striped, plan, inputs)
        return StripedCourse(head, link, sender, plan, codecs, late_s)

    def close(self) -> None:
        """End the sender and free the forms; safe to call again. Close the link first."""
        with self._lock:
            self._closed = True
            sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()
        self._striped.close()

    def _ready(self, plan: Plan, link: Link) -> bool:
        key = form_files(plan, self._striped.manifest, Side.SERVER)
        there = link.prepared(key)
        if not there:
            self._writer().submit(lambda: link.prepare(key, plan))
        here = self._striped.ready(plan, Side.ROBOT)
        if not here:
            self._striped.prepare_soon(plan, Side.ROBOT)
        return here and there

    def _writer(self) -> Sender:
        with self._lock:
            if self._closed:
                raise EngineError(f"model {self._striped.manifest.name!r} is closed")
            if self._sender is None:
                self._sender = Sender()
            return self._sender
