"""Rate: answers a second with several frames in flight, against one, stages balanced.

A plain split with real computation, robot and server on a core each; the link takes as long as the
slower of the two. Every answer is compared with those of one frame at a time.
"""

from __future__ import annotations

from typing import Any

from benches.real import COUNT, measured_link, robots_copy, stations_on, stored_values, workload
from benches.row import Row
from benches.stations import Inferences, Station, infer, serving
from benches.workloads import demo_bundle
from shaped_link import PAYLOAD_SHARE

from engines.bundle import Bundle

IN_FLIGHT = 3
FASTER = 1.8
WHOLE_CORE = 1.0


def run() -> list[Row]:
    """Run the deep model and the small one."""
    return [row for bundle in (workload("vgg19_bn")(), demo_bundle()) for row in _rate(bundle)]


def _rate(bundle: Bundle) -> list[Row]:
    manifest, values = bundle.manifest, stored_values(bundle)
    with stations_on(WHOLE_CORE, robots_copy(bundle), bundle) as stations:
        splits = [c for c in stations.plans.choices if c.mode == "split" and c.ways]
        even = min(splits, key=lambda c: abs(c.work.busy_s("robot") - c.work.busy_s("server")))
        slower_s = max(even.work.busy_s("robot"), even.work.busy_s("server"))
        bits = 8 * (even.work.bytes_up + even.work.bytes_down)
        with measured_link(bits / slower_s / PAYLOAD_SHARE) as (link, _):
            server = Station(bundle=stations.server.bundle, host=link.server_host)
            cut = manifest.cuts[even.cut].id
            found: dict[int, list[dict[str, Any]]] = {}
            with serving([*stations.server_prefix, *link.server_prefix], server) as address:
                for in_flight in (1, IN_FLIGHT):
                    job = Inferences(
                        station=stations.robot,
                        address=address,
                        values=str(values),
                        plans=(cut,),
                        count=2 * COUNT,
                        in_flight=in_flight,
                    )
                    found[in_flight] = infer([*stations.robot_prefix, *link.robot_prefix], job)
    rates = {number: _per_second(records) for number, records in found.items()}
    ratio = rates[IN_FLIGHT] / rates[1]
    digests = {record["digest"] for records in found.values() for record in records}
    remote = all(r["answered_by"] == "remote" for records in found.values() for r in records)
    what = (
        f"{manifest.name} cut at {cut}, {link.rate_mbps or 0:.1f} Mbps: {IN_FLIGHT} in flight; "
        f"robot {even.work.busy_s('robot') * 1e3:.0f}, link {slower_s * 1e3:.0f}, server "
        f"{even.work.busy_s('server') * 1e3:.0f} ms"
    )
    return [
        Row(
            "rate",
            what,
            rates[IN_FLIGHT],
            "a second",
            f"one in flight {rates[1]:.2f} a second",
            ratio,
            f"at least {FASTER}",
            ratio >= FASTER,
        ),
        Row(
            "rate",
            f"{manifest.name}: different answers of {4 * COUNT}, all by the server: {remote}",
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
