"""Measures the power of this device: stints of computing and of doing nothing, in turns."""

from __future__ import annotations

import time
from typing import Callable, List

from calibration.power_fit import PowerSample
from engines.errors import SensorError
from runtime.power.meter import EnergyMeter

__all__ = ["measure_stints"]

_STINTS = 6
_STINT_S = 0.5
"""Many updates of any sensor."""

_SETTLE_S = 0.2
"""What passes before a stint counts, so that the sensor has seen the last of the one before."""


def measure_stints(
    meter: EnergyMeter,
    compute: Callable[[], object],
    *,
    stints: int = _STINTS,
    stint_s: float = _STINT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> List[PowerSample]:
    """Measure ``stints`` stints of computing and as many of idling, in turns.

    Args:
        meter: Measures.
        compute: Computes for a while; called again and again.
        stints: Stints of each kind.
        stint_s: How long each is, at the least.
        clock: Seconds that only grow.
        sleep: Does nothing for as long.

    Raises:
        SensorError: The sensor failed.
    """

    def stint(for_s: float, *, computes: bool) -> float:
        begin_s = clock()
        if computes:
            while clock() - begin_s < for_s:
                compute()
        else:
            sleep(for_s)
        return clock() - begin_s

    samples: List[PowerSample] = []
    for number in range(2 * stints):
        computes = number % 2 == 0
        with meter.measure(begin=False) as measured:
            stint(_SETTLE_S, computes=computes)
            measured.begin()
            took_s = stint(stint_s, computes=computes)
        if measured.energy is None:
            raise SensorError(f"power sensor: {meter.trouble or 'it does not answer'}")
        compute_s, idle_s = (took_s, 0.0) if computes else (0.0, took_s)
        samples.append(PowerSample(compute_s, 0.0, idle_s, measured.energy.joules))
    return samples
