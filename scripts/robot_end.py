"""A robot as a process of its own that is told when to begin and when to stop.

    python scripts/robot_end.py JOB

JOB is a :class:`Drive` as JSON. It warms up, says that it is ready, waits for a line with a
:class:`Start`, and runs inferences from stored inputs back to back until it has its number or its
input ends. Every record is a line, written as soon as the answer is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import msgspec
import numpy as np
from benches.stations import Station
from estimator_sim import Trace, read_trace

from engines.bundle import Bundle
from engines.errors import SplitError
from engines.manifest import Manifest
from runtime.decision import Decision, Selector, Situation
from runtime.robot import Robot
from runtime.selector import Oracle

__all__ = ["Drive", "RobotEnd", "Start", "TraceOracle", "drive", "trace_of"]

_HERE = [sys.executable, str(Path(__file__).resolve())]

WARMUP = 5
"""Inferences before those that count."""

_READY_S = 60.0
"""Longest wait for a robot to have its link and the stripes that it wants."""

_WARM_S = 20.0
_END_S = 60.0

LEAST_MBPS = 0.1
"""Least rate of a trace: a token bucket cannot be stopped."""

_LOOKS = 3
"""Times that the oracle asks itself how long the inference will see the link."""


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """What a robot is to do.

    Attributes:
        station: What it runs.
        address: Of the server; none for the robot alone.
        values: ``.npz`` with the inputs by name and the outputs that they should give.
        selector: Name of the selector; ``oracle`` needs the trace.
        objective: As ``runtime infer --objective`` takes it.
        trace: File of the link's trace, where it follows one.
        begin_s: Where in the trace it begins.
        hedge: Whether it keeps the promise of its objective.
    """

    station: Station
    address: str
    values: str
    selector: str = "splitrt"
    objective: str = "latency"
    trace: str = ""
    begin_s: float = 0.0
    hedge: bool = True


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """When to begin.

    Attributes:
        at_s: Monotonic time of the first inference, and of the trace's beginning.
        count: Inferences; none for as many as there are until the input ends.
        every_s: Least time from the begin of one to that of the next.
    """

    at_s: float
    count: int | None = None
    every_s: float = 0.0


def trace_of(path: str | Path, begin_s: float) -> Trace:
    """Read a trace from some place on, as a shaper can follow it."""
    trace = read_trace(Path(path), begin_s=begin_s)
    return replace(trace, mbps=tuple(max(mbps, LEAST_MBPS) for mbps in trace.mbps))


class TraceOracle:
    """``oracle`` on a link that follows a known trace.

    The goodput that an inference will have is the trace's mean over as long as it is expected to
    take, found by asking again with the time of the answer before.

    Args:
        manifest: The bundle's manifest.
        trace: What the link follows.
        now_s: Gives the time since the trace began.
    """

    def __init__(self, manifest: Manifest, trace: Trace, now_s: Callable[[], float]) -> None:
        self._oracle = Oracle(manifest)
        self._trace = trace
        self._now_s = now_s

    def decide(self, situation: Situation) -> Decision:
        """Choose the best for the goodput that will be."""
        begin_s = self._now_s()
        length_s = self._trace.step_s
        for _ in range(_LOOKS):
            true_bps = self._trace.mean_bps(begin_s, begin_s + length_s)
            decision = self._oracle.decide(replace(situation, true_bps=true_bps))
            prediction = decision.prediction
            if prediction is None or not prediction.latency_s < float("inf"):
                break
            length_s = prediction.latency_s
        return decision


def drive(job: Drive, commands: TextIO, say: Callable[[dict[str, Any]], None]) -> None:
    """Be the robot.

    Args:
        job: What to do.
        commands: A line with a :class:`Start` comes here; its end means to stop.
        say: Takes ``{"ready": ...}``, then a record of every inference.
    """
    with np.load(job.values) as stored:
        values = dict(stored)
    station = job.station
    bundle = Bundle.open(station.bundle)
    began_s = [time.monotonic()]
    selector: str | Selector = job.selector
    if job.selector == "oracle":
        trace = trace_of(job.trace, job.begin_s)
        selector = TraceOracle(bundle.manifest, trace, lambda: time.monotonic() - began_s[0])
    with Robot(
        bundle,
        server=job.address or None,
        backend=station.backend,
        threads=station.threads,
        selector=selector,
        objective=job.objective,
        measure_energy=False,
        hedge=job.hedge,
    ) as robot:
        inputs = {spec.name: values[spec.name] for spec in robot.bundle.manifest.inputs}
        _warm_up(robot, inputs)
        say({"ready": robot.link is None or robot.link.up})
        line = commands.readline()
        if not line:
            return
        start = msgspec.json.decode(line, type=Start)
        stop = threading.Event()
        threading.Thread(target=_wait_for_end, args=(commands, stop), daemon=True).start()
        began_s[0] = start.at_s
        number = 0
        while (start.count is None or number < start.count) and not stop.is_set():
            wait_s = start.at_s + number * start.every_s - time.monotonic()
            if wait_s > 0 and stop.wait(wait_s):
                break
            say(_one(robot, inputs, values))
            number += 1


def _wait_for_end(commands: TextIO, stop: threading.Event) -> None:
    # Not through the buffer: a thread that holds its lock would be in the way of the exit.
    while os.read(commands.fileno(), 1):
        pass
    stop.set()


def _warm_up(robot: Robot, inputs: Mapping[str, np.ndarray]) -> None:
    """Run until the link is up and known, and what is wanted of stripes is loaded."""
    until_s = time.monotonic() + _WARM_S
    count = 0
    while count < WARMUP and time.monotonic() < until_s:
        reason = robot.infer(inputs).reason
        known = robot.link is None or robot.link.estimate.goodput_bps is not None
        if known and "being prepared" not in reason and "no latency table" not in reason:
            count += 1


def _one(
    robot: Robot, inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Run one inference; returns its record, with times of begin and end and the error."""
    begin_s = time.monotonic()
    try:
        result = robot.infer(inputs)
    except SplitError as exc:
        return {"failed": str(exc), "begin_s": begin_s, "at_s": time.monotonic()}
    told = {"begin_s": begin_s, "at_s": time.monotonic()}
    error = max(_error(given, values[name]) for name, given in result.outputs.items())
    return {**result.record(), **told, "error": error}


def _error(given: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference by the largest value: 0 where all bytes are the same."""
    if np.array_equal(given, expected):
        return 0.0
    if given.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    error = float(np.abs(given - wide).max()) / max(float(np.abs(wide).max()), 1e-30)
    return error if error == error else float("inf")  # NaN is no answer  # noqa: PLR0124


class RobotEnd:
    """The process from outside. A context manager.

    Args:
        prefix: Words before the command.
        job: What it does.

    Attributes:
        records: Of its inferences so far, in order.
    """

    def __init__(self, prefix: Sequence[str], job: Drive) -> None:
        self.records: list[dict[str, Any]] = []
        self._ready: bool | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [*prefix, *_HERE, msgspec.json.encode(job).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> RobotEnd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # asked for above
            pipe.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended

    def wait_ready(self) -> bool:
        """Wait until it is warm; returns whether its link is up."""
        self.wait(lambda: self._ready is not None, _READY_S)
        if self._ready is None:
            raise RuntimeError("the robot did not start; its message stands above")
        return self._ready

    def start(self, at_s: float, *, count: int | None = None, every_s: float = 0.0) -> None:
        """Let it begin at a monotonic time."""
        assert self._process.stdin is not None  # asked for above
        line = msgspec.json.encode(Start(at_s=at_s, count=count, every_s=every_s)).decode()
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait(self, condition: Callable[[], object], timeout_s: float) -> bool:
        """Wait until something holds of ``records``, or it has ended; returns whether it does."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or not self.running, timeout_s)
            return bool(condition())

    def finish(self) -> list[dict[str, Any]]:
        """Let it stop after the inference that is under way; returns all records."""
        assert self._process.stdin is not None  # asked for above
        self._process.stdin.close()
        status = self._process.wait(_END_S)
        self._reader.join()
        if status:
            raise RuntimeError(f"the robot ended with status {status}; its message stands above")
        return self.records

    def _read(self) -> None:
        assert self._process.stdout is not None  # asked for above
        for line in self._process.stdout:
            record = json.loads(line)
            with self._changed:
                if "ready" in record:
                    self._ready = record["ready"]
                else:
                    self.records.append(record)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    drive(msgspec.json.decode(sys.argv[1], type=Drive), sys.stdin, _say)
