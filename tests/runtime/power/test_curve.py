from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.power.curve import CounterCurve, PowerCurve


def _power(*points: tuple[float, float]) -> PowerCurve:
    curve = PowerCurve()
    for at_s, watts in points:
        curve.add(at_s, watts)
    return curve


def _counter(*points: tuple[float, float], update_s: float = 0.001) -> CounterCurve:
    curve = CounterCurve(update_s)
    for at_s, joules in points:
        curve.add(at_s, joules)
    return curve


class TestPower:
    @pytest.mark.parametrize(
        ("start_s", "stop_s", "joules", "bound"),
        [
            (0, 3, 10 + 15 + 20, 0 + 5 + 0),  # whole gaps: half of the change
            (1, 2, 15, 5),
            (1.0, 1.5, (10 + 15) / 2 * 0.5, 10 * 0.5),  # part of a gap: all of it
            (0.25, 0.75, 5, 0),
            (2.5, 4, 10 + 20, 10 * 1),  # held after the last, off by the range
            (3.5, 4, 10, 5),
            (-1, 0.5, 10 + 5, 10),
            (5, 5, 0, 0),
        ],
    )
    def test_by_hand(self, start_s: float, stop_s: float, joules: float, bound: float) -> None:
        curve = _power((0, 10), (1, 10), (2, 20), (3, 20))
        energy = curve.between(start_s, stop_s)
        assert energy is not None
        assert energy.joules == pytest.approx(joules)
        assert energy.uncertainty_j == pytest.approx(bound)

    def test_nothing_is_known_before_the_first_sample(self) -> None:
        assert PowerCurve().between(0, 1) is None
        assert PowerCurve().last_s is None

    def test_a_sample_that_is_not_newer_is_left_out(self) -> None:
        curve = _power((1, 10), (1, 90), (0.5, 90), (2, 10))
        energy = curve.between(1, 2)
        assert energy is not None
        assert energy.joules == 10

    def test_old_power_is_not_the_range_of_late(self) -> None:
        curve = _power((0, 500), (10, 10), (11, 10), (13, 10))
        energy = curve.between(13, 14)
        assert energy is not None
        assert energy.uncertainty_j == 0

    def test_what_is_forgotten_is_needed_no_more(self) -> None:
        curve, short = PowerCurve(), PowerCurve()
        for number in range(2000):
            for each in (curve, short):
                each.add(number / 10, number % 7)
        short.forget(150.0)
        assert short.between(150.0, 201.0) == curve.between(150.0, 201.0)
        assert len(short._times) < 600

    @given(
        st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 100)), min_size=2, max_size=12),
        st.floats(0, 1), st.floats(0, 1),
    )  # fmt: skip
    def test_the_bound_holds_for_steps_anywhere_in_the_gaps(
        self, steps: list[tuple[float, float]], left: float, right: float
    ) -> None:
        """Power that jumps at either end of a gap is the worst that only rises or only falls."""
        times = list(itertools.accumulate(gap for gap, _ in steps))
        watts = [w for _, w in steps]
        curve = _power(*zip(times, watts, strict=True))
        wide = times[-1] - times[0]
        start_s, stop_s = sorted((times[0] + left * wide, times[0] + right * wide))
        energy = curve.between(start_s, stop_s)
        assert energy is not None
        for early in (True, False):
            true_j = 0.0
            for i in range(len(times) - 1):
                inside = max(min(times[i + 1], stop_s) - max(times[i], start_s), 0.0)
                true_j += watts[i + 1 if early else i] * inside
            assert abs(energy.joules - true_j) <= energy.uncertainty_j + 1e-6


class TestCounter:
    def test_readings_at_both_ends_are_subtracted(self) -> None:
        energy = _counter((0, 0), (1, 20), (1.5, 40), (3, 70)).between(1, 1.5)
        assert energy is not None
        assert energy.joules == pytest.approx(20)
        assert energy.uncertainty_j == pytest.approx(2 * 0.001 * 40)

    def test_between_readings_and_after_them(self) -> None:
        curve = _counter((0, 0), (1, 20), (2, 40))
        for start_s, stop_s in ((0.5, 1.5), (1.5, 2.5), (2, 3), (-1, 0)):
            energy = curve.between(start_s, stop_s)
            assert energy is not None
            assert energy.joules == pytest.approx(20)

    def test_a_reading_that_has_not_moved_yet_is_no_pause(self) -> None:
        """The counter moves every 100 ms and is read every 20."""
        curve = CounterCurve(0.1)
        for step in range(101):
            curve.add(step * 0.02, (step // 5) * 5.0)
        energy = curve.between(1.01, 1.03)
        assert energy is not None
        assert energy.joules == pytest.approx(1.0)
        assert energy.uncertainty_j >= 1.0

    def test_a_counter_that_stands_still_for_long_draws_nothing(self) -> None:
        curve = _counter((0, 0), (1, 20), (2, 20), (3, 20))
        energy = curve.between(2, 3)
        assert energy is not None
        assert energy.joules == 0

    def test_one_reading_says_nothing(self) -> None:
        assert _counter((0, 0)).between(0, 1) is None
        assert _counter((0, 0), (0, 5)).between(0, 1) is None

    def test_energy_never_falls(self) -> None:
        energy = _counter((0, 5), (1, 3), (2, 6), (3, 7)).between(0, 2)
        assert energy is not None
        assert energy.joules >= 0
        assert math.isfinite(energy.uncertainty_j)
