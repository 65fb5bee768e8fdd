"""The probes of a link: when one is sent, how large it is, and what its answer says.

1. Each connection begins with one that measures the round trip, and one with a payload. Where the
   goodput was known before, that is a small one, and another follows its answer: the first may
   have queued behind what the last connection had left on the way.
2. Later a link that carries too little to tell anything is probed within a budget
   (``runtime.probing``): by an empty probe where the round trip is to be measured again.
3. A probe that is not answered in the time that the link should need, and a pause, is late.

Writes nothing: whoever owns the connection sends what it is told to.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, Dict, Optional, Tuple

from engines.errors import RemoteProtocolError
from runtime.estimator import LinkEstimate, LinkEstimator
from runtime.evidence import RoundTrip, Transfer
from runtime.messages import STALL_S
from runtime.probing import ProbeBudget
from runtime.wire import HEADER_BYTES

__all__ = ["PROBE_EVERY_S", "Prober"]

PROBE_EVERY_S = 0.5
"""Shortest time between probes, and age of the estimate at which an idle link is probed."""

_BUSY_S = 3.0
"""Age at which a link is probed that is never idle but carries too little to tell anything."""

_RTT_EVERY_S = 5.0
"""Age of the round trip at which a probe measures that, and nothing else."""

_UNKNOWN_LINK_BPS = 50e3
"""Goodput that the time for a probe allows for while nothing is known: not to mistake a slow link
for a dead one."""


class Prober:
    """Keeps the probes of one link. Safe across threads.

    Args:
        estimator: Told of what the answers say.
        when_measured: Called with each answer that says what the link can do, or that what was
            known of it still counts.
    """

    def __init__(self, estimator: LinkEstimator, when_measured: Callable[[], None]) -> None:
        self._estimator = estimator
        self._when_measured = when_measured
        self._lock = threading.Lock()
        self._budget = ProbeBudget(HEADER_BYTES)
        self._under_way: Dict[int, Tuple[float, int]] = {}
        self._probed_s = 0.0
        self._rtt_at_s = 0.0
        self._again = False

    def __repr__(self) -> str:
        return f"<Prober {len(self._under_way)} under way, {self.spent_bytes} bytes spent>"

    @property
    def under_way(self) -> int:
        """Probes that are not answered yet."""
        return len(self._under_way)

    @property
    def spent_bytes(self) -> int:
        """Bytes sent as probes so far."""
        return self._budget.spent_bytes

    def connecting(self) -> None:
        """Note that there is a new connection: its first probes come before any that is due."""
        with self._lock:
            self._probed_s = time.monotonic()

    def connected(self) -> Optional[int]:
        """Begin with a new connection, once its first probe, the empty one, was sent.

        Returns:
            Payload in bytes of the probe to send next; none for no other.
        """
        # What is known may be of the fault.
        self._again = self._estimator.estimate.goodput_bps is not None
        return self._opening(least=self._again) or None

    def disconnected(self) -> None:
        """Forget what is under way: it will not be answered."""
        with self._lock:
            self._under_way.clear()

    def fill(self, now_s: float, estimate: LinkEstimate) -> None:
        """Let the budget fill; to be called all the time, with the link as it is known then."""
        with self._lock:
            self._budget.fill(now_s, estimate.goodput_bps)

    def due(self, now_s: float, estimate: LinkEstimate, *, idle: bool) -> Optional[int]:
        """Return the payload in bytes of the probe that is to be sent now; none for no probe.

        Args:
            now_s: Time.
            estimate: The link as it is known then.
            idle: Whether no request is under way.
        """
        age_s, goodput_bps = estimate.age_s, estimate.goodput_bps
        stale = age_s is None or age_s >= (PROBE_EVERY_S if idle else _BUSY_S)
        with self._lock:
            if self._under_way or not stale or now_s - self._probed_s < PROBE_EVERY_S:
                return None
            payload = now_s - self._rtt_at_s < _RTT_EVERY_S or goodput_bps is None
            return self._budget.probe(now_s, goodput_bps, payload=payload)

    def late(self, now_s: float) -> bool:
        """Whether a probe should have been answered by now."""
        goodput_bps = self._estimator.estimate.goodput_bps or _UNKNOWN_LINK_BPS
        with self._lock:
            return any(
                now_s - at_s > STALL_S + 2 * 8 * size / max(goodput_bps, 1.0)
                for at_s, size in self._under_way.values()
            )

    def sending(self, number: int, size: int) -> None:
        """Note that a probe is about to be sent.

        Args:
            number: Its request number.
            size: Its payload in bytes.
        """
        with self._lock:
            self._probed_s = time.monotonic()
            self._under_way[number] = (self._probed_s, size)

    def unsent(self, number: int) -> None:
        """Note that it could not be: it must not be waited for on the next connection."""
        with self._lock:
            self._under_way.pop(number, None)

    def answered(self, number: int) -> Optional[int]:
        """Learn from the answer to a probe.

        Returns:
            Payload in bytes of the probe to send after it; none for no other.

        Raises:
            RemoteProtocolError: It was not sent.
        """
        with self._lock:
            sent = self._under_way.pop(number, None)
        if sent is None:
            raise RemoteProtocolError(f"PONG of probe {number}, which was not sent")
        (begin_s, size), now_s = sent, time.monotonic()
        if not size:
            with self._lock:
                self._rtt_at_s = now_s
            self._estimator.take(RoundTrip(now_s, now_s - begin_s))
            if self._estimator.estimate.goodput_bps is not None:
                self._when_measured()
            return None
        self._estimator.take(Transfer(now_s, size, now_s - begin_s))
        self._when_measured()
        if not self._again:
            return None
        self._again = False
        return self._opening(least=True) or None

    def _opening(self, *, least: bool) -> Optional[int]:
        with self._lock:
            return self._budget.probe(time.monotonic(), None, least=least)
