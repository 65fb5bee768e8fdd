"""Readings made by hand: acknowledged bytes over busy time, and nothing else."""

from __future__ import annotations

import pytest

from runtime.busy import LONGEST_WINDOW_S, MIN_SAMPLE_BYTES, WINDOW_S, BusyPeriods, Sample
from runtime.evidence import Reading

MBPS = 1e6


def feed(busy: BusyPeriods, *readings: Reading) -> list[Sample]:
    return [sample for reading in readings for sample in busy.take(reading)]


def upload(
    begin_s: float, size: int, bps: float, *, base: int = 0, every_s: float = 0.004
) -> list[Reading]:
    """An upload written at once, read every few milliseconds, to the reading after its end."""
    readings: list[Reading] = []
    at_s, acked = begin_s, 0
    while True:
        readings.append(Reading(at_s, base + acked, 0, size - acked))
        if acked == size:
            return readings
        at_s += every_s
        acked = min(int((at_s - begin_s) * bps / 8 + 0.5), size)


def test_a_long_upload_gives_samples_on_the_way() -> None:
    samples = feed(BusyPeriods(), Reading(0.9, 0, 0, 0), *upload(1.0, 1_000_000, 80 * MBPS))
    assert len(samples) == 4, "of 100 ms: three windows and the rest"
    assert samples[0].at_s < 1.04
    assert all(sample.busy_s >= WINDOW_S for sample in samples[:3])
    for sample in samples:
        assert sample.goodput_bps == pytest.approx(80 * MBPS, rel=0.01)
        assert not sample.at_least


def test_a_fall_within_an_upload_is_seen_within_two_windows() -> None:
    first = upload(1.0, 2_000_000, 80 * MBPS)[:25]
    last = first[-1]
    slow = [
        Reading(last.at_s + i * 0.004, last.acked_bytes + i * 4_000, 0, 2_000_000 - i * 4_000)
        for i in range(1, 15)
    ]
    samples = feed(BusyPeriods(), *first, *slow)
    low = [sample for sample in samples if sample.goodput_bps < 10 * MBPS]
    assert low[0].at_s - last.at_s <= 2 * WINDOW_S + 0.005
    assert low[0].goodput_bps == pytest.approx(8 * MBPS, rel=0.05)


def test_time_without_anything_outstanding_does_not_count() -> None:
    """Ten stripes of 60 kB, 100 ms apart: the program's pace is 4.8 Mbps, the link's 80."""
    busy, samples, base = BusyPeriods(), [], 0
    for number in range(10):
        stripe = upload(number * 0.1, 60_000, 80 * MBPS, base=base, every_s=0.001)
        base += 60_000
        samples += feed(busy, *stripe)
    assert len(samples) >= 5
    for sample in samples:
        assert sample.goodput_bps == pytest.approx(80 * MBPS, rel=0.02)


def test_what_runs_dry_between_two_readings_is_not_taken_for_slow() -> None:
    """Every reading finds bytes outstanding, but each time those of another stripe."""
    readings = [Reading(i * 0.02, i * 20_000, 0, 20_000) for i in range(50)]
    assert all(sample.at_least for sample in feed(BusyPeriods(), *readings))


def test_waiting_for_the_first_receipt_does_not_count() -> None:
    waiting = [Reading(i * 0.004, 0, 0, 400_000) for i in range(10)]
    moving = [Reading(0.04 + i * 0.004, i * 40_000, 0, 400_000 - i * 40_000) for i in range(10)]
    (sample,) = feed(BusyPeriods(), *waiting, *moving)[:1]
    assert sample.goodput_bps == pytest.approx(80 * MBPS)


def test_a_stall_is_goodput_of_next_to_nothing() -> None:
    still = [Reading(1.0 + i * 0.004, 50_000, 0, 400_000) for i in range(100)]
    samples = feed(BusyPeriods(), Reading(0.996, 40_000, 0, 410_000), *still)
    assert len(samples) >= 2
    assert samples[0].busy_s == pytest.approx(LONGEST_WINDOW_S, abs=0.005)
    assert all(0 < sample.goodput_bps < 0.1 * MBPS for sample in samples)


def test_a_peer_that_takes_nothing_says_nothing_of_the_link() -> None:
    still = [Reading(i * 0.004, 50_000, 0, 400_000, blocked=True) for i in range(100)]
    assert feed(BusyPeriods(), *still) == []


def test_the_last_two_segments_wait_for_a_receipt_that_may_be_delayed() -> None:
    readings = upload(0.0, 200_000, 80 * MBPS)
    tail = [Reading(0.02 + i * 0.004, 197_500, 0, 2_500) for i in range(1, 11)]
    end = Reading(0.07, 200_000, 0, 0)
    samples = feed(BusyPeriods(), *readings[:5], *tail, end)
    assert [sample.goodput_bps for sample in samples] == [pytest.approx(80 * MBPS)]


def test_tiny_transfers_give_nothing() -> None:
    busy = BusyPeriods()
    for number in range(100):
        size = MIN_SAMPLE_BYTES - 1
        stripe = upload(float(number), size, 8 * MBPS, base=number * size)
        assert feed(busy, *stripe) == []


def test_a_transfer_between_two_readings_gives_a_lower_bound() -> None:
    samples = feed(
        BusyPeriods(),
        Reading(0.0, 0, 0, 0),
        Reading(1.0, 0, 0, 40_000),
        Reading(1.004, 40_000, 0, 0),
    )
    assert samples == [Sample(1.004, pytest.approx(80 * MBPS), pytest.approx(0.004), True)]


def test_or_the_kernels_measure() -> None:
    samples = feed(
        BusyPeriods(),
        Reading(1.0, 0, 0, 40_000),
        Reading(1.002, 20_000, 0, 20_000),
        Reading(1.003, 25_000, 0, 15_000, delivery_bps=90 * MBPS),
        Reading(1.004, 40_000, 0, 0),
    )
    assert [(sample.goodput_bps, sample.at_least) for sample in samples] == [(90 * MBPS, False)]


def test_up_and_down_share_the_air() -> None:
    """40 Mbps each way at once are 80 Mbps of one link."""
    readings = [
        Reading(i * 0.004, i * 20_000, i * 20_000, 400_000 - i * 20_000, receiving=True)
        for i in range(20)
    ]
    samples = feed(BusyPeriods(), *readings)
    assert samples
    assert all(sample.goodput_bps == pytest.approx(80 * MBPS) for sample in samples)


def test_an_answer_counts_from_its_first_reading_to_the_last_before_its_end() -> None:
    down = [Reading(1.0 + i * 0.004, 0, i * 40_000, 0, receiving=i < 11) for i in range(12)]
    samples = feed(BusyPeriods(), Reading(0.5, 0, 0, 0), *down)
    assert sum(sample.busy_s for sample in samples) == pytest.approx(0.04)
    assert all(sample.goodput_bps == pytest.approx(80 * MBPS) for sample in samples)


def test_after_a_pause_of_the_readings_nothing_is_known_of_it() -> None:
    samples = feed(
        BusyPeriods(),
        *upload(0.0, 1_000_000, 80 * MBPS)[:3],
        Reading(3.0, 90_000, 0, 900_000),
        Reading(3.004, 130_000, 0, 860_000),
    )
    assert samples == []
