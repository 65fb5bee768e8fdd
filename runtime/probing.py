"""How much an idle link may be probed with. Pure.

A bucket fills with ``SHARE`` of the link's capacity, at most ``MOST_BPS``, and holds
``DEPTH_BYTES``. So in any stretch of time probes take at most ``DEPTH_BYTES`` and what flowed in.
"""

from __future__ import annotations

from typing import Optional

from runtime.busy import MIN_SAMPLE_BYTES

__all__ = ["DEPTH_BYTES", "LARGEST_BYTES", "MOST_BYTES_PER_S", "SHARE", "ProbeBudget"]

SHARE = 0.01
"""Part of the estimated capacity that probes may take."""

MOST_BYTES_PER_S = 64_000.0
"""And never more than this."""

LEAST_BYTES = MIN_SAMPLE_BYTES
"""The smallest probe: less says too little of goodput."""

LARGEST_BYTES = 32_768
"""The largest, header and all: what a link that is not known yet is probed with."""

DEPTH_BYTES = LARGEST_BYTES + 1024
"""What can be saved up: enough for two of the smallest, headers and all."""

_PROBE_S = 0.008
"""Time that a probe should take on the link: a few round trips of Wi-Fi."""

_UNKNOWN_BPS = 1e6
"""Capacity that is budgeted for while none is known."""


class ProbeBudget:
    """Says when a probe may be sent and how large it is. Not safe across threads.

    Args:
        overhead_bytes: Size of a probe without payload on the wire.

    Attributes:
        spent_bytes: All that was sent so far, overhead included.
    """

    def __init__(self, overhead_bytes: int) -> None:
        self.spent_bytes = 0
        self._overhead_bytes = overhead_bytes
        self._left_bytes = float(DEPTH_BYTES)
        self._at_s: Optional[float] = None

    def __repr__(self) -> str:
        return f"<ProbeBudget {self._left_bytes:.0f} bytes left, {self.spent_bytes} spent>"

    def fill(self, now_s: float, goodput_bps: Optional[float]) -> None:
        """Let in what flowed since the last call, at the goodput of now.

        To be called all the time: what a good link has saved up is then there for when it was bad.

        Args:
            now_s: Time, of a clock that never goes back.
            goodput_bps: Goodput as estimated; none while unknown.
        """
        capacity_bps = _UNKNOWN_BPS if goodput_bps is None else goodput_bps
        if self._at_s is not None:
            rate = min(SHARE * capacity_bps / 8.0, MOST_BYTES_PER_S)
            filled = self._left_bytes + rate * max(now_s - self._at_s, 0.0)
            self._left_bytes = min(filled, float(DEPTH_BYTES))
        self._at_s = now_s

    def probe(
        self,
        now_s: float,
        goodput_bps: Optional[float],
        *,
        payload: bool = True,
        least: bool = False,
    ) -> Optional[int]:
        """Take a probe out of the budget.

        Args:
            now_s: Time, of a clock that never goes back.
            goodput_bps: Goodput as estimated; none while unknown.
            payload: Whether it shall have any.
            least: Whether it shall have no more than says something.

        Returns:
            Its payload in bytes: 0, which measures the round trip and shows that the server lives,
            where the budget has room for no more; none where not even for that.
        """
        self.fill(now_s, goodput_bps)
        most = LARGEST_BYTES - self._overhead_bytes
        size = most
        if least:
            size = LEAST_BYTES
        elif goodput_bps is not None:
            size = int(min(max(_PROBE_S * goodput_bps / 8.0, LEAST_BYTES), most))
        if not payload or size + self._overhead_bytes > self._left_bytes:
            size = 0
        if size + self._overhead_bytes > self._left_bytes:
            return None
        self._left_bytes -= size + self._overhead_bytes
        self.spent_bytes += size + self._overhead_bytes
        return size
