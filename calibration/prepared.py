"""All that an inference may do, ready to be compared for any link: serial cuts and striped plans.

What depends on the tables alone is worked out once, by ``calibration.schedule``: for every choice
a few sums of which the largest is its latency. A decision is then one sum of arrays.

The robot's energy follows from the times. Its power is the idle power throughout. While it
computes, the difference between computing and idle comes on top; while the link is busy or a
message on its way, that between communicating and idle. Where both happen at once both are added,
as the radio draws what it draws beside the processor. So

    energy = compute x robot time + communicate x link time + idle x (latency - both)

which for a serial cut is what each part takes at its own power. Coding is free of charge here;
its time counts.

With enough inferences under way, one at a time comes out of the busiest of robot, link and server
(and their codecs): the *period*. With at most n of them it is at least the latency over n.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from calibration.codings import Coding, Codings
from calibration.energy import StatePower
from calibration.plan_tasks import CodecSpeed, Pricer, Work
from calibration.plans import candidate_plans, neighbours
from calibration.predictor import Prediction
from calibration.schedule import NO_HANDLING, ROBOT, SERVER, Handling, Way, finish, timeline
from calibration.segment_times import SegmentTimes
from engines.manifest import Manifest
from engines.stripe_plans import Plan, mode_of
from engines.tensors import Array

__all__ = ["OBJECTIVES", "Choice", "PlansKey", "PreparedPlans", "mean_of"]

OBJECTIVES = ("latency", "energy", "rate")

_REFINE_BPS = tuple(float(bps) for bps in np.geomspace(2e6, 5e8, 6))
_REFINE_RTT_S = 0.002
_REFINE_PARTS = (1 / 12, 1 / 24, 1 / 48)
"""How far a bound is moved, as a part of the height."""

_PROMISING = 1.05
"""A mode is refined where its best plan takes at most so many times as long as the best of all."""

_SAME = 1e-9
"""Periods that differ by a smaller part are equal: sums in another order differ as much."""

_WORTHWHILE = 0.995
"""A refined plan is kept where it takes at most this part of the time."""


@dataclass(frozen=True)
class Choice:
    """Something that an inference may do.

    Attributes:
        cut: Index of the cut.
        plan: How it is striped; none for a serial cut.
        mode: One of ``calibration.predictor.MODES``.
        work: Its tasks.
        ways: The sums of which the largest is its latency; none where it may not be used.
        coding: Its codecs; the default ones for what is not in it.
    """

    cut: int
    plan: Optional[Plan]
    mode: str
    work: Work
    ways: Tuple[Way, ...]
    coding: Coding = ()

    def latency_s(
        self,
        goodput_bps: Optional[float],
        rtt_s: float,
        queue_s: float,
        handling: Handling = NO_HANDLING,
    ) -> float:
        """Return its latency; infinite where it is not possible."""
        if not self.ways or (not goodput_bps and self.mode != "local"):
            return math.inf
        per_bit_s = 1.0 / goodput_bps if goodput_bps else 0.0
        return max(
            way.seconds
            + way.bits * per_bit_s
            + way.round_trips * rtt_s
            + way.queues * queue_s
            + way.robot_messages * handling.robot_s
            + way.server_messages * handling.server_s
            for way in self.ways
        )


class PlansKey:
    """Stands for the choices of one pair of tables, whatever messages take."""


class PreparedPlans:
    """Every choice for one pair of tables. Safe across threads.

    The serial cuts come first, by index, those that may not be used among them (at an infinite
    cost), then the striped plans. Where two are equally good, the earlier one is taken. What it
    was made of can be read: ``manifest``, ``robot``, ``server``, ``power``,
    ``least_halo``.

    Attributes:
        choices: All of them.
        key: The same where the choices are: for what is worked out once of them.
        local_s: What the robot takes alone; infinite where it may not.
        striped: Whether a choice is a striped plan; one element a choice.
        starts: Where the sums of every choice begin: see :meth:`cost_lines`.
        robot_s: What the robot computes of every choice, in seconds; one element a choice.
        handling: What a message takes beside the computing; nothing unless :meth:`with_handling`.
        rest_s: What it would take afterwards for the server's part; one element a choice.

    Args:
        manifest: The bundle's manifest.
        robot: Times on the robot.
        server: Times on the server.
        power: The robot's power by state.
        plans: Striped plans to choose among; by default those of ``calibration.plans`` and
            better ones near the best of them.
        codecs: What coding costs.
        least_halo: Fewest rows of halo with which lossy plans are among those by default; none
            for no lossy plans.
        codings: Codecs beside the default ones: every choice is there once with its usual coding,
            and after all of those once more with each of the others that are worth trying.
        usable: Says of a valid plan whether it can be carried out; by default all can.
    """

    def __init__(
        self,
        manifest: Manifest,
        robot: SegmentTimes,
        server: SegmentTimes,
        power: StatePower = StatePower(),
        *,
        plans: Optional[Sequence[Plan]] = None,
        codecs: CodecSpeed = CodecSpeed(),
        least_halo: Optional[int] = None,
        codings: Optional[Codings] = None,
        usable: Callable[[Plan], bool] = lambda _: True,
    ) -> None:
        self.manifest = self._manifest = manifest
        self.robot, self.server = robot, server
        self.power = self._power = power
        self.least_halo = least_halo
        self._pricer = Pricer(manifest, robot, server, codecs, codings)
        self.codings = self._codings = codings
        self._local = len(manifest.cuts) - 1
        self._others: Dict[Plan, Choice] = {}
        found = [self._serial(cut.index) for cut in manifest.cuts]
        refine, plans = plans is None, plans or ()
        if refine:
            plans = candidate_plans(manifest, least_halo=least_halo)
            plans = tuple(plan for plan in plans if usable(plan))
        found += [self._striped(plan) for plan in plans]
        if refine:
            found += [c for c in self._refined(found) if c.plan is None or usable(c.plan)]
        usual = len(found)
        for choice in found[:usual] if codings is not None else ():
            found += [self._coded(choice, coding) for coding in self._codings_of(choice)[1:]]
        self.choices: Tuple[Choice, ...] = tuple(found)
        self.key = PlansKey()
        self._other: Optional[PreparedPlans] = None  # the newest with another handling
        self._numbers = {c.plan: i for i, c in enumerate(found[:usual]) if c.plan is not None}
        self._others_coded: Dict[Tuple[int, Optional[Plan]], List[Choice]] = {}
        for choice in found[usual:]:
            self._others_coded.setdefault((choice.cut, choice.plan), []).append(choice)
        self._stack()

    def __repr__(self) -> str:
        return f"<PreparedPlans {self._manifest.name} {len(self.choices)} choices>"

    def with_handling(self, handling: Handling) -> PreparedPlans:
        """Return the same plans, with messages that take so long beside the computing."""
        if handling == self.handling:
            return self
        other = self._other
        if other is None or other.handling != handling:
            other = copy.copy(self)
            other._take_in(handling)
            self._other = other
        return other

    def latencies_s(
        self, goodput_bps: Optional[float], rtt_s: float, queue_s: float = 0.0
    ) -> Array:
        """Return the latency of every choice; infinite where it is not possible.

        Args:
            goodput_bps: Payload bits per second; none where there is no link.
            rtt_s: Round trip in seconds.
            queue_s: Expected wait at the server in seconds.
        """
        if not goodput_bps:
            return self._alone_s
        ways = self._bits * (1.0 / goodput_bps)
        ways += self._seconds
        ways += self._round_trips * rtt_s
        if queue_s:
            ways += self._queues * queue_s
        latencies: Array = np.maximum.reduceat(ways, self.starts)
        return latencies

    def expected(
        self, goodputs_bps: Sequence[float], rtt_s: float, queue_s: float = 0.0
    ) -> Tuple[Array, Array]:
        """Return the mean latency and the mean energy of every choice over some goodputs.

        Args:
            goodputs_bps: Payload bits per second, all above 0, each as likely as the others.
            rtt_s: Round trip in seconds.
            queue_s: Expected wait at the server in seconds.

        Returns:
            Seconds and joules; both infinite where a choice is not possible.
        """
        latencies = mean_of(self.spread_s(goodputs_bps, rtt_s, queue_s))
        return latencies, self.expected_j(latencies, goodputs_bps, rtt_s)

    def expected_j(self, latencies_s: Array, goodputs_bps: Sequence[float], rtt_s: float) -> Array:
        """Return the mean energy of every choice over some goodputs.

        Args:
            latencies_s: Its mean latency over them.
            goodputs_bps: As for :meth:`expected`.
            rtt_s: The same.
        """
        per_bit_s = sum(1.0 / bps for bps in goodputs_bps) / len(goodputs_bps)
        return self._energies_j(latencies_s, per_bit_s, rtt_s)

    def ended_j(self, ended_s: Array, goodputs_bps: Sequence[float], rtt_s: float) -> Array:
        """Return the mean energy of every choice where inferences end at given times.

        Args:
            ended_s: When they end; a row a goodput. What is not sent by then costs nothing.
            goodputs_bps: As for :meth:`expected`.
            rtt_s: The same.
        """
        link_s = np.multiply.outer(1.0 / np.asarray(goodputs_bps, np.float64), self._sent_bits)
        link_s += self._linked * rtt_s
        possible = np.isfinite(ended_s)
        energies = self._power.idle * np.where(possible, ended_s, 0.0)
        energies += (self._power.communicate - self._power.idle) * np.minimum(link_s, ended_s)
        mean: Array = mean_of(energies) + self._computing_j
        found: Array = np.where(possible.all(axis=0), mean, np.inf)
        return found

    def spread_s(self, goodputs_bps: Sequence[float], rtt_s: float, queue_s: float = 0.0) -> Array:
        """Return the latency of every choice at each of some goodputs: a row a goodput."""
        per_bit_s = np.array([1.0 / bps for bps in goodputs_bps])
        fixed = self._seconds + self._round_trips * rtt_s
        if queue_s:
            fixed += self._queues * queue_s
        ways = np.multiply.outer(per_bit_s, self._bits)
        ways += fixed
        latencies: Array = np.maximum.reduceat(ways, self.starts, axis=1)
        return latencies

    def needed_bps(self, limit_s: float, rtt_s: float, queue_s: float = 0.0) -> Array:
        """Return the least goodput at which every choice takes no longer than a limit.

        0 where it needs no link, infinite where no goodput is enough.
        """
        left_s = limit_s - self._seconds - self._round_trips * rtt_s - self._queues * queue_s
        enough = np.full(left_s.shape, np.inf)
        np.divide(self._bits, left_s, out=enough, where=left_s > 0)
        enough[(left_s >= 0) & (self._bits == 0)] = 0.0
        needed: Array = np.maximum.reduceat(enough, self.starts)
        return needed

    def cost_lines(self, *, by_energy: bool = False) -> Array:
        """Return the sums of which the largest is what a choice costs: linear in what a link is.

        Args:
            by_energy: Joules on the robot, and not seconds.

        Returns:
            A column a sum (see :meth:`ways_of`); in it what the cost begins with, then by how much
            it rises with the seconds of a bit, the round trip and the wait at the server.
        """
        lines = self._lines.get(by_energy)
        if lines is not None:
            return lines
        lines = np.stack([self._seconds, self._bits, self._round_trips, self._queues])
        if by_energy:
            possible = np.isfinite(lines[0])
            lines[:, possible] *= self._power.idle
            beside = self._power.communicate - self._power.idle
            lines[0] += self._computing_j[self._owners]
            lines[1] += beside * self._sent_bits[self._owners]
            lines[2] += beside * self._linked[self._owners]
        self._lines[by_energy] = lines
        return lines

    def ways_of(self, place: int) -> slice:
        """Return which of the sums are a choice's."""
        begin, end = np.searchsorted(self._owners, [place, place + 1])
        return slice(int(begin), int(end))

    def largest_ways(self, values: Array) -> Array:
        """Return for every choice which of its sums has the largest of some values."""
        largest = np.maximum.reduceat(values, self.starts)
        places = np.flatnonzero(values == largest[self._owners])
        found: Array = places[np.searchsorted(self._owners[places], np.arange(len(largest)))]
        return found

    def costs(
        self,
        goodput_bps: Optional[float],
        rtt_s: float,
        queue_s: float = 0.0,
        objective: str = "latency",
        in_flight: Optional[int] = None,
    ) -> Array:
        """Return what every choice costs: seconds, joules on the robot, or seconds a result.

        Args:
            goodput_bps: Payload bits per second; none where there is no link.
            rtt_s: Round trip in seconds.
            queue_s: Expected wait at the server in seconds.
            objective: One of :data:`OBJECTIVES`.
            in_flight: Inferences under way at a time, for the rate; none for enough of them.
        """
        assert objective in OBJECTIVES, f"objective {objective!r}"
        latencies = self.latencies_s(goodput_bps, rtt_s, queue_s)
        if objective == "latency":
            return latencies
        if objective == "rate":
            return self._periods_s(latencies, goodput_bps, in_flight)
        return self._energies_j(latencies, 1.0 / goodput_bps if goodput_bps else 0.0, rtt_s)

    def _energies_j(self, latencies: Array, per_bit_s: float, rtt_s: float) -> Array:
        link_s = self._sent_bits * per_bit_s
        link_s += self._linked * rtt_s
        possible = np.isfinite(latencies)
        energies = self._power.idle * np.where(possible, latencies, 0.0)
        energies += (self._power.communicate - self._power.idle) * link_s + self._computing_j
        found: Array = np.where(possible, energies, np.inf)
        return found

    def best(
        self,
        goodput_bps: Optional[float],
        rtt_s: float,
        queue_s: float = 0.0,
        objective: str = "latency",
        in_flight: Optional[int] = None,
    ) -> Prediction:
        """Return the best choice; without a goodput, the robot alone. See :meth:`costs`.

        Of those that are equally good for ``rate`` it is the one of least latency.
        """
        number = self._local
        if goodput_bps:
            costs = self.costs(goodput_bps, rtt_s, queue_s, objective, in_flight)
            if objective == "rate":
                latencies = self.latencies_s(goodput_bps, rtt_s, queue_s)
                costs = np.where(costs <= costs.min() * (1 + _SAME), latencies, np.inf)
            number = int(np.argmin(costs))
        return self._prediction(self.choices[number], goodput_bps, rtt_s, queue_s, in_flight)

    def predict(
        self,
        cut: int,
        plan: Optional[Plan] = None,
        *,
        goodput_bps: Optional[float],
        rtt_s: float,
        queue_s: float = 0.0,
        in_flight: Optional[int] = None,
        coding: Optional[Coding] = None,
    ) -> Prediction:
        """Return what a serial cut or a plan is expected to take, whether it is a choice or not.

        Args:
            cut: Index of the cut.
            plan: A valid plan at it; none for the serial cut.
            goodput_bps: Payload bits per second; none where there is no link.
            rtt_s: Round trip in seconds.
            queue_s: Expected wait at the server in seconds.
            in_flight: Inferences under way at a time; none for enough of them.
            coding: Its codecs; by default those of the choices with which it is the quickest.
        """
        choice = self.choice(cut, plan)
        if coding == choice.coding:
            return self._prediction(choice, goodput_bps, rtt_s, queue_s, in_flight)
        coded = [choice, *self._others_coded.get((cut, plan), ())]
        if coding is not None:
            choice = next((one for one in coded if one.coding == coding), choice)
        elif goodput_bps:
            choice = min(
                coded, key=lambda one: one.latency_s(goodput_bps, rtt_s, queue_s, self.handling)
            )
        return self._prediction(choice, goodput_bps, rtt_s, queue_s, in_flight)

    def choice(self, cut: int, plan: Optional[Plan] = None) -> Choice:
        """Return a choice with its tasks; a plan that is not among them is worked out."""
        if plan is None:
            return self.choices[cut]
        number = self._numbers.get(plan)
        if number is not None:
            return self.choices[number]
        if plan not in self._others:
            self._others[plan] = self._striped(plan)
        return self._others[plan]

    def _periods_s(
        self, latencies: Array, goodput_bps: Optional[float], in_flight: Optional[int]
    ) -> Array:
        link_s = self._sent_bits * (1.0 / goodput_bps if goodput_bps else 0.0)
        periods = np.maximum(self._busiest_s, link_s)
        if in_flight is not None:
            periods = np.maximum(periods, latencies / in_flight)
        found: Array = np.where(np.isfinite(latencies), periods, np.inf)
        return found

    # -- preparing ---------------------------------------------------------------------------

    def _codings_of(self, choice: Choice) -> List[Coding]:
        assert self._codings is not None
        return self._codings.proposals(choice.cut, choice.plan)

    def _usual(self, cut: int, plan: Optional[Plan] = None) -> Coding:
        return () if self._codings is None else self._codings.proposals(cut, plan)[0]

    def _serial(self, index: int) -> Choice:
        cut = self._manifest.cuts[index]
        mode = "split" if cut.robot_segments else "frame"
        if index == self._local:
            mode = "local"
        coding = self._usual(index)
        work = self._pricer.serial(index, dict(coding))
        ways = () if cut.refused else finish(work.tasks)
        return Choice(index, None, mode, work, ways, coding)

    def _striped(self, plan: Plan) -> Choice:
        coding = self._usual(plan.cut, plan)
        work = self._pricer.plan(plan, dict(coding))
        return Choice(plan.cut, plan, mode_of(plan), work, finish(work.tasks), coding)

    def _coded(self, choice: Choice, coding: Coding) -> Choice:
        """Return a choice with other codecs."""
        codecs = dict(coding)
        if choice.plan is None:
            work = self._pricer.serial(choice.cut, codecs)
        else:
            work = self._pricer.plan(choice.plan, codecs)
        ways = finish(work.tasks) if choice.ways else ()
        return replace(choice, work=work, ways=ways, coding=coding)

    def _refined(self, choices: Sequence[Choice]) -> List[Choice]:
        """Return better plans near the best ones of each mode, for a few goodputs."""
        striped = [choice for choice in choices if choice.plan is not None]
        found: Dict[Plan, Choice] = {}
        for bps in _REFINE_BPS if striped else ():
            least: Dict[str, Tuple[float, Choice]] = {}
            for choice in choices:
                latency_s = choice.latency_s(bps, _REFINE_RTT_S, 0.0)
                if choice.mode not in least or latency_s < least[choice.mode][0]:
                    least[choice.mode] = latency_s, choice
            enough_s = min(latency_s for latency_s, _ in least.values()) * _PROMISING
            for latency_s, choice in least.values():
                if choice.plan is not None and latency_s <= enough_s:
                    plan = self._descend(choice.plan, bps)
                    if plan != choice.plan and plan not in found:
                        found[plan] = self._striped(plan)
        return list(found.values())

    def _descend(self, plan: Plan, bps: float) -> Plan:
        """Move one bound at a time, by ever smaller steps; return what that made much quicker."""
        start, start_s = plan, self._once_s(plan, bps)
        best_s = start_s
        for part in _REFINE_PARTS:
            for other in neighbours(plan, self._manifest, part):
                latency_s = self._once_s(other, bps)
                if latency_s < best_s:
                    plan, best_s = other, latency_s
        return plan if best_s < start_s * _WORTHWHILE else start

    def _once_s(self, plan: Plan, bps: float) -> float:
        """Return the latency of a plan at one goodput: quicker than to find all its ways."""
        tasks = self._pricer.plan(plan, dict(self._usual(plan.cut, plan))).tasks
        return timeline(tasks, goodput_bps=bps, rtt_s=_REFINE_RTT_S)[1]

    def _stack(self) -> None:
        """Put the ways of all choices into arrays."""
        never = (Way(math.inf, 0.0, 0.0, 0.0),)
        ways = [choice.ways or never for choice in self.choices]
        lengths = [len(some) for some in ways]
        self.starts: Array = np.cumsum([0, *lengths[:-1]])
        self._owners = np.repeat(np.arange(len(ways)), lengths)
        columns = np.asarray([way for some in ways for way in some], np.float64).T
        self._columns = np.ascontiguousarray(columns)
        _, self._bits, self._round_trips, self._queues, *_ = self._columns
        works = [choice.work for choice in self.choices]
        self.striped: Array = np.asarray([choice.plan is not None for choice in self.choices])
        self._sent_bits = np.asarray([8.0 * (w.bytes_up + w.bytes_down) for w in works])
        self._linked = np.ones(len(works))
        self._linked[self._local] = 0.0
        self._busy_s = np.asarray([work.busy_s(ROBOT) for work in works])
        self._messages = np.asarray([work.messages(ROBOT) for work in works], np.float64)
        self.rest_s: Array = np.asarray([work.rest_s for work in works])
        self._busiest_s = np.asarray([work.busiest_s for work in works])
        self.local_s = self.choices[self._local].latency_s(None, 0.0, 0.0)
        self._alone_s = np.full(len(works), np.inf)
        self._alone_s[self._local] = self.local_s
        self._take_in(NO_HANDLING)

    def _take_in(self, handling: Handling) -> None:
        """Work out what depends on how long messages take beside the computing."""
        seconds, _, _, _, on_robot, on_server = self._columns
        self.handling = handling
        self._other = None
        self._lines: Dict[bool, Array] = {}
        self._seconds = seconds + on_robot * handling.robot_s + on_server * handling.server_s
        self.robot_s: Array = self._busy_s + self._messages * handling.robot_s
        self._computing_j = (self._power.compute - self._power.idle) * self.robot_s

    def _prediction(
        self,
        choice: Choice,
        goodput_bps: Optional[float],
        rtt_s: float,
        queue_s: float,
        in_flight: Optional[int] = None,
    ) -> Prediction:
        work, linked = choice.work, choice.mode != "local"
        latency_s = choice.latency_s(goodput_bps, rtt_s, queue_s, self.handling)
        robot_s = work.busy_s(ROBOT) + work.messages(ROBOT) * self.handling.robot_s
        server_s = work.busy_s(SERVER) + work.messages(SERVER) * self.handling.server_s
        link_s, period_s = 0.0, work.busiest_s
        if linked:
            bits = 8.0 * (work.bytes_up + work.bytes_down)
            sending_s = bits / goodput_bps if goodput_bps else math.inf
            link_s, period_s = sending_s + rtt_s, max(period_s, sending_s)
        if in_flight is not None:
            period_s = max(period_s, latency_s / in_flight)
        energy_j = math.inf
        if math.isfinite(latency_s):
            idle_s = latency_s - robot_s - link_s
            energy_j = self._power.energy_j(compute_s=robot_s, communicate_s=link_s, idle_s=idle_s)
        return Prediction(
            cut=choice.cut,
            latency_s=latency_s,
            robot_s=robot_s,
            link_s=link_s,
            server_s=server_s,
            queue_s=queue_s if linked else 0.0,
            energy_j=energy_j,
            mode=choice.mode,
            plan=choice.plan,
            bytes_up=work.bytes_up,
            bytes_down=work.bytes_down,
            period_s=period_s,
            coding=choice.coding,
        )


def mean_of(rows: Array) -> Array:
    """Return the mean of some rows, without what ``numpy.mean`` looks at beside them."""
    mean: Array = np.add.reduce(rows, axis=0)
    mean /= len(rows)
    return mean
