"""Bundles of the published workloads, for replay: their cuts chosen by the published times.

A workload is compiled twice. The first bundle is only there to say which node is which operator of
the profile; the second is compiled with those times as the costs of robot and server, so that it
has the cuts that win on them. Pictures come in as uint8, so that the rival, the whole frame sent,
is at its best.

    python -m scripts.workloads.bundles vgg19_bn agrnav [--testbed TESTBED] [-o FOLDER]
"""

from __future__ import annotations

import inspect
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from record_activations import record, sample_inputs

from compiler import CompileOptions, compile_model, parse_image
from engines.bundle import Bundle
from engines.console import command_options
from engines.errors import BundleError

from . import WORKLOADS
from .profiles import Profile
from .replay_tables import FLOORS, SIDES, assign, operator_times, profile_of, write_tables

__all__ = ["PICTURES", "Replayed", "compile_workload", "replayed"]

PICTURES = frozenset({"vgg19", "vgg19_bn", "resnet152", "densenet121", "convnext_large"})
"""Workloads that take normalised pictures; the others take bytes or voxels as they are."""

VALUES = "values.npz"


@dataclass(frozen=True)
class Replayed:
    """A workload ready to be replayed.

    Attributes:
        bundle: Its bundle.
        profile: Its published profile.
        tables: Replay tables by side and floor, as ``write_tables`` gives them.
        values: File with recorded tensors, by name.
    """

    bundle: Bundle
    profile: Profile
    tables: Mapping[tuple[str, float], Path]
    values: Path


def compile_workload(
    name: str,
    out: Path,
    *,
    robot: str = "xavier-nx",
    server: str = "rtx3080",
    cuts: str = "auto",
    stripes: str = "auto",
) -> Bundle:
    """Compile a workload, its pictures as uint8; the arguments are those of ``split-compile``."""
    model, example = WORKLOADS[name].build()
    images = ()
    if name in PICTURES:
        images = (
            parse_image(f"{next(iter(inspect.signature(model.forward).parameters))}=imagenet"),
        )
    options = CompileOptions(
        name=name, images=images, robot=robot, server=server, cuts=cuts, stripes=stripes
    )
    bundle, _ = compile_model((model, example), out, options=options)
    return bundle


def replayed(name: str, folder: Path, testbed: str | Path | None = None) -> Replayed:
    """Return a workload with its tables and tensors; what is not in the folder yet is made.

    Raises:
        SplitError: It has no profile, or cannot be compiled.
    """
    profile = profile_of(name, testbed)
    path, tables = folder / f"{name}.bundle", folder / f"{name}.tables"
    try:
        bundle = Bundle.open(path)
    except BundleError:
        bundle = _by_profile(name, path, profile)
    values = tables / VALUES
    if not values.exists():
        record(bundle, sample_inputs(bundle.manifest), values)
    paths = write_tables(bundle, profile, tables, floors=FLOORS, values=VALUES)
    return Replayed(bundle, profile, paths, values)


def _by_profile(name: str, path: Path, profile: Profile) -> Bundle:
    """Compile a workload with its published times as the costs of its operators."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        whole = compile_workload(name, Path(scratch) / "whole.bundle", cuts="2", stripes="none")
        assignment = assign(whole, profile.robot_ops)
        costs: dict[str, str] = {}
        for side in SIDES:
            file = Path(scratch) / f"operators-{side}.json"
            file.write_bytes(msgspec.json.encode(operator_times(profile, side, assignment)))
            costs[side] = str(file)
        return compile_workload(name, path, **costs)


@click.command()
@click.argument(
    "names", nargs=-1, type=click.Choice([n for n, w in WORKLOADS.items() if w.profile])
)
@click.option("-o", "--out", default="build", type=click.Path(path_type=Path), help="Folder.")
@click.option("--testbed", help="Folder with profiles; default $SPLITRT_TESTBED.")
@command_options
def main(names: Sequence[str], out: Path, testbed: str | None) -> None:
    """Make the bundles, tables and tensors of workloads: all by default."""
    logging.basicConfig(level=logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    for name in names or [n for n, w in WORKLOADS.items() if w.profile]:
        begin = time.monotonic()
        made = replayed(name, out, testbed)
        manifest = made.bundle.manifest
        striped = 0 if manifest.striping is None else len(manifest.striping.cuts)
        print(
            f"{name}: {len(manifest.cuts)} cuts, {striped} of them striped, "
            f"{time.monotonic() - begin:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
