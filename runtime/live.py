"""What `runtime infer` shows on a terminal while it runs: the newest results and the link."""

from __future__ import annotations

import collections
from typing import Any, Deque, Dict, Optional

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runtime.summary import Summary

__all__ = ["LiveTable"]

_LINES = 12
_REFRESHES_HZ = 4.0


class LiveTable:
    """A table that follows a run. A context manager; nothing of it but the last state stays.

    Args:
        title: What runs.
        summary: Of the run, kept by the caller.
        console: Where to; the standard output by default.
    """

    def __init__(self, title: str, summary: Summary, *, console: Optional[Console] = None) -> None:
        self._title = title
        self._summary = summary
        self._newest: Deque[Dict[str, Any]] = collections.deque(maxlen=_LINES)
        self._live = Live(
            console=console or Console(),
            get_renderable=self.render,
            refresh_per_second=_REFRESHES_HZ,
        )

    def __enter__(self) -> LiveTable:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Begin to show it."""
        self._live.start()

    def close(self) -> None:
        """Leave the last state on the terminal; safe to call again."""
        self._live.stop()

    def add(self, record: Dict[str, Any]) -> None:
        """Show a result's record from the next refresh on."""
        self._newest.append(record)

    def render(self) -> Group:
        """Return the table as it is now."""
        table = Table("seq", "ms", "choice", "by", "robot", "link", "server", "Mbps", "J", "why")
        table.title, table.title_justify = self._title, "left"
        for record in tuple(self._newest):
            goodput, lossy = record["goodput_mbps"], " LOSSY" if record["lossy"] else ""
            table.add_row(
                str(record["seq"]),
                f"{record['latency_ms']:.2f}",
                f"{record['mode']}{lossy} {record['plan'] or record['cut']}",
                record["answered_by"],
                f"{record['robot_ms']:.2f}",
                f"{record['link_ms']:.2f}",
                f"{record['server_ms']:.2f}",
                "-" if goodput is None else f"{goodput:.1f}",
                f"{record['energy_j']:.3f}",
                record["reason"],
            )
        sums = self._summary.record()
        line = ""
        if sums["count"]:
            line = (
                f"{sums['count']} inferences, {sums['failures']} failed; "
                f"p50 {sums['p50_ms']:.2f}, "
                f"p95 {sums['p95_ms']:.2f} ms; mean {sums['mean_energy_j']:.3f} J"
            )
        return Group(table, Text(line))
