"""From a connection's counters to goodput, while the link had something to do.

1. The link is busy while bytes are outstanding that the peer could take, or while a message is
   half received. Time between is the program's own (it computes, or has nothing to send), and
   counts for nothing.
2. Up and down share the air, so goodput is the bytes acknowledged and received over the time that
   either was under way.
3. Acknowledgements lag a round trip behind, so the clock of a busy period starts with the first of
   them: from there on they come at the link's own pace. Only where none comes for ``HEAD_S`` does
   the clock start without one.
4. The last bytes of a period say little: the peer may delay its acknowledgement of up to two
   segments, so that few outstanding bytes are as good as none; and the interval between readings
   in which the period ended was busy for a part only, and is left out. What the others of several
   short periods tell is put together (stripes go out one by one). A period that has no others
   gives the kernel's measure, or no more than a lower bound.
5. A period of less than ``MIN_SAMPLE_BYTES`` says nothing of goodput.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from runtime.evidence import Reading

__all__ = ["MIN_SAMPLE_BYTES", "BusyPeriods", "Sample"]

MIN_SAMPLE_BYTES = 16_384
"""Smaller transfers are mostly latency and say little of goodput."""

WINDOW_S = 0.025
LONGEST_WINDOW_S = 0.1
_WINDOW_BYTES = 8_192
"""A sample is taken each ``WINDOW_S`` of busy time; where hardly anything moved in that, by
``LONGEST_WINDOW_S``."""

_TAIL_BYTES = 3_000
"""Two full segments: so much may be outstanding for no other reason than that the peer delays its
acknowledgement."""

HEAD_S = 0.05
"""Longest wait for the first acknowledgement of a busy period that is not charged to goodput."""

_GAP_S = 0.05
"""Between readings further apart than this the link may have been idle, unless nothing moved."""

_FLOOR_BYTES = 1_000
"""Taken to have moved in a window without progress: goodput is above zero, if by little."""

_SHORTEST_S = 0.002
"""Busy time below which a ratio of bytes to time is a matter of when the readings were taken."""

_TOGETHER_S = 0.5
"""Periods further apart are not put together."""


class Sample(NamedTuple):
    """Goodput over a stretch of busy time.

    Attributes:
        at_s: When it ended.
        goodput_bps: Payload bits per second, up and down together.
        busy_s: How long the link was busy.
        at_least: Whether it is a lower bound only.
    """

    at_s: float
    goodput_bps: float
    busy_s: float
    at_least: bool = False


class BusyPeriods:
    """Turns the readings of one connection into samples."""

    def __init__(self) -> None:
        self._last: Optional[Reading] = None
        self._begin_s = 0.0
        self._flowing = False
        self._sampled = False
        self._period_bytes = 0
        self._kernel_bps: Optional[float] = None
        self._flow_s = 0.0
        self._flow_bytes = 0
        self._bytes = 0
        self._busy_s = 0.0
        self._before = (0, 0.0)
        self._counted_s = 0.0

    def __repr__(self) -> str:
        return f"<BusyPeriods {self._last}>"

    def take(self, reading: Reading) -> List[Sample]:
        """Note the next reading; returns the samples that it completes, at most two."""
        last, self._last = self._last, reading
        if last is None or not _busy(last):
            self._begin(reading.at_s)
            return []
        moved = reading.acked_bytes - last.acked_bytes
        moved += reading.received_bytes - last.received_bytes
        seconds = reading.at_s - last.at_s
        ended = not _busy(reading) or _ran_dry(last, reading)
        self._period_bytes += moved
        if self._flowing:
            self._flow_bytes += moved
        if self._counts(last, reading, moved) and not ended:
            self._bytes += moved
            self._busy_s += seconds
            self._counted_s = reading.at_s
        if self._flowing and reading.delivery_bps is not None and not ended:
            self._kernel_bps = reading.delivery_bps
        samples: List[Sample] = []
        enough = self._bytes >= _WINDOW_BYTES and self._busy_s >= WINDOW_S
        if enough or self._busy_s >= LONGEST_WINDOW_S:
            samples.append(self._sample(reading.at_s))
        if ended:
            samples += self._end(reading.at_s)
            self._begin(last.at_s)  # of no account unless the next period has begun already
        return samples

    def _begin(self, at_s: float) -> None:
        self._begin_s = at_s
        self._flowing = False
        self._sampled = False
        self._period_bytes = 0
        self._kernel_bps = None
        if at_s - self._counted_s > _TOGETHER_S:
            self._bytes, self._busy_s = 0, 0.0
        self._before = self._bytes, self._busy_s

    def _counts(self, last: Reading, reading: Reading, moved: int) -> bool:
        """Whether the link was busy all the time from one reading to the next."""
        if reading.at_s - last.at_s > _GAP_S and moved:
            return False
        if last.receiving:
            return True
        if not self._flowing:
            self._flowing = moved > 0 or reading.at_s - self._begin_s > HEAD_S
            self._flow_s, self._flow_bytes = reading.at_s, 0
            return False
        return True

    def _sample(self, at_s: float) -> Sample:
        goodput_bps = 8.0 * max(self._bytes, _FLOOR_BYTES) / self._busy_s
        sample = Sample(at_s, goodput_bps, self._busy_s)
        self._sampled = True
        self._bytes, self._busy_s = 0, 0.0
        return sample

    def _end(self, at_s: float) -> List[Sample]:
        """Return what is left of a busy period, if it says anything."""
        if self._period_bytes < MIN_SAMPLE_BYTES:
            if not self._sampled:
                self._bytes, self._busy_s = self._before
            return []
        if self._bytes >= _WINDOW_BYTES and self._busy_s >= _SHORTEST_S:
            return [self._sample(at_s)]
        seconds = at_s - self._begin_s
        if self._sampled or seconds <= 0:
            return []
        if self._kernel_bps is not None:
            self._bytes, self._busy_s = self._before
            return [Sample(at_s, self._kernel_bps, seconds)]
        bps = 8.0 * self._period_bytes / seconds
        if self._flow_bytes >= _WINDOW_BYTES:  # the rest came at the link's own pace
            bps = max(bps, 8.0 * self._flow_bytes / (at_s - self._flow_s))
        return [Sample(at_s, bps, seconds, at_least=True)]


def _ran_dry(last: Reading, reading: Reading) -> bool:
    """Whether the link may have been idle for a while between two readings.

    All that was outstanding has been acknowledged, so what is outstanding now was written later.
    """
    if last.receiving:
        return False
    return reading.acked_bytes - last.acked_bytes >= last.outstanding_bytes - _TAIL_BYTES


def _busy(reading: Reading) -> bool:
    up = reading.outstanding_bytes > _TAIL_BYTES and not reading.blocked
    return up or reading.receiving
