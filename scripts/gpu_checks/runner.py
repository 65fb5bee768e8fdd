"""Runs steps in processes of their own, and tells what became of those that did not come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from scripts.gpu_checks.child import GPU_LOST, Order
from scripts.gpu_checks.machine import PACKAGES, put_together, version_of
from scripts.gpu_checks.records import Gpus, Line, Listed, Machine, Package, Row, Status
from scripts.gpu_checks.steps import INSTALLED, Step

__all__ = ["Ended", "Spawn", "examine_machine", "run_step", "spawn"]

ROOT = Path(__file__).resolve().parents[2]

_GRACE_S = 15.0
"""A child looks at its budget between parts; after these it is killed."""

_SAID_CHARS = 200


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        lines: What it wrote.
        status: Its exit status, below 0 for a signal; none where it was killed for its time.
        said: The last line on its stderr.
    """

    lines: list[Line]
    status: int | None
    said: str


Spawn = Callable[[Step, Path, float], Ended]
"""Does a step in another process, within seconds; the folder is the check's."""


def spawn(step: Step, work: Path, timeout_s: float) -> Ended:
    """Do a step in a process of its own, with this Python and this checkout."""
    lines, order, log = work / "lines", work / "order.json", work / "log"
    lines.write_bytes(b"")
    order.write_bytes(msgspec.json.encode(Order(step, str(work), str(lines))))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "scripts.gpu_checks.child", str(order)]
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=said, stderr=said
        )
        status: int | None
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    decoder = msgspec.json.Decoder(Line)
    whole = lines.read_bytes().split(b"\n")[:-1]
    return Ended([decoder.decode(line) for line in whole], status, (last or [""])[-1].strip())


def examine_machine(work: Path, *, start: Spawn = spawn) -> tuple[Machine, Listed]:
    """Look at this machine, and find what there is to be tried on it."""
    packages, found = [], Gpus(gpus=(), no_gpu="")
    listed = Listed(models=("small models",), targets=("every target",))
    for line in _lines(INSTALLED, work, start):
        if isinstance(line, Package):
            packages.append(line)
        elif isinstance(line, Gpus):
            found = line
        elif isinstance(line, Listed):
            listed = line
        elif line.subject in PACKAGES:  # importing it brought the process down
            version = version_of(line.subject)
            packages.append(
                Package(name=line.subject, version=version, works=False, said=line.said)
            )
        elif not found.gpus:
            found = Gpus(gpus=(), no_gpu=found.no_gpu or f"{line.subject}: {line.said}")
    return put_together(packages, found), listed


def run_step(
    step: Step, work: Path, told: Callable[[Row], None], *, start: Spawn = spawn
) -> list[Row]:
    """Do a step for all its subjects, in as many processes as it takes.

    Args:
        step: The step.
        work: Folder of the check.
        told: Called with each row.
        start: Does a step in another process.
    """
    rows = []
    for line in _lines(step, work, start):
        if isinstance(line, Row):
            told(line)
            rows.append(line)
    return rows


def _lines(step: Step, work: Path, start: Spawn) -> Iterator[Line]:
    """Give a line for each subject: its process's, or a row of what became of that."""
    left = list(step.subjects)
    end = time.monotonic() + step.seconds
    while left:
        seconds = max(end - time.monotonic(), 0.0)
        rest = Step(step.name, step.backend, tuple(left), seconds)
        ended = start(rest, work, seconds + _GRACE_S)
        yield from ended.lines
        left = left[len(ended.lines) :]
        if left and not (ended.lines and ended.status == GPU_LOST):
            # The first without a line is what it was at.
            status: Status = "out of time" if ended.status is None else "failed"
            said = _reason(ended, step)
            subject = left.pop(0)
            yield Row(
                step=step.name, subject=subject, backend=step.backend, status=status, said=said
            )


def _reason(ended: Ended, step: Step) -> str:
    if ended.status is None:
        return f"killed: its budget of {step.seconds:g} s is spent"
    how = f"exit status {ended.status}"
    if ended.status < 0:
        how = signal.Signals(-ended.status).name
    return f"its process ended with {how}: {ended.said[:_SAID_CHARS]}".rstrip(": ")
