"""The robot: runs a model up to a cut, lets the server run the rest, and never waits for ever.

One inference:

1. The selector chooses a cut from the latency tables and the link as estimated.
2. The robot runs the head and keeps the frontier.
3. It sends the frontier and waits for the answer, no longer than its patience.
4. If the answer does not come, the robot runs the tail itself, from the frontier it kept. So an
   inference takes at most local time plus the patience, whatever the link does.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Set, Tuple, Union

from calibration.energy import StatePower
from calibration.predictor import CutCosts, Prediction, cut_costs
from engines.backend import BackendOptions
from engines.bundle import Bundle
from engines.bundle_plans import open_bundle_backend
from engines.errors import LinkError, SplitError, UnansweredError
from engines.manifest import Manifest
from engines.program import Program
from engines.tensors import Array
from runtime.link import Answer, Link
from runtime.selector import Decision, Situation, open_selector
from runtime.tables import table_for, wire_table
from runtime.transport import Deadline, parse_address
from runtime.wire import Table

__all__ = ["Result", "Robot"]

logger = logging.getLogger(__name__)

PATIENCE_S = 0.8
"""Longest wait for the server after the head is done, unless the user says otherwise."""

_SHORTEST_PATIENCE_S = 0.25
_PATIENCE_FACTOR = 4.0
"""Where a remote time is predicted, the robot waits this many times as long before it falls
back, but between ``_SHORTEST_PATIENCE_S`` and ``PATIENCE_S``."""

_LONGEST_PATIENCE_S = 3600.0
_CONNECT_S = 3.0
_QUEUE_WEIGHT = 0.3
_QUEUE_FADES = 0.95
"""An inference without the server learns nothing of its queue: what was known of it fades, so
that a queue of long ago does not keep the robot away for ever."""


@dataclass(frozen=True)
class Result:
    """One answered inference. Times in seconds, sizes in bytes.

    Attributes:
        outputs: The model's outputs by name.
        seq: Number of the inference, from 0.
        cut: Id of the cut.
        answered_by: ``remote``; ``local`` if the selector chose the robot alone; ``fallback`` if
            the robot did what was the server's part.
        reason: Why this cut, and what went wrong, in a few words.
        latency_s: From the call to the answer.
        robot_s: Computing and coding on the robot.
        link_s: Sending, receiving and waiting, less the server's time.
        server_s: Computing and coding on the server.
        queue_s: Waiting for its turn at the server.
        bytes_up: Sent for this inference.
        bytes_down: Received for it.
        goodput_bps: The link's estimated goodput afterwards; none while unknown.
        energy_j: Modelled energy on the robot.
        predicted: What the selector expected; none where it could not tell.
    """

    outputs: Dict[str, Array]
    seq: int
    cut: str
    answered_by: str
    reason: str
    latency_s: float
    robot_s: float
    link_s: float
    server_s: float
    queue_s: float
    bytes_up: int
    bytes_down: int
    goodput_bps: Optional[float]
    energy_j: float
    predicted: Optional[Prediction]

    def record(self) -> Dict[str, Any]:
        """Return the result without its outputs, as one JSON line: ms, Mbps and joules."""
        goodput = None if self.goodput_bps is None else round(self.goodput_bps / 1e6, 3)
        predicted = None if self.predicted is None else _ms(self.predicted.latency_s)
        return {
            "seq": self.seq,
            "latency_ms": _ms(self.latency_s),
            "cut": self.cut,
            "answered_by": self.answered_by,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "robot_ms": _ms(self.robot_s),
            "link_ms": _ms(self.link_s),
            "server_ms": _ms(self.server_s),
            "queue_ms": _ms(self.queue_s),
            "goodput_mbps": goodput,
            "energy_j": round(self.energy_j, 6),
            "predicted_ms": predicted,
            "reason": self.reason,
        }


class Robot:
    """Runs a bundle's model on this robot, with a server's help where that is quicker.

    Safe across threads. A context manager; ``close`` ends the link.

    Args:
        bundle: The bundle, or its path.
        server: ``HOST:PORT`` of a server with the same bundle; none for the robot alone.
        cut: ``auto``, ``local``, ``offload`` or the id of a cut; ``infer`` may override it.
        backend: Name of the backend.
        threads: Threads that it computes with; 0 for its own choice.
        power: The robot's power by state, for the modelled energy.
        patience_s: Longest wait for the server in one inference; by default 4 times as long as
            predicted, between 0.25 s and 0.8 s.

    Raises:
        BundleError: The bundle cannot be opened.
        EngineError: It cannot be loaded on the backend.
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
        power: StatePower = StatePower(),
        patience_s: Optional[float] = None,
    ) -> None:
        if patience_s is not None and not 0 < patience_s <= _LONGEST_PATIENCE_S:
            raise SplitError(
                f"patience: expected seconds above 0, at most {_LONGEST_PATIENCE_S:.0f}, "
                f"given {patience_s}"
            )
        address = None if server is None else parse_address(server)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._selector_name = cut
        self._selector = open_selector(cut, self.bundle.manifest)
        self._power = power
        self._patience_s = patience_s
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._costs: Optional[Tuple[Table, CutCosts]] = None
        self._queue_s = 0.0
        self._whole = not self.bundle.manifest.cuts[-1].refused
        self.program = Program(
            self.bundle,
            open_bundle_backend(self.bundle, backend, BackendOptions(threads=threads)),
            only=None if self._whole else _robot_part(self.bundle.manifest),
        )
        self.link: Optional[Link] = None
        try:
            self._table = wire_table(table_for(self.program))
            if address is not None:
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
        if self.link is not None:
            self.link.close()
        self.program.close()

    def prepare(self, cut: str) -> None:
        """Load the fused engines of a cut that pay, so that its first inference runs on them."""
        index = self.bundle.manifest.cut(cut).index
        self.program.prepare(0, index)
        self.program.prepare(index, self.program.last)

    def infer(self, inputs: Mapping[str, Array], *, cut: Optional[str] = None) -> Result:
        """Run one inference.

        Args:
            inputs: The model's inputs by name.
            cut: Overrides the robot's own choice: ``auto``, ``local``, ``offload`` or a cut's id.

        Returns:
            The outputs and what happened.

        Raises:
            TensorMismatchError: An input does not fit the model.
            EngineError: This robot's own backend failed. (The link and the server cannot make an
                inference fail.)
            UnansweredError: They can where the bundle was compiled for a robot whose memory does
                not hold the whole model: the server is gone, and the robot may not go on alone.
        """
        begin = time.monotonic()
        selector = self._selector if cut is None else open_selector(cut, self.bundle.manifest)
        decision = selector.decide(self._situation())
        self._check_alone(decision.cut, decision.reason)
        env = self.program.run(inputs, 0, decision.cut)
        head_s = time.monotonic() - begin
        last = self.program.last
        answer: Optional[Answer] = None
        reason = decision.reason
        waited_s = tail_s = 0.0
        sent = 0
        if decision.cut < last:
            answer, trouble, waited_s, sent = self._ask(decision, env)
            if answer is not None:
                env = {**env, **answer.tensors}
            else:
                reason = f"{reason}; {trouble}"
        else:
            with self._lock:
                self._queue_s *= _QUEUE_FADES
        # By default the robot itself did all of it; a fallback did what was the server's.
        answered_by = "remote" if answer is not None else "local"
        if answer is None:
            self._check_alone(last, reason)
            again = time.monotonic()
            env = self.program.run(env, decision.cut, last)
            tail_s = time.monotonic() - again
            if decision.cut < last or (self.link is not None and self._wanted_server(cut)):
                answered_by = "fallback"
        outputs = self.program.outputs(env)
        latency_s = time.monotonic() - begin
        return self._result(
            outputs=outputs,
            decision=decision,
            answered_by=answered_by,
            reason=reason,
            latency_s=latency_s,
            robot_s=head_s + tail_s,
            waited_s=waited_s,
            sent=sent,
            answer=answer,
        )

    # -- one inference -----------------------------------------------------------------------

    def _check_alone(self, cut: int, reason: str) -> None:
        """Refuse to run the whole model where its memory is not to be had."""
        if cut == self.program.last and not self._whole:
            raise UnansweredError(
                f"no answer: {reason}, and this robot may not run the whole model: "
                f"{self.bundle.manifest.cuts[-1].refused}"
            )

    def _ask(
        self, decision: Decision, env: Mapping[str, Array]
    ) -> "Tuple[Optional[Answer], str, float, int]":
        """Send the frontier and wait.

        Returns:
            The answer or none, why there is none, the seconds spent and the bytes sent.
        """
        assert self.link is not None  # without a link the last cut is chosen
        patience_s = self._patience(decision)
        frontier = self.bundle.manifest.cuts[decision.cut].tensors
        begin = time.monotonic()
        deadline = Deadline(patience_s)
        answer: Optional[Answer] = None
        trouble = ""
        sent = 0
        try:
            request = self.link.send(
                decision.cut, {name: env[name] for name in frontier}, deadline=deadline
            )
            sent = request.bytes_up
            answer = request.wait(deadline)
            if answer is None:
                self.link.abandon(request)
                trouble = f"no answer within {patience_s * 1e3:.0f} ms"
        except LinkError as exc:
            trouble = str(exc)
        if answer is not None:
            with self._lock:
                self._queue_s += _QUEUE_WEIGHT * (answer.result.queue_s - self._queue_s)
        return answer, trouble, time.monotonic() - begin, sent

    def _patience(self, decision: Decision) -> float:
        if self._patience_s is not None:
            return self._patience_s
        prediction = decision.prediction
        if prediction is None or not math.isfinite(prediction.latency_s):
            return PATIENCE_S
        remote_s = prediction.link_s + prediction.server_s + prediction.queue_s
        return min(PATIENCE_S, max(_SHORTEST_PATIENCE_S, _PATIENCE_FACTOR * remote_s))

    def _wanted_server(self, cut: Optional[str]) -> bool:
        """Whether the user named a cut with a server's part: running alone is a fallback then."""
        name = self._selector_name if cut is None else cut
        if name == "offload":
            return True
        if name in ("auto", "local"):
            return False
        return self.bundle.manifest.cut(name).index < self.program.last

    def _situation(self) -> Situation:
        link = self.link
        if link is None or not link.up:
            return Situation(self._costs_of(None), None, self._queue_s, self._power)
        return Situation(
            self._costs_of(link.server_table), link.estimator.estimate, self._queue_s, self._power
        )

    def _costs_of(self, server: Optional[Table]) -> Optional[CutCosts]:
        """Sum up both tables, once for each table that a server sent."""
        if server is None or len(server.segments_s) != len(self.bundle.manifest.segments):
            return None
        with self._lock:
            if self._costs is None or self._costs[0] is not server:
                costs = cut_costs(self.bundle.manifest, self._table.segments_s, server.segments_s)
                self._costs = (server, costs)
            return self._costs[1]

    def _result(
        self,
        *,
        outputs: Dict[str, Array],
        decision: Decision,
        answered_by: str,
        reason: str,
        latency_s: float,
        robot_s: float,
        waited_s: float,
        sent: int,
        answer: Optional[Answer],
    ) -> Result:
        server_s = queue_s = 0.0
        down = 0
        if answer is not None:
            server_s, queue_s = answer.result.compute_s, answer.result.queue_s
            down = answer.bytes_down
        link_s = max(waited_s - server_s - queue_s, 0.0)
        estimate = None if self.link is None else self.link.estimator.estimate
        return Result(
            outputs=outputs,
            seq=next(self._numbers),
            cut=self.bundle.manifest.cuts[decision.cut].id,
            answered_by=answered_by,
            reason=reason,
            latency_s=latency_s,
            robot_s=robot_s,
            link_s=link_s,
            server_s=server_s,
            queue_s=queue_s,
            bytes_up=sent,
            bytes_down=down,
            goodput_bps=None if estimate is None else estimate.goodput_bps,
            energy_j=self._power.energy_j(
                compute_s=robot_s, communicate_s=link_s, idle_s=server_s + queue_s
            ),
            predicted=decision.prediction,
        )

    def _connect(self, host: str, port: int) -> None:
        self.link = link = Link(
            host,
            port,
            manifest=self.bundle.manifest,
            digest=self.bundle.digest,
            table=self._table,
        )
        if not link.wait_settled(_CONNECT_S):
            fatal = link.fatal
            if fatal is not None:
                raise fatal
            logger.warning("%s; running on the robot, connecting again", link.trouble)


def _robot_part(manifest: Manifest) -> Set[int]:
    """Return the segments that the robot may have to run at some cut."""
    return {index for cut in manifest.cuts if not cut.refused for index in cut.robot_segments}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
