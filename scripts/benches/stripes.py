"""Stripes with real computation: robot and server on a core each, one of them slowed, and a link.

Robot, link and server take times in proportions as near to the published testbed's as this machine
allows; the proportions reached are printed beside the published ones. Both sides' tables are
measured first, in the same run and under the same slowing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from benches.plan_rows import Wanted, chosen, gain_row, plan_rows, prepared, run_plans
from benches.row import Row, medians
from benches.stations import Station, profile
from benches.workloads import BUILD, demo_bundle
from link_check import check_link, trouble
from record_activations import sample_inputs
from shaped_link import PAYLOAD_SHARE, ShapedLink, shaped_link
from slow_robot import SMALLEST_SHARE, slow_robot
from workloads.bundles import compile_workload

from calibration.plan_text import plan_text
from calibration.plans import even_plan
from calibration.prepared import PreparedPlans
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import BundleError
from engines.program import Program
from engines.stripe_plans import StripePlan
from engines.stripe_runs import HeadRun
from engines.striped import StripedProgram

COUNT = int(os.environ.get("SPLITRT_BENCH_COUNT", "20"))
LARGEST_ERROR = 1e-4
"""Of outputs, relative to the largest value: other kernels for other heights."""

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
    """

    name: str
    bundle: Callable[[], Bundle]
    published_ms: tuple[float, float, float]


def _workload(name: str) -> Callable[[], Bundle]:
    def made() -> Bundle:
        path = BUILD / f"real-{name}.bundle"
        try:
            return Bundle.open(path)
        except BundleError:
            return compile_workload(name, path)

    return made


CASES = (
    Case("vgg19_bn", _workload("vgg19_bn"), (94.9, 13.5, 4.9)),
    Case("densenet121", _workload("densenet121"), (66.4, 13.5, 12.5)),
    Case("demo", demo_bundle, (66.4, 13.5, 12.5)),
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
        robot = _copy(bundle)
        values = _values(bundle)
        rows += _as_published(case, robot, bundle, values)
        if case.name == BALANCED:
            rows += _overhead(bundle)
            rows += _balanced(robot, bundle, values)
    return rows


def _as_published(case: Case, robot: Bundle, server: Bundle, values: Path) -> list[Row]:
    """Run every mode with times in the published proportions."""
    with _stations(SMALLEST_SHARE, robot, server) as stations:
        plans = stations.plans
        last = len(server.manifest.cuts) - 1
        robot_s = plans.choices[last].work.busy_s("robot")
        server_s = plans.choices[0].work.busy_s("server")
        robot_ms, link_ms, server_ms = case.published_ms
        link_s = (
            link_ms * (robot_s / robot_ms * server_s / server_ms) ** 0.5
        )  # equally far from both
        bits = plans.choices[0].work.bytes_up * 8
        with _link(bits / link_s / PAYLOAD_SHARE) as (link, rtt_s):
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
    with _stations(BALANCED_SHARE, robot, server) as stations:
        plain = stations.plans.choices[cut]
        head_s, bits = plain.work.busy_s("robot"), plain.work.bytes_up * 8
        goodput_bps = bits / head_s
        with _link(goodput_bps / PAYLOAD_SHARE) as (link, rtt_s):
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


@dataclass(frozen=True)
class _Stations:
    """Both ends, measured.

    Attributes:
        robot: The robot's station.
        server: The server's.
        plans: Prepared for their tables.
        slowed: How the robot is slowed, in words.
        robot_prefix: Words before the robot's command.
        server_prefix: Words before the server's.
    """

    robot: Station
    server: Station
    plans: PreparedPlans
    slowed: str
    robot_prefix: Sequence[str]
    server_prefix: Sequence[str]

    def run(
        self, link: ShapedLink, values: Path, wanted: Sequence[Wanted]
    ) -> dict[str, list[dict[str, Any]]]:
        """Run plans in turns."""
        return run_plans(
            link,
            self.robot,
            self.server,
            values,
            wanted,
            count=COUNT,
            robot_prefix=self.robot_prefix,
            server_prefix=self.server_prefix,
        )


@contextmanager
def _stations(share: float, robot: Bundle, server: Bundle) -> Iterator[_Stations]:
    """Slow the robot, pin both to a core each and measure their tables."""
    with slow_robot(share) as slow:
        cores = sorted(os.sched_getaffinity(0))
        pins = [["taskset", "-c", str(core)] for core in (cores[0], cores[-1])]
        prefixes = [*slow.prefix, *pins[0]], pins[1]
        ends = [Station(bundle=str(bundle.folder)) for bundle in (robot, server)]
        for prefix, end in zip(prefixes, ends, strict=True):
            profile(prefix, end)
        plans = prepared((robot, "ort"), (server, "ort"), threads=1)
        yield _Stations(ends[0], ends[1], plans, slow.description, *prefixes)


@contextmanager
def _link(rate_bps: float) -> Iterator[tuple[ShapedLink, float]]:
    """Shape a half-duplex link and measure it; gives its round trip too."""
    with shaped_link(round(rate_bps / 1e6, 3), half_duplex=True) as link:
        check = check_link(link)
        print(f"{link.description}: {check} {trouble(check, link)}", file=sys.stderr)
        yield link, check.rtt_ms * 1e-3


def _copy(bundle: Bundle) -> Bundle:
    """Return the robot's copy of a bundle: its device folder is its own."""
    path = bundle.folder.with_name(f"robot-{bundle.folder.name}")
    with suppress(BundleError):
        copy = Bundle.open(path)
        if copy.digest == bundle.digest:
            return copy
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(bundle.folder, path)
    return Bundle.open(path)


def _values(bundle: Bundle) -> Path:
    """Store a photograph and what the whole model makes of it."""
    path = BUILD / f"{bundle.folder.name}.npz"
    inputs = sample_inputs(bundle.manifest)
    with Program(bundle, open_backend("ort")) as program:
        outputs = program.outputs(program.run(inputs))
    np.savez(path, **cast(Any, {**inputs, **outputs}))
    return path
