"""``split-bundle``: look into a bundle, and verify it."""

from __future__ import annotations

import sys
from typing import Any, Dict, Optional

import click
import msgspec
from rich.console import Console
from rich.table import Table

from calibration.verify_cli import print_parity
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.console import command_options, print_json
from engines.manifest import Manifest
from engines.program import Program

__all__ = ["main"]


@click.group()
@click.version_option(package_name="splitrt")
def main() -> None:
    """Inspect and verify a compiled bundle."""


@main.command()
@click.argument("bundle")
@click.option("--cut", "cut_id", metavar="ID", help="Print one cut in full.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def inspect(bundle: str, cut_id: Optional[str], as_json: bool) -> None:
    """Print what is in BUNDLE: inputs, outputs, cuts, files. Its digests are checked first."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if cut_id is not None:
        record = _cut_record(manifest, cut_id)
        if as_json:
            print_json(record)
        else:
            _print_cut(record)
    elif as_json:
        whole: Dict[str, Any] = msgspec.to_builtins(manifest)
        print_json({"bundle": str(opened.folder), "digest": opened.digest, **whole})
    else:
        _print_bundle(opened)


@main.command()
@click.argument("bundle")
@click.option("--backend", default="ort", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def verify(bundle: str, backend: str, as_json: bool) -> None:
    """Replay the parity vectors through every cut; exit 1 if any error is over tolerance."""
    with Program(Bundle.open(bundle), open_backend(backend), fuse=False) as program:
        ok = print_parity(program, as_json=as_json)
    sys.exit(0 if ok else 1)


def _cut_record(manifest: Manifest, cut_id: str) -> Dict[str, Any]:
    cut = manifest.cut(cut_id)
    record: Dict[str, Any] = msgspec.to_builtins(cut)
    record["tensors"] = [str(spec) for spec in manifest.specs(cut.tensors)]
    record["results"] = [str(spec) for spec in manifest.specs(cut.results)]
    record["robot_operators"] = [
        name for segment in manifest.segments[: cut.index] for name in segment.operators
    ]
    record["server_operators"] = [
        name for segment in manifest.segments[cut.index :] for name in segment.operators
    ]
    return record


def _print_cut(record: Dict[str, Any]) -> None:
    where = record["after"] or "the inputs"
    click.echo(f"cut {record['id']} (index {record['index']}) after {where}")
    click.echo(f"crosses    {'; '.join(record['tensors'])}  ({record['bytes']} bytes)")
    click.echo(f"comes back {'; '.join(record['results']) or 'nothing'}")
    for side in ("robot", "server"):
        names = record[f"{side}_operators"]
        flops = record[f"flops_{side}"]
        click.echo(f"{side:10} {len(names)} operators, {flops / 1e9:.3f} GFLOP: {' '.join(names)}")


def _print_bundle(opened: Bundle) -> None:
    manifest = opened.manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    weights = manifest.files[manifest.weights].bytes if manifest.weights else 0
    click.echo(f"model    {manifest.name} ({manifest.precision}, opset {manifest.opset})")
    click.echo(f"bundle   {opened.folder}, digest {opened.digest[:12]}, {size} bytes")
    click.echo(f"weights  {weights} bytes")
    for title, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            image = "  (raw image)" if title == "input" and spec.name in manifest.images else ""
            click.echo(f"{title:8} {spec}{image}")
    click.echo(
        f"parity   largest error {manifest.parity.max_error:.2e} against "
        f"{manifest.parity.compared_with}"
    )
    table = Table("index", "cut", "tensors", "bytes", "robot GFLOP", "server GFLOP", "after")
    for cut in manifest.cuts:
        table.add_row(
            str(cut.index),
            cut.id,
            str(len(cut.tensors)),
            str(cut.bytes),
            f"{cut.flops_robot / 1e9:.3f}",
            f"{cut.flops_server / 1e9:.3f}",
            cut.after,
        )
    Console().print(table)
    click.echo(f"{len(manifest.cuts)} cuts, {len(manifest.refused)} boundaries refused")
