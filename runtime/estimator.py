"""Learns goodput and round trip from the transfers themselves. Pure: no clock, no I/O.

Two exponentially weighted means of goodput run side by side, one quick and one slow; the
estimate is the smaller. So it follows a fall at once and a rise with hesitation, since an
inference caught by a fall costs more than one that could have used a rise.

Source:
    The fast/slow pair and its minimum are those of adaptive bitrate players
    (shaka-player, ``ewma_bandwidth_estimator.js``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Optional

__all__ = ["LinkEstimate", "LinkEstimator"]

MIN_SAMPLE_BYTES = 16_384
"""Smaller transfers are mostly latency and say little of goodput."""

_FAST = 0.6
_SLOW = 0.2
"""Weight of the newest sample in the two means."""

_RTT_WEIGHT = 0.1
_SHORTEST_S = 1e-6


@dataclass(frozen=True)
class LinkEstimate:
    """The link as it is now.

    Attributes:
        goodput_bps: Payload bits per second, up and down together; none while unknown.
        rtt_s: Round trip of a message without payload, in seconds.
        samples: Transfers that the goodput rests on.
    """

    goodput_bps: Optional[float]
    rtt_s: float
    samples: int


class LinkEstimator:
    """Keeps the estimate of one link. Safe across threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fast_bps: Optional[float] = None
        self._slow_bps: Optional[float] = None
        self._rtt_s: Optional[float] = None
        self._samples = 0

    def __repr__(self) -> str:
        return f"<LinkEstimator {self.estimate}>"

    @property
    def estimate(self) -> LinkEstimate:
        """What is known now."""
        with self._lock:
            goodput: Optional[float] = None
            if self._fast_bps is not None and self._slow_bps is not None:
                goodput = min(self._fast_bps, self._slow_bps)
            return LinkEstimate(goodput, self._rtt_s or 0.0, self._samples)

    def round_trip(self, seconds: float) -> None:
        """Note the round trip of a message without payload."""
        with self._lock:
            if self._rtt_s is None or seconds < self._rtt_s:
                self._rtt_s = seconds
            else:
                self._rtt_s += _RTT_WEIGHT * (seconds - self._rtt_s)

    def transfer(self, payload_bytes: int, seconds: float) -> Optional[float]:
        """Note a transfer.

        Args:
            payload_bytes: Bytes that went up and came back.
            seconds: From the first byte sent to the last received, less the time that the
                server had the request.

        Returns:
            Its goodput in bits per second; none if it was too small to count.
        """
        if payload_bytes < MIN_SAMPLE_BYTES:
            return None
        with self._lock:
            on_link_s = max(seconds - (self._rtt_s or 0.0), seconds * 0.1, _SHORTEST_S)
            goodput = payload_bytes * 8.0 / on_link_s
            if self._fast_bps is None or self._slow_bps is None:
                self._fast_bps = self._slow_bps = goodput
            else:
                self._fast_bps += _FAST * (goodput - self._fast_bps)
                self._slow_bps += _SLOW * (goodput - self._slow_bps)
            self._samples += 1
            return goodput
