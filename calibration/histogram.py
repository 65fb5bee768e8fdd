"""Histograms of a stream: fixed memory, and the same result in whatever order values arrive.

1. A histogram has ``bins`` bins on either side of 0, over (-limit, limit). ``limit`` is the
   smallest power of two above every |value| so far, for each channel by itself.
2. A larger value doubles the limit, as often as it takes; bin j then becomes bin floor(j / 2).
   Widths are powers of two, so that this is exact: the counts are those that the whole data
   would have given at once. Order and partition of the data do not show.
3. Bin j holds j * width <= value < (j + 1) * width. Exact zeros are counted apart as well:
   quantising them costs nothing.

Invariant: every finite value is in exactly one bin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.tensors import Array

__all__ = ["Histogram"]

Floats = NDArray[np.float64]


class Histogram:
    """Counts of the values of one or more channels.

    Args:
        channels: How many.
        bins: Bins on either side of 0.
    """

    def __init__(self, channels: int = 1, bins: int = 2048) -> None:
        self.bins = bins
        self.counts: NDArray[np.int64] = np.zeros((channels, 2 * bins), np.int64)
        self.zeros: NDArray[np.int64] = np.zeros(channels, np.int64)
        self.limits: Floats = np.zeros(channels)
        self.largest: Floats = np.zeros(channels)

    def add(self, values: Array) -> None:
        """Count finite values, ``[channels, n]`` of any floating-point type."""
        channels = self.limits.size
        assert values.ndim == 2, values.shape
        assert values.shape[0] == channels, values.shape
        if not values.size:
            return
        values = values.astype(np.float64, copy=False)
        top = np.max(np.abs(values), axis=1)
        self.largest = np.maximum(self.largest, top)
        self._widen(top)
        self.zeros += values.shape[1] - np.count_nonzero(values, axis=1)
        # A channel of zeros has no limit yet: any will do, since they all are in bin 0.
        per_bin = self.bins / np.where(self.limits > 0, self.limits, 1.0)
        index = np.floor(values * per_bin[:, None]).astype(np.int64) + self.bins
        np.clip(index, 0, 2 * self.bins - 1, out=index)  # subnormal limits round
        index += np.arange(channels)[:, None] * (2 * self.bins)
        found = np.bincount(index.reshape(-1), minlength=self.counts.size)
        self.counts += found.reshape(self.counts.shape)

    def magnitudes(self) -> NDArray[np.int64]:
        """Return the counts of |value|, ``[channels, bins]``."""
        return self.counts[:, self.bins :] + self.counts[:, : self.bins][:, ::-1]

    @property
    def widths(self) -> Floats:
        """Width of the bins, by channel; 0 where nothing but zeros was seen."""
        return self.limits / self.bins

    def quantile(self, share: float) -> Floats:
        """Return the value below which ``share`` of all values lie, by channel.

        Within a bin it is read off in a straight line.
        """
        edges = np.arange(-self.bins, self.bins + 1)
        return _quantile(self.counts, edges, share) * self.widths

    def magnitude_quantile(self, share: float) -> Floats:
        """Return the same of |value|, at most the largest of them."""
        found = _quantile(self.magnitudes(), np.arange(self.bins + 1), share) * self.widths
        return np.minimum(found, self.largest)

    def least_squares(self, levels: int = 127) -> Floats:
        """Return the threshold at which symmetric quantisation has the least squared error.

        Values within it are rounded to multiples of threshold / levels, with the error of a
        uniform distribution, step^2 / 12; exact zeros have none. Values beyond it are clipped.
        Candidates are the bins' edges below the largest |value|, and that itself.
        """
        counts = self.magnitudes().astype(np.float64)
        middle = (np.arange(self.bins) + 0.5)[None, :]
        ahead = [np.zeros((counts.shape[0], 1))] * 3
        sums = [
            np.concatenate([np.cumsum(part[:, ::-1], axis=1)[:, ::-1], zero], axis=1)
            for part, zero in zip((counts, counts * middle, counts * middle**2), ahead)
        ]
        edges = np.arange(self.bins + 1)[None, :].astype(np.float64)
        within = counts.sum(axis=1, keepdims=True) - sums[0] - self.zeros[:, None]
        widths = np.where(self.widths > 0, self.widths, 1.0)[:, None]
        top = self.largest[:, None] / widths
        edges = np.minimum(edges, top)  # beyond the largest: the largest
        errors = sums[2] - 2 * edges * sums[1] + edges**2 * sums[0]
        errors += np.maximum(within, 0) * (edges / levels) ** 2 / 12
        # At the largest value nothing is clipped, though its bin goes on.
        full = edges >= top
        rounding = (counts.sum(axis=1) - self.zeros)[:, None] * (edges / levels) ** 2 / 12
        errors = np.where(full, rounding, errors)
        errors[:, 0] = np.inf
        best = np.argmin(errors, axis=1)
        found: Floats = edges[np.arange(best.size), best] * widths[:, 0]
        return np.where(self.largest > 0, found, 0.0)

    def _widen(self, top: Floats) -> None:
        """Double limits until every |value| of ``top`` is below its channel's."""
        _, exponents = np.frexp(top)
        needed = np.where(top > 0, np.ldexp(1.0, exponents), 0.0)
        for channel in np.flatnonzero(needed > self.limits):
            before = self.limits[channel]
            self.limits[channel] = needed[channel]
            if before:
                doublings = int(np.frexp(needed[channel] / before)[1]) - 1
                self._fold(int(channel), doublings)

    def _fold(self, channel: int, doublings: int) -> None:
        old = self.counts[channel]
        place = (np.arange(-self.bins, self.bins) >> min(doublings, 62)) + self.bins
        new = np.zeros_like(old)
        np.add.at(new, place, old)
        self.counts[channel] = new


def _quantile(counts: NDArray[np.int64], edges: NDArray[np.int64], share: float) -> Floats:
    """Return quantiles in units of bins, by row of ``counts``."""
    below = np.cumsum(counts, axis=1)
    wanted = share * below[:, -1]
    found = np.zeros(counts.shape[0])
    for row in range(counts.shape[0]):
        if not below[row, -1]:
            continue
        place = int(np.searchsorted(below[row], wanted[row], side="left"))
        place = min(place, counts.shape[1] - 1)
        inside = counts[row, place]
        before = below[row, place] - inside
        part = (wanted[row] - before) / inside if inside else 0.0
        found[row] = edges[place] + min(max(part, 0.0), 1.0)
    return found
