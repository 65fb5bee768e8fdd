"""The link estimator against a shaper's truth: recorded traces, replayed.

A link in network namespaces, half duplex, whose rate follows a trace of 10 Hz; over it the robot's
real end (``runtime.link``), with frames back to back, frames in many messages while the robot
computes, a frame a second, or nothing but probes. The estimator knows nothing of the shaper.
What is printed: the error of its goodput, how often its bands held the truth, how long it took to
be within 20% after a step of the rate, and what probes cost. The same on paper
(``estimator_sim``) comes first, since it takes a second.

    python scripts/estimator_traces.py --seconds 60 TESTBED
    python scripts/estimator_traces.py --steps 80,16 --traffic frames
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
from estimator_sim import TRAFFIC, Checked, Frames, Score, Trace, read_trace, score, simulate
from shaped_link import ShapedLink, changing_rate, shaped_link

from engines.errors import LinkError
from engines.tensors import TensorSpec
from runtime.estimator import LinkEstimate, LinkState
from runtime.evidence import Evidence, encode_evidence
from runtime.link import Link
from runtime.messages import STALL_S, Channel
from runtime.payload import pack_tensors, read_tensors
from runtime.protocol import Role
from runtime.requests import Request
from runtime.transport import Deadline, Stream
from runtime.wire import Hello, Infer, Kind, Result, Welcome

BURST = 3_100
"""Depth of the token bucket: two packets. A deeper one lets a good part of a probe through for
free, which no Wi-Fi does."""

EVERY_S = 0.02
COMPUTE_S = 0.005
"""Time that the server keeps a frame."""

ANSWER_FLOATS = 1_000
SETTLE_S = 10.0
_STEP_S = 2.0


def manifest_of(traffic: Frames) -> SimpleNamespace:
    """Return as much of a bundle's manifest as the link asks for: one cut."""
    size = traffic.frame_bytes // traffic.stripes
    specs = {
        "frame": TensorSpec("frame", "uint8", (size,)),
        "answer": TensorSpec("answer", "float32", (ANSWER_FLOATS,)),
    }
    cut = SimpleNamespace(index=0, id="00000001", tensors=("frame",), results=("answer",))
    return SimpleNamespace(
        name="frames", cuts=(cut,), specs=lambda names: tuple(specs[name] for name in names)
    )


def serve(host: str, traffic: Frames) -> None:
    """Answer one robot until it leaves; prints the address first."""
    with socket.create_server((host, 0)) as listener:
        print("{}:{}".format(*listener.getsockname()), flush=True)
        sock, address = listener.accept()
    channel = Channel(Stream(sock, str(address)), Role.SERVER)
    manifest = manifest_of(traffic)
    answer = {"answer": np.zeros(ANSWER_FLOATS, np.float32)}
    parts, payload = pack_tensors(manifest.specs(("answer",)), answer)
    try:
        assert isinstance(channel.receive().meta, Hello)
        channel.send(Kind.WELCOME, Welcome("traces", None, 4))
        while True:
            header, meta = message = channel.receive()
            if header.kind is Kind.PING:
                channel.answer_ping(message)
            elif header.kind is Kind.INFER:
                assert isinstance(meta, Infer)
                begin = time.monotonic()
                read_tensors(
                    channel.stream,
                    manifest.specs(("frame",)),
                    meta.parts,
                    deadline=Deadline(None),
                    stall_s=STALL_S * 10,
                )
                received_s = time.monotonic() - begin
                time.sleep(COMPUTE_S)
                channel.send(
                    Kind.RESULT,
                    Result(parts, received_s, 0.0, COMPUTE_S),
                    request=header.request,
                    cut=header.cut,
                    tensors=1,
                    payload=payload,
                    deadline=Deadline(None),
                )
            elif header.kind is Kind.GOODBYE:
                return
    except LinkError:
        return
    finally:
        channel.stream.close()


def drive(address: str, traffic: Frames, seconds: float, record: Path | None) -> None:
    """Be the robot; prints an estimate a line, and the bytes of probes at the end."""
    host, _, port = address.rpartition(":")
    link = Link(host, int(port), manifest=manifest_of(traffic), digest="0" * 64)  # type: ignore[arg-type]
    taken: list[Evidence] = []
    if record is not None:
        link.estimator.record = taken.append
    if not link.wait_settled(SETTLE_S):
        raise SystemExit(f"no link: {link.trouble}")
    print(json.dumps({"ready": True}), flush=True)
    done = threading.Event()
    sender = threading.Thread(target=_send_frames, args=(link, traffic, done))
    sender.start()
    found: list[Checked] = []
    end_s = time.monotonic() + seconds
    before = link.probe_bytes
    while time.monotonic() < end_s:
        now_s = time.monotonic()
        found.append(Checked(now_s, link.estimator.at(now_s)))
        time.sleep(max(EVERY_S - (time.monotonic() - now_s), 0.0))
    probes = link.probe_bytes - before
    done.set()
    sender.join()
    link.close()
    for one in found:
        known = one.estimate
        line = [one.at_s, known.goodput_bps, known.quantiles_bps, known.state.value, known.samples]
        print(json.dumps(line))
    print(json.dumps({"probe_bytes": probes, "refused": link.estimator.refused}), flush=True)
    if record is not None:
        record.write_bytes(b"".join(encode_evidence(one) + b"\n" for one in taken))


def _send_frames(link: Link, traffic: Frames, done: threading.Event) -> None:
    size = traffic.frame_bytes // traffic.stripes
    frame = {"frame": np.random.default_rng(0).integers(0, 256, size, np.uint8)}
    while not done.wait(min(traffic.pause_s, 3600.0)):
        pending: deque[Request] = deque()
        try:
            begin_s = time.monotonic()
            for number in range(traffic.stripes):
                wait_s = begin_s + number * traffic.spacing_s - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
                pending.append(link.send(0, frame, deadline=Deadline(SETTLE_S)))
            while pending:
                request = pending.popleft()
                if request.wait(Deadline(SETTLE_S)) is None:
                    link.abandon(request)
        except LinkError:
            time.sleep(0.2)


def replay(
    trace: Trace, name: str, record: Path | None = None
) -> tuple[Score, dict[str, int]] | str:
    """Replay a trace on a shaped link; returns the score, or why there is none."""
    here = [sys.executable, str(Path(__file__).resolve()), "--traffic", name]
    with shaped_link(trace.mbps[0], half_duplex=True, burst=BURST) as link:
        if not link.shapers:
            return link.description
        return _replay_on(link, trace, here, record)


def _replay_on(
    link: ShapedLink, trace: Trace, here: list[str], record: Path | None
) -> tuple[Score, dict[str, int]]:
    server = subprocess.Popen(
        [*link.server_prefix, *here, "--serve", link.server_host],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None  # asked for above
    robot: subprocess.Popen[str] | None = None
    try:
        address = server.stdout.readline().strip()
        words = [*here, "--drive", address, "--seconds", str(trace.seconds)]
        if record is not None:
            words += ["--record", str(record)]
        robot = subprocess.Popen([*link.robot_prefix, *words], stdout=subprocess.PIPE, text=True)
        assert robot.stdout is not None  # asked for above
        robot.stdout.readline()  # ready
        begin_s = time.monotonic()
        with changing_rate(link) as change:
            for index, mbps in enumerate(trace.mbps):
                wait_s = begin_s + index * trace.step_s - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
                if not index or mbps != trace.mbps[index - 1]:
                    change(mbps)
            lines = robot.stdout.read().splitlines()
    finally:
        for process in (robot, server):
            if process is not None:
                process.terminate()
                process.wait()
                assert process.stdout is not None  # asked for above
                process.stdout.close()
    last = json.loads(lines[-1])
    found = [_checked(line, begin_s) for line in lines[:-1]]
    states = {state.value: 0 for state in LinkState}
    for one in found:
        states[one.estimate.state.value] += 1
    states["refused"] = last["refused"]
    return score(trace, found, probe_bytes=last["probe_bytes"]), states


def _checked(line: str, begin_s: float) -> Checked:
    at_s, goodput_bps, quantiles, state, samples = json.loads(line)
    estimate = LinkEstimate(goodput_bps, 0.0, samples, tuple(quantiles), LinkState(state))
    return Checked(at_s - begin_s, estimate)


def _traces(
    testbed: str | None, steps: str | None, begin_s: float, seconds: float
) -> dict[str, Trace]:
    if steps is not None:
        levels = [float(level) for level in steps.split(",")]
        count = max(round(seconds / _STEP_S), len(levels))
        each = round(_STEP_S / 0.1)
        mbps = tuple(levels[i % len(levels)] for i in range(count) for _ in range(each))
        return {f"steps {steps}": Trace(0.1, mbps)}
    folder = testbed or os.environ.get("SPLITRT_TESTBED")
    if not folder:
        raise click.UsageError("name the testbed's folder, set SPLITRT_TESTBED, or use --steps")
    paths = sorted((Path(folder) / "traces").glob("*_10hz.csv"))
    if not paths:
        raise click.UsageError(f"{folder}: no traces/*_10hz.csv in it")
    return {p.stem: read_trace(p, begin_s=begin_s, seconds=seconds) for p in paths}


@click.command()
@click.argument("testbed", required=False)
@click.option("--begin", "begin_s", default=60.0, show_default=True, help="Where in the trace.")
@click.option("--seconds", default=60.0, show_default=True, help="Of each trace.")
@click.option("--steps", help="Instead of traces: these Mbps in turn, 2 s each; as 80,16.")
@click.option("--traffic", "names", help="One or more of: " + ", ".join(TRAFFIC) + ".")
@click.option("--offline", is_flag=True, help="On paper only.")
@click.option("--record", type=click.Path(path_type=Path), help="File for the evidence.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="File for scores.")
@click.option("--serve", "serve_on", metavar="HOST", help="Be the server's end.")
@click.option("--drive", "drive_at", metavar="HOST:PORT", help="Be the robot's end.")
def main(  # noqa: PLR0913 (one argument an option)
    testbed: str | None,
    begin_s: float,
    seconds: float,
    steps: str | None,
    names: str | None,
    offline: bool,
    record: Path | None,
    json_path: Path | None,
    serve_on: str | None,
    drive_at: str | None,
) -> None:
    """Replay traces and say how well the link estimator does."""
    chosen = list(TRAFFIC) if names is None else names.split(",")
    unknown = [name for name in chosen if name not in TRAFFIC]
    if unknown:
        raise click.UsageError(f"traffic {unknown}: expected of {', '.join(TRAFFIC)}")
    if serve_on is not None:
        serve(serve_on, TRAFFIC[chosen[0]])
        return
    if drive_at is not None:
        drive(drive_at, TRAFFIC[chosen[0]], seconds, record)
        return
    rows: list[str] = []
    for trace_name, trace in _traces(testbed, steps, begin_s, seconds).items():
        for name in chosen:
            found, probes = simulate(trace, TRAFFIC[name])
            _show(rows, trace_name, name, "paper", score(trace, found, probe_bytes=probes))
            if offline:
                continue
            outcome = replay(trace, name, record)
            if isinstance(outcome, str):
                raise click.ClickException(outcome)
            _show(rows, trace_name, name, "link", outcome[0])
            print(f"{'':32}estimates by state: {outcome[1]}", flush=True)
    if json_path is not None:
        json_path.write_text("".join(row + "\n" for row in rows))


def _show(rows: list[str], trace: str, traffic: str, where: str, found: Score) -> None:
    print(f"{trace:14} {traffic:8} {where:6} {found}", flush=True)
    head = json.dumps({"trace": trace, "traffic": traffic, "where": where})
    rows.append(head[:-1] + ", " + found.as_json()[1:])


if __name__ == "__main__":
    main()
