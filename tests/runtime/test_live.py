from __future__ import annotations

import io

from rich.console import Console

from runtime.live import LiveTable
from runtime.result import Result
from runtime.summary import Summary


def _result(seq: int) -> Result:
    return Result(
        outputs={}, seq=seq, cut="0badcafe", answered_by="remote", reason=f"reason {seq}",
        latency_s=0.04, robot_s=0.01, link_s=0.02, server_s=0.01, queue_s=0.0, bytes_up=10,
        bytes_down=1, goodput_bps=None if seq == 0 else 40e6, energy_j=0.25, predicted=None,
    )  # fmt: skip


def test_the_table_shows_the_newest_results_and_what_they_add_up_to() -> None:
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=True, width=120)
    summary = Summary()
    with LiveTable("toy, splitrt", summary, console=console) as live:
        console.print(live.render())  # nothing yet
        for seq in range(40):
            result = _result(seq)
            summary.add(result)
            live.add(result.record())
        shown = Console(width=120, file=io.StringIO())
        with shown.capture() as taken:
            shown.print(live.render())
    live.close()
    text = taken.get()
    assert "toy, splitrt" in text
    assert "reason 39" in text
    assert "reason 10" not in text
    assert "40 inferences, 0 failed; p50 40.00" in text
