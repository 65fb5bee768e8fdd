"""The server's answer against the robot's own: whichever is first counts.

1. The inference waits for the answer until its hedge is due, or until its patience is at an end
   where nothing was promised.
2. A request that fails, or is given up by patience, leaves the rest to the robot.
3. When the hedge is due, the robot begins what is the server's part, and the request lives on. An
   answer that comes stops the robot in the middle (``engines.abort``); where the robot is done
   first, the request is cancelled, so that link and server are spared what can still be spared.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Callable, Dict, NamedTuple, Optional

from engines.abort import Abort, Aborted, abortable
from engines.errors import LinkError
from engines.tensors import Array
from runtime.courses import Course
from runtime.requests import Answer
from runtime.transport import Deadline
from runtime.turns import Turns

__all__ = ["Finish", "finish"]


class Finish(NamedTuple):
    """How an inference came to its end.

    Attributes:
        tensors: The model's outputs, perhaps among other tensors.
        answer: The server's answer; none where the robot did without.
        why: Why it did without; empty where the answer counts.
        waited_s: Seconds from when the robot's part was done to the answer or the robot's own.
        alone_s: Seconds that the robot computed of the server's part.
        hedged: Whether it began while the answer might still have come.
    """

    tensors: Dict[str, Array]
    answer: Optional[Answer]
    why: str
    waited_s: float
    alone_s: float
    hedged: bool


def finish(
    course: Course,
    turns: Turns,
    number: int,
    *,
    hedge_at_s: Optional[float],
    patience_s: Optional[float],
    check: Callable[[str], None],
) -> Finish:
    """Wait for a request's answer, compute what is missing, or both.

    Args:
        course: Its robot's part is done.
        turns: Whose turn it is to compute.
        number: The inference's.
        hedge_at_s: Monotonic time at which the robot begins; none for no hedge.
        patience_s: Longest wait, where there is no hedge or the user wants no longer one.
        check: Refuses to go on without an answer where the robot may not; told why it has to.

    Raises:
        EngineError: The robot's own backend failed.
    """
    begin_s = time.monotonic()
    waits_s = [] if patience_s is None else [patience_s]
    if hedge_at_s is not None:
        waits_s.append(max(hedge_at_s - begin_s, 0.0))
    assert waits_s, "an inference that might wait for ever"
    wait_s = min(waits_s)
    answer: Optional[Answer] = None
    why = ""
    try:
        answer = course.ask(Deadline(wait_s))
    except LinkError as exc:
        why = str(exc)
    if answer is not None:
        waited_s = time.monotonic() - begin_s
        return Finish(course.joined(answer), answer, "", waited_s, 0.0, hedged=False)
    if not why and hedge_at_s is None:
        why = f"no answer within {wait_s * 1e3:.0f} ms"
        course.abandon()
    check(why or "the answer is late")
    return _race(course, turns, number, begin_s, why)


def _race(course: Course, turns: Turns, number: int, begin_s: float, why: str) -> Finish:
    """Compute what is missing, for as long as there is no answer."""
    abort = Abort()

    def stop() -> None:
        abort.set()
        turns.look()

    hedged = not why
    if hedged:
        course.when_answered(stop)
    alone_s = 0.0
    tensors: Optional[Dict[str, Array]] = None
    with turns.turn(number, abort.is_set) as held:
        if held:
            again_s = time.monotonic()
            with suppress(Aborted), abortable(abort):
                tensors = course.alone()
            alone_s = time.monotonic() - again_s
    waited_s = time.monotonic() - begin_s
    if tensors is None:
        answer = course.ask(Deadline(0.0))
        assert answer is not None, "stopped without an answer"
        return Finish(course.joined(answer), answer, "", waited_s, alone_s, hedged)
    if hedged:
        course.cancel()
        why = "the robot was quicker"
    return Finish(tensors, None, why, waited_s, alone_s, hedged)
