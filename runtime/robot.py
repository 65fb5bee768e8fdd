"""The robot: runs a model up to a cut, lets the server run the rest, and never waits for ever.

One inference:

1. The selector chooses a cut, and perhaps a plan of stripes, from the latency tables and the link
   as estimated. A plan whose forms are not loaded on both ends is prepared in the background, and
   the inference does without it.
2. The robot runs the head and keeps what it gives. By a plan it sends while it computes.
3. The frontier is sent, where no plan has done so, and the robot waits for the answer.
4. When the answer falls behind, the robot begins what is missing itself, from what it kept: early
   enough for what the decision promises (``calibration.bounds``). Whichever is first counts, and
   the other is given up (``runtime.race``). So an inference is answered in time whatever the link
   does.

Several inferences may be under way (``stream``, or calls from several threads). They compute by
turns, the oldest first; the next one's head runs while the last one's answer is awaited.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Iterable, Mapping, Optional, Set, Tuple, Union

import msgspec

from calibration.bounds import hedge_j
from calibration.codings import Coding, Codings, is_lossy_coding
from calibration.energy import StatePower
from calibration.objectives import (
    LATENCY,
    UNCONSTRAINED,
    Constraints,
    Objective,
    check_constraints,
    parse_objective,
)
from calibration.plan_text import is_plan_text, plan_text
from calibration.power_fit import load_power
from calibration.predictor import Prediction
from calibration.prepared import PreparedPlans
from engines.backend import BackendOptions
from engines.bundle import Bundle
from engines.bundle_plans import open_bundle_backend
from engines.codecs import preload_codecs
from engines.errors import SplitError, UnansweredError
from engines.manifest import Manifest
from engines.program import Program
from engines.stripe_plans import is_lossy
from engines.tensors import Array
from runtime.ahead import Ahead, Basis
from runtime.codec_policy import open_policy
from runtime.courses import Course
from runtime.evidence import Exchange
from runtime.frames import taken_of
from runtime.handling import HandlingEstimator
from runtime.hedging import promise
from runtime.inflight import Frames
from runtime.link import Link
from runtime.link_state import LinkState
from runtime.power.find import sensor_for
from runtime.power.meter import EnergyMeter, Measurement
from runtime.race import Finish, finish
from runtime.result import Result
from runtime.selector import (
    Decision,
    Selector,
    Situation,
    SplitRT,
    open_selector,
    parse_allowed,
    wants_server,
)
from runtime.striping import Stripes
from runtime.tables import Preparer, table_for, wire_table
from runtime.transport import parse_address
from runtime.turns import Turns

__all__ = ["Result", "Robot"]

logger = logging.getLogger(__name__)

PATIENCE_S = 0.8
"""Longest wait for the server after the head is done, unless the user says otherwise."""

_SHORTEST_PATIENCE_S = 0.25
_PATIENCE_FACTOR = 4.0
"""Where a remote time is predicted, the robot waits this many times as long before it falls
back, but between ``_SHORTEST_PATIENCE_S`` and ``PATIENCE_S``."""

MAX_IN_FLIGHT = 8
"""Frames under way at a time: more only age."""

_LONGEST_PATIENCE_S = 3600.0
_CONNECT_S = 3.0


class Robot:
    """Runs a bundle's model on this robot, with a server's help where that is quicker.

    Safe across threads. A context manager; ``close`` ends the link.

    Args:
        bundle: The bundle, or its path.
        server: ``HOST:PORT`` of a server with the same bundle; none for the robot alone.
        cut: The selector: one of ``runtime.selector.SELECTORS``, the id of a cut or a striped
            plan (``calibration.plan_text``); ``infer`` may override it.
        backend: Name of the backend.
        threads: Threads that it computes with; 0 for its own choice.
        power: The robot's power by state, for the modelled energy; by default what was fitted on
            this device (``runtime profile``), else that of a Jetson Xavier NX robot.
        patience_s: Longest wait for the server in one inference before the robot does its part;
            by default as long as the objective allows, or, where nothing is promised, 4 times as
            long as predicted, between 0.25 s and 0.8 s.
        selector: Another name for ``cut``, which it overrides; or a selector of one's own.
        objective: What to be best at, as text (``calibration.objectives``) or as a record.
        constraints: What an inference may not do.
        allow_halo: Fewest rows of halo of the lossy plans that may be used
            (``engines.stripe_plans.BoundedPlan``); none to use no lossy plan.
        codec: What tensors are coded by on the link: ``auto`` for the best as measured, ``none``
            for the default codecs, or a codec's name.
        allow_lossy: Largest measured error at a cut of the lossy codecs that may be used there
            (``calibration.quality``); none to use no lossy codec.
        measure_energy: Whether to use the device's power sensor, where it has one.
        hedge: Whether the robot begins what is the server's part itself, as early as the promise
            of its objective asks for (``calibration.bounds``); if not, nothing is promised and
            it waits with patience.

    Raises:
        BundleError: The bundle cannot be opened.
        EngineError: It cannot be loaded on the backend.
        CodecError: No such codec, or a lossy one that is not allowed.
        ConnectError: The server has another bundle.
        RemoteProtocolError: What answers there is not a SplitRT server.
            (A server that cannot be reached is no error: the robot works alone and goes on
            trying.)
    """

    def __init__(
        self,
        bundle: "Union[Bundle, str, Path]",
        *,
        server: Optional[str] = None,
        cut: str = "auto",
        backend: str = "ort",
        threads: int = 0,
        power: Optional[StatePower] = None,
        patience_s: Optional[float] = None,
        selector: Union[str, Selector, None] = None,
        objective: Union[str, Objective] = LATENCY,
        constraints: Constraints = UNCONSTRAINED,
        allow_halo: Optional[int] = None,
        codec: str = "auto",
        allow_lossy: Optional[float] = None,
        measure_energy: bool = True,
        hedge: bool = True,
    ) -> None:
        if allow_halo is not None and allow_halo < 0:
            raise SplitError(f"allowed halo: expected rows from 0, given {allow_halo}")
        if patience_s is not None and not 0 < patience_s <= _LONGEST_PATIENCE_S:
            raise SplitError(
                f"patience: expected seconds above 0, at most {_LONGEST_PATIENCE_S:.0f}, "
                f"given {patience_s}"
            )
        address = None if server is None else parse_address(server)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        chosen: Union[str, Selector] = cut if selector is None else selector
        self._selector_name = chosen if isinstance(chosen, str) else cut
        self._policy = open_policy(codec, self.bundle, allow_lossy)
        self._halo = allow_halo
        self._selector = self._open_selector(chosen) if isinstance(chosen, str) else chosen
        self._objective = parse_objective(objective) if isinstance(objective, str) else objective
        check_constraints(constraints, self.bundle.manifest)
        self._constraints = constraints
        self._patience_s = patience_s
        self._hedge = hedge
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._whole = not self.bundle.manifest.cuts[-1].refused
        self.program = Program(
            self.bundle,
            open_bundle_backend(self.bundle, backend, BackendOptions(threads=threads)),
            only=None if self._whole else _robot_part(self.bundle.manifest),
        )
        self._stripes = Stripes(self.program)
        self._turns = Turns()
        self.link: Optional[Link] = None
        self._preparer: Optional[Preparer] = None
        self._handling = HandlingEstimator()
        self._ahead = Ahead(self._choose_ahead)
        self._foreseen = isinstance(chosen, str)  # a selector of one's own may not be as pure
        self.meter = EnergyMeter(sensor_for(backend) if measure_energy else None)
        try:
            fitted = load_power(self.bundle, self.program.backend.fingerprint())
            self._power = power or (fitted.power if fitted is not None else StatePower())
            self._table = wire_table(table_for(self.program))
            self._preparer = Preparer(
                self.bundle.manifest,
                self._table,
                self._power,
                least_halo=allow_halo,
                policy=self._policy,
                usable=self._stripes.usable,
                then=self._prepare_choosing,
            )
            if address is not None:
                if self._table.codecs or self._policy.name != "auto":
                    preload_codecs()
                self._connect(*address)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Robot {self.bundle.manifest.name} {self._selector_name} {self.link!r}>"

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the link and free the engines; safe to call again."""
        self._ahead.close()
        if self.link is not None:
            self.link.close()
        if self._preparer is not None:
            self._preparer.close()
        self.meter.close()
        self._stripes.close()
        self.program.close()

    def prepare(self, cut: str, *, timeout_s: float = 30.0) -> bool:
        """Load what a cut or a plan needs now, so that its first inference runs as the others.

        Args:
            cut: The id of a cut: its fused engines are loaded. Or a striped plan: its forms are,
                on both ends.
            timeout_s: Longest wait for the server.

        Returns:
            Whether all is loaded; false where the server does not say so in time, or either end
            cannot run striped forms.

        Raises:
            ManifestError: Not a cut or a plan of this bundle.
            EngineError: Something cannot be loaded here.
        """
        if is_plan_text(cut):
            plan = parse_allowed(cut, self.bundle.manifest, self._halo)
            return self.link is not None and self._stripes.prepare(plan, self.link, timeout_s)
        index = self.bundle.manifest.cut(cut).index
        self.program.load_half(0, index)
        self.program.load_half(index, self.program.last)
        return True

    def stream(
        self,
        frames: Iterable[Mapping[str, Array]],
        *,
        in_flight: int = 2,
        cut: Optional[str] = None,
        deadline_s: Optional[float] = None,
    ) -> Frames:
        """Run one inference a frame, several of them at a time.

        The next frame is taken while link and server still have the ones before, at most
        ``in_flight`` in all; results come in the order of the frames, each with its age. A frame
        that fails raises its error in its turn; the ones after it can still be had.

        Args:
            frames: The model's inputs by name, frame by frame; taken only when there is room.
            in_flight: Frames under way at a time, from 1 to 8.
            cut: As for :meth:`infer`.
            deadline_s: As for :meth:`infer`.
        """
        if not 1 <= in_flight <= MAX_IN_FLIGHT:
            raise SplitError(f"in flight: expected 1 to {MAX_IN_FLIGHT} frames, given {in_flight}")
        objective = self._objective_of(deadline_s)

        def start(frame: Mapping[str, Array]) -> "Tuple[Callable[[], Result], Callable[[], None]]":
            number, taken_s = next(self._numbers), taken_of(frame)
            self._turns.reserve(number)
            return (
                lambda: self._infer(number, taken_s, frame, cut, objective, in_flight),
                lambda: self._turns.withdraw(number),
            )

        return Frames(frames, start, in_flight)

    def infer(
        self,
        inputs: Mapping[str, Array],
        *,
        cut: Optional[str] = None,
        deadline_s: Optional[float] = None,
    ) -> Result:
        """Run one inference.

        Args:
            inputs: The model's inputs by name.
            cut: Overrides the robot's own choice: what the robot itself was given.
            deadline_s: Overrides the robot's objective: the least energy among what keeps this
                deadline, in seconds from the call.

        Returns:
            The outputs and what happened.

        Raises:
            TensorMismatchError: An input does not fit the model.
            EngineError: This robot's own backend failed. (The link and the server cannot make an
                inference fail.)
            UnansweredError: They can where the bundle was compiled for a robot whose memory does
                not hold the whole model: the server is gone, and the robot may not go on alone.
        """
        objective = self._objective_of(deadline_s)
        return self._infer(next(self._numbers), taken_of(inputs), inputs, cut, objective)

    # -- one inference -----------------------------------------------------------------------

    def _infer(
        self,
        number: int,
        taken_s: float,
        inputs: Mapping[str, Array],
        cut: Optional[str],
        objective: Objective,
        in_flight: Optional[int] = None,
    ) -> Result:
        chosen = self._foreseen and cut is None and self.link is not None
        following = self._ahead.inference(objective, in_flight, chosen=chosen)
        with following, self.meter.measure(begin=False) as measured:
            result = self._run(number, taken_s, inputs, cut, objective, in_flight, measured)
        return result.measured(measured.energy)

    def _run(
        self,
        number: int,
        taken_s: float,
        inputs: Mapping[str, Array],
        cut: Optional[str],
        objective: Objective,
        in_flight: Optional[int],
        measured: Measurement,
    ) -> Result:
        with self._turns.turn(number):
            measured.begin()
            begin = time.monotonic()
            decision = self._decide(cut, objective, in_flight)
            self._check_alone(decision.cut, decision.reason)
            course = self._stripes.course(decision, self.link, inputs)
            course.head()
            robot_s = time.monotonic() - begin
        remote = course.stripes > 0
        if remote:
            end = self._finish(course, decision, number, begin)
        else:
            end = Finish(course.alone(), None, "", 0.0, 0.0, hedged=False)
        # By default the robot itself did all of it; a fallback did what was the server's.
        answered_by = "local" if end.answer is None else "remote"
        if end.answer is None and (remote or (self.link is not None and self._wanted_server(cut))):
            answered_by = "fallback"
        outputs = self.program.outputs(end.tensors)
        done = time.monotonic()
        return self._result(
            number=number,
            outputs=outputs,
            course=course,
            decision=decision,
            answered_by=answered_by,
            latency_s=done - begin,
            age_s=done - taken_s,
            robot_s=robot_s,
            end=end,
        )

    def _finish(self, course: Course, decision: Decision, number: int, begin_s: float) -> Finish:
        """Get the answer to a request, or do without it."""
        hedge_s = None if decision.bound is None else decision.bound.hedge_s
        patience_s = self._patience_s
        if patience_s is None and hedge_s is None:
            patience_s = self._patience(decision.prediction)
        if patience_s is not None and hedge_s is None:
            # Requests that are under way already have the link before this one: the robot waits
            # for each of them as long again.
            assert self.link is not None, "a request without a link"
            before = max(self.link.under_way - 1, 0)
            patience_s *= 1 + min(before, MAX_IN_FLIGHT)
        return finish(
            course,
            self._turns,
            number,
            hedge_at_s=None if hedge_s is None else begin_s + hedge_s,
            patience_s=patience_s,
            check=lambda why: self._check_alone(self.program.last, f"{decision.reason}; {why}"),
        )

    def _objective_of(self, deadline_s: Optional[float]) -> Objective:
        return self._objective if deadline_s is None else Objective("deadline", limit=deadline_s)

    def _open_selector(self, name: str) -> Selector:
        return open_selector(name, self.bundle.manifest, least_halo=self._halo)

    def _decide(
        self, cut: Optional[str], objective: Objective, in_flight: Optional[int]
    ) -> Decision:
        """Choose cut and plan; a plan that cannot be carried out now is left out."""
        selector = self._selector if cut is None else self._open_selector(cut)
        made: Optional[Decision] = None
        if cut is None:
            made = self._ahead.take(lambda: self._basis(objective, in_flight))
        decision = made or self._choose(selector, objective, in_flight)
        situation = decision.situation
        assert situation is not None, "kept by whoever chose"
        if decision.plan is not None:
            why_not = self._stripes.trouble(decision.plan, self.link, whole=self._whole)
            if why_not:
                decision = self._without_plan(selector, decision, situation, why_not)
        if decision.prediction is None and self._policy.name not in ("auto", "none"):
            decision = replace(decision, coding=self._named_coding(decision))
        bound = promise(
            decision, situation, last=self.program.last, local_s=self._local_s(situation)
        )
        prediction = decision.prediction
        if prediction is not None and situation.plans is not None:
            extra_j = hedge_j(situation.plans, prediction, bound)
            prediction = replace(prediction, energy_j=prediction.energy_j + extra_j)
        return replace(
            decision,
            situation=situation,
            bound=bound,
            prediction=prediction,
            ahead_s=self._ahead.spent_s(),
        )

    def _choose(
        self, selector: Selector, objective: Objective, in_flight: Optional[int]
    ) -> Decision:
        situation = self._situation(objective, in_flight)
        return replace(selector.decide(situation), situation=situation)

    def _choose_ahead(
        self, objective: Objective, in_flight: Optional[int]
    ) -> Tuple[Basis, Decision]:
        # What is learned in between makes the basis an old one.
        basis = self._basis(objective, in_flight)
        return basis, self._choose(self._selector, objective, in_flight)

    def _prepare_choosing(self, plans: PreparedPlans) -> None:
        """Work out what decisions rest on before there are any."""
        if isinstance(self._selector, SplitRT):
            promised = self._hedge and self._whole
            self._selector.prepare(
                Situation(plans, None, 0.0, self._objective, self._constraints, promised=promised)
            )

    def _basis(self, objective: Objective, in_flight: Optional[int]) -> Basis:
        link = self.link
        if link is None:
            return Basis(None, 0, False, 0, objective, in_flight)
        plans, evidence = self._plans(link), link.estimator.taken
        return Basis(plans, evidence, link.up, link.backlog_bytes, objective, in_flight)

    def _plans(self, link: Link) -> Optional[PreparedPlans]:
        """Return all that may be done; none while a table is missing."""
        assert self._preparer is not None
        plans = self._preparer.plans(link.server_table)
        return None if plans is None else plans.with_handling(self._handling.at(time.monotonic()))

    def _local_s(self, situation: Situation) -> float:
        """Return what the robot takes alone; infinite where it may not."""
        if not self._whole:
            return math.inf
        if situation.plans is not None:
            return situation.plans.local_s
        return sum(self._table.segments_s)

    def _named_coding(self, decision: Decision) -> Coding:
        """Return the codec that was asked for, where nothing is predicted yet."""
        server = None if self.link is None else self.link.server_table
        offer = None if server is None else self._policy.offer(self._table, server)
        if offer is None:
            return ()
        return Codings(self.bundle.manifest, offer).proposals(decision.cut, decision.plan)[0]

    def _without_plan(
        self, selector: Selector, decision: Decision, situation: Situation, why_not: str
    ) -> Decision:
        """Choose again among the serial cuts; where a plan was named, take its cut."""
        serial = selector.decide(replace(situation, serial=True))
        reason = f"{decision.reason}; {why_not}"
        if serial.plan is None:
            return replace(serial, reason=reason)
        cut = decision.cut
        if self.bundle.manifest.cuts[cut].refused:
            cut = self.program.last
        return Decision(cut, reason, None)

    def _check_alone(self, cut: int, reason: str) -> None:
        """Refuse to run the whole model where its memory is not to be had."""
        if cut == self.program.last and not self._whole:
            raise UnansweredError(
                f"no answer: {reason}, and this robot may not run the whole model: "
                f"{self.bundle.manifest.cuts[-1].refused}"
            )

    def _patience(self, prediction: Optional[Prediction]) -> float:
        if prediction is None or not math.isfinite(prediction.latency_s):
            return PATIENCE_S
        remote_s = prediction.link_s + prediction.server_s + prediction.queue_s
        return min(PATIENCE_S, max(_SHORTEST_PATIENCE_S, _PATIENCE_FACTOR * remote_s))

    def _wanted_server(self, cut: Optional[str]) -> bool:
        """Whether the user named a cut with a server's part: running alone is a fallback then."""
        return wants_server(self._selector_name if cut is None else cut, self.bundle.manifest)

    def _situation(self, objective: Objective, in_flight: Optional[int]) -> Situation:
        link, plans, estimate = self.link, None, None
        queue_s, trouble = 0.0, "no connection"
        if link is not None:
            plans = self._plans(link)
            if link.up:
                estimate = link.estimate
        if estimate is not None and estimate.state is LinkState.DOWN:
            trouble, estimate = f"link down: {estimate.why}", None
        if link is not None and estimate is not None:
            queue_s = estimate.queue_s
            if estimate.goodput_bps and in_flight is None:
                # What was given up but is still on its way goes before.
                queue_s += 8.0 * link.backlog_bytes / estimate.goodput_bps
        return Situation(
            plans,
            estimate,
            queue_s,
            objective,
            self._constraints,
            in_flight=in_flight,
            trouble=trouble,
            promised=self._hedge and self._whole,
        )

    def _result(
        self,
        *,
        number: int,
        outputs: Dict[str, Array],
        course: Course,
        decision: Decision,
        answered_by: str,
        latency_s: float,
        age_s: float,
        robot_s: float,
        end: Finish,
    ) -> Result:
        answer, remote = end.answer, course.stripes > 0
        head_s, robot_s = robot_s, robot_s + end.alone_s
        server_s = queue_s = receive_s = reading_s = 0.0
        down = 0
        if answer is not None:
            server_s, queue_s = answer.result.compute_s, answer.result.queue_s
            receive_s, reading_s = answer.result.receive_s, answer.reading_s
            down = answer.bytes_down
        if answer is None:
            link_s = end.waited_s  # for as long as something may have been on its way
        elif decision.plan is None:
            link_s = max(end.waited_s - server_s - queue_s, 0.0)
        else:
            link_s = max(course.sending_s, receive_s) + reading_s
        # Computing and sending may overlap: see calibration.prepared for their power.
        idle_s = head_s + end.waited_s - robot_s - link_s
        estimate = None if self.link is None else self.link.estimate
        codecs = decision.codecs if remote else {}
        result = Result(
            outputs=outputs,
            seq=number,
            cut=self.bundle.manifest.cuts[decision.cut].id,
            answered_by=answered_by,
            reason=f"{decision.reason}; {end.why}" if end.why else decision.reason,
            latency_s=latency_s,
            robot_s=robot_s,
            link_s=link_s,
            server_s=server_s,
            queue_s=queue_s,
            bytes_up=course.bytes_up,
            bytes_down=down,
            goodput_bps=None if estimate is None else estimate.goodput_bps,
            energy_j=self._power.energy_j(compute_s=robot_s, communicate_s=link_s, idle_s=idle_s)
            + (self._power.compute - self._power.idle) * decision.ahead_s,
            predicted=decision.prediction,
            mode=course.mode,
            plan="" if decision.plan is None else plan_text(decision.plan, self.bundle.manifest),
            stripes=course.stripes,
            sending_s=course.sending_s,
            age_s=age_s,
            decision=decision,
            hedge_s=end.alone_s if end.hedged else 0.0,
            bound_s=None if decision.bound is None else decision.bound.latency_s,
            lossy=answer is not None
            and (is_lossy(decision.plan) or is_lossy_coding(tuple(codecs.items()))),
            codecs=codecs,
        )
        self._learn(course, result, end)
        return result

    def _learn(self, course: Course, result: Result, end: Finish) -> None:
        """Learn what a request took beside its computing and its transmission."""
        answer, link = end.answer, self.link
        if answer is None or link is None or link.under_way:
            return
        if course.stripes > 1:
            self._handling.take(time.monotonic(), result)
            return
        server_s = answer.result.queue_s + answer.result.compute_s
        total = course.bytes_up + answer.bytes_down
        seconds = max(end.waited_s - server_s, 0.0)
        link.estimator.take(Exchange(time.monotonic(), total, seconds))

    def _connect(self, host: str, port: int) -> None:
        self.link = link = Link(
            host,
            port,
            manifest=self.bundle.manifest,
            digest=self.bundle.digest,
            table=msgspec.structs.replace(self._table, codecs=()),  # the server does not choose
            ranges=self._policy.ranges,
        )
        if not link.wait_settled(_CONNECT_S):
            fatal = link.fatal
            if fatal is not None:
                raise fatal
            logger.warning("%s; running on the robot, connecting again", link.trouble)
        elif self._preparer is not None:
            self._preparer.prepare(link.server_table)


def _robot_part(manifest: Manifest) -> Set[int]:
    """Return the segments that the robot may have to run at some cut."""
    return {index for cut in manifest.cuts if not cut.refused for index in cut.robot_segments}
