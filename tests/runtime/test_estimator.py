from __future__ import annotations

import math

import pytest

from runtime.busy import MIN_SAMPLE_BYTES, Sample
from runtime.estimator import LinkEstimate, LinkEstimator, LinkState
from runtime.evidence import (
    Connected,
    Evidence,
    Exchange,
    Lost,
    QueueTime,
    Reading,
    RoundTrip,
    Transfer,
    decode_evidence,
    encode_evidence,
)
from runtime.goodput import QUANTILES, Level

MB = 1_000_000
MBPS = 1e6


def goodput(estimator: LinkEstimator) -> float:
    found = estimator.estimate.goodput_bps
    assert found is not None
    return found


def steady(bps: float, *, begin_s: float = 0.0, seconds: float = 1.0) -> list[Reading]:
    """One long upload, read every 4 ms."""
    count = int(seconds / 0.004)
    return [
        Reading(begin_s + i * 0.004, int(i * 0.004 * bps / 8), 0, 10 * MB) for i in range(count)
    ]


def take(estimator: LinkEstimator, *evidence: Evidence) -> None:
    for one in evidence:
        assert estimator.take(one)


class TestTransfers:
    def test_nothing_is_known_at_first(self) -> None:
        estimate = LinkEstimator().estimate
        assert (estimate.goodput_bps, estimate.rtt_s, estimate.samples) == (None, 0.0, 0)
        assert estimate.quantile(0.5) is None
        assert estimate.age_s is None
        assert estimate.state is LinkState.DOWN

    def test_the_first_transfer_is_the_estimate(self) -> None:
        estimator = LinkEstimator()
        take(estimator, Transfer(1.0, MB, 1.0))
        assert goodput(estimator) == pytest.approx(8 * MBPS)

    def test_the_round_trip_is_taken_off(self) -> None:
        estimator = LinkEstimator()
        take(estimator, RoundTrip(0.0, 0.2), Transfer(1.0, MB, 1.0))
        assert goodput(estimator) == pytest.approx(8 * MBPS / 0.8)

    def test_what_is_mostly_latency_is_a_lower_bound(self) -> None:
        estimator = LinkEstimator()
        take(estimator, RoundTrip(0.0, 0.6), Transfer(1.0, MB, 1.0))
        assert goodput(estimator) == pytest.approx(8 * MBPS)
        assert estimator.estimate.age_s is None, "a bound leaves it as old as it was"
        take(estimator, Transfer(3.0, MB // 2, 1.0))
        assert goodput(estimator) == pytest.approx(8 * MBPS), "a lower one says nothing"
        take(estimator, Transfer(5.0, 2 * MB, 1.0))
        assert goodput(estimator) > 8 * MBPS

    def test_tiny_transfers_do_not_lower_it(self) -> None:
        estimator = LinkEstimator()
        take(estimator, Transfer(1.0, MB, 0.1))
        for i in range(100):
            take(estimator, Transfer(2.0 + i, MIN_SAMPLE_BYTES - 1, 0.5))
        assert goodput(estimator) == pytest.approx(80 * MBPS)

    def test_but_a_small_one_that_took_many_round_trips_does(self) -> None:
        estimator = LinkEstimator()
        take(estimator, RoundTrip(0.0, 0.01), Transfer(1.0, MB, 0.11), Transfer(9.0, 8_000, 0.65))
        assert goodput(estimator) < MBPS

    def test_a_transfer_in_no_time_is_fast_and_finite(self) -> None:
        estimator = LinkEstimator()
        take(estimator, Transfer(1.0, MB, 0.0))
        assert 8 * MBPS < goodput(estimator) < math.inf

    def test_a_transfer_that_readings_have_told_of_is_not_counted_again(self) -> None:
        estimator = LinkEstimator()
        take(estimator, *steady(80 * MBPS))
        before = estimator.estimate.samples
        take(estimator, Transfer(1.0, 10 * MB, 4.0))
        assert estimator.estimate.samples == before
        assert goodput(estimator) == pytest.approx(80 * MBPS, rel=0.01)

    def test_the_round_trip_falls_at_once_and_rises_by_a_tenth(self) -> None:
        estimator = LinkEstimator()
        for seconds, expected in [(0.1, 0.1), (0.02, 0.02), (0.12, 0.03), (0.01, 0.01)]:
            take(estimator, RoundTrip(1.0, seconds))
            assert estimator.estimate.rtt_s == pytest.approx(expected)


class TestSteps:
    @staticmethod
    def lag_s(before_mbps: float, after_mbps: float) -> float:
        estimator = LinkEstimator()
        take(estimator, *steady(before_mbps * MBPS, seconds=2.0))
        last = steady(before_mbps * MBPS, seconds=2.0)[-1]
        for i in range(1, 1000):
            acked = last.acked_bytes + int(i * 0.004 * after_mbps * MBPS / 8)
            take(estimator, Reading(last.at_s + i * 0.004, acked, 0, 10 * MB))
            if abs(goodput(estimator) / (after_mbps * MBPS) - 1) <= 0.2:
                return i * 0.004
        return math.inf

    def test_it_falls_fast_and_rises_slowly(self) -> None:
        down_s, up_s = self.lag_s(80, 16), self.lag_s(16, 80)
        assert down_s <= 0.15
        assert down_s * 2 < up_s <= 0.5

    def test_it_follows_a_fall_to_next_to_nothing(self) -> None:
        assert self.lag_s(80, 1) <= 0.5

    def test_it_stays_at_a_new_level(self) -> None:
        estimator = LinkEstimator()
        for number, level in enumerate((8.0, 80.0, 3.0)):
            take(estimator, Connected(10.0 * number))
            take(estimator, *steady(level * MBPS, begin_s=10.0 * number, seconds=3.0))
            assert goodput(estimator) == pytest.approx(level * MBPS, rel=0.05)


class TestUncertainty:
    def test_a_steady_link_has_a_narrow_band(self) -> None:
        estimator = LinkEstimator()
        take(estimator, *steady(80 * MBPS, seconds=5.0))
        low, high = (estimator.estimate.quantile(part) or 0.0 for part in (0.05, 0.95))
        assert 70 * MBPS < low < 80 * MBPS < high < 90 * MBPS

    def test_a_fickle_link_has_a_wide_one(self) -> None:
        level = Level()
        for i in range(200):
            level.take(Sample(i * 0.1, (80 if i % 2 else 10) * MBPS, 0.05))
        low, *_, high = level.quantiles_bps(20.0)
        assert low < 12 * MBPS
        assert high > 60 * MBPS

    def test_a_link_that_is_hardly_known_has_a_wide_one(self) -> None:
        estimator = LinkEstimator()
        take(estimator, Transfer(1.0, MB, 0.1))
        low, *_, high = estimator.estimate.quantiles_bps
        assert high / low > 2

    def test_it_widens_with_age_and_the_middle_stays(self) -> None:
        estimator = LinkEstimator()
        take(estimator, *steady(80 * MBPS, seconds=5.0))
        found = [estimator.at(now_s) for now_s in (5.0, 5.5, 7.0, 100.0)]
        ages = [estimate.age_s for estimate in found]
        assert ages == [pytest.approx(age, abs=0.05) for age in (0.0, 0.5, 2.0, 95.0)]
        widths = [e.quantiles_bps[-1] / e.quantiles_bps[0] for e in found]
        assert widths == sorted(widths)
        assert widths[0] < widths[1] < widths[2]
        middles = [estimate.quantile(0.5) for estimate in found]
        assert middles == [pytest.approx(middles[0])] * 4

    def test_a_bound_leaves_open_what_is_above_it(self) -> None:
        bound, sample = Level(), Level()
        bound.take(Sample(1.0, 80 * MBPS, 0.01, at_least=True))
        sample.take(Sample(1.0, 80 * MBPS, 0.01))
        assert bound.age_s(1.0) is None
        assert bound.quantiles_bps(1.0)[:4] == sample.quantiles_bps(1.0)[:4]
        assert bound.quantiles_bps(1.0)[-1] > 2 * sample.quantiles_bps(1.0)[-1]

    def test_quantiles_in_order_whatever_comes(self) -> None:
        level = Level()
        for i in range(300):
            level.take(
                Sample(i * 0.07, 10 ** (3 + (i * i) % 7), 0.001 + (i % 5) * 0.02, i % 3 == 0)
            )
            found = level.quantiles_bps(i * 0.07 + i % 4)
            assert list(found) == sorted(found)
            assert all(0 < bps < math.inf for bps in found)

    def test_asking_between_and_beyond_the_quantiles(self) -> None:
        estimate = LinkEstimate(50.0, 0.0, 9, (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0))
        assert [estimate.quantile(q) for q in QUANTILES] == pytest.approx(
            [5, 10, 20, 40, 80, 160, 320]
        )
        assert estimate.quantile(0.0) == 5.0
        assert estimate.quantile(1.0) == 320.0
        assert estimate.quantile(0.375) == pytest.approx(math.sqrt(20 * 40))
        for wrong in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match="quantile"):
                estimate.quantile(wrong)

    def test_without_quantiles_it_is_the_goodput(self) -> None:
        assert LinkEstimate(8e6, 0.0, 1).quantile(0.05) == 8e6


class TestQueue:
    def test_it_is_learned_from_answers_and_fades_by_itself(self) -> None:
        estimator = LinkEstimator()
        for i in range(30):
            take(estimator, QueueTime(i * 0.01, 0.4))
        assert estimator.estimate.queue_s == pytest.approx(0.4, rel=0.05)
        told = [estimator.at(0.29 + later).queue_s for later in (0.0, 1.0, 5.0, 60.0)]
        assert told[1] == pytest.approx(told[0] / 2, rel=0.01)
        assert told == sorted(told, reverse=True)
        assert told[-1] < 1e-6

    def test_an_answer_without_waiting_lowers_it(self) -> None:
        estimator = LinkEstimator()
        take(estimator, QueueTime(0.0, 1.0), QueueTime(0.0, 0.0))
        assert estimator.estimate.queue_s == pytest.approx(0.3 * 0.7)


BAD: list[Evidence] = [
    Transfer(1.0, -1, 1.0),
    Transfer(1.0, MB, -1.0),
    Transfer(1.0, MB, math.nan),
    Transfer(math.inf, MB, 1.0),
    RoundTrip(1.0, math.nan),
    RoundTrip(-1.0, 0.1),
    QueueTime(1.0, -0.5),
    QueueTime(1.0, math.inf),
    Reading(math.nan, 0, 0, 0),
    Reading(3.0, -5, 0, 0),
    Reading(3.0, 0, 0, -1),
    Reading(3.0, 0, 0, 0, delivery_bps=math.nan),
    Connected(math.nan),
    Lost(-1.0, "why"),
]


class TestGarbage:
    @pytest.mark.parametrize("evidence", BAD, ids=repr)
    def test_it_is_refused_and_counted(self, evidence: Evidence) -> None:
        kept: list[Evidence] = []
        estimator = LinkEstimator(kept.append)
        take(estimator, Connected(0.0), Transfer(1.0, MB, 0.1))
        before = estimator.at(2.0)
        assert not estimator.take(evidence)
        assert estimator.at(2.0) == before
        assert estimator.refused == 1
        assert len(kept) == 2

    @pytest.mark.parametrize(
        "back", [Reading(0.9, 9, 9, 9), Reading(2.0, 4, 9, 9), Reading(2.0, 9, 4, 9)], ids=repr
    )
    def test_counters_that_go_back_are_refused(self, back: Reading) -> None:
        estimator = LinkEstimator()
        take(estimator, Connected(0.0), Reading(1.0, 5, 5, 9))
        assert not estimator.take(back)
        take(estimator, Reading(2.0, 5, 5, 9))

    def test_a_new_connection_counts_anew(self) -> None:
        estimator = LinkEstimator()
        take(estimator, Connected(0.0), Reading(1.0, 5 * MB, 5, 9), Lost(2.0, "gone"))
        assert (estimator.estimate.state, estimator.estimate.why) == (LinkState.DOWN, "gone")
        take(estimator, Connected(3.0), Reading(4.0, 0, 0, 9))
        assert estimator.estimate.state is LinkState.UP


def test_a_run_can_be_replayed_from_its_record() -> None:
    lines: list[bytes] = []
    first = LinkEstimator(lambda evidence: lines.append(encode_evidence(evidence)))
    take(first, Connected(0.0), RoundTrip(0.01, 0.003), *steady(30 * MBPS), QueueTime(1.0, 0.2))
    take(first, Transfer(1.5, 100_000, 0.05), Lost(2.0, "gone"))
    second = LinkEstimator()
    take(second, *(decode_evidence(line) for line in lines))
    for now_s in (2.0, 3.0, 60.0):
        assert second.at(now_s) == first.at(now_s)


def test_the_state_is_part_of_the_estimate() -> None:
    estimator = LinkEstimator()
    take(estimator, Connected(0.0), *steady(80 * MBPS))
    assert estimator.estimate.state is LinkState.UP
    stuck = steady(80 * MBPS)[-1].acked_bytes
    take(estimator, *(Reading(1.0 + i * 0.004, stuck, 0, 10 * MB) for i in range(300)))
    estimate = estimator.estimate
    assert estimate.state is LinkState.DOWN
    assert "acknowledged" in estimate.why
    assert estimate.goodput_bps is not None
    assert estimate.goodput_bps < MBPS


def test_a_new_connection_has_a_round_trip_of_its_own() -> None:
    estimator = LinkEstimator()
    estimator.take(Connected(0.0))
    estimator.take(RoundTrip(0.1, 0.002))
    estimator.take(RoundTrip(0.2, 0.102))
    assert estimator.estimate.rtt_s == pytest.approx(0.012)
    estimator.take(Connected(1.0))
    estimator.take(RoundTrip(1.1, 0.4))
    assert estimator.estimate.rtt_s == 0.4


def test_a_standstill_does_not_outlive_itself() -> None:
    level = Level()
    for number in range(20):
        level.take(Sample(number * 0.1, 90e6, 0.02, False))
    for number in range(5):
        level.take(Sample(2.0 + number * 0.1, 80e3, 0.1, False))
    assert level.goodput_bps is not None
    assert level.goodput_bps < 1e6, "while it lasts"
    level.take(Sample(2.6, 60e6, 0.002, False))
    assert level.goodput_bps == pytest.approx(60e6)


def test_a_new_connection_may_be_better_at_once_but_a_rise_may_not() -> None:
    level = Level()
    for number in range(20):
        level.take(Sample(number * 0.1, 5e6, 0.02, False))
    level.take(Sample(2.01, 80e6, 0.01, False))
    assert level.goodput_bps is not None
    assert level.goodput_bps < 40e6
    level.renew()
    level.take(Sample(2.03, 80e6, 0.01, False))
    assert level.goodput_bps == pytest.approx(80e6)


def test_what_a_request_takes_beside_its_transmission_is_learned() -> None:
    estimator = LinkEstimator()
    estimator.take(Connected(0.0))
    estimator.take(RoundTrip(0.1, 0.001))
    estimator.take(Transfer(0.2, 1_000_000, 0.101))
    for number in range(100):  # 100 kB at 80 Mbps are 10 ms, then 1 ms of round trip and 3 more
        estimator.take(Exchange(1.0 + number, 100_000, 0.014))
    assert estimator.estimate.rtt_s == pytest.approx(0.004, rel=0.05)
    estimator.take(Exchange(200.0, 10_000_000, 9.0))
    assert estimator.estimate.rtt_s == pytest.approx(0.004, rel=0.05), "too long to tell"
