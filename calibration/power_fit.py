"""Fits the power by state to energies that a sensor measured.

An inference takes ``compute x compute_s + communicate x communicate_s + idle x idle_s``. Over many
of them, with different shares of the three times, the three powers are the least-squares solution
with none below 0. Energies that do not tell the powers apart are refused: from inferences of one
cut, whose times always stand in the same proportion, any split would do.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.energy import StatePower
from calibration.records import read_record, write_record
from engines.bundle import Bundle
from engines.errors import SplitError
from engines.fingerprint import Fingerprint

__all__ = [
    "PowerFit",
    "PowerSample",
    "fit_power",
    "load_power",
    "power_path",
    "read_power_samples",
    "store_power",
]

logger = logging.getLogger(__name__)

MAX_CONDITION = 20.0
"""Of the times, each scaled to norm 1: an error in the energies may grow as much in the powers."""

_SAMPLES_PER_STATE = 3
_COMMUNICATE_OVER_IDLE_W = StatePower().communicate - StatePower().idle
"""What sending takes beside idling where no sample communicates: that of the default robot."""

Matrix = NDArray[np.float64]


class PowerSample(NamedTuple):
    """One inference, or any other interval: times in seconds, and the energy measured."""

    compute_s: float
    communicate_s: float
    idle_s: float
    joules: float


class PowerFit(msgspec.Struct, frozen=True, kw_only=True):
    """Power by state as fitted.

    Attributes:
        power: Watts by state.
        sensor: What measured.
        samples: Intervals that it rests on.
        residual: Root of the sum of squared errors over that of squared energies.
        assumed: States that no sample was in, whose power is assumed.
    """

    power: StatePower
    sensor: str
    samples: int
    residual: float
    assumed: Tuple[str, ...] = ()

    def __str__(self) -> str:
        watts = self.power
        text = (
            f"compute={watts.compute:.2f},comm={watts.communicate:.2f},idle={watts.idle:.2f} W "
            f"({self.sensor}; {self.samples} samples, residual {self.residual * 100:.1f}%"
        )
        return text + "".join(f"; {state} assumed" for state in self.assumed) + ")"


def fit_power(samples: Sequence[PowerSample], *, sensor: str = "") -> PowerFit:
    """Fit the power of each state.

    Where no sample communicates, that is taken as idling and 0.21 W more, and said so.

    Raises:
        SplitError: Too few samples, or they do not tell the states apart.
    """
    table: Matrix = np.array(samples, np.float64).reshape(-1, 4)
    if not np.isfinite(table).all():
        raise SplitError("power fit: expected finite times and energies, given others")
    times, joules = table[:, :3], table[:, 3]
    assumed: Tuple[str, ...] = ()
    if not times[:, 1].any():
        times, assumed = times[:, [0, 2]], ("communicate",)
    needed = _SAMPLES_PER_STATE * times.shape[1]
    if len(table) < needed:
        raise SplitError(
            f"power fit: expected at least {needed} measured inferences, given {len(table)}; "
            "run more"
        )
    condition = _condition(times)
    if condition > MAX_CONDITION:
        raise SplitError(
            "power fit: expected times of computing, communicating and idling that vary by "
            f"themselves (condition at most {MAX_CONDITION:.0f}), given {condition:.3g} in "
            f"{len(table)} inferences; run several cuts, such as --cut local and --cut offload"
        )
    watts = _non_negative(times, joules)
    scale = float(np.linalg.norm(joules))
    residual = float(np.linalg.norm(times @ watts - joules)) / scale if scale > 0 else 0.0
    compute, idle = float(watts[0]), float(watts[-1])
    communicate = idle + _COMMUNICATE_OVER_IDLE_W if assumed else float(watts[1])
    return PowerFit(
        power=StatePower(compute=compute, communicate=communicate, idle=idle),
        sensor=sensor,
        samples=len(table),
        residual=residual,
        assumed=assumed,
    )


def read_power_samples(path: Path) -> List[PowerSample]:
    """Read the measured inferences of ``runtime infer --out``; modelled ones are left out.

    Raises:
        SplitError: It cannot be read, is something else, or nothing in it was measured.
    """
    samples: List[PowerSample] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise SplitError(f"{path}: expected JSON lines of `runtime infer --out`: {exc}") from exc
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record.get("energy_source") != "measured":
                continue
            latency, robot, link = (
                float(record[key]) / 1e3 for key in ("latency_ms", "robot_ms", "link_ms")
            )
            joules = float(record["energy_j"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise SplitError(
                f"{path}:{number}: expected a JSON line of `runtime infer --out`, "
                f"given {line[:40]!r}"
            ) from exc
        samples.append(PowerSample(robot, link, latency - robot - link, joules))
    if not samples:
        raise SplitError(
            f'{path}: expected inferences with "energy_source": "measured", found none; '
            "`runtime doctor` says whether there is a power sensor"
        )
    return samples


def power_path(bundle: Bundle, fingerprint: Fingerprint) -> Path:
    """Return where this device keeps its fitted power."""
    return bundle.device_folder / f"power-{fingerprint.key}.json"


def store_power(bundle: Bundle, fingerprint: Fingerprint, fit: PowerFit) -> Path:
    """Write a fit beside the bundle and return its path.

    Raises:
        SplitError: The device folder cannot be written.
    """
    path = power_path(bundle, fingerprint)
    write_record(path, fit, "fitted power")
    return path


def load_power(bundle: Bundle, fingerprint: Fingerprint) -> Optional[PowerFit]:
    """Return what was fitted on this device, or none. A damaged file is none."""
    path = power_path(bundle, fingerprint)
    if not path.exists():
        return None
    try:
        return read_record(path, PowerFit, "a fitted power")
    except SplitError as exc:
        logger.warning("ignored: %s", exc)
        return None


def _condition(times: Matrix) -> float:
    norms = np.linalg.norm(times, axis=0)
    if not (norms > 0).all():
        return math.inf
    return float(np.linalg.cond(times / norms))


def _non_negative(times: Matrix, joules: Matrix) -> Matrix:
    """Solve least squares with nothing below 0: the best of all sets of states that draw power."""
    states = range(times.shape[1])
    best: Matrix = np.zeros(times.shape[1])
    least = float(joules @ joules)
    for count in range(1, times.shape[1] + 1):
        for chosen in itertools.combinations(states, count):
            found = np.linalg.lstsq(times[:, chosen], joules, rcond=None)[0]
            if (found < 0).any():
                continue
            error = times[:, chosen] @ found - joules
            if float(error @ error) < least:
                least = float(error @ error)
                best = np.zeros(times.shape[1])
                best[list(chosen)] = found
    return best
