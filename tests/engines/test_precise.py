from __future__ import annotations

import pytest

from engines import precise
from engines.precise import PreciseClock


class Time:
    """A machine that wakes sleepers so much late."""

    def __init__(self, late_s: float) -> None:
        self.now = 50.0
        self.late_s = late_s
        self.sleeps: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds + self.late_s


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Time:
    machine = Time(100e-6)
    monkeypatch.setattr(precise, "time", machine)
    return machine


def test_it_learns_how_late_it_wakes(machine: Time) -> None:
    clock = PreciseClock()
    assert clock.now_s() == 50.0
    for _ in range(100):
        clock.sleep_until(machine.now + 0.01)
    assert clock.late_s == pytest.approx(100e-6, rel=1e-3)
    deadline_s = machine.now + 0.01
    clock.sleep_until(deadline_s)
    assert machine.now == pytest.approx(deadline_s, abs=1e-6)


def test_a_sleeper_that_others_held_up_teaches_nothing(machine: Time) -> None:
    clock = PreciseClock()
    machine.late_s = 0.02
    clock.sleep_until(machine.now + 0.01)
    assert clock.late_s == PreciseClock().late_s


def test_what_is_past_or_too_near_is_not_waited_for(machine: Time) -> None:
    clock = PreciseClock()
    clock.sleep_until(machine.now - 1)
    clock.sleep_until(machine.now)
    clock.sleep_until(machine.now + clock.late_s / 2)
    assert machine.sleeps == []
