"""What an inference consists of: the tasks of a serial cut or of a striped plan. Pure.

The order of the tasks is the order in which each side serves them, as the runtime does:

- *Streamed head.* The robot computes its stripes in order and sends each as soon as it is done.
- *Raw stripes* of a two-sided plan are ready at once, and so go out before all others. The first
  of them brings the halo, and costs the server the rows that it computes for it alone.
- *The server* takes things as they come: first the head for the raw stripes, then its own striped
  segments (up to ``until``) for the robot's stripes, then those for its own, which lie further
  down; then all that is left, whole.
- *Bounded plan.* The robot computes its rows of the head and the halo below them while the raw
  rows go out; the server its own with the halo above them, then what follows the cut, whole.
- *Row plan.* Both sides compute what comes before the cut, then each its own rows.

A serial cut is a plan of one stripe.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from calibration.codings import Codings, Message
from calibration.predictor import encoded_bytes
from calibration.schedule import LINK, ROBOT, ROBOT_CODEC, SERVER, SERVER_CODEC, Task
from calibration.segment_times import SegmentTimes
from engines.manifest import Manifest
from engines.stripe_plans import (
    BoundedPlan,
    Plan,
    RowPlan,
    StripePlan,
    bounded_of,
    raw_span,
    returned,
    sent,
)
from engines.stripes import Striping
from engines.tensors import TensorSpec

__all__ = ["CodecSpeed", "Pricer", "Work"]

NO_CODING: Mapping[str, str] = MappingProxyType({})

_NOTHING = (0.0, 0)
"""Seconds and messages of a resource that does nothing."""


@dataclass(frozen=True)
class CodecSpeed:
    """Seconds that coding a byte takes, beside the computing; 0 where it costs nothing."""

    robot_s_per_byte: float = 0.0
    server_s_per_byte: float = 0.0


@dataclass(frozen=True)
class Work:
    """The tasks of one inference.

    Attributes:
        tasks: In the order in which each resource serves its own.
        bytes_up: Bytes that the robot sends.
        bytes_down: Bytes that the server returns.
        rest_s: Seconds that the robot takes for what is the server's part, once its own is done:
            what is left where no answer comes.
    """

    tasks: Tuple[Task, ...]
    bytes_up: int
    bytes_down: int
    rest_s: float = 0.0

    def busy_s(self, resource: str) -> float:
        """Return the seconds that a resource computes."""
        return self._totals.get(resource, _NOTHING)[0]

    def messages(self, resource: str) -> int:
        """Return the messages that a side handles while it computes."""
        return self._totals.get(resource, _NOTHING)[1]

    @cached_property
    def busiest_s(self) -> float:
        """The seconds that the busiest resource computes; the link only transmits."""
        return max((seconds for seconds, _ in self._totals.values()), default=0.0)

    @cached_property
    def _totals(self) -> Dict[str, Tuple[float, int]]:
        """Seconds and messages of each resource: added up once, as decisions ask all the time."""
        totals: Dict[str, Tuple[float, int]] = {}
        for task in self.tasks:
            seconds, messages = totals.get(task.resource, _NOTHING)
            totals[task.resource] = seconds + task.seconds, messages + task.messages
        return totals


class Pricer:
    """Makes the tasks of any plan, for one pair of tables.

    Args:
        manifest: The bundle's manifest.
        robot: Times on the robot.
        server: Times on the server.
        codecs: What coding costs; nothing unless measured.
        codings: What codecs other than the default ones cost; none where they are not used.
    """

    def __init__(
        self,
        manifest: Manifest,
        robot: SegmentTimes,
        server: SegmentTimes,
        codecs: CodecSpeed = CodecSpeed(),
        codings: Optional[Codings] = None,
    ) -> None:
        self._manifest = manifest
        self._codings = codings
        self._robot = robot
        self._server = server
        self._codecs = codecs
        self._everything = tuple(range(len(manifest.segments)))
        self._shares: Dict[Tuple[int, int, int], float] = {}
        self._sent: Dict[Tuple[int, int, int], Tuple[TensorSpec, ...]] = {}
        self._sizes: Dict[Tuple[int, int, int], int] = {}

    def serial(self, cut: int, coding: Mapping[str, str] = NO_CODING) -> Work:
        """Return the tasks of a serial cut; of the last one, those of the robot alone.

        Args:
            cut: Index of the cut.
            coding: Codecs by tensor; the default ones for what is not in it.
        """
        build = _Builder(self._codecs)
        head = self._manifest.cuts[cut].robot_segments
        ready = build.compute(ROBOT, _whole(self._robot, head))
        if cut == len(self._manifest.cuts) - 1:
            return build.work()
        crossing = self._manifest.cuts[cut]
        specs, results = (self._manifest.specs(n) for n in (crossing.tensors, crossing.results))
        here = build.up(self._message(specs, coding, up=True), (ready,))
        answer = build.serve(_whole(self._server, self._others(head)), (here,))
        build.down(self._message(results, coding, up=False), (answer,))
        return build.work(_whole(self._robot, self._others(head)))

    def plan(self, plan: Plan, coding: Mapping[str, str] = NO_CODING) -> Work:
        """Return the tasks of a striped plan; see :meth:`serial`."""
        if isinstance(plan, RowPlan):
            return self._rows(plan, coding)
        if isinstance(plan, BoundedPlan):
            return self._bounded(plan, coding)
        return self._stripes(plan, coding)

    # -- stripes -----------------------------------------------------------------------------

    def _stripes(self, plan: StripePlan, coding: Mapping[str, str]) -> Work:
        manifest, build = self._manifest, _Builder(self._codecs)
        head = manifest.cuts[plan.cut].robot_segments
        behind = manifest.cuts[plan.until].robot_segments
        between = tuple(index for index in behind if index not in set(head))
        ready: Dict[int, Tuple[int, ...]] = {}
        raw = plan.stripes - plan.robot
        for stripe in range(plan.robot if head else 0):
            head_s = self._stripe_s(self._robot, head, plan.span(stripe))
            # The raw stripes are sent during the first one, each other during the next.
            ready[stripe] = (build.compute(ROBOT, head_s, messages=1 if stripe else raw),)
        arrived = {
            stripe: build.up(self._stripe(plan, stripe, coding), ready.get(stripe, ()))
            for stripe in plan.wire_order()
        }
        # Arrivals are in the order of the wire, and so is the first half of what the server does.
        for stripe in range(plan.robot, plan.stripes):
            extra = self._extra(plan.cut) if stripe == plan.robot else ()
            head_s = self._stripe_s(self._server, head, plan.span(stripe), extra)
            arrived[stripe] = build.serve(head_s, (arrived[stripe],), messages=1)
        rest_after = tuple(arrived.values())
        if between:
            rest_after = tuple(
                build.serve(
                    self._stripe_s(self._server, between, plan.span(stripe)),
                    (arrived[stripe],),
                    # After the robot's last stripe nothing more arrives.
                    messages=1 if stripe < plan.robot - 1 else 0,
                )
                for stripe in range(plan.stripes)
            )
        rest_s = _whole(self._server, self._others(behind))
        answer = build.serve(rest_s, rest_after)
        build.down(self._message(returned(plan, manifest), coding, up=False), (answer,))
        alone_s = _whole(self._robot, self._others(head))
        if not plan.robot:
            alone_s += _whole(self._robot, head)
        elif plan.robot < plan.stripes:  # what the server has of the head, in one stripe
            left = (plan.bounds[plan.robot - 1], self._striping().rows)
            alone_s += self._stripe_s(self._robot, head, left)
        return build.work(alone_s)

    def _stripe_s(
        self,
        times: SegmentTimes,
        segments: Sequence[int],
        span: Tuple[int, int],
        extra: Sequence[float] = (),
    ) -> float:
        """Return the seconds of one stripe of a chain of segments.

        Args:
            times: Of the side that computes it.
            segments: Indices of the segments.
            span: The stripe's bounds.
            extra: For each segment, a share of its rows that is computed beside the stripe.
        """
        total = 0.0
        for place, index in enumerate(segments):
            share = self._share(index, *span) + (extra[place] if extra else 0.0)
            total += times.stripe_s(index, share)
        return total

    def _share(self, segment: int, low: int, high: int) -> float:
        """Return which part of a segment's rows lies between two bounds: lag and all."""
        key = (segment, low, high)
        if key not in self._shares:
            striping = self._striping()
            names = self._manifest.segments[segment].outputs
            rows = [striping.tensors[name] for name in names if name in striping.tensors]
            base = striping.rows
            parts = [(r.upto(high, base) - r.upto(low, base)) / r.rows for r in rows]
            self._shares[key] = sum(parts) / len(parts) if parts else (high - low) / base
        return self._shares[key]

    def _extra(self, cut: int) -> Tuple[float, ...]:
        striping = self._striping()
        striped = striping.cut(cut)
        return tuple(rows / striping.rows for rows in striped.extra) if striped else ()

    def _stripe(self, plan: StripePlan, stripe: int, coding: Mapping[str, str]) -> Message:
        """Return what a message of a stripe costs: its tensors are the same in many plans."""
        cut = plan.cut if stripe < plan.robot else 0
        key = (cut, *raw_span(plan, self._striping(), stripe))
        if key not in self._sent:
            self._sent[key] = sent(plan, self._manifest, stripe)
            self._sizes[key] = encoded_bytes(self._sent[key])
        if not coding:
            return self._sizes[key], 0.0, 0.0
        return self._message(self._sent[key], coding, up=True)

    def _message(
        self, specs: Sequence[TensorSpec], coding: Mapping[str, str], *, up: bool
    ) -> Message:
        if not coding:
            return encoded_bytes(specs), 0.0, 0.0
        assert self._codings is not None, "a coding without its costs"
        return self._codings.message(specs, coding, up=up)

    # -- rows --------------------------------------------------------------------------------

    def _rows(self, plan: RowPlan, coding: Mapping[str, str]) -> Work:
        manifest, striping, build = self._manifest, self._striping(), _Builder(self._codecs)
        place = next(i for i, s in enumerate(striping.row_splits) if s.cut == plan.cut)
        split = striping.row_splits[place]
        before = manifest.cuts[plan.cut].robot_segments
        after = self._others(before)

        def side_s(times: SegmentTimes, rows: float) -> float:
            rows_s = times.rows_s(place, rows / split.rows, whole_s=_whole(times, after))
            return _whole(times, before) + rows_s

        here = build.up(self._message(sent(plan, manifest), coding, up=True), ())
        build.compute(ROBOT, side_s(self._robot, plan.bound - split.mean_lag))
        below = split.rows - plan.bound + split.mean_extra
        answer = build.serve(side_s(self._server, below), (here,))
        build.down(self._message(returned(plan, manifest), coding, up=False), (answer,))
        left = (split.rows - plan.bound + split.mean_lag) / split.rows
        whole_s = _whole(self._robot, after)
        return build.work(self._robot.rows_s(place, left, whole_s=whole_s))

    # -- bounded -----------------------------------------------------------------------------

    def _bounded(self, plan: BoundedPlan, coding: Mapping[str, str]) -> Work:
        manifest, striping, build = self._manifest, self._striping(), _Builder(self._codecs)
        bounded = bounded_of(plan, striping)
        head = manifest.cuts[plan.cut].robot_segments

        def head_s(times: SegmentTimes, rows: int) -> float:
            return sum(times.stripe_s(index, rows / striping.rows) for index in head)

        ready = build.compute(ROBOT, head_s(self._robot, bounded.top(plan.bound, striping.rows)))
        raw = build.up(self._message(sent(plan, manifest, 1), coding, up=True), ())
        here = build.up(self._message(sent(plan, manifest, 0), coding, up=True), (ready,))
        below = striping.rows - bounded.bottom(plan.bound)
        there = build.serve(head_s(self._server, below), (raw,))
        answer = build.serve(_whole(self._server, self._others(head)), (here, there))
        build.down(self._message(returned(plan, manifest), coding, up=False), (answer,))
        return build.work(
            _whole(self._robot, self._everything)
        )  # the exact result, from the start

    # -- helpers -----------------------------------------------------------------------------

    def _striping(self) -> Striping:
        striping = self._manifest.striping
        assert striping is not None, "a plan for a bundle without stripes"
        return striping

    def _others(self, segments: Sequence[int]) -> Tuple[int, ...]:
        some = set(segments)
        return tuple(index for index in self._everything if index not in some)


class _Builder:
    """Collects tasks; every call returns the place of the last one that it added."""

    def __init__(self, codecs: CodecSpeed) -> None:
        self._codecs = codecs
        self._tasks: List[Task] = []
        self._up = self._down = 0
        self._served = False

    def compute(
        self,
        resource: str,
        seconds: float,
        after: Tuple[int, ...] = (),
        *,
        queued: bool = False,
        messages: int = 0,
    ) -> int:
        self._tasks.append(Task(resource, seconds, 0.0, after, queued, messages))
        return len(self._tasks) - 1

    def serve(self, seconds: float, after: Tuple[int, ...], *, messages: int = 0) -> int:
        """Add work of the server; the first of it waits for its turn."""
        queued, self._served = not self._served, True
        return self.compute(SERVER, seconds, after, queued=queued, messages=messages)

    def up(self, message: Message, after: Tuple[int, ...]) -> int:
        nbytes, robot_s, server_s = message
        self._up += nbytes
        first, second = (ROBOT_CODEC, robot_s), (SERVER_CODEC, server_s)
        return self._message(nbytes, after, first, second)

    def down(self, message: Message, after: Tuple[int, ...]) -> int:
        nbytes, robot_s, server_s = message
        self._down += nbytes
        first, second = (SERVER_CODEC, server_s), (ROBOT_CODEC, robot_s)
        return self._message(nbytes, after, first, second)

    def work(self, rest_s: float = 0.0) -> Work:
        return Work(tuple(self._tasks), self._up, self._down, rest_s)

    def _message(
        self,
        nbytes: int,
        after: Tuple[int, ...],
        first: Tuple[str, float],
        second: Tuple[str, float],
    ) -> int:
        place = self._code(nbytes, after, *first)
        self._tasks.append(
            Task(LINK, 0.0, 8.0 * nbytes, after if place is None else (place,), False)
        )
        place = len(self._tasks) - 1
        coded = self._code(nbytes, (place,), *second)
        return place if coded is None else coded

    def _code(
        self, nbytes: int, after: Tuple[int, ...], side: str, coding_s: float
    ) -> Optional[int]:
        robot = side == ROBOT_CODEC
        pace = self._codecs.robot_s_per_byte if robot else self._codecs.server_s_per_byte
        seconds = pace * nbytes + coding_s
        return self.compute(side, seconds, after) if seconds else None


def _whole(times: SegmentTimes, segments: Sequence[int]) -> float:
    return sum(times.segments_s[index] for index in segments)
