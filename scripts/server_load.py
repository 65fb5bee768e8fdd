"""A server that other robots keep busy, and what one robot makes of it, second by second.

    python scripts/server_load.py JOB

JOB is a :class:`Load` as JSON: clients that send the whole frame again as soon as it is answered,
until the input ends. They run beside the server: they take its time, and none of the link's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benches.row import Row
from benches.stations import serving
from rich.console import Console
from rich.table import Table
from robot_end import Drive, RobotEnd
from shaped_link import shaped_link
from trace_runs import local_s, stations
from workloads.bundles import Replayed

from engines.bundle import Bundle
from engines.errors import LinkError
from runtime.link import Link
from runtime.transport import Deadline, parse_address

__all__ = ["Load", "load_line", "loading"]

_HERE = [sys.executable, str(Path(__file__).resolve())]

CALM_S, BUSY_S, AFTER_S = 8.0, 12.0, 12.0
"""Of the time line: before the load, under it, and after it."""

BUCKET_S = 1.0
BACK_S = 5.0
"""Time in which the server has to be used again once the load is over."""

_ANSWER_S = 30.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Clients of a server.

    Attributes:
        bundle: Its bundle.
        address: Where it listens.
        values: ``.npz`` with the inputs by name.
        clients: How many, each with one frame under way.
    """

    bundle: str
    address: str
    values: str
    clients: int


def run_clients(job: Load) -> None:
    """Be the clients until the input ends; says ``busy`` once all are connected."""
    bundle = Bundle.open(job.bundle)
    host, port = parse_address(job.address)
    with np.load(job.values) as stored:
        frame = {spec.name: stored[spec.name] for spec in bundle.manifest.inputs}
    stop = threading.Event()
    links = [
        Link(host, port, manifest=bundle.manifest, digest=bundle.digest)
        for _ in range(job.clients)
    ]
    threads = [threading.Thread(target=_send, args=(link, frame, stop)) for link in links]
    if not all(link.wait_settled(_ANSWER_S) for link in links):
        raise SystemExit(f"no link: {links[0].trouble}")
    for thread in threads:
        thread.start()
    print("busy", flush=True)
    sys.stdin.read()
    stop.set()
    for thread, link in zip(threads, links, strict=True):
        thread.join()
        link.close()


def _send(link: Link, frame: Mapping[str, np.ndarray], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            request = link.send(0, frame, deadline=Deadline(_ANSWER_S))
            request.wait(Deadline(_ANSWER_S))
        except LinkError:
            stop.wait(0.1)


@contextmanager
def loading(prefix: Sequence[str], job: Load) -> Iterator[None]:
    """Keep a server busy."""
    command = [*prefix, *_HERE, msgspec.json.encode(job).decode()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as clients:
        assert clients.stdout is not None  # asked for above
        assert clients.stdin is not None
        if clients.stdout.readline().strip() != "busy":
            raise RuntimeError("the clients did not start; their message stands above")
        yield
        clients.stdin.close()


def load_line(
    made: Mapping[str, Replayed], clients: int, rate_mbps: float, console: Console
) -> tuple[list[dict[str, Any]], list[Row]]:
    """Print a time line of every workload; returns all records, and the checks."""
    told: list[dict[str, Any]] = []
    rows: list[Row] = []
    for name, workload in made.items():
        records, edges = _line(workload, clients, rate_mbps)
        alone_s = local_s(workload)
        console.print(f"{name}: {clients} clients from {edges[0]:.1f} s to {edges[1]:.1f} s")
        console.print(_table(records, edges))
        rows += _checks(name, records, edges, alone_s)
        told.append({"workload": name, "edges_s": edges, "records": records})
    return told, rows


def _line(
    made: Replayed, clients: int, rate_mbps: float
) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Run a robot before, under and after the load; times count from its first inference."""
    robot, server = stations(made)
    with shaped_link(rate_mbps, half_duplex=True) as link:
        if link.rate_mbps is None:
            raise RuntimeError(link.description)
        server = msgspec.structs.replace(server, host=link.server_host)
        with serving(link.server_prefix, server) as address:
            job = Drive(station=robot, address=address, values=str(made.values))
            with RobotEnd(link.robot_prefix, job) as end:
                end.wait_ready()
                begin_s = time.monotonic()
                end.start(begin_s)
                time.sleep(CALM_S)
                load = Load(
                    bundle=server.bundle, address=address, values=job.values, clients=clients
                )
                with loading(link.server_prefix, load):
                    busy_s = time.monotonic()
                    time.sleep(BUSY_S)
                    over_s = time.monotonic()
                time.sleep(AFTER_S)
                records = end.finish()
    for record in records:
        for name in ("begin_s", "at_s"):
            record[name] -= begin_s
    return records, (busy_s - begin_s, over_s - begin_s)


def _table(records: Sequence[Mapping[str, Any]], edges: tuple[float, float]) -> Table:
    table = Table("from s", "server", "mode")
    for title in ("inferences", "remote", "latency ms", "queue ms", "J"):
        table.add_column(title, justify="right")
    for second in range(int(records[-1]["at_s"] / BUCKET_S) + 1):
        low, high = second * BUCKET_S, (second + 1) * BUCKET_S
        some = [r for r in records if low <= r["at_s"] < high and "failed" not in r]
        if not some:
            continue
        remote = [r for r in some if r["answered_by"] == "remote"]
        table.add_row(
            f"{low:.0f}",
            "loaded" if low < edges[1] and high > edges[0] else "",
            statistics.mode(r["mode"] for r in some),
            str(len(some)),
            f"{len(remote) / len(some):.0%}",
            f"{statistics.median(r['latency_ms'] for r in some):.1f}",
            f"{statistics.median(r['queue_ms'] for r in remote):.1f}" if remote else "",
            f"{statistics.fmean(r['energy_j'] for r in some):.3f}",
        )
    return table


def _checks(
    name: str,
    records: Sequence[Mapping[str, Any]],
    edges: tuple[float, float],
    alone_s: float,
) -> list[Row]:
    """Judge the second half of the load, and how soon the server is used again after it."""
    half = (edges[0] + edges[1]) / 2
    calm = [r for r in records if r["at_s"] < edges[0]]
    busy = [r for r in records if half <= r["begin_s"] and r["at_s"] < edges[1]]
    after = [r for r in records if r["begin_s"] >= edges[1] and r["answered_by"] == "remote"]
    before, under = _remote(calm), _remote(busy)
    mean_ms = statistics.fmean(r["latency_ms"] for r in busy)
    back_s = after[0]["begin_s"] - edges[1] if after else float("inf")
    late = _remote([r for r in records if r["begin_s"] >= edges[1] + BACK_S])
    return [
        Row("load", f"{name}: part of the inferences that the server answers, loaded", under, "",
            f"calm {before:.2f}", under / max(before, 1e-9), "below 0.5", under < 0.5 * before),
        Row("load", f"{name}: mean latency, loaded", mean_ms, "ms",
            f"the robot alone {alone_s * 1e3:.1f} ms", mean_ms / (alone_s * 1e3),
            "at most 1.2", mean_ms <= 1.2 * alone_s * 1e3),
        Row("load", f"{name}: first remote answer after the load", back_s, "s",
            f"{BACK_S:g} s", back_s / BACK_S, "at most 1", back_s <= BACK_S),
        Row("load", f"{name}: part that the server answers {BACK_S:g} s after it", late, "",
            f"calm {before:.2f}", late / max(before, 1e-9), "at least 0.95",
            late >= 0.95 * before),
    ]  # fmt: skip


def _remote(records: Sequence[Mapping[str, Any]]) -> float:
    if not records:
        return 0.0
    return sum(r["answered_by"] == "remote" for r in records) / len(records)


if __name__ == "__main__":
    run_clients(msgspec.json.decode(sys.argv[1], type=Load))
