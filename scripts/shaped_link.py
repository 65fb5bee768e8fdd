"""A slow link on one machine: stations in network namespaces, a bridge between, token buckets.

Every station (the server, one robot or more) has a namespace of its own; a further one, the air,
holds the bridge and what shapes. Full duplex shapes each direction by itself. Half duplex, as on
Wi-Fi, leads whatever any station sends through one token bucket, with a queue for each station
served in turns, so that an answer does not wait behind all of the next frame.

Needs Linux, root, ip(8), tc(8); half duplex the kernel's ifb device, u32 and mirred too. Nothing
outside the namespaces is touched, and they are deleted at the end.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = [
    "BURST",
    "PAYLOAD_SHARE",
    "ShapedLink",
    "changing_rate",
    "delete_namespaces",
    "shaped_link",
    "steps_of",
]

BURST = 10_000
"""Deepest token bucket, in bytes. A deeper one would let whole frames through for free."""

BURST_S = 1e-3
"""What a bucket holds: so long of the rate, but at least two packets."""

_SHALLOWEST = 3100

PAYLOAD_SHARE = 1448 / 1514
"""Payload of a full TCP segment by its size on Ethernet, as the token bucket counts it."""

QUEUE_BYTES = 4_000_000
"""Longest queue of a station: a few frames, so that none drops and TCP never backs off."""

CONGESTION = "reno"
"""TCP's congestion control in the namespaces. Loss-based, as the cubic of most robots, which
namespaces may not choose; BBR, which some machines have as their default, stops every 10 s to
measure the round trip."""

_SUBNET = "198.18.0"
"""Out of the range set aside for tests of networks (RFC 2544)."""

_PREFIX = "splitrt-"

_numbers = itertools.count()
"""Of the links of this process, which may have several at a time."""


@dataclass(frozen=True)
class ShapedLink:
    """Where to run both ends.

    Attributes:
        server_host: Address for the server to listen on.
        robot_prefix: Words to put before the command of the first robot.
        description: What the link is, for the reader of a table.
        server_prefix: Words to put before the server's command.
        robot_prefixes: Words to put before each robot's command.
        rate_mbps: Rate of each token bucket; none where the link is not shaped.
        half_duplex: Whether there is one bucket for all that is sent.
        shapers: Namespace and device of each token bucket.
        burst: Their depth in bytes; none for what suits the rate.
        air: Namespace of the bridge, whose ports are called as the stations: ``server``,
            ``robot0`` and so on.
    """

    server_host: str
    robot_prefix: list[str]
    description: str
    server_prefix: list[str] = field(default_factory=list)
    robot_prefixes: list[list[str]] = field(default_factory=lambda: [[]])
    rate_mbps: float | None = None
    half_duplex: bool = False
    shapers: list[tuple[str, str]] = field(default_factory=list)
    burst: int | None = None
    air: str = ""


@contextmanager
def shaped_link(
    rate_mbps: float, *, half_duplex: bool = False, robots: int = 1, burst: int | None = None
) -> Iterator[ShapedLink]:
    """Give a link of ``rate_mbps``, or the loopback with the reason why it is not shaped.

    Args:
        rate_mbps: Rate in 1e6 bits per second, headers included.
        half_duplex: One budget for both directions and all robots; else one for each direction
            of each robot.
        robots: Robots on the link.
        burst: Depth of each token bucket in bytes; none for what suits the rate.
    """
    trouble = _trouble()
    name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
    try:
        if not trouble:
            _delete_orphans()
            steps = steps_of(name, rate_mbps, half_duplex=half_duplex, robots=robots, burst=burst)
            for step in steps:
                done = subprocess.run(step, capture_output=True, text=True, check=False)
                if done.returncode:
                    trouble = f"`{' '.join(step)}` said {done.stderr.strip()!r}"
                    break
        if trouble:
            bare = [[] for _ in range(robots)]
            text = f"loopback, not shaped: {trouble}"
            yield ShapedLink("127.0.0.1", [], text, robot_prefixes=bare)
            return
        prefixes = [["ip", "netns", "exec", f"{name}-robot{i}"] for i in range(robots)]
        duplex = "both ways together (half duplex)" if half_duplex else "each way (full duplex)"
        yield ShapedLink(
            server_host=f"{_SUBNET}.1",
            robot_prefix=prefixes[0],
            description=f"{rate_mbps:g} Mbps {duplex}, network namespaces and token bucket",
            server_prefix=["ip", "netns", "exec", f"{name}-server"],
            robot_prefixes=prefixes,
            rate_mbps=rate_mbps,
            half_duplex=half_duplex,
            shapers=_shapers(name, half_duplex=half_duplex, robots=robots),
            burst=burst,
            air=f"{name}-air",
        )
    finally:
        delete_namespaces(name)


@contextmanager
def changing_rate(link: ShapedLink) -> Iterator[Callable[[float], None]]:
    """Give a function that sets every token bucket of a link to a rate in Mbps, at once.

    One tc(8) per namespace takes the changes as lines, since starting it takes milliseconds. What
    is queued stays queued. A link that is not shaped stays as it is.
    """
    tools = {
        namespace: subprocess.Popen(
            ["tc", "-n", namespace, "-batch", "-"], stdin=subprocess.PIPE, text=True, bufsize=1
        )
        for namespace in dict(link.shapers)
    }

    def change(rate_mbps: float) -> None:
        for namespace, device in link.shapers:
            pipe = tools[namespace].stdin
            assert pipe is not None  # asked for above
            pipe.write(
                f"qdisc change dev {device} root handle 1: {_bucket(rate_mbps, link.burst)}\n"
            )

    try:
        yield change
    finally:
        for tool in tools.values():
            assert tool.stdin is not None  # asked for above
            tool.stdin.close()
            tool.wait()


def steps_of(
    name: str, rate_mbps: float, *, half_duplex: bool, robots: int, burst: int | None = None
) -> list[list[str]]:
    """Return the commands that make the link, in order; all namespaces begin with ``name``."""
    air = f"{name}-air"
    stations = ["server", *(f"robot{i}" for i in range(robots))]
    steps = [
        f"ip netns add {air}",
        f"ip -n {air} link add name bridge0 type bridge",
        f"ip -n {air} link set bridge0 up",
    ]
    if half_duplex:
        steps += [f"ip -n {air} link add shaper type ifb", f"ip -n {air} link set shaper up"]
        steps += _shaper(air, "shaper", _bucket(rate_mbps, burst))
    for number, station in enumerate(stations, start=1):
        own, address = f"{name}-{station}", f"{_SUBNET}.{number}"
        steps += [
            f"ip netns add {own}",
            f"ip -n {air} link add {station} type veth peer name net netns {own}",
            f"ip -n {air} link set {station} master bridge0 up",
            f"ip -n {own} addr add {address}/24 dev net",
            f"ip -n {own} link set net up",
            f"ip -n {own} link set lo up",
            f"ip netns exec {own} sysctl -qw net.ipv4.tcp_congestion_control={CONGESTION}",
        ]
        if half_duplex:
            steps += _queue(air, "shaper", number, f"ip src {address}/32")
            aside = "u32 match u32 0 0 action mirred egress redirect dev shaper"
            steps += [
                f"tc -n {air} qdisc add dev {station} handle ffff: ingress",
                f"tc -n {air} filter add dev {station} parent ffff: protocol all {aside}",
            ]
        elif station != "server":
            for namespace, device in ((own, "net"), (air, station)):
                steps += _shaper(namespace, device, _bucket(rate_mbps, burst))
                # Receipts wait for a packet, not for all the data of the other direction.
                steps += _queue(namespace, device, 1, "u16 0x0000 0xff80 at 2")  # below 128 bytes
                steps += _queue(namespace, device, 2, "ip src 0.0.0.0/0")
    return [step.split() for step in steps]


def _shaper(namespace: str, device: str, bucket: str) -> list[str]:
    """Put a token bucket on a device, and below it queues that take turns, a packet each."""
    tc = f"tc -n {namespace} qdisc add dev {device}"
    return [f"{tc} root handle 1: {bucket}", f"{tc} parent 1:1 handle 2: htb default 99"]


def _bucket(rate_mbps: float, burst: int | None) -> str:
    if burst is None:
        burst = min(BURST, max(_SHALLOWEST, round(rate_mbps * 1e6 / 8 * BURST_S)))
    return f"tbf rate {rate_mbps}mbit burst {burst}b limit {QUEUE_BYTES}"


def _shapers(name: str, *, half_duplex: bool, robots: int) -> list[tuple[str, str]]:
    if half_duplex:
        return [(f"{name}-air", "shaper")]
    found = [(f"{name}-robot{i}", "net") for i in range(robots)]
    return found + [(f"{name}-air", f"robot{i}") for i in range(robots)]


def _queue(namespace: str, device: str, number: int, match: str) -> list[str]:
    """Add a queue for the packets that match; its class never waits, the bucket sets the rate."""
    tc, leaf = f"tc -n {namespace}", f"2:{number}"
    filtered = f"{tc} filter add dev {device} parent 2: protocol ip prio {number}"
    return [
        f"{tc} class add dev {device} parent 2: classid {leaf} htb rate 10gbit quantum 1514",
        f"{tc} qdisc add dev {device} parent {leaf} bfifo limit {QUEUE_BYTES}",
        f"{filtered} u32 match {match} flowid {leaf}",
    ]


def delete_namespaces(name: str) -> None:
    """Delete the namespaces of a link, and with them all that is in them."""
    for namespace in _namespaces():
        if namespace.startswith(f"{name}-"):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _delete_orphans() -> None:
    """Delete what programs left that were killed."""
    for namespace in _namespaces():
        pid = namespace.removeprefix(_PREFIX).partition("-")[0]
        if namespace.startswith(_PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _namespaces() -> list[str]:
    if shutil.which("ip") is None:
        return []
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


def _trouble() -> str:
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "tc", "sysctl") if shutil.which(tool) is None]
    return f"needs {' and '.join(missing)}" if missing else ""
