"""Evidence about a link: what the estimator is told, with the time of each.

Plain records, so that a run's evidence can be written down as JSON lines and replayed. Times are
seconds of a clock that never goes back; which one does not matter.
"""

from __future__ import annotations

import math
from typing import Optional, Union

import msgspec

__all__ = [
    "Connected",
    "Evidence",
    "Exchange",
    "Lost",
    "QueueTime",
    "Reading",
    "RoundTrip",
    "Transfer",
    "decode_evidence",
    "encode_evidence",
    "sound",
]


class Reading(msgspec.Struct, frozen=True, tag="reading"):
    """A connection's counters at one moment.

    Attributes:
        at_s: When they were read.
        acked_bytes: Bytes that the peer has acknowledged since the connection began.
        received_bytes: Bytes received since the connection began.
        outstanding_bytes: Bytes written that the peer has not acknowledged, sent or not.
        receiving: Whether a message is half received: more bytes of it must come.
        blocked: Whether the peer, not the link, holds the outstanding bytes up: its window is
            closed, so nothing is in flight.
        delivery_bps: The kernel's own measure of the newest round trip; none where the program
            set the pace, or the kernel has no such measure.
    """

    at_s: float
    acked_bytes: int
    received_bytes: int
    outstanding_bytes: int
    receiving: bool = False
    blocked: bool = False
    delivery_bps: Optional[float] = None


class Transfer(msgspec.Struct, frozen=True, tag="transfer"):
    """A transfer that was alone on the link.

    Attributes:
        at_s: When it ended.
        payload_bytes: Bytes that went up and came back.
        seconds: From the first byte sent to the last received, less the time that the server had
            the request.
    """

    at_s: float
    payload_bytes: int
    seconds: float


class Exchange(msgspec.Struct, frozen=True, tag="exchange"):
    """A whole request as the robot saw it, where no other was under way.

    Attributes:
        at_s: When it ended.
        payload_bytes: Bytes that went up and came back.
        seconds: From when it was ready to be coded to when the answer was in the hands of who had
            waited for it, less the time that the server had the request.
    """

    at_s: float
    payload_bytes: int
    seconds: float


class RoundTrip(msgspec.Struct, frozen=True, tag="round_trip"):
    """The round trip of a message without payload."""

    at_s: float
    seconds: float


class QueueTime(msgspec.Struct, frozen=True, tag="queue"):
    """How long a request waited at the server for those of others, as the server said."""

    at_s: float
    seconds: float


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    """A connection was opened: counters begin anew."""

    at_s: float


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """The connection is gone."""

    at_s: float
    why: str


Evidence = Union[Reading, Transfer, Exchange, RoundTrip, QueueTime, Connected, Lost]

_DECODER: "msgspec.json.Decoder[Evidence]" = msgspec.json.Decoder(Evidence)


def sound(evidence: Evidence) -> bool:
    """Whether all its numbers are finite and none is negative."""
    for name in evidence.__struct_fields__:
        value = getattr(evidence, name)
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
            return False
    return True


def encode_evidence(evidence: Evidence) -> bytes:
    """Return it as a line of JSON, without the end of the line."""
    return msgspec.json.encode(evidence)


def decode_evidence(line: "bytes | str") -> Evidence:
    """Read what :func:`encode_evidence` wrote.

    Raises:
        msgspec.ValidationError: It is something else.
    """
    return _DECODER.decode(line)
