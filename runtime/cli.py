"""``runtime``: serve a bundle, infer with it, measure and verify it on this device."""

from __future__ import annotations

import collections
import json
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import (
    Any,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    TextIO,
    Tuple,
    Union,
)

import click
import msgspec
from rich.console import Console
from rich.table import Table as RichTable

from calibration.codecs_cli import codec_records, print_codecs
from calibration.energy import parse_power
from calibration.halves_cli import half_records, print_halves
from calibration.latency_table import store_table
from calibration.measure import measure_latency
from calibration.measure_codecs import measure_codecs
from calibration.objectives import OBJECTIVE_FORMS, Constraints, parse_objective
from calibration.plans_cli import plan_record, print_plans
from calibration.verify_cli import print_parity
from engines.backend import BACKENDS, BackendOptions
from engines.bundle import Bundle
from engines.bundle_plans import PLANNED, device_store, open_bundle_backend
from engines.console import command_options, interruptible, print_json, progress_bar
from engines.errors import UnansweredError
from engines.program import Program
from engines.tensors import Array
from runtime.build import build_plans
from runtime.codec_policy import CODEC_FORMS
from runtime.doctor import examine
from runtime.explain_cli import explain_command
from runtime.infer_output import Telling, read_labels
from runtime.power.cli import fit_device_power, power_record, print_power
from runtime.recording import Recorder
from runtime.replay_cli import replay_command
from runtime.robot import MAX_IN_FLIGHT, Result, Robot
from runtime.selector import plan_named, selector_names
from runtime.server import Server
from runtime.sources import Sample, open_source
from runtime.transport import parse_address

__all__ = ["main"]

_PREPARE_S = 10.0
"""Longest wait before the first inference for a plan that was asked for by name."""

_RATE_IN_FLIGHT = 4
"""Frames under way at a time for objective ``rate``, unless the user says how many: enough for all
to be busy."""
_NAMES = ", ".join("replay:TABLE.json" if name == "replay" else name for name in sorted(BACKENDS))


def _backend_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check the name of a backend; a replay's table is read when it is opened."""
    name, colon, table = value.partition(":")
    if name not in BACKENDS or (name == "replay") != bool(colon and table):
        raise click.BadParameter(f"{value!r} is not one of {_NAMES}", ctx, param)
    return value


_backend = click.option(
    "--backend",
    default="ort",
    show_default=True,
    metavar="NAME",
    callback=_backend_name,
    help=f"What computes: {_NAMES}. A replay takes the times of a device that is not here.",
)
_threads = click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads to compute with; 0: automatic."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
@click.version_option(package_name="splitrt")
def main() -> None:
    """Run a compiled bundle on a robot, on a server, or on both."""


@main.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--listen", default="127.0.0.1:7447", show_default=True, metavar="HOST:PORT")
@_backend
@_threads
@_json
@command_options
def serve(
    bundles: Tuple[str, ...], listen: str, backend: str, threads: int, as_json: bool
) -> None:
    """Serve bundles to robots until SIGTERM or Ctrl-C; port 0 takes a free one.

    What is queued is finished before it ends.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    host, port = parse_address(listen)
    with ExitStack() as stack:
        programs = [stack.enter_context(_load(path, backend, threads)) for path in bundles]
        server = stack.enter_context(Server(programs, host=host, port=port))
        address = "{}:{}".format(*server.address)
        if as_json:
            digests = [program.bundle.digest for program in programs]
            click.echo(json.dumps({"listening": address, "bundles": digests}))
        else:
            names = ", ".join(program.bundle.manifest.name for program in programs)
            click.echo(f"serving {names} on {address}")
        sys.stdout.flush()
        stop.wait()
        server.close()
        click.echo(f"served {server.served} requests", err=True)


@main.command()
@click.argument("bundle")
@click.option("--server", metavar="HOST:PORT", help="Where the server is; none: robot alone.")
@click.option(
    "--source",
    required=True,
    help="Image, folder, video, FILE.npz, random:N, or a camera: v4l2:///dev/video0, csi://0, "
    "gst:PIPELINE.",
)
@click.option(
    "--count",
    type=click.IntRange(1),
    help="Inferences; default: the source, once; a camera: until Ctrl-C.",
)
@click.option(
    "--cut",
    help="The id of a cut to use always, or a striped plan: CUT/4 (4 stripes), CUT/4:2 "
    "(two-sided, the robot computes 2 of 4), CUT/32-96-224 (stripes end at these rows), each with "
    ",until=CUT (how far the server works in stripes); rows:CUT@96 (the robot computes the "
    "outputs above row 96); lossy: halo:CUT@96~16 (the head divided at row 96, each side with 16 "
    "rows more). CUT may be offload: the input itself in stripes.",
)
@click.option(
    "--selector",
    metavar="NAME",
    help=f"What chooses, inference by inference: {', '.join(selector_names())}, fixed:CUT. "
    "Default: splitrt.",
)
@click.option("--objective", default="latency", show_default=True, help=OBJECTIVE_FORMS)
@click.option("--keep-local", metavar="CUT", help="Nothing before this cut leaves the robot.")
@click.option(
    "--allow-lossy-halo",
    type=click.IntRange(0),
    metavar="ROWS",
    help="Lossy: also choose among bounded divisions of at least so many rows of halo, of a "
    "bundle compiled with --halo.",
)
@click.option(
    "--codec", default="auto", show_default=True, help=f"How tensors are coded: {CODEC_FORMS}."
)
@click.option(
    "--allow-lossy",
    type=click.FloatRange(0),
    metavar="MAX_ERROR",
    help="Also choose among lossy codecs, at cuts where `split-bundle verify --data` measured an "
    "error of at most this.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False),
    help="Write all that was known, decided and measured to this file, for `runtime replay`.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="Write JSON lines to this file.")
@click.option("--save", type=click.Path(file_okay=False), help="Save outputs, a .npz a sample.")
@click.option(
    "--labels", type=click.Path(), help="Names, one a line: show that of the largest output."
)
@click.option(
    "--power",
    default="",
    metavar="compute=W,comm=W,idle=W",
    help="Robot's power, for the modelled energy; default: as `runtime profile` fitted it.",
)
@click.option(
    "--sensor/--no-sensor",
    default=True,
    help="Measure energy where this device has a power sensor.  [default: sensor]",
)
@click.option(
    "--patience",
    type=click.FloatRange(0, min_open=True),
    help="Longest wait for the server, in seconds, before the robot does its part; default: as "
    "long as the objective allows; where nothing is promised 4 times as long as predicted, "
    "between 0.25 and 0.8.",
)
@click.option(
    "--hedge/--no-hedge",
    default=True,
    help="Begin the server's part on the robot, early enough for what the objective promises; "
    "whichever is first counts.  [default: hedge]",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, MAX_IN_FLIGHT),
    help="Frames under way at a time: the next begins while link and server have the ones before. "
    "Default: 1, with --objective rate 4.",
)
@_backend
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines on stdout.")
@command_options
def infer(
    bundle: str,
    server: Optional[str],
    source: str,
    count: Optional[int],
    cut: Optional[str],
    selector: Optional[str],
    objective: str,
    keep_local: Optional[str],
    allow_lossy_halo: Optional[int],
    codec: str,
    allow_lossy: Optional[float],
    record: Optional[str],
    out: Optional[str],
    save: Optional[str],
    labels: Optional[str],
    power: str,
    sensor: bool,
    patience: Optional[float],
    hedge: bool,
    in_flight: Optional[int],
    backend: str,
    threads: int,
    as_json: bool,
) -> None:
    """Run inferences, one JSON object a line and a summary last (--out, --json)."""
    if cut is not None and selector is not None:
        raise click.UsageError("--cut and --selector both say what chooses: give one of them")
    chooser = cut or selector or "splitrt"
    constraints = Constraints(keep_local)
    wanted = parse_objective(objective)
    in_flight = in_flight or (_RATE_IN_FLIGHT if wanted.kind == "rate" else 1)
    names = read_labels(labels)
    opened = Bundle.open(bundle)
    folder = None if save is None else Path(save)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        samples = stack.enter_context(open_source(source, opened.manifest))
        sinks: List[TextIO] = [sys.stdout] if as_json else []
        if out is not None:
            sinks.append(stack.enter_context(open(out, "w", encoding="utf-8")))
        robot = stack.enter_context(
            Robot(
                opened,
                server=server,
                selector=chooser,
                objective=wanted,
                constraints=constraints,
                allow_halo=allow_lossy_halo,
                codec=codec,
                allow_lossy=allow_lossy,
                backend=backend,
                threads=threads,
                power=parse_power(power) if power else None,
                patience_s=patience,
                measure_energy=sensor,
                hedge=hedge,
            )
        )
        plan = plan_named(chooser)
        if server is not None and plan is not None:
            robot.prepare(plan, timeout_s=_PREPARE_S)
        recorder: Optional[Recorder] = None
        if record is not None:
            file = stack.enter_context(open(record, "w", encoding="utf-8"))
            recorder = Recorder(
                file,
                opened,
                selector=chooser,
                constraints=constraints,
                least_halo=allow_lossy_halo,
                clock=time.monotonic,
            )
        told = stack.enter_context(
            Telling(
                sinks,
                title=f"{opened.manifest.name}, {chooser}, {wanted}",
                names=names,
                folder=folder,
                recorder=recorder,
                people=not as_json,
                source=samples,
            )
        )
        check_interrupted = stack.enter_context(interruptible())
        for name, result in _results(robot, samples.take(count), in_flight):
            told.add(name, result)
            check_interrupted()
    sys.exit(1 if told.summary.failures or told.summary.unreadable else 0)


@main.command()
@click.argument("bundle")
@click.option("--runs", type=click.IntRange(3), default=30, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=5, show_default=True)
@click.option(
    "--source",
    help="What codecs are measured on, as for `runtime infer`: use pictures like those of use. "
    "Default: the bundle's parity vectors, which are often noise.",
)
@click.option("--samples", type=click.IntRange(1), default=3, show_default=True, help="Of those.")
@click.option("--no-codecs", is_flag=True, help="Do not measure codecs.")
@click.option(
    "--energy-of",
    type=click.Path(dir_okay=False),
    metavar="RUN.jsonl",
    help="Measured inferences of `runtime infer --out`: fit the power of communicating, too.",
)
@_backend
@_threads
@_json
@command_options
def profile(
    bundle: str,
    runs: int,
    warmup: int,
    source: Optional[str],
    samples: int,
    no_codecs: bool,
    energy_of: Optional[str],
    backend: str,
    threads: int,
    as_json: bool,
) -> None:
    """Measure how long each segment takes on this device and keep it beside the bundle.

    The likely halves are measured both as chains of segments and fused; only those that save over
    3% are run fused from then on. Every codec is measured on what may cross the link. Where there
    is a power sensor, the power of computing and of idling is measured and kept, too.
    """
    with _load(bundle, backend, threads) as program:
        with progress_bar("measuring") as advance:
            table = measure_latency(
                program, runs=runs, warmup=warmup, halves=True, stripes=True, progress=advance
            )
        if not no_codecs:
            inputs = _codec_samples(program.bundle, source, samples)
            with progress_bar("measuring codecs") as advance:
                costs = measure_codecs(program, inputs, progress=advance)
            table = msgspec.structs.replace(table, codecs=costs)
        path = store_table(program.bundle, table)
        power = fit_device_power(program, energy_of)
    manifest = program.bundle.manifest
    rows: List[Dict[str, Any]] = [
        {
            "segment": segment.index,
            "outputs": list(segment.outputs),
            "operators": list(segment.operators),
            "p50_ms": round(timing.p50_s * 1e3, 4),
            "p95_ms": round(timing.p95_s * 1e3, 4),
        }
        for segment, timing in zip(manifest.segments, table.segments)
    ]
    chain_ms = sum(float(timing.p50_s) for timing in table.segments) * 1e3
    if as_json:
        print_json(
            {
                "bundle": program.bundle.digest,
                "fingerprint": {"backend": program.backend.name, **table.fingerprint.fields},
                "runs": table.runs,
                "segments": rows,
                "chain_ms": round(chain_ms, 4),
                "whole_p50_ms": round(table.whole.p50_s * 1e3, 4),
                "whole_p95_ms": round(table.whole.p95_s * 1e3, 4),
                "halves": half_records(manifest, table),
                "codecs": codec_records(manifest, table.codecs),
                "file": str(path),
                "power": power_record(power),
            }
        )
        return
    shown = RichTable("segment", "operators", "p50 ms", "p95 ms", "outputs")
    for row in rows:
        shown.add_row(
            str(row["segment"]),
            " ".join(row["operators"])[:40],
            str(row["p50_ms"]),
            str(row["p95_ms"]),
            " ".join(row["outputs"])[:40],
        )
    Console().print(shown)
    print_halves(manifest, table)
    print_codecs(manifest, table.codecs)
    print_power(power)
    click.echo(
        f"{table.runs} runs: segments one by one {chain_ms:.2f} ms, the whole as it is run "
        f"{table.whole.p50_s * 1e3:.2f} ms (p95 {table.whole.p95_s * 1e3:.2f}); kept in {path}"
    )


@main.command()
@click.argument("bundle")
@click.option("--target", help="Target of the bundle; needed where it has several.")
@click.option("--backend", type=click.Choice(PLANNED), help="Instead of the target's own.")
@click.option(
    "--for",
    "capabilities",
    metavar="sm86,sm89",
    help="GPUs to build for, where the library builds for others than this machine's.",
)
@click.option("--no-halves", is_flag=True, help="Build plans of segments only, not of halves.")
@click.option(
    "--stripes",
    multiple=True,
    metavar="PLAN",
    help="Also build the forms of a striped plan, as --cut of `runtime infer` takes it; they "
    "serve every plan of the same cuts. Repeatable.",
)
@_json
@command_options
def build(
    bundle: str,
    target: Optional[str],
    backend: Optional[str],
    capabilities: Optional[str],
    no_halves: bool,
    stripes: Tuple[str, ...],
    as_json: bool,
) -> None:
    """Build the plans of BUNDLE on this device and keep them beside it.

    The recipe is the bundle's target: every segment, and the fused halves that it names. Plans
    that are there already are not built again.
    """
    opened = Bundle.open(bundle)
    with progress_bar("building plans", len(opened.manifest.segments)) as advance:
        plans = build_plans(
            opened,
            target=target,
            backend=backend,
            compute_capabilities=tuple((capabilities or "").split(",")) if capabilities else None,
            halves=not no_halves,
            stripes=stripes,
            progress=advance,
        )
    manifest = opened.manifest
    if as_json:
        print_json([plan_record(plan.header, manifest, found=plan.found) for plan in plans])
        return
    print_plans([plan.header for plan in plans], manifest)
    new = sum(1 for plan in plans if not plan.found)
    click.echo(f"{new} built, {len(plans) - new} found; in {device_store(opened).folder}")


@main.command()
@click.argument("bundle")
@_backend
@_threads
@_json
@command_options
def verify(bundle: str, backend: str, threads: int, as_json: bool) -> None:
    """Replay the parity vectors through every cut on this device; exit 1 on too large an error."""
    with _load(bundle, backend, threads) as program:
        ok = print_parity(program, as_json=as_json)
    sys.exit(0 if ok else 1)


@main.command()
@_json
@command_options
def doctor(as_json: bool) -> None:
    """Say what is installed, which backends work and how to mend the rest."""
    checks = examine()
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            mark = "ok  " if check.ok else "MISS" if check.needed else "-   "
            mend = "" if check.ok else f"  -> {check.mend}"
            click.echo(f"{mark} {check.name:18} {check.found}{mend}")
    sys.exit(0 if all(check.ok for check in checks if check.needed) else 1)


main.add_command(explain_command)
main.add_command(replay_command)


def _results(
    robot: Robot, samples: Iterable[Sample], in_flight: int
) -> "Iterator[Tuple[str, Union[Result, UnansweredError]]]":
    """Run the samples and yield each one's name with its result, or why it has none."""
    names: Deque[str] = collections.deque()

    def frames() -> Iterator[Dict[str, Array]]:
        for sample in samples:
            names.append(sample.name)
            yield sample.inputs

    with robot.stream(frames(), in_flight=in_flight) as stream:
        while True:
            result: Union[Result, UnansweredError]
            try:
                result = next(stream)
            except StopIteration:
                return
            except UnansweredError as exc:
                result = exc
            yield names.popleft(), result


def _codec_samples(bundle: Bundle, source: Optional[str], count: int) -> List[Dict[str, Array]]:
    """Return what codecs are measured on."""
    if source is None:
        return [bundle.parity_vectors()[0]]
    with open_source(source, bundle.manifest) as opened:
        some = count if opened.size is None else min(count, opened.size)
        return [sample.inputs for sample in opened.take(some)]


def _load(path: str, backend: str, threads: int) -> Program:
    bundle = Bundle.open(path)
    engine = open_bundle_backend(bundle, backend, BackendOptions(threads=threads))
    with progress_bar(f"loading {bundle.manifest.name}") as advance:
        return Program(bundle, engine, progress=advance)
