"""Helpers of the runtime's tests: waiting, counting what is left behind, peers that misbehave."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import numpy as np

from runtime import Result, Server

PATIENCE_S = 30.0
"""Far longer than anything here takes: a test that reaches it has found something that hangs."""


def ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("splitrt-")]


def sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return count


def eventually(
    condition: Callable[[], object], what: str, *, within_s: float = PATIENCE_S
) -> None:
    """Wait until ``condition()`` holds."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(0.01)


def address(server: Server) -> str:
    return "{}:{}".format(*server.address)


def assert_right(result: Result, expected: dict[str, np.ndarray]) -> None:
    assert set(result.outputs) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(result.outputs[name], array, atol=1e-5)
