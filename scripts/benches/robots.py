"""Robots: two of them on one server and one link, each with its own frame, striped: all right."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benches.real import LARGEST_ERROR, stored_values
from benches.row import Row
from benches.stations import Inferences, Station, infer, serving
from benches.workloads import demo_bundle
from record_activations import DATA, PHOTO
from shaped_link import shaped_link

from calibration.plan_text import plan_text
from calibration.plans import candidate_plans
from engines.manifest import Manifest
from engines.stripe_plans import mode_of

RATE_MBPS = 93.0
INFERENCES = 200
PHOTOS = (PHOTO, DATA / "coffee.png")


def run() -> list[Row]:
    """Run both robots at once."""
    bundle = demo_bundle()
    plans = _plans(bundle.manifest)
    values = [stored_values(bundle, photo) for photo in PHOTOS]
    station = Station(bundle=str(bundle.folder))
    with shaped_link(RATE_MBPS, half_duplex=True, robots=len(values)) as link:
        server = Station(bundle=station.bundle, host=link.server_host)
        with serving(link.server_prefix, server) as address, ThreadPoolExecutor() as pool:

            def one(prefix: Sequence[str], stored: Path) -> list[dict[str, Any]]:
                job = Inferences(
                    station=station,
                    address=address,
                    values=str(stored),
                    plans=plans,
                    count=-(-INFERENCES // len(plans)),
                )
                return infer(prefix, job)

            found = list(pool.map(one, link.robot_prefixes, values))
    return [_row(bundle.manifest.name, number, some) for number, some in enumerate(found, 1)]


def _row(name: str, number: int, records: list[dict[str, Any]]) -> Row:
    right = sum(r["error"] <= LARGEST_ERROR and r["answered_by"] == "remote" for r in records)
    modes = ", ".join(sorted({record["mode"] for record in records}))
    return Row(
        "robots",
        f"{name}, robot {number} of {len(PHOTOS)} at once: {modes}",
        float(right),
        "right",
        f"of {len(records)}; largest error {max(r['error'] for r in records):.1e}",
        right / len(records),
        "1",
        right == len(records),
    )


def _plans(manifest: Manifest) -> tuple[str, ...]:
    """Return a plan of every striped mode that the bundle has."""
    first: dict[str, str] = {}
    for plan in candidate_plans(manifest):
        first.setdefault(mode_of(plan), plan_text(plan, manifest))
    return tuple(first.values())
