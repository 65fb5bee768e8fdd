"""Robot and server as processes of their own, wherever a prefix puts them.

    python scripts/benches/stations.py serve JOB
    python scripts/benches/stations.py profile JOB
    python scripts/benches/stations.py whole JOB
    python scripts/benches/stations.py infer JOB

JOB is a :class:`Station` or :class:`Inferences` as JSON. What the console commands do, with any
backend, with stored inputs, and with every answer compared.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

__all__ = ["Inferences", "Station", "infer", "profile", "serving", "start_server", "whole_s"]

_HERE = [sys.executable, str(Path(__file__).resolve())]

WARMUP = 3
"""Inferences of each plan before those that count."""

_WHOLE_RUNS = 9

_READY_S = 30.0
"""Longest wait for ``auto`` to get the stripes that it wants."""


class Station(msgspec.Struct, frozen=True, kw_only=True):
    """What a station runs.

    Attributes:
        bundle: Its bundle.
        backend: Name of the backend.
        threads: Threads to compute with; 0 for the backend's own choice.
        host: Address to listen on; for the server.
        port: Port to listen on; 0 takes a free one.
    """

    bundle: str
    backend: str = "ort"
    threads: int = 1
    host: str = "127.0.0.1"
    port: int = 0


class Inferences(msgspec.Struct, frozen=True, kw_only=True):
    """What a robot is to do.

    Attributes:
        station: What it runs.
        address: Of the server.
        values: ``.npz`` with the inputs by name and the outputs that they should give.
        plans: As ``runtime infer --cut`` takes them. They take turns.
        count: Inferences of each.
        in_flight: Frames under way at a time.
    """

    station: Station
    address: str
    values: str
    plans: tuple[str, ...]
    count: int
    in_flight: int = 1


@contextmanager
def serving(prefix: Sequence[str], station: Station) -> Iterator[str]:
    """Run a server, and give its address once it listens."""
    server, address = start_server(prefix, station)
    assert server.stdout is not None  # asked for there
    with server.stdout:
        try:
            yield address
        finally:
            server.terminate()
            server.wait()


def start_server(prefix: Sequence[str], station: Station) -> tuple[subprocess.Popen[str], str]:
    """Start a server, and return it with its address once it listens."""
    server = subprocess.Popen(
        [*prefix, *_HERE, "serve", _text(station)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None  # asked for above
    address = server.stdout.readline().strip()
    if not address:
        server.wait()
        server.stdout.close()
        raise RuntimeError("the server did not start; its message stands above")
    return server, address


def profile(prefix: Sequence[str], station: Station) -> None:
    """Measure a station's latency table and keep it beside its bundle, as ``runtime profile``."""
    subprocess.run([*prefix, *_HERE, "profile", _text(station)], check=True)


def whole_s(prefix: Sequence[str], station: Station) -> float:
    """Return the median seconds of the whole model on a station."""
    command = [*prefix, *_HERE, "whole", _text(station)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def infer(prefix: Sequence[str], job: Inferences) -> list[dict[str, Any]]:
    """Run a robot, and return what it says of each inference.

    Each record is that of ``Result.record`` with ``asked``, the plan that was asked for;
    ``error``, the largest of the outputs relative to the largest value; ``digest`` of the outputs;
    and ``at_s``, when the answer was there.
    """
    done = subprocess.run(
        [*prefix, *_HERE, "infer", _text(job)], stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _text(job: Station | Inferences) -> str:
    return msgspec.json.encode(job).decode()


def _program(station: Station) -> Any:
    from engines.backend import BackendOptions
    from engines.bundle import Bundle
    from engines.bundle_plans import open_bundle_backend
    from engines.program import Program

    bundle = Bundle.open(station.bundle)
    backend = open_bundle_backend(bundle, station.backend, BackendOptions(threads=station.threads))
    return Program(bundle, backend)


def _serve(text: str) -> None:
    from runtime.server import Server

    station = msgspec.json.decode(text, type=Station)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (
        _program(station) as program,
        Server([program], host=station.host, port=station.port) as server,
    ):
        print("{}:{}".format(*server.address), flush=True)
        stop.wait()


def _profile(text: str) -> None:
    from calibration.latency_table import store_table
    from calibration.measure import measure_latency

    with _program(msgspec.json.decode(text, type=Station)) as program:
        table = measure_latency(program, runs=15, budget_s=25.0, halves=True, stripes=True)
        store_table(program.bundle, table)


def _whole(text: str) -> None:
    with _program(msgspec.json.decode(text, type=Station)) as program:
        inputs, _ = program.bundle.parity_vectors()
        program.load_half(0, program.last)
        samples: list[float] = []
        for _ in range(WARMUP + _WHOLE_RUNS):
            begin = time.perf_counter()
            program.run(inputs)
            samples.append(time.perf_counter() - begin)
        print(statistics.median(samples[WARMUP:]))


def _infer(text: str) -> None:
    from calibration.plan_text import is_plan_text
    from runtime.robot import Robot

    job = msgspec.json.decode(text, type=Inferences)
    with np.load(job.values) as stored:
        values = dict(stored)
    station = job.station
    with Robot(
        station.bundle,
        server=job.address or None,
        backend=station.backend,
        threads=station.threads,
        patience_s=20.0,
        hedge=False,  # a plan is measured, not what the robot does beside it
    ) as robot:
        manifest = robot.bundle.manifest
        inputs = {spec.name: values[spec.name] for spec in manifest.inputs}
        for plan in job.plans:
            if is_plan_text(plan) and not robot.prepare(plan):
                raise RuntimeError(f"plan {plan}: stripes are not to be had")
        _warm_up(robot, job.plans, inputs)
        if job.in_flight > 1:
            frames = itertools.repeat(inputs, job.count)
            for plan in job.plans:
                with robot.stream(frames, in_flight=job.in_flight, cut=plan) as stream:
                    for result in stream:
                        _tell(plan, result, values)
            return
        for _ in range(job.count):
            for plan in job.plans:
                _tell(plan, robot.infer(inputs, cut=plan), values)


def _warm_up(robot: Any, plans: Sequence[str], inputs: dict[str, np.ndarray]) -> None:
    """Run each plan a few times, and ``auto`` until it has what it wants."""
    until_s = time.monotonic() + _READY_S
    for _ in range(WARMUP):
        for plan in plans:
            while "being prepared" in robot.infer(inputs, cut=plan).reason:
                if time.monotonic() > until_s:
                    raise RuntimeError(f"plan {plan}: its stripes are not ready")


def _tell(plan: str, result: Any, values: dict[str, np.ndarray]) -> None:
    at_s, error, digest = time.monotonic(), 0.0, hashlib.sha256()
    for name, given in result.outputs.items():
        digest.update(np.ascontiguousarray(given).data)
        expected = values[name].astype(np.float64)
        largest = max(float(np.abs(expected).max()), 1e-30)
        error = max(error, float(np.abs(given - expected).max()) / largest)
    told = {"asked": plan, "error": error, "digest": digest.hexdigest(), "at_s": at_s}
    print(json.dumps({**result.record(), **told}), flush=True)


if __name__ == "__main__":
    {"serve": _serve, "profile": _profile, "whole": _whole, "infer": _infer}[sys.argv[1]](
        *sys.argv[2:]
    )
