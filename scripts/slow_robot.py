"""A slow robot on a fast machine: a CPU quota over a short period, by cgroup v1.

The kernel's default period of 100 ms freezes a process for tens of milliseconds at a time; with
at most 5 ms the robot is slow evenly. The shortest quota that the kernel takes is 1 ms, so the
smallest share is a fifth of a core. An inference should still last many periods (over 300 ms).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PERIOD_US", "SMALLEST_SHARE", "SlowRobot", "slow_robot"]

PERIOD_US = 5000
"""Longest period that is still even."""

_SHORTEST_US = 1000
"""Shortest quota and period that the kernel takes."""

SMALLEST_SHARE = _SHORTEST_US / PERIOD_US

_CPU = Path("/sys/fs/cgroup/cpu")
_PREFIX = "splitrt-"

# It joins before `ip netns exec`, which hides the cgroups behind a /sys of its own.
_JOIN = 'echo $$ > "$0" && exec "$@"'


@dataclass(frozen=True)
class SlowRobot:
    """How to start a process that is slow.

    Attributes:
        prefix: Words to put before the command, and before those of a network namespace.
        description: How it is slowed, for the reader of a table.
        share: Share of one core that all its threads have together; none where not slowed.
        group: The control group's folder.
    """

    prefix: list[str] = field(default_factory=list)
    description: str = ""
    share: float | None = None
    group: Path | None = None

    def throttled(self) -> tuple[int, float]:
        """Return how many periods it was throttled in so far, and for how many seconds."""
        if self.group is None:
            return 0, 0.0
        lines = (self.group / "cpu.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        return int(stat["nr_throttled"]), int(stat["throttled_time"]) * 1e-9


@contextmanager
def slow_robot(
    share: float, *, period_us: int = PERIOD_US, root: Path = _CPU
) -> Iterator[SlowRobot]:
    """Make a control group that has a share of one core; at the end it is gone.

    Processes that are still in it then go back to where everybody is.

    Args:
        share: CPU time over time, of all its threads together; from 0.2 on at the period of 5 ms.
        period_us: Period of the quota in microseconds, 1000 to 5000.
        root: Folder of the CPU controller.

    Raises:
        ValueError: A period that is not even, or a share that the kernel does not take.
    """
    if not _SHORTEST_US <= period_us <= PERIOD_US:
        raise ValueError(f"period_us: expected {_SHORTEST_US} to {PERIOD_US}, given {period_us}")
    quota_us = round(share * period_us)
    if quota_us < _SHORTEST_US:
        raise ValueError(f"share: expected {_SHORTEST_US / period_us:g} or more, given {share:g}")
    group = root / f"{_PREFIX}{os.getpid()}-{time.monotonic_ns() % 10**9}"
    try:
        trouble = _make(group, quota_us, period_us)
        if trouble:
            yield SlowRobot(description=f"not slowed: {trouble}")
        else:
            yield SlowRobot(
                prefix=["sh", "-c", _JOIN, str(group / "cgroup.procs")],
                description=f"{share:.2f} of a core, period {period_us / 1e3:g} ms",
                share=share,
                group=group,
            )
    finally:
        _remove(group, root)


def _make(group: Path, quota_us: int, period_us: int) -> str:
    """Make the group; returns what is in the way."""
    if not (group.parent / "cgroup.procs").exists():
        return f"no cgroup v1 CPU controller at {group.parent}"
    try:
        group.mkdir()
        # The period first: a quota above the default period's would be another share.
        (group / "cpu.cfs_period_us").write_text(str(period_us))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    except OSError as exc:
        return f"{exc.filename}: {exc.strerror}"
    return ""


def _remove(group: Path, root: Path) -> None:
    for _ in range(50):  # a process that was killed leaves its group a moment later
        if not group.exists():
            return
        with suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (root / "cgroup.procs").write_text(pid)
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)
