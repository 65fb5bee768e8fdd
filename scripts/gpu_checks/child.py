"""The process that a step runs in: ``python -m scripts.gpu_checks.child ORDER.json``.

A library that brings its process down, or loses the GPU to it, takes nothing else with it. Every
line is written as soon as it is there. Exit status 3 says that the GPU is lost to this process and
that another one should go on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from scripts.gpu_checks.kit import Budget, Kit
from scripts.gpu_checks.records import Line
from scripts.gpu_checks.steps import INSTALLED, Step, carry_out, look

__all__ = ["GPU_LOST", "Order", "obey"]

GPU_LOST = 3


class Order(msgspec.Struct, frozen=True):
    """What a process is to do.

    Attributes:
        step: The step, with the subjects that are left.
        work: Folder of the check.
        lines: File that lines are added to.
    """

    step: Step
    work: str
    lines: str


def obey(order: Order, kit: Kit) -> int:
    """Do a step; return the exit status."""
    with Path(order.lines).open("ab") as file:
        if order.step.name == INSTALLED.name:
            for subject in order.step.subjects:
                _write(file, look(subject))
            return 0
        for row in carry_out(kit, order.step):
            _write(file, row)
            if row.status not in ("ok", "built", "not done") and kit.lost():
                return GPU_LOST
    return 0


def _write(file: BinaryIO, line: Line) -> None:
    file.write(msgspec.json.encode(line) + b"\n")
    file.flush()


if __name__ == "__main__":
    given = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    sys.exit(obey(given, Kit(Path(given.work), Budget(given.step.seconds))))
