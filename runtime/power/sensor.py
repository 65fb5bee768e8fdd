"""What a power sensor is, and how files of sysfs are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, Protocol, Union, runtime_checkable

from engines.errors import SensorError

__all__ = ["Energy", "EnergyCounter", "PowerSensor", "Sensor", "read_number", "read_text"]


class Energy(NamedTuple):
    """Energy over an interval.

    Attributes:
        joules: What was measured.
        uncertainty_j: Bound on what sampling and the sensor's updates hide. (How true the sensor
            itself is, it cannot tell.)
    """

    joules: float
    uncertainty_j: float


@runtime_checkable
class PowerSensor(Protocol):
    """Gives the power as it is now.

    Attributes:
        name: The sensor and its rail, for people.
        where: Path or device.
        covers: What it sees: ``board``, ``CPU``, ``GPU``.
        period_s: How often it is worth reading.
    """

    name: str
    where: str
    covers: str
    period_s: float

    def watts(self) -> float:
        """Read it. Raises SensorError."""

    def close(self) -> None:
        """Let go of it."""


@runtime_checkable
class EnergyCounter(Protocol):
    """Counts the energy by itself.

    Attributes:
        name: As above; so are ``where``, ``covers`` and ``period_s``.
        update_s: How often the counter moves.
        quick: Whether reading it takes microseconds, so that an inference may do so.
    """

    name: str
    where: str
    covers: str
    period_s: float
    update_s: float
    quick: bool

    def joules(self) -> float:
        """Return the joules since it was opened; it never falls. Raises SensorError."""

    def close(self) -> None:
        """Let go of it."""


Sensor = Union[PowerSensor, EnergyCounter]


def read_text(path: Path) -> str:
    """Read a file of sysfs.

    Raises:
        SensorError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError as exc:
        raise SensorError(f"{path}: sensor cannot be read: {exc.strerror}") from exc


def read_number(path: Path) -> float:
    """Read a file of sysfs that holds one number.

    Raises:
        SensorError: It cannot be read, or holds something else.
    """
    text = read_text(path)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SensorError(f"{path}: expected a number, given {text[:40]!r}")
    return value
