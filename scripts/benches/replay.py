"""Replay: every published workload at the testbed's rates, against the whole frame and the robot.

Times are those that the published devices took; link, transport, stripes and choices are real.
Measured with launches as they were; predicted for launches that cost nothing and
twice as much too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benches.plan_rows import chosen, gain_row, plan_rows, prepared, run_plans
from benches.row import Row
from benches.stations import Station
from link_check import check_link, trouble
from shaped_link import PAYLOAD_SHARE, ShapedLink, shaped_link
from workloads import WORKLOADS
from workloads.bundles import Replayed, replayed
from workloads.profiles import TESTBED
from workloads.replay_tables import FLOORS

BUILD = Path(__file__).resolve().parent.parent.parent / "build"
RATES_MBPS = (93.0, 73.0, 40.0)
COUNT = int(os.environ.get("SPLITRT_BENCH_COUNT", "20"))

ROWS_GAIN = 0.88
ROWS_AT = {"agrnav": (93.0, 73.0)}
"""Where row-parallel must stay this far below the better of robot and frame: labels a byte each,
uncoded on both sides."""


def run() -> list[Row]:
    """Replay all workloads, or those that SPLITRT_BENCH_WORKLOADS names."""
    if not os.environ.get(TESTBED):
        print(f"skipped: set {TESTBED} to the folder with the published profiles", file=sys.stderr)
        return []
    named = os.environ.get("SPLITRT_BENCH_WORKLOADS", "")
    names = named.split(",") if named else [n for n, w in WORKLOADS.items() if w.profile]
    made = {name: replayed(name, BUILD) for name in names}
    rows: list[Row] = []
    for rate in RATES_MBPS:
        with shaped_link(rate, half_duplex=True) as link:
            check = check_link(link)
            print(f"{link.description}: {check} {trouble(check, link)}", file=sys.stderr)
            for name, workload in made.items():
                goodput_bps, rtt_s = rate * 1e6 * PAYLOAD_SHARE, check.rtt_ms * 1e-3
                what = f"{name} at {rate:g} Mbps"
                limit = ROWS_GAIN if rate in ROWS_AT.get(name, ()) else None
                rows += _workload(what, workload, link, goodput_bps, rtt_s, limit)
    return rows


def _workload(
    what: str,
    workload: Replayed,
    link: ShapedLink,
    goodput_bps: float,
    rtt_s: float,
    rows_gain: float | None,
) -> list[Row]:
    bundle = workload.bundle
    rows: list[Row] = []
    for floor in FLOORS:
        robot, server = (f"replay:{workload.tables[side, floor]}" for side in ("robot", "server"))
        plans = prepared((bundle, robot), (bundle, server))
        wanted = chosen(plans, bundle, goodput_bps, rtt_s)
        ends = [w.predicted.latency_s for w in wanted if w.title in ("local", "frame")]
        best = min((w for w in wanted if w.predicted), key=lambda w: w.predicted.latency_s)
        latency_s = best.predicted.latency_s
        rows.append(
            Row(
                "replay",
                f"{what}, launches x{floor:g}: {best.title} predicted",
                latency_s * 1e3,
                "ms",
                f"better of robot and frame {min(ends) * 1e3:.2f} ms",
                latency_s / min(ends),
            )
        )
        if floor != 1:
            continue
        stations = [Station(bundle=str(bundle.folder), backend=side) for side in (robot, server)]
        records = run_plans(link, *stations, workload.values, wanted, count=COUNT)
        rows += plan_rows("replay", what, wanted, records, largest_error=0.0)
        rows.append(gain_row("replay", what, records))
        rows_plan = next((w.text for w in wanted if w.title == "rows"), None)
        if rows_gain is not None and rows_plan is not None:
            rows.append(gain_row("replay", what, records, text=rows_plan, most=rows_gain))
    return rows
