"""What the kernel counts of a TCP connection, read out of ``struct tcp_info``.

The structure has only ever grown at its end, so fields are taken by offset, and one that a kernel
is too old to have is none.

Source:
    ``include/uapi/linux/tcp.h`` of Linux 6.1, ``struct tcp_info``; numbers in the byte order of
    the machine. ``tcpi_bytes_acked`` came with Linux 4.1, ``tcpi_notsent_bytes`` with 4.6,
    ``tcpi_delivery_rate`` with 4.9.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple, Optional

__all__ = ["TcpInfo", "parse_tcp_info", "read_tcp_info"]

_TCP_INFO = 11
"""``TCP_INFO`` of ``linux/tcp.h``."""

_SIZE = 256
"""Room for the structure: 232 bytes in Linux 6.1."""

_APP_LIMITED_AT = 7
_UNACKED_AT = 24
_BYTES_ACKED_AT = 120
_BYTES_RECEIVED_AT = 128
_NOT_SENT_AT = 144
_MIN_RTT_AT = 148
_DELIVERY_RATE_AT = 160
"""Offsets in bytes."""

_NO_MIN_RTT = 0xFFFFFFFF
"""What ``tcpi_min_rtt`` is while there is none."""


class TcpInfo(NamedTuple):
    """Counters of one connection.

    Attributes:
        unacked: Segments sent and not acknowledged.
        bytes_acked: Bytes that the peer's kernel has acknowledged, since the connection began.
        bytes_received: Bytes received in order, since the connection began.
        not_sent_bytes: Bytes written that were not sent even once.
        min_rtt_s: Shortest round trip of late.
        delivery_bps: Payload bits per second of the newest round trip in which the connection
            had bytes to send all the time; none where the program, not the link, set the pace.
    """

    unacked: int
    bytes_acked: Optional[int]
    bytes_received: Optional[int]
    not_sent_bytes: Optional[int]
    min_rtt_s: Optional[float]
    delivery_bps: Optional[float]


def parse_tcp_info(data: bytes) -> Optional[TcpInfo]:
    """Read the structure; none where it is too short to be one."""
    unacked = _number(data, _UNACKED_AT, "=I")
    if unacked is None:
        return None
    min_rtt_us = _number(data, _MIN_RTT_AT, "=I")
    rate = _number(data, _DELIVERY_RATE_AT, "=Q")
    return TcpInfo(
        unacked=unacked,
        bytes_acked=_number(data, _BYTES_ACKED_AT, "=Q"),
        bytes_received=_number(data, _BYTES_RECEIVED_AT, "=Q"),
        not_sent_bytes=_number(data, _NOT_SENT_AT, "=I"),
        min_rtt_s=None if min_rtt_us in (None, _NO_MIN_RTT) else min_rtt_us * 1e-6,
        delivery_bps=rate * 8.0 if rate and not _app_limited(data) else None,
    )


def read_tcp_info(sock: socket.socket) -> Optional[TcpInfo]:
    """Ask the kernel; none where it has no such thing, or the socket is closed."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE))
    except (OSError, ValueError):
        return None


def _number(data: bytes, at: int, form: str) -> Optional[int]:
    if len(data) < at + struct.calcsize(form):
        return None
    return int(struct.unpack_from(form, data, at)[0])


def _app_limited(data: bytes) -> bool:
    """Read ``tcpi_delivery_rate_app_limited``.

    It is a bit field's first bit: where that is in the byte depends on the machine's byte order.
    """
    mask = 0x01 if sys.byteorder == "little" else 0x80
    return bool(data[_APP_LIMITED_AT] & mask)
