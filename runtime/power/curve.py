"""Energy between two moments, from readings. Pure: no clock, no thread.

- From **watts**: straight lines between samples. In a whole gap between two samples the energy is
  off by at most half of |change of power| x gap, as long as power only rose or only fell in it;
  in part of a gap, by at most |change| x part. After the last sample the last power is held; there
  the energy is off by as much as power ranged lately.
- From a **counter**: straight lines between readings that moved it, and on with the same slope.
  Either end of the interval is off by what the highest power of late gives in one update.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import List, Optional, Protocol

from runtime.power.sensor import Energy

__all__ = ["CounterCurve", "Curve", "PowerCurve"]

_LATELY_S = 2.0
"""How far back the range of power is taken from, and what is kept at the least."""

_LONGEST = 200_000
"""Readings that are kept at the most: over an hour at 50 Hz."""


class Curve(Protocol):
    """Readings of one sensor, and the energy that they say."""

    @property
    def last_s(self) -> Optional[float]:
        """When the last reading was taken; none before the first."""

    def add(self, at_s: float, reading: float) -> None:
        """Take a reading, newer than those before."""

    def between(self, start_s: float, stop_s: float) -> Optional[Energy]:
        """Return the energy of an interval; none where too little is known of it."""

    def forget(self, before_s: float) -> None:
        """Drop what an interval that starts at ``before_s`` or later does not need."""


class PowerCurve:
    """Of samples of power in watts."""

    def __init__(self) -> None:
        self._times: List[float] = []
        self._watts: List[float] = []

    @property
    def last_s(self) -> Optional[float]:
        return self._times[-1] if self._times else None

    def add(self, at_s: float, reading: float) -> None:
        """Take a sample. One that is no newer than the last is left out."""
        if not self._times or at_s > self._times[-1]:
            self._times.append(at_s)
            self._watts.append(reading)

    def between(self, start_s: float, stop_s: float) -> Optional[Energy]:
        """Integrate; none before the first sample, or where its start was forgotten."""
        times, watts = self._times, self._watts
        if not times:
            return None
        joules = bound = 0.0
        if start_s < times[0]:
            wide = min(stop_s, times[0]) - start_s
            joules += watts[0] * wide
            bound += self._range() * wide
        first = max(bisect_right(times, start_s) - 1, 0)
        for index in range(first, len(times) - 1):
            begin, end = max(times[index], start_s), min(times[index + 1], stop_s)
            if end <= begin:
                if times[index] >= stop_s:
                    break
                continue
            gap = times[index + 1] - times[index]
            slope = (watts[index + 1] - watts[index]) / gap
            joules += (watts[index] + slope * ((begin + end) / 2 - times[index])) * (end - begin)
            whole = end - begin >= gap
            bound += abs(slope) * gap * (end - begin) * (0.5 if whole else 1.0)
        held = stop_s - max(times[-1], start_s)
        if held > 0:
            joules += watts[-1] * held
            bound += self._range() * held
        return Energy(joules, bound)

    def forget(self, before_s: float) -> None:
        _forget(self._times, self._watts, before_s)

    def _range(self) -> float:
        """Return how far power ranged lately."""
        first = bisect_right(self._times, self._times[-1] - _LATELY_S)
        lately = self._watts[max(first - 1, 0) :]
        return max(lately) - min(lately)


class CounterCurve:
    """Of readings of a counter in joules.

    Args:
        update_s: How often the counter moves.
    """

    def __init__(self, update_s: float) -> None:
        self._update_s = update_s
        self._times: List[float] = []
        self._joules: List[float] = []
        self._last_s: Optional[float] = None

    @property
    def last_s(self) -> Optional[float]:
        return self._last_s

    def add(self, at_s: float, reading: float) -> None:
        """Take a reading. One that has only not moved yet tells nothing."""
        if self._last_s is not None and at_s <= self._last_s:
            return
        self._last_s = at_s
        if self._times and reading <= self._joules[-1]:
            if at_s - self._times[-1] <= 2 * self._update_s:
                return
            reading = self._joules[-1]
        self._times.append(at_s)
        self._joules.append(reading)

    def between(self, start_s: float, stop_s: float) -> Optional[Energy]:
        """Subtract; none before two readings, or where its start was forgotten."""
        if len(self._times) < 2:
            return None
        slopes = self._slopes()
        joules = max(self._at(stop_s, slopes[-1]) - self._at(start_s, slopes[0]), 0.0)
        bound = 2 * self._update_s * max(slopes)
        unseen = max(stop_s - self._times[-1], 0.0) + max(self._times[0] - start_s, 0.0)
        return Energy(joules, bound + (max(slopes) - min(slopes)) * unseen)

    def forget(self, before_s: float) -> None:
        _forget(self._times, self._joules, before_s)

    def _at(self, at_s: float, slope: float) -> float:
        """Return the counter at a moment, going on by ``slope`` outside of what was read."""
        times, joules = self._times, self._joules
        if at_s <= times[0]:
            return joules[0] - slope * (times[0] - at_s)
        if at_s >= times[-1]:
            return joules[-1] + slope * (at_s - times[-1])
        right = bisect_right(times, at_s)
        share = (at_s - times[right - 1]) / (times[right] - times[right - 1])
        return joules[right - 1] + share * (joules[right] - joules[right - 1])

    def _slopes(self) -> List[float]:
        """Return the mean powers lately, over stretches of at least two updates."""
        first = max(bisect_right(self._times, self._times[-1] - _LATELY_S) - 1, 0)
        slopes: List[float] = []
        begin = first
        for index in range(first + 1, len(self._times)):
            wide = self._times[index] - self._times[begin]
            if wide >= 2 * self._update_s:
                slopes.append((self._joules[index] - self._joules[begin]) / wide)
                begin = index
        if not slopes:
            wide = self._times[-1] - self._times[0]
            slopes = [(self._joules[-1] - self._joules[0]) / wide]
        return slopes


def _forget(times: List[float], values: List[float], before_s: float) -> None:
    keep = bisect_right(times, before_s - _LATELY_S) - 1
    keep = max(keep, len(times) - _LONGEST)
    if keep > 0:
        del times[:keep]
        del values[:keep]
