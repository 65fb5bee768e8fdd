"""Real computation for benches: robot and server pinned to a core each, and measured."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from benches.plan_rows import Wanted, prepared, run_plans
from benches.stations import Station, profile, whole_s
from benches.workloads import BUILD
from link_check import check_link, trouble
from record_activations import PHOTO, sample_inputs
from shaped_link import ShapedLink, shaped_link
from slow_robot import slow_robot
from workloads.bundles import compile_workload

from calibration.latency_table import LatencyTable, read_table, store_table, table_path
from calibration.prepared import PreparedPlans
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import BundleError
from engines.program import Program

__all__ = [
    "COUNT",
    "LARGEST_ERROR",
    "Stations",
    "measured_link",
    "robots_copy",
    "stations_on",
    "stored_values",
    "workload",
]

COUNT = int(os.environ.get("SPLITRT_BENCH_COUNT", "20"))
"""Inferences of each plan."""

LARGEST_ERROR = 1e-4
"""Of outputs, relative to the largest value: other kernels for other heights."""


def workload(name: str) -> Callable[[], Bundle]:
    """Return what gives a published workload's bundle, compiled if it is not there."""

    def made() -> Bundle:
        path = BUILD / f"real-{name}.bundle"
        try:
            return Bundle.open(path)
        except BundleError:
            return compile_workload(name, path)

    return made


@dataclass(frozen=True)
class Stations:
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
        self, link: ShapedLink, values: Path, wanted: Sequence[Wanted], *, count: int = COUNT
    ) -> dict[str, list[dict[str, Any]]]:
        """Run plans in turns."""
        return run_plans(
            link,
            self.robot,
            self.server,
            values,
            wanted,
            count=count,
            robot_prefix=self.robot_prefix,
            server_prefix=self.server_prefix,
        )


@contextmanager
def stations_on(share: float, robot: Bundle, server: Bundle) -> Iterator[Stations]:
    """Pin both ends to a core each, measure their tables, and slow the robot.

    The robot is measured at full speed, and its table lengthened by how much longer the whole
    model takes when slowed. Under a quota whatever is shorter than it would look as quick as ever.

    Args:
        share: What the robot has of its core; 1 for all of it.
        robot: The robot's copy of the bundle.
        server: The server's.
    """
    cores = sorted(os.sched_getaffinity(0))
    pins = [["taskset", "-c", str(core)] for core in (cores[0], cores[-1])]
    ends = [Station(bundle=str(bundle.folder)) for bundle in (robot, server)]
    for prefix, end in zip(pins, ends, strict=True):
        profile(prefix, end)
    with ExitStack() as stack:
        slowed, before = "a whole core", []
        if share < 1:
            slow = stack.enter_context(slow_robot(share))
            slowed, before = slow.description, slow.prefix
            quick_s, slow_s = (whole_s([*words, *pins[0]], ends[0]) for words in ([], before))
            _lengthen(robot, slow_s / quick_s)
        plans = prepared((robot, "ort"), (server, "ort"), threads=1)
        yield Stations(ends[0], ends[1], plans, slowed, [*before, *pins[0]], pins[1])


def _lengthen(bundle: Bundle, factor: float) -> None:
    """Multiply all times of a bundle's table, and keep it."""
    backend = open_backend("ort", BackendOptions(threads=1))
    path = table_path(bundle, backend.fingerprint())
    table = msgspec.to_builtins(read_table(path))
    store_table(bundle, msgspec.convert(_times(table, factor), LatencyTable))


def _times(value: Any, factor: float) -> Any:
    """Return a record with every number of seconds in it multiplied."""
    if isinstance(value, dict):
        return {
            key: item * factor if key.endswith("_s") else _times(item, factor)
            for key, item in value.items()
        }
    return [_times(item, factor) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def measured_link(rate_bps: float) -> Iterator[tuple[ShapedLink, float]]:
    """Shape a half-duplex link and measure it; gives its round trip too."""
    with shaped_link(round(rate_bps / 1e6, 3), half_duplex=True) as link:
        check = check_link(link)
        print(f"{link.description}: {check} {trouble(check, link)}", file=sys.stderr)
        yield link, check.rtt_ms * 1e-3


def robots_copy(bundle: Bundle) -> Bundle:
    """Return the robot's copy of a bundle: its device folder is its own."""
    path = bundle.folder.with_name(f"robot-{bundle.folder.name}")
    with suppress(BundleError):
        copy = Bundle.open(path)
        if copy.digest == bundle.digest:
            return copy
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(bundle.folder, path)
    return Bundle.open(path)


def stored_values(bundle: Bundle, image: Path = PHOTO) -> Path:
    """Store a photograph and what the whole model makes of it."""
    path = BUILD / f"{bundle.folder.name}-{image.stem}.npz"
    inputs = sample_inputs(bundle.manifest, image)
    with Program(bundle, open_backend("ort")) as program:
        outputs = program.outputs(program.run(inputs))
    np.savez(path, **cast(Any, {**inputs, **outputs}))
    return path
