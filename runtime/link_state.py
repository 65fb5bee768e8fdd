"""Up, degraded or down: the state of a link, on evidence and with hysteresis. Pure.

- ``down``: no connection, or bytes were outstanding for ``DOWN_S`` and none got through.
- ``degraded``: the same for ``DEGRADED_S``, or goodput below ``LOW`` of what it was of late.
- ``up`` again: bytes get through, goodput is above ``RECOVERED`` of what it was of late, and no
  evidence against it came for ``HOLD_S``. A link that was down is degraded first, unless it is a
  new connection: its handshake was a round trip.

A silence says nothing: while nothing is outstanding the state stays what it was. "Of late" is a
mean over ``_LATE_S``, so goodput that stays low becomes what is usual, and the link is up, slow.
"""

from __future__ import annotations

import enum
import math
from typing import Optional

from runtime.evidence import Reading

__all__ = ["DEGRADED_S", "DOWN_S", "HOLD_S", "LinkState", "States"]

DEGRADED_S = 0.25
"""Longer than a receipt may be delayed (0.2 s) or TCP waits for one before it sends again."""

DOWN_S = 1.0

LOW = 0.35
RECOVERED = 0.6
"""Parts of the goodput of late; apart, so that a link at the edge does not flap."""

HOLD_S = 0.3

_LATE_S = 2.0


class LinkState(enum.Enum):
    """What a link is good for."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"


class States:
    """The state of one link.

    Attributes:
        state: It.
        why: The evidence for it, in words.
    """

    def __init__(self) -> None:
        self.state = LinkState.DOWN
        self.why = "not connected yet"
        self._connected = False
        self._last: Optional[Reading] = None
        self._progress_s = 0.0
        self._calm_s = 0.0
        self._low = False
        self._late: Optional[float] = None
        self._late_at_s = 0.0

    def __repr__(self) -> str:
        return f"<States {self.state.value}: {self.why}>"

    def connected(self) -> None:
        """Note a new connection."""
        self._connected, self._last = True, None
        self._low, self._late = False, None
        self._set(LinkState.UP, "connected")

    def lost(self, why: str) -> None:
        """Note the connection's end."""
        self._connected, self._last = False, None
        self._set(LinkState.DOWN, why)

    def reading(self, reading: Reading) -> None:
        """Note whether bytes get through."""
        last, self._last = self._last, reading
        if not self._connected:
            return
        moved = 0
        if last is not None:
            moved = reading.acked_bytes - last.acked_bytes
            moved += reading.received_bytes - last.received_bytes
        if moved or last is None or not _waiting(last):
            self._progress_s = reading.at_s
        stalled_s = reading.at_s - self._progress_s if _waiting(reading) else 0.0
        if stalled_s >= DEGRADED_S:
            self._stall(reading, stalled_s)
        elif moved:
            self._recover(reading.at_s)

    def goodput(self, at_s: float, quick_bps: float) -> None:
        """Note the goodput of right now."""
        new = math.log(max(quick_bps, 1.0))
        if self._late is None:
            self._late, self._late_at_s = new, at_s
            return
        ratio = math.exp(new - self._late)
        usual_bps = math.exp(self._late)
        gain = -math.expm1(-max(at_s - self._late_at_s, 0.0) / _LATE_S)
        self._late += gain * (new - self._late)
        self._late_at_s = max(at_s, self._late_at_s)
        if not self._connected:
            return
        if ratio < LOW:
            self._low, self._calm_s = True, at_s + HOLD_S
            if self.state is LinkState.UP:
                text = f"goodput fell to {quick_bps / 1e6:.1f} Mbps, {usual_bps / 1e6:.1f} of late"
                self._set(LinkState.DEGRADED, text)
        elif ratio >= RECOVERED:
            self._low = False
            self._recover(at_s)

    def _stall(self, reading: Reading, stalled_s: float) -> None:
        self._calm_s = reading.at_s + HOLD_S
        if reading.receiving and not reading.outstanding_bytes:
            what = "nothing received in the middle of a message"
        elif reading.blocked:
            what = f"the server takes none of {reading.outstanding_bytes} bytes"
        else:
            what = f"none of {reading.outstanding_bytes} bytes acknowledged"
        text = f"{what} for {stalled_s:.1f} s"
        if stalled_s >= DOWN_S and not reading.blocked:
            self._set(LinkState.DOWN, text)
        elif self.state is not LinkState.DOWN:
            self._set(LinkState.DEGRADED, text)

    def _recover(self, at_s: float) -> None:
        if self.state is LinkState.DOWN:
            self._calm_s = at_s + HOLD_S
            self._set(LinkState.DEGRADED, "bytes get through again")
        elif self.state is LinkState.DEGRADED and at_s >= self._calm_s and not self._low:
            self._set(LinkState.UP, f"bytes get through, no trouble for {HOLD_S:.1f} s")

    def _set(self, state: LinkState, why: str) -> None:
        self.state, self.why = state, why


def _waiting(reading: Reading) -> bool:
    return reading.outstanding_bytes > 0 or reading.receiving
