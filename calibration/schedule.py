"""A list schedule of an inference's tasks over robot, link and server. Pure.

Theory of operation:

1. ``calibration.plan_tasks`` makes a list of tasks of a plan. Each is served by one resource, and
   a resource serves its tasks one at a time, in the order of the list.
2. A task starts once its resource is free and all that it comes after is done. A message frees the
   link with its last byte and is done half a round trip later, when that byte has arrived. What
   the server does first also waits for its turn, the queue.
3. The order is known beforehand, so every time is the largest of some sums

       seconds + bits / goodput + round trips x rtt + turns x queue

   that belong to ways through the schedule. :func:`finish` finds them once; from then on a
   prediction for any link is the largest of a handful of sums, exact, not interpolated. Ways that
   are the longest for no goodput are dropped as they come up.
4. A message that is coded and written, or read, while a stripe is computed holds that up a little.
   Such messages are counted along each way; what each of them takes is learned at run time.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, NamedTuple, Sequence, Set, Tuple

__all__ = [
    "LINK",
    "NO_HANDLING",
    "ROBOT",
    "ROBOT_CODEC",
    "SERVER",
    "SERVER_CODEC",
    "Handling",
    "Span",
    "Task",
    "Way",
    "finish",
    "timeline",
]

ROBOT = "robot"
ROBOT_CODEC = "robot codec"
LINK = "link"
"""One resource for both directions: Wi-Fi is half duplex."""
SERVER_CODEC = "server codec"
SERVER = "server"

_HALF = 0.5


class Task(NamedTuple):
    """A piece of work.

    Attributes:
        resource: Who does it.
        seconds: How long it takes, beside its transmission.
        bits: What the link has to carry for it.
        after: Places in the list of the tasks that it waits for.
        queued: Whether it waits for the server's queue too.
        messages: Messages that its side handles meanwhile.
    """

    resource: str
    seconds: float
    bits: float = 0.0
    after: Tuple[int, ...] = ()
    queued: bool = False
    messages: int = 0


class Way(NamedTuple):
    """A way through a schedule: what its time is the sum of."""

    seconds: float
    bits: float
    round_trips: float
    queues: float
    robot_messages: float = 0.0
    server_messages: float = 0.0


class Handling(NamedTuple):
    """How long a message holds up what its side computes meanwhile, in seconds."""

    robot_s: float = 0.0
    server_s: float = 0.0


NO_HANDLING = Handling()


class Span(NamedTuple):
    """When a task occupies its resource, in seconds."""

    start_s: float
    end_s: float


def timeline(
    tasks: Sequence[Task], *, goodput_bps: float, rtt_s: float, queue_s: float = 0.0
) -> Tuple[Tuple[Span, ...], float]:
    """Return when each task is served, and when all is done, in seconds."""
    free: Dict[str, float] = {}
    done: List[float] = []
    spans: List[Span] = []
    for task in tasks:
        ready = max([0.0, *(done[place] for place in task.after)])
        start = max(free.get(task.resource, 0.0), ready + (queue_s if task.queued else 0.0))
        end = start + task.seconds + (task.bits / goodput_bps if task.bits else 0.0)
        free[task.resource] = end
        done.append(end + (_HALF * rtt_s if task.resource == LINK else 0.0))
        spans.append(Span(start, end))
    return tuple(spans), max(done, default=0.0)


def finish(tasks: Sequence[Task]) -> Tuple[Way, ...]:
    """Return the ways of which the longest says when all is done, for any link and any queue."""
    free: Dict[str, List[Way]] = {}
    done: List[List[Way]] = []
    waited_for: Set[int] = {place for task in tasks for place in task.after}
    last = {task.resource: place for place, task in enumerate(tasks)}
    ends: List[Way] = []
    for place, task in enumerate(tasks):
        turn = 1.0 if task.queued else 0.0
        ready = [_later(way, queues=turn) for before in task.after for way in done[before]]
        start = ready + free.get(task.resource, [])
        if not task.after:
            start.append(Way(0.0, 0.0, 0.0, turn))
        on_robot = task.messages if task.resource == ROBOT else 0
        on_server = task.messages if task.resource == SERVER else 0
        end = [
            _later(
                way,
                seconds=task.seconds,
                bits=task.bits,
                robot_messages=on_robot,
                server_messages=on_server,
            )
            for way in _longest(start)
        ]
        free[task.resource] = end
        on_link = task.resource == LINK
        done.append([_later(way, round_trips=_HALF) for way in end] if on_link else end)
        if place not in waited_for and (on_link or last[task.resource] == place):
            ends += done[place]
    ways = _longest(ends or [Way(0.0, 0.0, 0.0, 0.0)])
    return tuple(way for way in ways if not any(_covers(other, way) for other in ways))


def _later(
    way: Way,
    *,
    seconds: float = 0.0,
    bits: float = 0.0,
    round_trips: float = 0.0,
    queues: float = 0.0,
    robot_messages: float = 0.0,
    server_messages: float = 0.0,
) -> Way:
    return Way(
        way.seconds + seconds,
        way.bits + bits,
        way.round_trips + round_trips,
        way.queues + queues,
        way.robot_messages + robot_messages,
        way.server_messages + server_messages,
    )


def _covers(other: Way, way: Way) -> bool:
    """Whether another way is at least as long in every respect; of equals neither is."""
    return other != way and all(a >= b for a, b in zip(other, way))


def _longest(ways: Iterable[Way]) -> List[Way]:
    """Drop the ways that are nowhere longer than all others."""
    groups: Dict[Tuple[float, float], List[Way]] = {}
    for way in ways:
        groups.setdefault((way.round_trips, way.queues), []).append(way)
    kept: List[Way] = []
    for group in groups.values():
        kept += _envelope(group) if len(group) > 1 else group
    return kept


def _envelope(ways: List[Way]) -> List[Way]:
    """Keep the upper envelope of lines over 1 / goodput, which is 0 or more."""
    hull: List[Way] = []
    for way in sorted(ways, reverse=True):  # seconds fall, so bits must rise
        if hull and way.bits <= hull[-1].bits:
            continue
        while len(hull) > 1 and _hidden(hull[-2], hull[-1], way):
            hull.pop()
        hull.append(way)
    return hull


def _hidden(low: Way, middle: Way, high: Way) -> bool:
    """Whether ``middle`` lies below the other two wherever it is above one of them."""
    # It meets ``low`` no earlier than ``high`` does.
    reached = (low.seconds - middle.seconds) * (high.bits - low.bits)
    return reached >= (low.seconds - high.seconds) * (middle.bits - low.bits)
