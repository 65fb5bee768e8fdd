from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.segment_times import (
    LAUNCH_S,
    SHARES,
    SegmentTimes,
    at_shares,
    estimated_times,
    launched_s,
    time_at,
)
from engines.bundle import Bundle

POINTS = (2.0, 3.0, 5.0, 9.0, 17.0)  # 1 + 16 * share
SECONDS = st.floats(0, 100)


@pytest.mark.parametrize(
    ("share", "seconds"),
    [(1.0, 17.0), (0.5, 9.0), (0.75, 13.0), (0.375, 7.0), (1 / 16, 2.0), (1 / 32, 1.5), (0, 1.0),
     (1.25, 21.0)],
)  # fmt: skip
def test_between_the_points_and_beyond_them_lines_go_on(share: float, seconds: float) -> None:
    assert time_at(POINTS, share) == pytest.approx(seconds)


def test_a_line_through_noise_makes_no_small_stripe_free_or_dear() -> None:
    steep = (1.0, 9.0, 9.0, 9.0, 9.0)  # its line is below 0 at share 0
    assert time_at(steep, 1 / 32) == pytest.approx(0.5)
    falling = (2.0, 1.0, 3.0, 4.0, 3.0)
    assert time_at(falling, 1 / 64) == 2.0
    assert time_at(falling, 2.0) == 3.0


def test_measured_shares_need_not_be_the_tables_own() -> None:
    line = {0.1: 2.6, 0.2: 4.2, 0.45: 8.2, 0.9: 15.4}  # 1 + 16 * share
    assert at_shares(line) == pytest.approx(POINTS)
    assert at_shares(dict(zip(SHARES, POINTS))) == POINTS
    assert at_shares({0.5: 8.0}) == (1.0, 2.0, 4.0, 8.0, 16.0)


@given(st.lists(SECONDS, min_size=5, max_size=5), st.floats(0, 3))
def test_times_stay_between_the_measured_ones(points: list[float], share: float) -> None:
    seconds = time_at(points, share)
    assert seconds >= 0
    if share <= 1:
        assert seconds <= max(points) * (1 + 1e-9)
    if SHARES[0] <= share <= 1:
        assert seconds >= min(points) * (1 - 1e-9)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 50))
def test_without_measurement_launches_are_charged(whole: float, share: float, n: int) -> None:
    seconds = launched_s(whole, share, launches=n)
    assert share * whole - 1e-12 <= seconds <= whole + 1e-12
    assert seconds >= min(whole, n * LAUNCH_S) - 1e-12
    assert launched_s(whole, 1.0, launches=n) == pytest.approx(whole)


def test_a_stripe_is_read_off_or_guessed() -> None:
    times = SegmentTimes((17.0, 2.0), ((POINTS), ()), (POINTS, ()))
    assert times.stripe_s(0, 0.5) == 9.0
    assert times.stripe_s(1, 0.5) == pytest.approx(1.0 + LAUNCH_S / 2)
    assert times.rows_s(0, 0.25, whole_s=100.0) == 5.0
    assert times.rows_s(1, 0.25, whole_s=4.0) == pytest.approx(1.0 + 0.75 * LAUNCH_S)
    assert SegmentTimes((2.0,)).stripe_s(0, 0.5) == pytest.approx(1.0 + LAUNCH_S / 2)


@pytest.mark.parametrize(
    "fields", [((1.0,), ((), ())), ((1.0,), ((1.0,),)), ((1.0,), (), ((1.0, 2.0),))]
)
def test_wrong_numbers_of_times_are_refused(fields: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SegmentTimes(*fields)  # type: ignore[arg-type]


def test_without_stripes_there_is_nothing_to_estimate(toy: Bundle) -> None:
    times = SegmentTimes((1.0,) * 7)
    assert estimated_times(toy.manifest, times) is times
