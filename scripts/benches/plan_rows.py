"""Plans of one bundle on one link, in turns: what each took, against what was predicted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.row import Row
from benches.stations import Inferences, Station, infer, serving
from shaped_link import ShapedLink

from calibration.latency_table import load_table
from calibration.plan_text import plan_text
from calibration.predictor import MODES, Prediction
from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes, estimated_times
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle

__all__ = ["Wanted", "chosen", "gain_row", "plan_rows", "prepared", "run_plans", "times_of"]

WITHIN = 1.15
"""Measured over predicted, or the other way round."""

WORST_AUTO = 1.03
"""``auto`` against the better of the robot alone and the coded frame."""

_SHOWN = 2.0
"""A mode's best plan is run where it should take at most this many times as long as the best."""


@dataclass(frozen=True)
class Wanted:
    """A plan that is to be run.

    Attributes:
        title: What it is, for the reader of a table.
        text: As ``runtime infer --cut`` takes it.
        predicted: What it should take, from tables and link alone; none for ``auto``.
    """

    title: str
    text: str
    predicted: Prediction | None


def times_of(bundle: Bundle, backend: str, *, threads: int = 0) -> SegmentTimes:
    """Return what a station's latency table says, for a bundle that it has been measured on."""
    options = BackendOptions(threads=threads)
    table = load_table(bundle, open_backend(backend, options).fingerprint())
    if table is None:
        raise RuntimeError(f"{bundle.folder}: no latency table of backend {backend}")
    return estimated_times(bundle.manifest, table.times())


def prepared(
    robot: tuple[Bundle, str], server: tuple[Bundle, str], *, threads: int = 0
) -> PreparedPlans:
    """Prepare all plans for two stations, each a bundle and a backend, and their threads."""
    times = (times_of(*end, threads=threads) for end in (robot, server))
    return PreparedPlans(robot[0].manifest, *times)


def chosen(plans: PreparedPlans, bundle: Bundle, goodput_bps: float, rtt_s: float) -> list[Wanted]:
    """Return the best plan of each mode, and ``auto``; modes that are far off are left out."""
    latencies = plans.latencies_s(goodput_bps, rtt_s)
    least = float(min(latencies))
    found: list[Wanted] = []
    for mode in MODES:
        numbers = [n for n, choice in enumerate(plans.choices) if choice.mode == mode]
        best = min(numbers, key=lambda n: latencies[n], default=None)
        rival = mode in ("local", "frame", "split")
        if best is None or (not rival and latencies[best] > _SHOWN * least):
            continue
        choice = plans.choices[best]
        text = {"local": "local", "frame": "offload"}.get(
            mode, bundle.manifest.cuts[choice.cut].id
        )
        if choice.plan is not None:
            text = plan_text(choice.plan, bundle.manifest)
        predicted = plans.predict(choice.cut, choice.plan, goodput_bps=goodput_bps, rtt_s=rtt_s)
        found.append(Wanted(mode, text, predicted))
    return [*found, Wanted("auto", "auto", None)]


def run_plans(
    link: ShapedLink,
    robot: Station,
    server: Station,
    values: Path,
    wanted: Sequence[Wanted],
    *,
    count: int,
    robot_prefix: Sequence[str] = (),
    server_prefix: Sequence[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Run some plans in turns; returns the records of each, by its text."""
    server = Station(
        bundle=server.bundle,
        backend=server.backend,
        threads=server.threads,
        host=link.server_host,
    )
    with serving([*server_prefix, *link.server_prefix], server) as address:
        job = Inferences(
            station=robot,
            address=address,
            values=str(values),
            plans=tuple(plan.text for plan in wanted),
            count=count,
        )
        records = infer([*robot_prefix, *link.robot_prefix], job)
    found: dict[str, list[dict[str, Any]]] = {plan.text: [] for plan in wanted}
    for record in records:
        found[record["asked"]].append(record)
    return found


def plan_rows(
    name: str,
    workload: str,
    wanted: Sequence[Wanted],
    records: dict[str, list[dict[str, Any]]],
    *,
    largest_error: float,
) -> list[Row]:
    """Make a row of each plan: measured over predicted, with its parts."""
    rows: list[Row] = []
    for plan in wanted:
        some = records[plan.text]
        value = _median(some, "latency_ms")
        own = statistics.median(
            r["latency_ms"] / r["predicted_ms"] for r in some if r["predicted_ms"]
        )
        # As the robot itself predicted it before each inference, from what it knew of the link;
        # beside it as the tables, the shaper's rate and the round trip of an empty message say.
        expected_ms = statistics.median(r["predicted_ms"] for r in some if r["predicted_ms"])
        known = None if plan.predicted is None else value / (plan.predicted.latency_s * 1e3)
        parts = {f"{part} ms": _median(some, f"{part}_ms") for part in ("robot", "link", "server")}
        largest = statistics.median(max(r["robot_ms"], r["link_ms"], r["server_ms"]) for r in some)
        error = max(r["error"] for r in some)
        answered = sum(r["answered_by"] != "fallback" for r in some)
        rows.append(
            Row(
                name,
                f"{workload}: {plan.title}",
                value,
                "ms",
                f"the robot predicted {expected_ms:.2f} ms",
                own,
                f"within {WITHIN}",
                1 / WITHIN <= own <= WITHIN,
                {
                    "plan": _plan_of(some),
                    **parts,
                    "max ms": largest,
                    "kB up": _median(some, "bytes_up") / 1e3,
                    "kB down": _median(some, "bytes_down") / 1e3,
                    "by shaper": known,
                    "p95 ms": _quantile(some, "latency_ms", 0.95),
                    "runs": len(some),
                },
            )
        )
        if error > largest_error or answered < len(some):
            rows.append(
                Row(name, f"{workload}: {plan.title}", error, "", "whole model", error,
                    f"all {len(some)} answered and right", False)
            )  # fmt: skip
    return rows


def gain_row(
    name: str,
    workload: str,
    records: dict[str, list[dict[str, Any]]],
    *,
    text: str = "auto",
    most: float = WORST_AUTO,
) -> Row:
    """Compare a plan with the better of the robot alone and the coded frame."""
    alone, frame, value = (
        _median(records[plan], "latency_ms") for plan in ("local", "offload", text)
    )
    rival = min(alone, frame)
    which = "robot alone" if alone <= frame else "coded frame"
    ratio = value / rival
    return Row(
        name,
        f"{workload}: {text} {100 * (ratio - 1):+.1f}%",
        value,
        "ms",
        f"{which} {rival:.2f} ms",
        ratio,
        f"at most {most}",
        ratio <= most,
    )


def _median(records: Iterable[dict[str, Any]], field: str) -> float:
    return float(statistics.median(record[field] for record in records))


def _quantile(records: Iterable[dict[str, Any]], field: str, part: float) -> float:
    values = sorted(record[field] for record in records)
    return float(values[min(len(values) - 1, int(part * len(values)))])


def _plan_of(records: Sequence[dict[str, Any]]) -> str:
    """Return the mode and plan that was carried out most often."""
    return statistics.mode(f"{r['mode']} {r['plan'] or r['cut']}" for r in records)
