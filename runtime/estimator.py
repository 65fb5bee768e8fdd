"""Learns what a link can do from what is sent over it. Pure: no clock, no I/O.

Evidence goes in with its time (``runtime.evidence``); ``at`` says what is known at some moment.
The same evidence gives the same estimates, so that a run can be replayed.

1. Readings of the connection's counters, every few milliseconds while anything is under way,
   become samples of goodput over busy time (``runtime.busy``), long before a transfer ends.
   A transfer over before there were readings enough is a sample as a whole.
2. Samples make the level, quick to fall and slow to rise, and how far off it may be
   (``runtime.goodput``).
3. The same readings, and what becomes of the connection, make the state (``runtime.link_state``).
4. The wait at the server, as it tells with each answer, is a part of the estimate. What is known
   of it fades, so that a queue of long ago does not keep the robot away for ever.

What is not sound (negative, not a number, counters that go back) is refused and counted.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

from runtime.busy import MIN_SAMPLE_BYTES, BusyPeriods, Sample
from runtime.evidence import (
    Connected,
    Evidence,
    Exchange,
    Lost,
    QueueTime,
    Reading,
    RoundTrip,
    Transfer,
    sound,
)
from runtime.goodput import QUANTILES, Level
from runtime.link_state import LinkState, States

__all__ = ["LinkEstimate", "LinkEstimator", "LinkState"]

_RTT_WEIGHT = 0.1
_SHORTEST_S = 1e-6

_SHORT_S = 0.03
"""Of a longer transmission the error of the goodput hides what a request takes beside it."""

_LONG = 2.0
_LONG_IF_SMALL = 4.0
"""A transfer of fewer round trips is mostly latency: it gives a lower bound."""

_QUEUE_WEIGHT = 0.3
_QUEUE_FADES_S = 1.0
"""The expected wait halves about as often while nobody asks the server."""


@dataclass(frozen=True)
class LinkEstimate:
    """The link at one moment.

    Attributes:
        goodput_bps: Payload bits per second, up and down together, quick to fall and slow to
            rise; none while unknown.
        rtt_s: Round trip of a request without payload, in seconds: that of a message, and what
            threads and copies at both ends take.
        samples: Samples that the goodput rests on.
        quantiles_bps: Goodput at each of ``runtime.goodput.QUANTILES``; empty while unknown.
        state: Whether the link is up, degraded or down.
        why: The evidence for the state, in words.
        queue_s: Expected wait at the server in seconds.
        age_s: Seconds since the newest sample; none while there is none.
    """

    goodput_bps: Optional[float]
    rtt_s: float
    samples: int
    quantiles_bps: Tuple[float, ...] = ()
    state: LinkState = LinkState.UP
    why: str = ""
    queue_s: float = 0.0
    age_s: Optional[float] = None

    def quantile(self, part: float) -> Optional[float]:
        """Return the goodput that the link falls short of with probability ``part``.

        Between the stated quantiles it is interpolated, beyond them it is the outermost. An
        estimate without quantiles gives its goodput.
        """
        if not 0.0 <= part <= 1.0:
            raise ValueError(f"quantile: expected 0 to 1, given {part}")
        if not self.quantiles_bps:
            return self.goodput_bps
        place = bisect_left(QUANTILES, part)
        if place in (0, len(QUANTILES)):
            return self.quantiles_bps[min(place, len(QUANTILES) - 1)]
        below, above = QUANTILES[place - 1], QUANTILES[place]
        low, high = self.quantiles_bps[place - 1], self.quantiles_bps[place]
        return low * math.pow(high / low, (part - below) / (above - below))


class LinkEstimator:
    """Keeps the estimate of one link. Safe across threads.

    Args:
        record: See below.

    Attributes:
        record: Told of each piece of evidence, in the order in which it is taken; for a file to
            replay. None for nobody.
        refused: Pieces of evidence that were not sound.
        taken: Pieces of evidence in all.
    """

    def __init__(self, record: Optional[Callable[[Evidence], None]] = None) -> None:
        self.refused = 0
        self.taken = 0
        self.record = record
        self._lock = threading.Lock()
        self._busy = BusyPeriods()
        self._level = Level()
        self._states = States()
        self._last: Optional[Reading] = None
        self._rtt_s: Optional[float] = None
        self._new = True
        self._handling_s = 0.0
        self._queue_s = 0.0
        self._queue_at_s = 0.0
        self._newest_s = 0.0

    def __repr__(self) -> str:
        return f"<LinkEstimator {self.estimate}>"

    @property
    def estimate(self) -> LinkEstimate:
        """What was known at the time of the newest evidence."""
        return self.at(self._newest_s)

    def at(self, now_s: float) -> LinkEstimate:
        """Return what is known at ``now_s``, not before the newest evidence."""
        with self._lock:
            return LinkEstimate(
                goodput_bps=self._level.goodput_bps,
                rtt_s=(self._rtt_s or 0.0) + self._handling_s,
                samples=self._level.samples,
                quantiles_bps=self._level.quantiles_bps(now_s),
                state=self._states.state,
                why=self._states.why,
                queue_s=self._faded_s(now_s),
                age_s=self._level.age_s(now_s),
            )

    def take(self, evidence: Evidence) -> bool:
        """Note a piece of evidence; returns false where it was refused."""
        with self._lock:
            self.taken += 1
            if not sound(evidence):
                self.refused += 1
                return False
            if self.record is not None:
                self.record(evidence)
            self._newest_s = max(self._newest_s, evidence.at_s)
            if isinstance(evidence, Reading):
                return self._reading(evidence)
            if isinstance(evidence, Transfer):
                return self._transfer(evidence)
            if isinstance(evidence, Exchange):
                return self._exchange(evidence)
            if isinstance(evidence, RoundTrip):
                self._round_trip(evidence.seconds)
            elif isinstance(evidence, QueueTime):
                known_s = self._faded_s(evidence.at_s)
                self._queue_s = known_s + _QUEUE_WEIGHT * (evidence.seconds - known_s)
                self._queue_at_s = evidence.at_s
            else:
                self._last, self._busy = None, BusyPeriods()
                if isinstance(evidence, Connected):
                    self._new = True
                    self._level.renew()
                    self._states.connected()
                else:
                    assert isinstance(evidence, Lost)
                    self._states.lost(evidence.why)
            return True

    def _reading(self, reading: Reading) -> bool:
        last, self._last = self._last, reading
        if last is not None and (
            reading.at_s < last.at_s
            or reading.acked_bytes < last.acked_bytes
            or reading.received_bytes < last.received_bytes
        ):
            self._last = last
            self.refused += 1
            return False
        self._states.reading(reading)
        for sample in self._busy.take(reading):
            self._sample(sample)
        return True

    def _transfer(self, transfer: Transfer) -> bool:
        """Take a whole transfer for a sample, if it is not mostly latency."""
        newest_s = self._level.newest_s
        if newest_s is not None and newest_s >= transfer.at_s - transfer.seconds:
            return True  # readings have told of it, and more exactly
        rtt_s, seconds = self._rtt_s or 0.0, transfer.seconds
        small = transfer.payload_bytes < MIN_SAMPLE_BYTES
        at_least = small and not rtt_s
        at_least |= seconds < rtt_s * (_LONG_IF_SMALL if small else _LONG)
        on_link_s = max(seconds if at_least else seconds - rtt_s, _SHORTEST_S)
        bits = 8.0 * transfer.payload_bytes
        self._sample(Sample(transfer.at_s, bits / on_link_s, on_link_s, at_least))
        return True

    def _exchange(self, exchange: Exchange) -> bool:
        """Learn what a request takes beside its transmission, where that does not hide it."""
        goodput_bps = self._level.goodput_bps
        on_link_s = 8.0 * exchange.payload_bytes / goodput_bps if goodput_bps else math.inf
        if on_link_s <= _SHORT_S:
            beside_s = max(exchange.seconds - on_link_s - (self._rtt_s or 0.0), 0.0)
            self._handling_s += _RTT_WEIGHT * (min(beside_s, _SHORT_S) - self._handling_s)
        return True

    def _sample(self, sample: Sample) -> None:
        if self._level.take(sample):
            quick_bps = self._level.quick_bps
            assert quick_bps is not None  # a sample was taken
            self._states.goodput(sample.at_s, quick_bps)

    def _round_trip(self, seconds: float) -> None:
        if self._rtt_s is None or self._new or seconds < self._rtt_s:
            self._rtt_s, self._new = seconds, False
        else:
            self._rtt_s += _RTT_WEIGHT * (seconds - self._rtt_s)

    def _faded_s(self, now_s: float) -> float:
        since_s = max(now_s - self._queue_at_s, 0.0)
        return self._queue_s * math.exp(-math.log(2.0) * since_s / _QUEUE_FADES_S)
