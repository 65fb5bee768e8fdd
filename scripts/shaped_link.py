"""A slow link on one machine: the robot in a network namespace, a veth pair, a token bucket.

Needs Linux, root, and ip(8) and tc(8). Both directions are shaped, each to the given rate, so the
link is full duplex: Wi-Fi, which shares one budget, would be slower where much comes back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BURST = "10kb"
"""Token bucket depth. A deeper one would let whole frames through for free."""


@dataclass(frozen=True)
class ShapedLink:
    """Where to run both ends.

    Attributes:
        server_host: Address for the server to listen on.
        robot_prefix: Words to put before the robot's command.
        description: What the link is, for the reader of a table.
    """

    server_host: str
    robot_prefix: list[str]
    description: str


@contextmanager
def shaped_link(rate_mbps: float) -> Iterator[ShapedLink]:
    """Give a link of ``rate_mbps``, or the loopback with the reason why it is not shaped."""
    trouble = _trouble()
    if trouble:
        yield ShapedLink("127.0.0.1", [], f"loopback, not shaped: {trouble}")
        return
    name = f"splitrt-{os.getpid()}"
    near, far = f"sr{os.getpid() % 100000}a", f"sr{os.getpid() % 100000}b"
    # A /30 out of the range set aside for tests of networks between two hosts (RFC 2544).
    subnet = f"198.18.{os.getpid() % 250}"
    shape = f"root tbf rate {rate_mbps}mbit burst {BURST} latency 200ms".split()
    steps = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name],
        ["ip", "addr", "add", f"{subnet}.1/30", "dev", near],
        ["ip", "link", "set", near, "up"],
        ["ip", "-n", name, "addr", "add", f"{subnet}.2/30", "dev", far],
        ["ip", "-n", name, "link", "set", far, "up"],
        ["ip", "-n", name, "link", "set", "lo", "up"],
        ["tc", "qdisc", "add", "dev", near, *shape],
        ["tc", "-n", name, "qdisc", "add", "dev", far, *shape],
    ]
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                trouble = f"`{' '.join(step)}` said {done.stderr.strip()!r}"
                break
        if trouble:
            yield ShapedLink("127.0.0.1", [], f"loopback, not shaped: {trouble}")
        else:
            prefix = ["ip", "netns", "exec", name]
            what = f"{rate_mbps:g} Mbps each way (full duplex), network namespace and token bucket"
            yield ShapedLink(f"{subnet}.1", prefix, what)
    finally:
        for step in (["ip", "link", "del", near], ["ip", "netns", "del", name]):
            subprocess.run(step, capture_output=True, check=False)


def _trouble() -> str:
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"needs {' and '.join(missing)}" if missing else ""
