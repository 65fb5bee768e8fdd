"""``split-bundle``: look into a bundle, calibrate and verify it."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any, Dict, Optional, Tuple

import click
import msgspec
from rich.console import Console
from rich.table import Table

from calibration.calibrate_cli import calibrate_bundle
from calibration.codec_ranges import ranges_digest
from calibration.collect import PERCENTILE
from calibration.energy import StatePower, parse_power
from calibration.latency_table import LatencyTable, read_table
from calibration.modes import bounded_text
from calibration.plans_cli import plan_record, print_plans
from calibration.precisions import precisions_text
from calibration.quality import stored_quality
from calibration.quality_cli import QualityOptions, quality_options, verify_quality
from calibration.ranges import stored_ranges
from calibration.report import RTT_S, render_report
from calibration.verify_cli import print_parity
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.bundle_plans import device_store, target_of
from engines.console import command_options, print_json
from engines.errors import ManifestError, SplitError
from engines.manifest import Manifest
from engines.plans import PlanStore
from engines.program import Program

__all__ = ["main"]


@click.group()
@click.version_option(package_name="splitrt")
def main() -> None:
    """Inspect, calibrate, verify and report on a compiled bundle."""


@main.command()
@click.argument("bundle")
@click.option("--cut", "cut_id", metavar="ID", help="Print one cut in full.")
@click.option("--target", metavar="NAME", help="Print the plans of one target.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def inspect(bundle: str, cut_id: Optional[str], target: Optional[str], as_json: bool) -> None:
    """Print what is in BUNDLE: inputs, outputs, cuts, files. Its digests are checked first."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if target is not None:
        _print_target(opened, target, as_json=as_json)
    elif cut_id is not None:
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
@quality_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def verify(bundle: str, backend: str, as_json: bool, **quality: Any) -> None:
    """Replay the parity vectors through every cut; exit 1 if any error is over tolerance.

    With --data: run DATA through every cut and codec instead, and compare the results with those
    of the float32 model; exit 1 if any error is above --limit. DATA is as `calibrate` takes it.
    """
    options = QualityOptions(**quality)
    opened = Bundle.open(bundle)
    if options.data is not None:
        ok = verify_quality(opened, options, backend=backend, as_json=as_json)
    else:
        options.check_alone()
        with Program(opened, open_backend(backend), fuse=False) as program:
            ok = print_parity(program, as_json=as_json)
    sys.exit(0 if ok else 1)


@main.command()
@click.argument("bundle")
@click.argument("data")
@click.option("--backend", default="ort", show_default=True)
@click.option("--samples", type=click.IntRange(1), metavar="N", help="The first N of the data.")
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100, min_open=True),
    default=PERCENTILE,
    show_default=True,
    help="Share of the values, in percent, within the percentile thresholds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def calibrate(
    bundle: str,
    data: str,
    backend: str,
    samples: Optional[int],
    percentile: float,
    as_json: bool,
) -> None:
    """Measure which values cross the cuts of BUNDLE, over DATA; keep that in its device folder.

    DATA is a folder of images, an .npz file of arrays by input name, a dimension of samples in
    front, or module:name of an iterable or of a function that returns one.
    """
    with Program(Bundle.open(bundle), open_backend(backend), fuse=False) as program:
        calibrate_bundle(program, data, most=samples, percentile=percentile, as_json=as_json)


@main.command()
@click.argument("bundle")
@click.option("-o", "--out", type=click.Path(dir_okay=False), help="Default: NAME-report.html.")
@click.option("--robot-table", metavar="FILE", help="The robot's latency-*.json of this bundle.")
@click.option("--server-table", metavar="FILE", help="The server's.")
@click.option("--rtt-ms", type=click.FloatRange(0), default=RTT_S * 1e3, show_default=True)
@click.option("--power", default="", metavar="compute=W,comm=W,idle=W", help="Robot's power.")
@click.option(
    "--allow-lossy",
    type=click.FloatRange(0),
    metavar="MAX_ERROR",
    help="Lossy codecs up to this error, as `verify --data` measured it, are among the choices.",
)
@command_options
def report(
    bundle: str,
    out: Optional[str],
    robot_table: Optional[str],
    server_table: Optional[str],
    rtt_ms: float,
    power: str,
    allow_lossy: Optional[float],
) -> None:
    """Write the report of BUNDLE, with measured times where tables are given.

    Codecs are among the choices where the robot's table has their costs. Where their errors were
    measured, the report shows bytes against error.
    """
    opened = Bundle.open(bundle)
    tables = {
        side: _measured(opened, Path(path))
        for side, path in (("robot", robot_table), ("server", server_table))
        if path is not None
    }
    quality = stored_quality(opened)
    if allow_lossy is not None and (quality is None or not robot_table):
        missing = "--robot-table FILE" if quality else "`split-bundle verify BUNDLE --data DATA`"
        raise SplitError(
            f"--allow-lossy {allow_lossy:g}: expected costs and errors of codecs, given "
            f"{'no costs' if quality else 'no errors'}; first {missing}"
        )
    admitted: Tuple[Tuple[str, str], ...] = ()
    if quality is not None and allow_lossy is not None:
        admitted = quality.admitted(allow_lossy, ranges_digest(stored_ranges(opened)))
    page = render_report(
        opened.manifest,
        rtt_s=rtt_ms / 1e3,
        power=parse_power(power) if power else StatePower(),
        tables=tables,
        quality=quality,
        admitted=admitted,
    )
    target = Path(out or f"{opened.manifest.name}-report.html")
    target.write_text(page, encoding="utf-8")
    click.echo(f"written to {target}")


@main.command()
@click.argument("bundle")
@click.option("--cut", "cut_id", metavar="ID", help="Show a half of this cut.")
@click.option("--side", type=click.Choice(["head", "tail"]), default="tail", show_default=True)
@command_options
def view(bundle: str, cut_id: Optional[str], side: str) -> None:
    """Show the graph of BUNDLE, or a half of one cut, in the browser (needs netron)."""
    opened = Bundle.open(bundle)
    file = opened.manifest.graph
    if cut_id is not None:
        cut = opened.manifest.cut(cut_id)
        half = cut.head if side == "head" else cut.tail
        if half is None:
            raise ManifestError(f"cut {cut_id} has no {side}: the other side runs everything")
        file = half
    try:
        import netron
    except ImportError as exc:
        raise SplitError("netron is not installed; pip install netron") from exc
    netron.start(str(opened.path(file)), browse=True)
    netron.wait()


def _measured(opened: Bundle, path: Path) -> LatencyTable:
    """Read a latency table of a bundle."""
    table = read_table(path)
    if table.bundle != opened.digest:
        raise SplitError(
            f"{path}: expected a table of bundle {opened.digest[:12]}, given one of "
            f"{table.bundle[:12]}; run `runtime profile` on this bundle"
        )
    return table


def _print_target(opened: Bundle, name: str, *, as_json: bool) -> None:
    """Print a target's recipe, and its plans: those in the bundle and those built here."""
    _, target = target_of(opened, name)
    headers = [
        h for h in device_store(opened).headers() if h.fingerprint.backend == target.backend
    ]
    if target.plans is not None:
        headers += PlanStore(opened.folder / target.plans).headers()
    if as_json:
        plans = [plan_record(header, opened.manifest) for header in headers]
        print_json({"target": name, **msgspec.to_builtins(target), "built": plans})
        return
    where = "in the bundle" if target.plans else "built on the device by `runtime build`"
    click.echo(
        f"target {name}: backend {target.backend}, opset {target.opset}, {target.precision}, "
        f"plans {where}"
    )
    names = ", ".join(PurePosixPath(file).name for file in target.halves)
    click.echo(f"segments {len(opened.manifest.segments)}; fused halves: {names or 'none'}")
    print_plans(headers, opened.manifest)


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
        f"parity   largest error {manifest.parity.max_error:.2e} ({manifest.parity.measure}) "
        f"against {manifest.parity.compared_with}"
    )
    if manifest.quantisation is not None:
        click.echo(f"nodes    {precisions_text(manifest.quantisation)}")
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
    _print_bounded(manifest)


def _print_bounded(manifest: Manifest) -> None:
    """Print the bounded divisions, which are lossy, apart from everything else."""
    striping = manifest.striping
    if striping is None or not striping.bounded:
        return
    click.echo(f"LOSSY    {bounded_text(manifest)}")
    table = Table("cut", "halo", "exact from", "bounds", "largest error", "form")
    for bounded in striping.bounded:
        table.add_row(
            manifest.cuts[bounded.cut].id,
            str(bounded.halo),
            str(bounded.needed),
            f"{bounded.least} to {bounded.most} by {bounded.band}",
            f"{bounded.error:.2g}",
            PurePosixPath(bounded.plain).name,
        )
    Console().print(table)
