from __future__ import annotations

import logging
import threading

import pytest

from runtime.power import EnergyMeter
from runtime.power.meter import Measurement
from tests.runtime.helpers import eventually
from tests.runtime.power.fakes import Clock, FakeCounter, FakePower


def _steady(meter: EnergyMeter, clock: Clock, *, for_s: float, step_s: float = 0.02) -> None:
    """Let time pass, and sample as the thread would."""
    for _ in range(round(for_s / step_s)):
        clock.now_s += step_s
        meter.sample()


def _joules(measured: Measurement) -> float:
    assert measured.energy is not None
    return measured.energy.joules


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_power_times_time(clock: Clock) -> None:
    sensor = FakePower(12.0)
    meter = EnergyMeter(sensor, clock=clock, thread=False)
    assert meter.measures
    with meter.measure() as measured:
        _steady(meter, clock, for_s=0.5)
    assert measured.energy == pytest.approx((6.0, 0.0))
    meter.close()
    meter.close()
    assert sensor.closed == 1


def test_a_counter_is_read_at_both_ends(clock: Clock) -> None:
    meter = EnergyMeter(FakeCounter(clock), clock=clock, thread=False)
    clock.now_s += 0.3
    with meter.measure() as measured:
        clock.now_s += 0.007
    assert _joules(measured) == pytest.approx(0.14)
    assert measured.energy is not None
    assert measured.energy.uncertainty_j == pytest.approx(2 * 0.001 * 20)


def test_an_interval_between_two_samples_says_how_little_is_known(clock: Clock) -> None:
    sensor = FakePower(4.0)
    meter = EnergyMeter(sensor, clock=clock, thread=False)
    _steady(meter, clock, for_s=0.1)
    sensor.now_w = 14.0
    _steady(meter, clock, for_s=0.1)
    sensor.now_w = 4.0
    _steady(meter, clock, for_s=0.02)
    with meter.measure() as measured:  # computes, but no sample falls into it
        clock.now_s += 0.01
    assert measured.energy == pytest.approx((0.04, 10 * 0.01))


def test_frames_in_flight_share_every_moment_and_the_shares_add_up(clock: Clock) -> None:
    meter = EnergyMeter(FakePower(10.0), clock=clock, thread=False)
    first, second = meter.measure().__enter__(), meter.measure(begin=False)
    _steady(meter, clock, for_s=0.2)
    with second:
        _steady(meter, clock, for_s=0.1)  # waits for its turn: not under way yet
        second.begin()
        _steady(meter, clock, for_s=0.2)
        first.__exit__()
        _steady(meter, clock, for_s=0.3)
    # 0.3 s alone, 0.2 s shared by two, 0.3 s alone
    assert _joules(first) == pytest.approx(10 * (0.3 + 0.1))
    assert _joules(second) == pytest.approx(10 * (0.1 + 0.3))


def test_shares_of_many_frames_add_up_to_the_whole(clock: Clock) -> None:
    sensor = FakePower()
    meter = EnergyMeter(sensor, clock=clock, thread=False)
    whole = 0.0
    frames: list[Measurement] = []
    done: list[float] = []
    for step in range(60):
        if step % 4 == 0:
            frames.append(meter.measure().__enter__())
        if step % 4 == 3 and len(frames) > 2:
            frame = frames.pop(0)
            frame.__exit__()
            done.append(_joules(frame))
        before_w, sensor.now_w = sensor.now_w, 5.0 + step % 7
        clock.now_s += 0.02
        meter.sample()
        whole += (before_w + sensor.now_w) / 2 * 0.02
    for frame in frames:
        frame.__exit__()
        done.append(_joules(frame))
    assert sum(done) == pytest.approx(whole)
    assert len(meter._counts) == 1  # nothing grows


def test_a_failing_sensor_is_told_once_and_nothing_is_raised(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sensor = FakePower()
    meter = EnergyMeter(sensor, clock=clock, thread=False)
    with caplog.at_level(logging.WARNING), meter.measure() as measured:
        sensor.trouble = "in1_input: Remote I/O error"
        _steady(meter, clock, for_s=1.0)
    assert measured.energy is None
    assert not meter.measures
    assert [r.getMessage() for r in caplog.records] == [
        "energy is modelled from here on: in1_input: Remote I/O error"
    ]
    assert sensor.reads == 1 + 5  # and it is left alone from then on
    with meter.measure() as again:
        clock.now_s += 1
    assert again.energy is None


def test_a_moment_of_failure_is_bridged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sensor = FakePower(10.0)
    meter = EnergyMeter(sensor, clock=clock, thread=False)
    with caplog.at_level(logging.WARNING), meter.measure() as measured:
        _steady(meter, clock, for_s=0.1)
        sensor.trouble = "busy"
        _steady(meter, clock, for_s=0.08)
        sensor.trouble = ""
        _steady(meter, clock, for_s=0.1)
    assert _joules(measured) == pytest.approx(2.8)
    assert caplog.records == []


def test_a_sensor_that_hangs_measures_nothing(clock: Clock) -> None:
    meter = EnergyMeter(FakePower(), clock=clock, thread=False)
    with meter.measure() as measured:
        clock.now_s += 2.0
    assert measured.energy is None


def test_without_a_sensor_nothing_is_measured_and_no_thread_runs() -> None:
    with EnergyMeter(None) as meter:
        assert not meter.measures
        with meter.measure() as measured:
            pass
        assert measured.energy is None
        assert not any(t.name == "splitrt-energy" for t in threading.enumerate())


def test_an_error_within_the_block_goes_on_and_the_interval_is_closed(clock: Clock) -> None:
    meter = EnergyMeter(FakePower(), clock=clock, thread=False)
    with pytest.raises(ZeroDivisionError), meter.measure():
        _ = 1 / 0
    with meter.measure() as measured:
        _steady(meter, clock, for_s=0.1)
    assert _joules(measured) == pytest.approx(1.0)


def test_the_thread_samples_at_the_stated_rate_and_ends_with_the_meter() -> None:
    sensor = FakePower()
    with EnergyMeter(sensor, rate_hz=500) as meter:
        assert meter._period_s == 0.002
        eventually(lambda: sensor.reads > 5, "samples")
    reads = sensor.reads
    assert sensor.closed == 1
    meter.sample()
    assert sensor.reads == reads


def test_the_first_reading_may_fail(clock: Clock) -> None:
    sensor = FakePower()
    sensor.trouble = "not yet"
    meter = EnergyMeter(sensor, clock=clock, thread=False)
    with meter.measure() as none:
        pass
    assert none.energy is None
    sensor.trouble = ""
    with meter.measure() as measured:
        _steady(meter, clock, for_s=0.1)
    assert _joules(measured) == pytest.approx(1.0)
