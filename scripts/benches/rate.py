"""Rate: answers a second with several frames in flight, against one, stages balanced.

A plain split; robot, link and server take about as long as each other. Once with devices that are
replayed, so that the machine has nothing to compute; then with real computation, robot and server
on a core each. Every answer is compared with those of one frame at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from benches.real import COUNT, measured_link, robots_copy, stations_on, stored_values, workload
from benches.row import Row
from benches.stations import Inferences, Station, infer, serving
from benches.workloads import BUILD, demo_bundle
from record_activations import record, sample_inputs
from shaped_link import PAYLOAD_SHARE, ShapedLink

from engines.bundle import Bundle
from engines.replay_table import ReplayTable

IN_FLIGHT = 3
FASTER = 1.8
WHOLE_CORE = 1.0
STAGE_MS = 60.0


def run() -> list[Row]:
    """Replay the demo's model, then compute it and a deep one."""
    rows = _replayed(demo_bundle())
    for bundle in (workload("vgg19_bn")(), demo_bundle()):
        rows += _computed(bundle)
    return rows


def _replayed(bundle: Bundle) -> list[Row]:
    manifest = bundle.manifest
    cut = next(c for c in manifest.cuts[1:-1] if not c.refused)
    values = BUILD / "rate.npz"
    record(bundle, sample_inputs(manifest), values)
    behind = len(manifest.segments) - len(cut.robot_segments)
    tables = []
    for side in ("robot", "server"):
        times = tuple(
            (STAGE_MS / (len(cut.robot_segments) if s.index in cut.robot_segments else behind),)
            for s in manifest.segments
        )
        table = ReplayTable(
            bundle=bundle.digest, device=side, floor_ms=0.0, segments_ms=times, values=values.name
        )
        path = BUILD / f"rate-{side}.json"
        path.write_bytes(msgspec.json.encode(table))
        tables.append(Station(bundle=str(bundle.folder), backend=f"replay:{path}"))
    sent = sum(spec.nbytes for spec in manifest.specs((*cut.tensors, *cut.results)))
    with measured_link(8e3 * sent / STAGE_MS / PAYLOAD_SHARE) as (link, _):
        found = _run(link, tables[0], tables[1], values, cut.id, [], [])
    stages = f"replayed, robot, link and server {STAGE_MS:.0f} ms each"
    return _rows(manifest.name, stages, found)


def _computed(bundle: Bundle) -> list[Row]:
    manifest, values = bundle.manifest, stored_values(bundle)
    with stations_on(WHOLE_CORE, robots_copy(bundle), bundle) as stations:
        splits = [c for c in stations.plans.choices if c.mode == "split" and c.ways]
        even = min(splits, key=lambda c: abs(c.work.busy_s("robot") - c.work.busy_s("server")))
        robot_s, server_s = even.work.busy_s("robot"), even.work.busy_s("server")
        bits = 8 * (even.work.bytes_up + even.work.bytes_down)
        link_s = max(robot_s, server_s)
        with measured_link(bits / link_s / PAYLOAD_SHARE) as (link, _):
            found = _run(
                link,
                stations.robot,
                stations.server,
                values,
                manifest.cuts[even.cut].id,
                stations.robot_prefix,
                stations.server_prefix,
            )
    stages = (
        f"computed, robot {robot_s * 1e3:.0f}, link {link_s * 1e3:.0f}, "
        f"server {server_s * 1e3:.0f} ms"
    )
    return _rows(manifest.name, stages, found)


def _run(
    link: ShapedLink,
    robot: Station,
    server: Station,
    values: Path,
    cut: str,
    robot_prefix: Sequence[str],
    server_prefix: Sequence[str],
) -> dict[int, list[dict[str, Any]]]:
    """Run one frame at a time, then several; returns the records of both."""
    found: dict[int, list[dict[str, Any]]] = {}
    server = msgspec.structs.replace(server, host=link.server_host)
    with serving([*server_prefix, *link.server_prefix], server) as address:
        for in_flight in (1, IN_FLIGHT):
            job = Inferences(
                station=robot,
                address=address,
                values=str(values),
                plans=(cut,),
                count=2 * COUNT,
                in_flight=in_flight,
            )
            found[in_flight] = infer([*robot_prefix, *link.robot_prefix], job)
    return found


def _rows(name: str, stages: str, found: dict[int, list[dict[str, Any]]]) -> list[Row]:
    rates = {number: _per_second(records) for number, records in found.items()}
    ratio = rates[IN_FLIGHT] / rates[1]
    digests = {record["digest"] for records in found.values() for record in records}
    remote = all(r["answered_by"] == "remote" for records in found.values() for r in records)
    return [
        Row(
            "rate",
            f"{name}, {stages}: {IN_FLIGHT} in flight",
            rates[IN_FLIGHT],
            "a second",
            f"one in flight {rates[1]:.2f} a second",
            ratio,
            f"at least {FASTER}",
            ratio >= FASTER,
        ),
        Row(
            "rate",
            f"{name}: different answers of {4 * COUNT}, all by the server: {remote}",
            float(len(digests)),
            "",
            "one frame, one answer",
            float(len(digests)),
            "1",
            len(digests) == 1 and remote,
        ),
    ]


def _per_second(records: list[dict[str, Any]]) -> float:
    """Return the rate once the pipeline is full."""
    times = [record["at_s"] for record in records][IN_FLIGHT:]
    return (len(times) - 1) / (times[-1] - times[0])
