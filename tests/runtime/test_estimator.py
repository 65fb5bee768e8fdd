from __future__ import annotations

import pytest

from runtime.estimator import MIN_SAMPLE_BYTES, LinkEstimator

MB = 1_000_000


def test_nothing_is_known_at_first() -> None:
    estimate = LinkEstimator().estimate
    assert (estimate.goodput_bps, estimate.rtt_s, estimate.samples) == (None, 0.0, 0)


def test_the_first_transfer_is_the_estimate() -> None:
    estimator = LinkEstimator()
    assert estimator.transfer(MB, 1.0) == 8e6
    assert estimator.estimate.goodput_bps == 8e6


def test_the_round_trip_is_taken_off() -> None:
    estimator = LinkEstimator()
    estimator.round_trip(0.2)
    assert estimator.transfer(MB, 1.0) == pytest.approx(8e6 / 0.8)


def test_but_not_more_than_nine_tenths_of_the_time() -> None:
    estimator = LinkEstimator()
    estimator.round_trip(5.0)
    assert estimator.transfer(MB, 1.0) == pytest.approx(8e7)


def test_it_falls_fast_and_rises_slowly() -> None:
    falling, rising = LinkEstimator(), LinkEstimator()
    for _ in range(20):
        falling.transfer(MB, 0.1)
        rising.transfer(MB, 1.0)
    falling.transfer(MB, 1.0)
    rising.transfer(MB, 0.1)
    # From 80 to 8 and from 8 to 80 Mbps: quick mean down by 0.6, slow mean up by 0.2.
    assert falling.estimate.goodput_bps == pytest.approx(80e6 - 0.6 * 72e6)
    assert rising.estimate.goodput_bps == pytest.approx(8e6 + 0.2 * 72e6)


def test_it_reaches_a_new_level_from_both_sides() -> None:
    estimator = LinkEstimator()
    for level in (1.0, 0.01, 3.0):
        for _ in range(60):
            estimator.transfer(MB, level)
        assert estimator.estimate.goodput_bps == pytest.approx(8 * MB / level, rel=0.01)


def test_tiny_transfers_are_not_counted() -> None:
    estimator = LinkEstimator()
    assert estimator.transfer(MIN_SAMPLE_BYTES - 1, 10.0) is None
    assert estimator.estimate.samples == 0
    assert estimator.transfer(MIN_SAMPLE_BYTES, 1.0) is not None
    assert estimator.estimate.samples == 1


def test_the_round_trip_falls_at_once_and_rises_by_a_tenth() -> None:
    estimator = LinkEstimator()
    for seconds, expected in [(0.1, 0.1), (0.02, 0.02), (0.12, 0.03), (0.01, 0.01)]:
        estimator.round_trip(seconds)
        assert estimator.estimate.rtt_s == pytest.approx(expected)


def test_a_transfer_in_no_time_is_fast_and_finite() -> None:
    estimator = LinkEstimator()
    goodput = estimator.transfer(MB, 0.0)
    assert goodput is not None
    assert goodput < float("inf")
