from __future__ import annotations

import pytest

from calibration.power_fit import fit_power
from engines.errors import SensorError
from runtime.power import EnergyMeter
from runtime.power.stints import measure_stints
from tests.runtime.power.fakes import Clock, FakePower


class Device:
    """Draws 12 W while it computes and 4 W while it sleeps, on a clock of its own."""

    def __init__(self) -> None:
        self.clock, self.sensor = Clock(), FakePower(4.0)
        self.meter = EnergyMeter(self.sensor, clock=self.clock, thread=False)

    def _draw(self, watts: float, for_s: float) -> None:
        self.sensor.now_w = watts
        for _ in range(round(for_s / 0.01)):
            self.clock.now_s += 0.01
            self.meter.sample()

    def compute(self) -> None:
        self._draw(12.0, 0.05)

    def sleep(self, for_s: float) -> None:
        self._draw(4.0, for_s)


def test_stints_give_the_power_of_both_states() -> None:
    device = Device()
    samples = measure_stints(device.meter, device.compute, clock=device.clock, sleep=device.sleep)
    assert len(samples) == 12
    assert all(sample.compute_s == 0 or sample.idle_s == 0 for sample in samples)
    fit = fit_power(samples)
    assert fit.power.compute == pytest.approx(12)
    assert fit.power.idle == pytest.approx(4)
    assert fit.residual < 1e-9


def test_a_sensor_that_fails_on_the_way_is_an_error() -> None:
    device = Device()
    device.sensor.trouble = "Remote I/O error"
    with pytest.raises(SensorError, match="Remote I/O error"):
        measure_stints(device.meter, device.compute, clock=device.clock, sleep=device.sleep)
