"""Fingerprints: what must be equal for a plan or a latency table to hold on a device."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Dict

import msgspec

__all__ = ["Fingerprint", "cpu_name", "device_name"]


class Fingerprint(msgspec.Struct, frozen=True):
    """Device and library versions.

    Attributes:
        backend: Name of the backend.
        fields: What the backend's results depend on, such as ``device`` and ``version``.
    """

    backend: str
    fields: Dict[str, str]

    @property
    def key(self) -> str:
        """Twelve hex digits that name this fingerprint in a path."""
        text = "\n".join([self.backend, *(f"{k}={v}" for k, v in sorted(self.fields.items()))])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return ", ".join([self.backend, *(f"{k} {v}" for k, v in sorted(self.fields.items()))])


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def device_name() -> str:
    """Return the board's name (Jetson and other device-tree boards), else the processor's.

    Source:
        Device tree property ``model``, as Linux for Tegra fills it in.
    """
    try:
        board = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
    except OSError:
        board = ""
    board = board.strip("\0 \n")
    cores = os.cpu_count() or 1
    return f"{board or cpu_name()} ({platform.machine()}, {cores} cores)"
