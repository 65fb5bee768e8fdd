"""Traces: every selector on recorded traces of Wi-Fi, with replayed robots."""

from __future__ import annotations

import os
import sys

from benches.row import Row
from rich.console import Console
from trace_options import BUILD, traces_of
from trace_runs import Run
from trace_table import SELECTORS, measure
from workloads.bundles import replayed
from workloads.profiles import TESTBED

WORKLOADS = "vgg19_bn,densenet121"
BEGIN_S = 100.0
COUNT = int(os.environ.get("SPLITRT_BENCH_COUNT", "60"))


def run() -> list[Row]:
    """Compare latencies; SPLITRT_BENCH_WORKLOADS names other workloads."""
    if not os.environ.get(TESTBED):
        print(f"skipped: set {TESTBED} to the folder with profiles and traces", file=sys.stderr)
        return []
    names = os.environ.get("SPLITRT_BENCH_WORKLOADS", WORKLOADS).split(",")
    made = {name: replayed(name, BUILD) for name in names}
    runs = [
        Run(name, "latency", selector, path, BEGIN_S, COUNT, None)
        for path in traces_of(None, ())
        for name in names
        for selector in SELECTORS
    ]
    return measure(runs, made, 1, Console(width=150))[1]
