from __future__ import annotations

import socket
import struct
import sys

import pytest

from runtime.tcp_info import TcpInfo, parse_tcp_info, read_tcp_info

# As Linux 6.1 lays the structure out: eight bytes, 24 u32, four u64, ...
LITERAL = bytes.fromhex(
    "01000000 0007a700"  # established; scales; delivery rate not app-limited
    "40 0d 03 00  40 9c 00 00  a8 05 00 00  a8 05 00 00"  # rto, ato, snd_mss, rcv_mss
    "0b 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00"  # unacked 11, ...
    "04 00 00 00  00 00 00 00  04 00 00 00  04 00 00 00"  # last sent and received
    "dc 05 00 00  b0 fc 00 00  b8 0b 00 00  ee 02 00 00"  # pmtu, rcv_ssthresh, rtt, rttvar
    "ff ff ff 7f  0a 00 00 00  b4 05 00 00  03 00 00 00"  # ssthresh, cwnd, advmss, reordering
    "00 00 00 00  90 1f 00 00  00 00 00 00"  # rcv_rtt, rcv_space, total_retrans
    "00 00 00 00 00 00 00 00  ff ff ff ff ff ff ff ff"  # pacing rates
    "40 42 0f 00 00 00 00 00  20 a1 07 00 00 00 00 00"  # acked 1000000, received 500000
    "e8 03 00 00  f4 01 00 00"  # segments out and in
    "60 ea 00 00  d0 07 00 00"  # not sent 60000, min rtt 2000 us
    "00 00 00 00  e8 03 00 00"  # data segments
    "80 96 98 00 00 00 00 00"  # delivery rate 10000000 bytes per second
)

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are little endian")


@little_endian
def test_literal_bytes() -> None:
    assert len(LITERAL) == 168
    assert parse_tcp_info(LITERAL) == TcpInfo(11, 1_000_000, 500_000, 60_000, 0.002, 80e6)


@little_endian
def test_later_kernels_have_more_behind_it() -> None:
    assert parse_tcp_info(LITERAL + b"\xff" * 64) == parse_tcp_info(LITERAL)


@little_endian
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (104, TcpInfo(11, None, None, None, None, None)),  # before Linux 4.1
        (136, TcpInfo(11, 1_000_000, 500_000, None, None, None)),
        (160, TcpInfo(11, 1_000_000, 500_000, 60_000, 0.002, None)),  # Linux 4.6
        (27, None),
        (0, None),
    ],
)
def test_earlier_kernels_have_less(size: int, expected: TcpInfo | None) -> None:
    assert parse_tcp_info(LITERAL[:size]) == expected


@pytest.mark.parametrize("size", range(len(LITERAL)))
def test_any_size_is_read(size: int) -> None:
    parse_tcp_info(LITERAL[:size])


@little_endian
def test_a_rate_that_the_program_set_is_none() -> None:
    limited = bytearray(LITERAL)
    limited[7] |= 1
    info = parse_tcp_info(bytes(limited))
    assert info is not None
    assert info.delivery_bps is None
    limited[7] = 2  # another field's bit
    info = parse_tcp_info(bytes(limited))
    assert info is not None
    assert info.delivery_bps == 80e6


@little_endian
def test_no_round_trip_yet() -> None:
    early = bytearray(LITERAL)
    struct.pack_into("<I", early, 148, 0xFFFFFFFF)
    info = parse_tcp_info(bytes(early))
    assert info is not None
    assert info.min_rtt_s is None


def test_a_socket_that_is_closed_or_no_tcp_has_none() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert read_tcp_info(sock) is None
    assert read_tcp_info(sock) is None
