"""What goes wrong with a link and a server: each fault is caused and ended here.

Where a link is cut or a host vanishes, its port of the bridge is disabled: every packet is dropped
and nobody is told, as on Wi-Fi. (A port that is taken down loses its carrier, and the kernel may
take a second to notice that it is back: the cut would be longer than it says.) The proxy of
``fault_proxy`` stands on the server's host, behind the shaped link.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import fault_proxy
import msgspec
from benches.stations import Station, start_server
from shaped_link import ShapedLink, changing_rate

__all__ = ["FAULTS", "Fault", "Scene", "scene"]

TRICKLE_MBPS = 0.008
"""1 kB/s."""

DELAY_S = 0.2
_DISABLED, _FORWARDING = "0", "3"
"""States of a bridge's port."""


class Scene:
    """A link with a server on it that things can be done to.

    Args:
        link: The link.
        prefix: Words before the server's command.
        server: What the server runs.
        change: Sets the link's rate in Mbps.
        rate_mbps: What it is.
        proxied: Whether the robot comes through a proxy.
    """

    def __init__(
        self,
        link: ShapedLink,
        prefix: Sequence[str],
        server: Station,
        change: Callable[[float], None],
        rate_mbps: float,
        *,
        proxied: bool,
    ) -> None:
        self._link = link
        self._prefix = [*prefix, *link.server_prefix]
        self._change = change
        self._rate_mbps = rate_mbps
        station = msgspec.structs.replace(server, host=link.server_host)
        self._server, self.address = start_server(self._prefix, station)
        port = int(self.address.rpartition(":")[2])
        self._station = msgspec.structs.replace(station, port=port)
        self._proxy: subprocess.Popen[str] | None = None
        if proxied:
            words = [sys.executable, fault_proxy.__file__, self.address, link.server_host]
            self._proxy = subprocess.Popen(
                [*link.server_prefix, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            assert self._proxy.stdout is not None  # asked for above
            self.address = self._proxy.stdout.readline().strip()

    def close(self) -> None:
        """End server and proxy."""
        if self._proxy is not None:
            assert self._proxy.stdin is not None  # asked for above
            assert self._proxy.stdout is not None
            self._proxy.stdin.close()
            self._proxy.wait()
            self._proxy.stdout.close()
        self.signal(signal.SIGCONT)
        self._server.terminate()
        self._reap()

    def reachable(self, station: str, *, yes: bool) -> None:
        """Drop all packets from and to a station, or let them through again."""
        state = _FORWARDING if yes else _DISABLED
        words = ["bridge", "-n", self._link.air, "link", "set", "dev", station, "state", state]
        subprocess.run(words, check=True)

    def rate(self, mbps: float | None) -> None:
        """Set the link's rate; none for what it was."""
        self._change(self._rate_mbps if mbps is None else mbps)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        self._server.send_signal(number)

    def kill(self) -> None:
        """Kill the server."""
        self._server.kill()
        self._reap()

    def restart(self) -> None:
        """Start a server where the one before was, and wait until it listens."""
        self._server, _ = start_server(self._prefix, self._station)

    def tell(self, command: str) -> float:
        """Tell the proxy something; returns when it was carried out."""
        assert self._proxy is not None, "a fault of the proxy on a link without one"
        assert self._proxy.stdin is not None  # asked for above
        assert self._proxy.stdout is not None
        self._proxy.stdin.write(f"{command}\n")
        line = self._proxy.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended at {command!r}; its message stands above")
        return float(line)

    def _reap(self) -> None:
        self._server.wait()
        assert self._server.stdout is not None  # asked for above
        self._server.stdout.close()


@contextmanager
def scene(
    link: ShapedLink, prefix: Sequence[str], server: Station, rate_mbps: float, *, proxied: bool
) -> Iterator[Scene]:
    """Set a scene; at its end server and proxy are gone."""
    with changing_rate(link) as change:
        made = Scene(link, prefix, server, change, rate_mbps, proxied=proxied)
        try:
            yield made
        finally:
            made.close()


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        words: What it is.
        cause: Causes it, ends it, and returns the monotonic time of its end.
        proxied: Whether it needs the proxy.
    """

    words: str
    cause: Callable[[Scene, random.Random], float]
    proxied: bool = False


def _cut(seconds: float) -> Fault:
    def cause(on: Scene, _: random.Random) -> float:
        on.reachable("robot0", yes=False)
        time.sleep(seconds)
        on.reachable("robot0", yes=True)
        return time.monotonic()

    return Fault(f"all packets of the robot dropped for {seconds:g} s (bridge port)", cause)


def _killed(on: Scene, _: random.Random) -> float:
    on.kill()
    time.sleep(1.0)
    on.restart()
    return time.monotonic()


def _frozen(on: Scene, _: random.Random) -> float:
    on.signal(signal.SIGSTOP)
    time.sleep(3.0)
    on.signal(signal.SIGCONT)
    return time.monotonic()


def _vanished(on: Scene, _: random.Random) -> float:
    on.reachable("server", yes=False)
    on.kill()
    time.sleep(2.0)
    on.restart()
    on.reachable("server", yes=True)
    return time.monotonic()


def _trickle(on: Scene, _: random.Random) -> float:
    on.rate(TRICKLE_MBPS)
    time.sleep(5.0)
    on.rate(None)
    return time.monotonic()


def _mute(on: Scene, _: random.Random) -> float:
    on.tell("mute")
    time.sleep(3.0)
    return on.tell("pass")


def _delayed(on: Scene, _: random.Random) -> float:
    on.tell(f"delay {DELAY_S}")
    time.sleep(5.0)
    return on.tell("pass")


def _severed(direction: str, most: int) -> Callable[[Scene, random.Random], float]:
    def cause(on: Scene, draw: random.Random) -> float:
        return on.tell(f"sever {direction} {draw.randint(most // 10, most)}")

    return cause


FAULTS = {
    "cut-0.2": _cut(0.2),
    "cut-2": _cut(2.0),
    "cut-20": _cut(20.0),
    "killed": Fault("server killed (SIGKILL), started again 1 s later", _killed),
    "frozen": Fault("server stopped (SIGSTOP) for 3 s", _frozen),
    "vanished": Fault(
        "all packets of the server's host dropped (bridge port) for 2 s and until a new server "
        "runs: the robot's connection is half open",
        _vanished,
    ),
    "mute": Fault("for 3 s a proxy takes what comes, and never answers", _mute, proxied=True),
    "trickle": Fault("link at 1 kB/s for 5 s (token bucket)", _trickle),
    "delay": Fault("200 ms more each way for 5 s, by a proxy", _delayed, proxied=True),
    "severed-up": Fault(
        "connection cut inside a message to the server, by a proxy",
        _severed("up", 60_000),
        proxied=True,
    ),
    "severed-down": Fault(
        "connection cut inside an answer, by a proxy", _severed("down", 4_000), proxied=True
    ),
}
"""By name."""
