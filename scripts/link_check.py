"""Measures a link by itself: up, down, both at once, one frame after a pause, the round trip.

Run before every bench that claims a rate, since a shaper that does not shape makes any scheme
look good. What counts is the payload that the other end has received.

    python scripts/link_check.py --rate 93 --half-duplex
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from shaped_link import PAYLOAD_SHARE, ShapedLink, shaped_link

__all__ = ["LinkCheck", "check_link", "probe", "serve", "trouble"]

BULK_BYTES = 6_000_000
FRAME_BYTES = 150_528
"""A 224 x 224 picture in uint8."""

FRAMES = 7
PAUSE_S = 0.3
"""Longer than TCP's shortest retransmission time: the congestion window starts afresh."""

ROUND_TRIPS = 20
_REQUEST_BYTES = 24


@dataclass(frozen=True)
class LinkCheck:
    """What a link gives; rates in 1e6 payload bits per second.

    Attributes:
        up_mbps: From robot to server.
        down_mbps: Back.
        both_up_mbps: Up, while as much comes back.
        both_down_mbps: The other of the two.
        both_mbps: Both, by the time of the slower.
        frame_ms: One frame up after a pause, until its receipt is back.
        rtt_ms: Round trip of a byte.
    """

    up_mbps: float
    down_mbps: float
    both_up_mbps: float
    both_down_mbps: float
    both_mbps: float
    frame_ms: float
    rtt_ms: float

    def __str__(self) -> str:
        return (
            f"up {self.up_mbps:.1f}, down {self.down_mbps:.1f}, both at once "
            f"{self.both_up_mbps:.1f} + {self.both_down_mbps:.1f} Mbps (together "
            f"{self.both_mbps:.1f}); {FRAME_BYTES / 1e3:.0f} kB after a pause "
            f"{self.frame_ms:.1f} ms; round trip {self.rtt_ms:.2f} ms"
        )


def check_link(link: ShapedLink) -> LinkCheck:
    """Measure a link with two processes, one at each end."""
    here = [sys.executable, str(Path(__file__).resolve())]
    server = subprocess.Popen(
        [*link.server_prefix, *here, "--serve", link.server_host],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None  # asked for above
    try:
        address = server.stdout.readline().strip()
        done = subprocess.run(
            [*link.robot_prefix, *here, "--probe", address],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=120,
        )
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
    return LinkCheck(**json.loads(done.stdout))


def trouble(check: LinkCheck, link: ShapedLink, *, tolerance: float = 0.1) -> str:
    """Say how a link misses what it should be; an empty string if it does not."""
    if link.rate_mbps is None:
        return "the link is not shaped"
    goodput = link.rate_mbps * PAYLOAD_SHARE
    both = goodput if link.half_duplex else 2 * goodput
    frame_ms = FRAME_BYTES * 8e-3 / goodput
    wrong = [
        f"{what}: expected {expected:.1f} {unit}, given {given:.1f}"
        for what, given, expected, unit in (
            ("up", check.up_mbps, goodput, "Mbps"),
            ("down", check.down_mbps, goodput, "Mbps"),
            ("both", check.both_mbps, both, "Mbps"),
            ("a frame", check.frame_ms, frame_ms, "ms"),
        )
        if abs(given / expected - 1) > tolerance
    ]
    return "; ".join(wrong)


def serve(host: str) -> None:
    """Answer probes until the process ends; prints the address first."""
    with socket.create_server((host, 0)) as listener:
        print("{}:{}".format(*listener.getsockname()), flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def probe(address: str) -> LinkCheck:
    """Measure from the robot's end."""
    ways = [_connect(address), _connect(address)]
    for way, kind in zip(ways, ("up", "down"), strict=True):  # TCP finds its window
        _transfer(way, kind, BULK_BYTES // 3)
    alone = [
        _mbps(_transfer(way, kind, BULK_BYTES))
        for way, kind in zip(ways, ("up", "down"), strict=True)
    ]
    seconds = [0.0, 0.0]

    def one(number: int, kind: str) -> None:
        seconds[number] = _transfer(ways[number], kind, BULK_BYTES)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(("up", "down"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trips = [_transfer(ways[0], "up", 1) for _ in range(ROUND_TRIPS)]
    frames: list[float] = []
    for _ in range(FRAMES):
        time.sleep(PAUSE_S)
        frames.append(_transfer(ways[0], "up", FRAME_BYTES))
    for way in ways:
        way.close()
    return LinkCheck(
        up_mbps=alone[0],
        down_mbps=alone[1],
        both_up_mbps=_mbps(seconds[0]),
        both_down_mbps=_mbps(seconds[1]),
        both_mbps=2 * _mbps(max(seconds)),
        frame_ms=1e3 * statistics.median(frames),
        rtt_ms=1e3 * statistics.median(trips),
    )


def _mbps(seconds: float) -> float:
    return 8e-6 * BULK_BYTES / seconds


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    way = socket.create_connection((host, int(port)), timeout=60)
    way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return way


def _transfer(way: socket.socket, kind: str, size: int) -> float:
    """Send or fetch so many bytes; returns the seconds until they have arrived."""
    begin = time.perf_counter()
    way.sendall(f"{kind} {size}".ljust(_REQUEST_BYTES).encode())
    if kind == "up":
        way.sendall(bytes(size))
        _receive(way, 1)
    else:
        _receive(way, size)
    return time.perf_counter() - begin


def _answer(way: socket.socket) -> None:
    way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with way:
        while True:
            request = way.recv(_REQUEST_BYTES, socket.MSG_WAITALL).decode().split()
            if not request:
                return
            kind, size = request[0], int(request[1])
            if kind == "up":
                _receive(way, size)
                way.sendall(b"k")
            else:
                way.sendall(bytes(size))


def _receive(way: socket.socket, size: int) -> None:
    block = memoryview(bytearray(1 << 20))
    while size:
        count = way.recv_into(block[: min(size, len(block))])
        if not count:
            raise ConnectionError("the other end closed the connection")
        size -= count


@click.command()
@click.option("--rate", "rate_mbps", default=93.0, show_default=True, help="Mbps.")
@click.option("--half-duplex", is_flag=True, help="One budget for both directions.")
@click.option("--serve", "serve_on", metavar="HOST", help="Be the server's end.")
@click.option("--probe", "probe_at", metavar="HOST:PORT", help="Be the robot's end.")
def main(rate_mbps: float, half_duplex: bool, serve_on: str | None, probe_at: str | None) -> None:
    """Shape a link, measure it, and say how it misses what it should be."""
    if serve_on is not None:
        serve(serve_on)
    elif probe_at is not None:
        print(json.dumps(asdict(probe(probe_at))))
    else:
        with shaped_link(rate_mbps, half_duplex=half_duplex) as link:
            check = check_link(link)
            print(f"link: {link.description}\n      {check}")
            wrong = trouble(check, link)
        if wrong:
            print(f"wrong: {wrong}")
            raise SystemExit(1)


if __name__ == "__main__":
    main()
