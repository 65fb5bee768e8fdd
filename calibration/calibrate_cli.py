"""``split-bundle calibrate``: the ranges of a bundle's cuts over some data."""

from __future__ import annotations

from typing import Optional

import click
import msgspec
from rich.console import Console
from rich.table import Table

from calibration.collect import calibrate_cuts
from calibration.ranges import METHODS, RANGES_FILE, Ranges, write_ranges
from calibration.samples import open_samples
from engines.console import print_json, progress_bar
from engines.program import Program

__all__ = ["calibrate_bundle", "print_ranges"]


def calibrate_bundle(
    program: Program,
    data: str,
    *,
    most: Optional[int] = None,
    percentile: float,
    as_json: bool = False,
) -> Ranges:
    """Measure the ranges, write them into the device folder and print them.

    Args:
        program: The bundle, its whole chain loaded.
        data: DATA as the user gave it.
        most: Take the first samples only.
        percentile: Share of the values, in percent, within the percentile thresholds.
        as_json: Print JSON.

    Raises:
        SourceError: No such data, or it does not fit the model.
    """
    manifest = program.bundle.manifest
    samples = open_samples(data, manifest.inputs, manifest.images)
    if most is not None:
        samples = samples.first(most)
    with progress_bar("calibrating", samples.size) as advance:
        ranges = calibrate_cuts(
            program,
            samples,
            percentile=percentile,
            progress=lambda done, total: advance(done, total or done),
        )
    path = program.bundle.device_folder / RANGES_FILE
    write_ranges(path, ranges)
    if as_json:
        print_json({"file": str(path), **msgspec.to_builtins(ranges)})
    else:
        print_ranges(ranges, {name: cut.id for cut in manifest.cuts for name in cut.tensors})
        click.echo(
            f"{len(ranges.tensors)} tensors over {ranges.samples} samples, data "
            f"{ranges.data[:12]}; written to {path}"
        )
    for warning in ranges.warnings:
        click.echo(f"warning: {warning}", err=True)
    return ranges


def print_ranges(ranges: Ranges, cuts: "dict[str, str]") -> None:
    """Print ranges and thresholds; ``cuts`` says which cut a tensor crosses."""
    table = Table("tensor", "cut", "least", "most", *METHODS, "channels")
    for name, found in ranges.tensors.items():
        table.add_row(
            name,
            cuts.get(name, ""),
            f"{found.minimum:.4g}",
            f"{found.maximum:.4g}",
            *(f"{found.threshold(method):.4g}" for method in METHODS),
            str(len(found.channels.mse)) if found.channels is not None else "",
        )
    Console().print(table)
