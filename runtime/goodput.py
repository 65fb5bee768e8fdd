"""The level of goodput and how far off it may be. Pure.

Two exponentially weighted means run side by side, one quick and one slow, both of the logarithm;
the level is the smaller. So it follows a fall at once and a rise with hesitation, since an
inference caught by a fall costs more than one that could have used a rise.

A standstill says nothing of what comes after it, nor does the end of a connection: the samples
that follow are taken as they are where they raise the level.

How far off it may be is learned from how far off it was: each sample is compared with the level of
``_AHEAD_S`` before, and the ratios make the distribution, asymmetric and with whatever tails the
link has. A few ratios of no link in particular stand in until there are enough. The distribution
widens as the newest evidence grows old; after a lower bound, upwards only.

Source:
    The quick and slow pair and its minimum are those of adaptive bitrate players
    (shaka-player, ``ewma_bandwidth_estimator.js``).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Deque, List, Optional, Tuple

from runtime.busy import Sample

__all__ = ["QUANTILES", "Level"]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Probabilities at which the distribution is stated."""

_FAST_S = 0.03
_SLOW_S = 0.12
"""Time constants of the two means, in seconds of the clock."""

_NOISE_S = 0.002
"""A sample over so much busy time counts half: readings come in steps, and so do receipts."""

_AHEAD_S = 0.1
"""How far ahead the distribution looks: about as long as the transfers that it is asked for."""

_RATIOS = 128
_FORGET = 0.98
"""Ratios kept, and the weight of each by that of the next newer one."""

_PRIOR = (-0.7, -0.35, -0.15, 0.0, 0.1, 0.25, 0.5)
_PRIOR_WEIGHT = 0.7
"""Logarithms of ratios to begin with: half to 1.6 times the level."""

_WIDEN_S = 0.15
_WIDEST = 4.0
"""The logarithms grow by the root of ``1 + age / _WIDEN_S``, to ``_WIDEST`` times at most."""

_NARROWEST = 0.03
"""No band is narrower than this on either side: samples are not better than that."""

_STANDSTILL = math.log(1 / 20)
"""A sample below this part of the level: nothing got through."""

_RENEWED = 3
"""Samples that are taken as they are after a standstill, or on a new connection."""

_SAME_S = 0.01
"""Samples closer than this are the same evidence twice."""


class Level:
    """Goodput of one link, as it is learned."""

    def __init__(self) -> None:
        self.samples = 0
        self.newest_s: Optional[float] = None
        self._updated_s = 0.0
        self._fast = 0.0
        self._slow = 0.0
        self._past: Deque[Tuple[float, float]] = deque(maxlen=_RATIOS)
        self._ratios: Deque[float] = deque(maxlen=_RATIOS)
        self._spread: Optional[Tuple[float, ...]] = None
        self._renewing = 0

    def __repr__(self) -> str:
        return f"<Level {self.goodput_bps} of {self.samples} samples>"

    @property
    def goodput_bps(self) -> Optional[float]:
        """The level; none while unknown."""
        return math.exp(min(self._fast, self._slow)) if self.samples else None

    @property
    def quick_bps(self) -> Optional[float]:
        """The quick mean alone; none while unknown."""
        return math.exp(self._fast) if self.samples else None

    def age_s(self, now_s: float) -> Optional[float]:
        """Seconds since the newest sample that is not a bound; none while there is none."""
        return None if self.newest_s is None else max(now_s - self.newest_s, 0.0)

    def renew(self) -> None:
        """Forget that the link was worse: it is a new connection."""
        self._renewing = _RENEWED

    def take(self, sample: Sample) -> bool:
        """Note a sample; returns whether it said anything.

        A lower bound may raise the level, but does not make it any newer: the truth may be as far
        above it as before.
        """
        new = math.log(max(sample.goodput_bps, 1.0))
        if not self.samples:
            self._fast = self._slow = new
        else:
            if sample.at_least and new <= min(self._fast, self._slow):
                return False
            since_s = max(sample.at_s - self._updated_s, 0.0)
            if since_s >= _SAME_S and not sample.at_least and self.newest_s is not None:
                self._compare(new, sample, since_s)
            worth = sample.busy_s / (sample.busy_s + _NOISE_S)
            fast = worth * -math.expm1(-since_s / _FAST_S)
            slow = worth * -math.expm1(-since_s / _SLOW_S)
            level = min(self._fast, self._slow)
            if not sample.at_least and new - level < _STANDSTILL:
                self._renewing = _RENEWED
            elif self._renewing and new > level:  # at least so much is there, bound or not
                self._renewing -= not sample.at_least
                fast = slow = 1.0
            if self.newest_s is None:  # only bounds so far
                fast = slow = 1.0
            self._fast += fast * (new - self._fast)
            self._slow += slow * (new - self._slow)
        self.samples += 1
        self._updated_s = max(sample.at_s, self._updated_s)
        if not sample.at_least:
            self.newest_s = self._updated_s
        self._past.append((self._updated_s, min(self._fast, self._slow)))
        return True

    def quantiles_bps(self, now_s: float) -> Tuple[float, ...]:
        """Goodput at each of ``QUANTILES``; empty while unknown."""
        if not self.samples:
            return ()
        age_s = self.age_s(now_s)
        above = _WIDEST if age_s is None else _widening(age_s)
        below = _widening(max(now_s - self._updated_s, 0.0))  # bounds tell of this side
        if self._spread is None:
            self._spread = self._distribution()
        level = min(self._fast, self._slow)
        middle = self._spread[len(QUANTILES) // 2]
        found: List[float] = []
        for probability, ratio in zip(QUANTILES, self._spread):
            aside = ratio - middle
            if probability < 0.5:
                aside = min(aside, -_NARROWEST)
            elif probability > 0.5:
                aside = max(aside, _NARROWEST)
            aside *= below if aside < 0 else above
            found.append(math.exp(level + middle + aside))
        return tuple(found)

    def _compare(self, new: float, sample: Sample, since_s: float) -> None:
        """Note how far off the level of a while ago was."""
        then_s = sample.at_s - _AHEAD_S
        while len(self._past) > 1 and self._past[1][0] <= then_s:
            self._past.popleft()
        was_s, was = self._past[0]
        idle_s = min(since_s, max(sample.at_s - was_s, 0.0)) - sample.busy_s
        self._ratios.append((new - was) / _widening(max(idle_s - _AHEAD_S, 0.0)))
        self._spread = None

    def _distribution(self) -> Tuple[float, ...]:
        """Return the logarithm of the ratio at each of ``QUANTILES``."""
        weighted = [(ratio, _PRIOR_WEIGHT) for ratio in _PRIOR]
        weight = 1.0
        for ratio in reversed(self._ratios):
            weighted.append((ratio, weight))
            weight *= _FORGET
        weighted.sort()
        total = sum(weight for _, weight in weighted)
        found: List[float] = []
        below, at = 0.0, 0
        for probability in QUANTILES:
            while at + 1 < len(weighted) and below + weighted[at][1] < probability * total:
                below += weighted[at][1]
                at += 1
            found.append(weighted[at][0])
        return tuple(found)


def _widening(age_s: float) -> float:
    return min(math.sqrt(1.0 + age_s / _WIDEN_S), _WIDEST)
