"""Streamed histograms: independent of order, exact against NumPy, of fixed size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.histogram import Histogram

RANDOM = np.random.default_rng(0)


def filled(values, bins=64, channels=1):
    histogram = Histogram(channels, bins)
    for part in values:
        histogram.add(np.asarray(part, np.float64).reshape(channels, -1))
    return histogram


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, allow_nan=False, width=32), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_order_and_partition_do_not_show(parts, random):
    one = filled(parts)
    values = [value for part in parts for value in part]
    random.shuffle(values)
    other = filled([[value] for value in values])
    whole = filled([values])
    for found in (other, whole):
        assert np.array_equal(one.counts, found.counts)
        assert np.array_equal(one.limits, found.limits)
        assert np.array_equal(one.zeros, found.zeros)


def test_bins_are_those_of_numpy():
    values = np.concatenate([RANDOM.normal(size=1000), [0, 0, 4, -4, 7.99]])
    histogram = filled(np.array_split(values, 7))
    assert histogram.limits[0] == 8
    expected, _ = np.histogram(values, np.linspace(-8, 8, 129))
    assert histogram.counts[0].tolist() == expected.tolist()
    assert histogram.zeros[0] == 2
    assert histogram.counts.sum() == values.size


def test_a_limit_doubles_from_the_smallest_to_the_largest():
    histogram = filled([[1e-300], [1e-3], [0], [5e300], [-1]], bins=4)
    assert histogram.limits[0] > 5e300
    assert histogram.counts.sum() == 5
    assert histogram.largest[0] == 5e300
    assert np.isfinite(histogram.least_squares()[0])


def test_channels_have_limits_of_their_own():
    histogram = filled([[[0.5, 0.25], [100.0, 1.0]], [[0.1, 0.1], [2, 2]]], channels=2)
    assert histogram.limits.tolist() == [1, 128]
    assert histogram.counts.sum(axis=1).tolist() == [4, 4]


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_quantiles_are_within_a_bin_of_numpys(share):
    values = RANDOM.gamma(2.0, size=20_000)
    histogram = filled(np.array_split(values, 9), bins=512)
    width = histogram.widths[0]
    assert histogram.quantile(share)[0] == pytest.approx(np.quantile(values, share), abs=width)
    signed = filled([values - 3], bins=512)
    assert signed.magnitude_quantile(share)[0] == pytest.approx(
        np.quantile(np.abs(values - 3), share), abs=signed.widths[0]
    )
    assert signed.magnitude_quantile(1.0)[0] == np.abs(values - 3).max()


def squared_error(values, threshold):
    step = threshold / 127
    return np.sum((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2)


@pytest.mark.parametrize("kind", ["normal", "laplace", "outlier", "relu", "uniform"])
def test_least_squares_is_nearly_the_best_threshold(kind):
    values = {
        "normal": RANDOM.normal(size=30_000),
        "laplace": RANDOM.laplace(size=30_000),
        "outlier": np.concatenate([RANDOM.normal(size=30_000), [50.0]]),
        "relu": np.maximum(RANDOM.normal(size=30_000), 0),
        "uniform": RANDOM.uniform(-1, 1, 30_000),
    }[kind]
    found = filled(np.array_split(values, 5), bins=2048).least_squares()[0]
    tried = np.linspace(0.02, 1, 400) * np.abs(values).max()
    best = min(squared_error(values, threshold) for threshold in tried)
    assert squared_error(values, found) <= 1.05 * best
    assert found <= np.abs(values).max()


def test_nothing_but_zeros():
    histogram = filled([[0, 0]])
    assert histogram.limits[0] == histogram.least_squares()[0] == histogram.quantile(0.9)[0] == 0


def test_memory_does_not_grow():
    histogram = Histogram(3, 16)
    size = histogram.counts.nbytes
    for _ in range(20):
        histogram.add(RANDOM.normal(size=(3, 100)) * 10)
    assert histogram.counts.nbytes == size == 3 * 32 * 8
