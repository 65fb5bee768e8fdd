"""Measures the energy of intervals, beside whatever the robot does.

1. A thread reads the sensor at a steady rate (``rate_hz``; by default as often as the sensor is
   worth it: INA3221, INA238 and NVML 50 Hz, RAPL 20 Hz). A counter that is quick to read is also
   read when an interval begins and ends.
2. Several intervals may be open at a time: frames in flight. The energy of every moment is shared
   evenly over those that are open at it, so that the shares add up to what the board took while
   anything was under way. A frame that only waits for the server counts like one that computes:
   what the board would have taken without it cannot be measured.
3. A sensor that fails a few times in a row, or has not answered for long, is given up with one
   warning. From then on, and without a sensor, intervals have no energy. Nothing here raises.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, List, Optional, Tuple

from engines.errors import SensorError
from runtime.power.curve import CounterCurve, Curve, PowerCurve
from runtime.power.sensor import Energy, EnergyCounter, Sensor

__all__ = ["EnergyMeter", "Measurement"]

logger = logging.getLogger(__name__)

_TRIES = 5
"""Readings that may fail in a row: an I2C bus has its moments."""

_STALE_S = 1.0
"""A sensor that has not answered for as long says nothing of now."""

_JOIN_S = 1.0


class Measurement:
    """One interval. A context manager: it ends with its block.

    Attributes:
        energy: What it took, once it has ended; none where it was not measured.
    """

    def __init__(self, meter: EnergyMeter, *, begin: bool) -> None:
        self._meter = meter
        self._begin = begin
        self.began_s: Optional[float] = None
        self.energy: Optional[Energy] = None

    def __enter__(self) -> Measurement:
        if self._begin:
            self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self.began_s is not None:
            self.energy = self._meter.end(self)

    def begin(self) -> None:
        """Let it begin now; only once."""
        assert self.began_s is None
        self.began_s = self._meter.begin(self)


class EnergyMeter:
    """Measures with a sensor, if there is one. Safe across threads. A context manager.

    Args:
        sensor: What to read; none measures nothing. Closed with the meter.
        rate_hz: Readings a second; by default what the sensor is worth.
        clock: Seconds that only grow.
        thread: Whether a thread reads it; without one, whoever calls ``sample`` does.
    """

    def __init__(
        self,
        sensor: Optional[Sensor],
        *,
        rate_hz: Optional[float] = None,
        clock: Callable[[], float] = time.monotonic,
        thread: bool = True,
    ) -> None:
        self.sensor = sensor
        self.trouble = ""
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open: List[Measurement] = []
        self._counts: List[Tuple[float, int]] = []  # (from when on, intervals that are open)
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._curve: Curve = PowerCurve()
        self._quick = False
        if isinstance(sensor, EnergyCounter):
            self._curve = CounterCurve(sensor.update_s)
            self._quick = sensor.quick
        if sensor is None:
            return
        self.sample()
        self._period_s = sensor.period_s if rate_hz is None else 1 / rate_hz
        if thread:
            self._thread = threading.Thread(target=self._run, name="splitrt-energy", daemon=True)
            self._thread.start()

    def __repr__(self) -> str:
        return f"<EnergyMeter {self.sensor!r} {self.trouble}>"

    def __enter__(self) -> EnergyMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def measures(self) -> bool:
        """Whether intervals get an energy now."""
        return self.sensor is not None and not self.trouble

    def measure(self, *, begin: bool = True) -> Measurement:
        """Measure a block: ``with meter.measure() as m: ...``, then ``m.energy``.

        Args:
            begin: Whether it begins with the block; else with ``m.begin()``, if at all.
        """
        return Measurement(self, begin=begin)

    def sample(self) -> None:
        """Read the sensor once."""
        sensor = self.sensor
        if sensor is None or self.trouble:
            return
        before_s = self._clock()
        try:
            counts = isinstance(sensor, EnergyCounter)
            reading = sensor.joules() if isinstance(sensor, EnergyCounter) else sensor.watts()
        except SensorError as exc:
            self._failed(str(exc))
            return
        after_s = self._clock()
        with self._lock:
            self._failures = 0
            self._curve.add(after_s if counts else (before_s + after_s) / 2, reading)
            if not self._open:
                self._curve.forget(after_s)

    def begin(self, measurement: Measurement) -> float:
        """Open an interval; returns when it began."""
        if self._quick:
            self.sample()
        with self._lock:
            now_s = self._clock()
            self._open.append(measurement)
            self._counts.append((now_s, len(self._open)))
            return now_s

    def end(self, measurement: Measurement) -> Optional[Energy]:
        """Close an interval; returns its share of the energy."""
        if self._quick:
            self.sample()
        with self._lock:
            now_s = self._clock()
            assert measurement.began_s is not None
            energy = self._share(measurement.began_s, now_s) if self._alive(now_s) else None
            self._open.remove(measurement)
            self._counts.append((now_s, len(self._open)))
            oldest = min((m.began_s or now_s for m in self._open), default=now_s)
            while len(self._counts) > 1 and self._counts[1][0] <= oldest:
                del self._counts[0]
            self._curve.forget(oldest)
            return energy

    def close(self) -> None:
        """Read no more and let go of the sensor; safe to call again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)  # a driver that hangs holds up nobody
            if self._thread.is_alive():
                return
            self._thread = None
        sensor, self.sensor = self.sensor, None
        if sensor is not None:
            sensor.close()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self.sample()

    def _alive(self, now_s: float) -> bool:
        last_s = self._curve.last_s
        if not self.measures or last_s is None:
            return False
        return now_s - last_s <= _STALE_S + 2 * self._period_s

    def _share(self, start_s: float, stop_s: float) -> Optional[Energy]:
        """Share every stretch evenly over the intervals that were open in it."""
        joules = bound = 0.0
        bounds = [*(at_s for at_s, _ in self._counts[1:]), stop_s]
        for (from_s, count), until_s in zip(self._counts, bounds):
            begin_s, end_s = max(from_s, start_s), min(until_s, stop_s)
            if end_s <= begin_s or not count:
                continue
            part = self._curve.between(begin_s, end_s)
            if part is None:
                return None
            joules += part.joules / count
            bound += part.uncertainty_j / count
        return Energy(joules, bound)

    def _failed(self, why: str) -> None:
        with self._lock:
            self._failures += 1
            if self._failures < _TRIES or self.trouble:
                return
            self.trouble = why
        logger.warning("energy is modelled from here on: %s", why)
