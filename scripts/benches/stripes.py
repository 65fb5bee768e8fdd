"""Stripes with real computation: robot and server on a core each, one of them slowed, and a link.

Robot, link and server take times in proportions as near to the published testbed's as this machine
allows; the proportions reached are printed beside the published ones. Both sides' tables are
measured first, in the same run and under the same slowing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benches.plan_rows import Wanted, chosen, gain_row, plan_rows
from benches.real import (
    COUNT,
    LARGEST_ERROR,
    measured_link,
    robots_copy,
    stations_on,
    stored_values,
    workload,
)
from benches.row import Row, medians
from benches.workloads import demo_bundle
from record_activations import sample_inputs
from shaped_link import PAYLOAD_SHARE
from slow_robot import SMALLEST_SHARE

from calibration.plan_text import plan_text
from calibration.plans import even_plan
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.program import Program
from engines.stripe_plans import StripePlan
from engines.stripe_runs import HeadRun
from engines.striped import StripedProgram

OVERHEAD = 1.12
"""Four stripes of a head against the head at once, computation only."""

STREAMED = 0.8
"""A streamed head against the plain split of the same cut, robot and link balanced."""

BALANCED_SHARE = 0.5
FOUR = 4


@dataclass(frozen=True)
class Case:
    """A model that is run.

    Attributes:
        name: Its name.
        bundle: Gives its bundle, compiled if need be.
        published_ms: What robot, link and server took on the published testbed: the whole model,
            its uint8 frame at 93 Mbps, the whole model. A likeness where it was not published.
        share: What the robot has of its core. A quota is only even over inferences of some 300 ms.
    """

    name: str
    bundle: Callable[[], Bundle]
    published_ms: tuple[float, float, float]
    share: float = SMALLEST_SHARE


CASES = (
    Case("vgg19_bn", workload("vgg19_bn"), (94.9, 13.5, 4.9)),
    Case("densenet121", workload("densenet121"), (66.4, 13.5, 12.5)),
    Case("demo", demo_bundle, (66.4, 13.5, 12.5), share=1.0),
)
"""The demo's model was not published; it stands beside a robot like DenseNet121's."""

BALANCED = "vgg19_bn"
BALANCED_CUT_BYTES = 256 * 28 * 28 * 4
"""Of VGG19's third pooling."""


def run() -> list[Row]:
    """Run all cases, or those that SPLITRT_BENCH_WORKLOADS names."""
    named = os.environ.get("SPLITRT_BENCH_WORKLOADS", "")
    cases = [case for case in CASES if not named or case.name in named.split(",")]
    rows: list[Row] = []
    for case in cases:
        bundle = case.bundle()
        robot = robots_copy(bundle)
        values = stored_values(bundle)
        rows += _as_published(case, robot, bundle, values)
        if case.name == BALANCED:
            rows += _overhead(bundle)
            rows += _balanced(robot, bundle, values)
    return rows


def _as_published(case: Case, robot: Bundle, server: Bundle, values: Path) -> list[Row]:
    """Run every mode with times in the published proportions."""
    with stations_on(case.share, robot, server) as stations:
        plans = stations.plans
        last = len(server.manifest.cuts) - 1
        robot_s = plans.choices[last].work.busy_s("robot")
        server_s = plans.choices[0].work.busy_s("server")
        robot_ms, link_ms, server_ms = case.published_ms
        link_s = (
            link_ms * (robot_s / robot_ms * server_s / server_ms) ** 0.5
        )  # equally far from both
        bits = plans.choices[0].work.bytes_up * 8
        with measured_link(bits / link_s / PAYLOAD_SHARE) as (link, rtt_s):
            print(
                f"{case.name}: robot {robot_s * 1e3:.0f} ms ({stations.slowed}), link "
                f"{link_s * 1e3:.0f} ms, server {server_s * 1e3:.0f} ms = "
                f"{robot_s / link_s:.2f} : 1 : {server_s / link_s:.2f}; published "
                f"{robot_ms / link_ms:.2f} : 1 : {server_ms / link_ms:.2f}",
                file=sys.stderr,
            )
            wanted = chosen(plans, server, bits / link_s, rtt_s)
            what = f"{case.name} at {link.rate_mbps or 0:.2f} Mbps"
            records = stations.run(link, values, wanted)
    rows = plan_rows("stripes", what, wanted, records, largest_error=LARGEST_ERROR)
    return [*rows, gain_row("stripes", what, records)]


def _overhead(bundle: Bundle) -> list[Row]:
    """Compare the head of each striped cut in four stripes with the head at once."""
    manifest, rows = bundle.manifest, []
    values = sample_inputs(manifest)
    assert manifest.striping is not None, "a bench of stripes without stripes"
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(bundle, backend) as program:
        striped = StripedProgram(program)
        for cut in manifest.striping.cuts:
            plan = even_plan(manifest, manifest.striping, cut=cut.cut, until=cut.cut, stripes=4)
            if not cut.cut or plan.stripes != FOUR:
                continue
            program.load_half(0, cut.cut)

            def in_stripes(plan: StripePlan = plan) -> None:
                run = HeadRun(striped, plan, values)
                for _ in range(plan.stripes):
                    run.step()

            def at_once(cut: int = cut.cut) -> None:
                program.run(values, 0, cut)

            four_s, one_s = medians(in_stripes, at_once, runs=COUNT)
            ratio = four_s / one_s
            rows.append(
                Row(
                    "stripes",
                    f"{manifest.name}: head of {manifest.cuts[cut.cut].id} in 4 stripes",
                    four_s * 1e3,
                    "ms",
                    f"at once {one_s * 1e3:.1f} ms",
                    ratio,
                    f"below {OVERHEAD}",
                    ratio < OVERHEAD,
                )
            )
        striped.close()
    return rows


def _balanced(robot: Bundle, server: Bundle, values: Path) -> list[Row]:
    """Compare a streamed head with the plain split of its cut, robot and link balanced."""
    manifest = server.manifest
    cut = next(c.index for c in manifest.cuts if c.bytes == BALANCED_CUT_BYTES)
    with stations_on(BALANCED_SHARE, robot, server) as stations:
        plain = stations.plans.choices[cut]
        head_s, bits = plain.work.busy_s("robot"), plain.work.bytes_up * 8
        goodput_bps = bits / head_s
        with measured_link(goodput_bps / PAYLOAD_SHARE) as (link, rtt_s):
            streamed = min(
                (c for c in stations.plans.choices if c.cut == cut and c.mode == "streamed-head"),
                key=lambda choice: choice.latency_s(goodput_bps, rtt_s, 0.0),
            )
            wanted = []
            for title, choice in (("plain split", plain), ("streamed head", streamed)):
                plan = choice.plan
                text = manifest.cuts[cut].id if plan is None else plan_text(plan, manifest)
                predicted = stations.plans.predict(cut, plan, goodput_bps=goodput_bps, rtt_s=rtt_s)
                wanted.append(Wanted(title, text, predicted))
            records = stations.run(link, values, wanted)
            what = f"{manifest.name}, robot and link balanced at {link.rate_mbps or 0:.1f} Mbps"
    rows = plan_rows("stripes", what, wanted, records, largest_error=LARGEST_ERROR)
    plain_ms, streamed_ms = rows[0].value, rows[1].value
    ratio = streamed_ms / plain_ms
    return [
        *rows,
        Row(
            "stripes",
            f"{what}: streamed head {100 * (ratio - 1):+.1f}%",
            streamed_ms,
            "ms",
            f"plain split {plain_ms:.1f} ms",
            ratio,
            f"at most {STREAMED}",
            ratio <= STREAMED,
        ),
    ]
