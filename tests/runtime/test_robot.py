from __future__ import annotations

import http.server
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from calibration.energy import StatePower
from calibration.latency_table import LatencyTable, Timing, store_table
from calibration.parity import seeded_inputs
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import (
    BundleError,
    ConnectError,
    EngineError,
    ManifestError,
    RemoteProtocolError,
    SplitError,
    TensorMismatchError,
)
from engines.program import Program
from runtime import Robot, Server
from runtime import robot as robot_module
from runtime.evidence import QueueTime
from runtime.selector import Decision, Situation
from runtime.wire import Error, Infer, Kind, Part, Table
from runtime.wire import Result as WireResult
from tests.runtime.helpers import (
    FakeServer,
    Message,
    Peer,
    address,
    assert_right,
    eventually,
    polite_until,
)
from tests.toy import FRONTIERS, toy_outputs, write_toy_bundle

LAST = len(FRONTIERS) - 1
Tensors = dict[str, np.ndarray]


def _json(robot_result: object) -> dict[str, object]:
    """Give a result's record, as strict JSON."""
    text = json.dumps(robot_result.record(), allow_nan=False)  # type: ignore[attr-defined]
    record: dict[str, object] = json.loads(text)
    return record


class TestAlone:
    @pytest.mark.parametrize("cut", ["auto", "local", "offload"])
    def test_without_a_server_everything_runs_on_the_robot(
        self, toy: Bundle, inputs: Tensors, expected: Tensors, cut: str
    ) -> None:
        with Robot(toy, cut=cut, threads=1) as robot:
            result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "local"
        assert result.cut == toy.manifest.cuts[-1].id
        assert (result.bytes_up, result.bytes_down, result.goodput_bps) == (0, 0, None)
        assert result.energy_j == pytest.approx(13.35 * result.robot_s)

    def test_a_path_will_do_for_a_bundle(
        self, toy: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        with Robot(str(toy.folder), threads=1) as robot:
            assert_right(robot.infer(inputs), expected)

    def test_inferences_are_numbered(self, toy: Bundle, inputs: Tensors) -> None:
        with Robot(toy, threads=1) as robot:
            assert [robot.infer(inputs).seq for _ in range(3)] == [0, 1, 2]

    def test_wrong_inputs_are_the_callers_error(self, toy: Bundle, inputs: Tensors) -> None:
        with Robot(toy, threads=1) as robot:
            for wrong in ({}, {"y": inputs["x"]}, {"x": inputs["x"].astype(np.float64)}):
                with pytest.raises(TensorMismatchError, match="'x'"):
                    robot.infer(wrong)
            with pytest.raises(ManifestError):
                robot.infer(inputs, cut="nope")

    def test_a_closed_robot_says_so(self, toy: Bundle, inputs: Tensors) -> None:
        robot = Robot(toy, threads=1)
        robot.close()
        robot.close()
        with pytest.raises(EngineError, match="closed"):
            robot.infer(inputs)

    @pytest.mark.parametrize("patience", [0.0, -1.0, float("nan"), float("inf"), 1e9])
    def test_impossible_patience_is_refused(self, toy: Bundle, patience: float) -> None:
        with pytest.raises(SplitError, match="patience"):
            Robot(toy, patience_s=patience)

    def test_wrong_arguments_are_refused_before_anything_is_loaded(
        self, toy: Bundle, tmp_path: Path
    ) -> None:
        with pytest.raises(ManifestError):
            Robot(toy, cut="nope")
        with pytest.raises(SplitError, match="HOST:PORT"):
            Robot(toy, server="nowhere")
        with pytest.raises(BundleError):
            Robot(tmp_path / "none")
        with pytest.raises(EngineError, match="expected one of"):
            Robot(toy, backend="tpu")


class TestWithAServer:
    @pytest.mark.parametrize("fused", [False, True])
    def test_every_cut_answers_right_from_both_sides(
        self, toy: Bundle, server: Server, inputs: Tensors, expected: Tensors, fused: bool
    ) -> None:
        with Robot(toy, server=address(server), threads=1) as robot:
            for cut in toy.manifest.cuts:
                if fused:
                    robot.prepare(cut.id)
                for _ in range(3):
                    result = robot.infer(inputs, cut=cut.id)
                    assert_right(result, expected)
                    assert result.cut == cut.id
                    assert result.answered_by == ("local" if cut.index == LAST else "remote")
                    _json(result)

    def test_times_and_bytes_add_up(self, toy: Bundle, server: Server, inputs: Tensors) -> None:
        power = StatePower(compute=10, communicate=4, idle=1)
        with Robot(toy, server=address(server), cut="offload", threads=1, power=power) as robot:
            result = robot.infer(inputs)
        assert result.answered_by == "remote"
        header = 40
        assert result.bytes_up > header + 16 * 16 * 3 * 4
        assert result.bytes_down > header + 4 * (8 + 5)
        parts = result.robot_s + result.link_s + result.server_s + result.queue_s
        assert 0 < parts <= result.latency_s
        assert result.energy_j == pytest.approx(
            10 * result.robot_s + 4 * result.link_s + result.server_s + result.queue_s
        )

    def test_a_boolean_frontier_crosses_as_bits(
        self, toy: Bundle, server: Server, inputs: Tensors
    ) -> None:
        with Robot(toy, server=address(server), threads=1) as robot:
            b, bm = (robot.infer(inputs, cut=toy.manifest.cuts[i].id) for i in (2, 3))
        assert 256 <= bm.bytes_up - b.bytes_up < 300

    def test_the_record_has_the_documented_fields_first_and_in_order(
        self, toy: Bundle, server: Server, inputs: Tensors
    ) -> None:
        with Robot(toy, server=address(server), cut="offload", threads=1) as robot:
            record = _json(robot.infer(inputs))
        assert list(record)[:12] == [
            "seq", "latency_ms", "cut", "answered_by", "bytes_up", "bytes_down", "robot_ms",
            "link_ms", "server_ms", "queue_ms", "goodput_mbps", "energy_j",
        ]  # fmt: skip
        assert list(record)[12:] == [
            "predicted_ms", "reason", "mode", "plan", "stripes", "sending_ms", "age_ms",
            "prediction_error", "objective", "predicted_hz", "lossy",
            "energy_source", "energy_modelled_j", "energy_uncertainty_j", "codecs",
            "hedge_ms", "bound_ms",
        ]  # fmt: skip
        assert record["goodput_mbps"] is not None, "the probe told it"

    def test_two_robots_at_once_200_inferences_each(self, toy: Bundle, server: Server) -> None:
        def work(first: int) -> int:
            with Robot(toy, server=address(server), threads=1) as robot:
                for turn in range(200):
                    inputs = seeded_inputs(toy.manifest.inputs, first + turn % 5)
                    cut = toy.manifest.cuts[turn % LAST].id
                    result = robot.infer(inputs, cut=cut)
                    assert result.answered_by == "remote", result.reason
                    assert_right(result, toy_outputs(inputs))
            return turn + 1

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(work, [0, 100])) == [200, 200]
        assert server.served == 400

    def test_one_robot_from_eight_threads(self, toy: Bundle, server: Server) -> None:
        with Robot(toy, server=address(server), cut="offload", threads=1) as robot:

            def work(seed: int) -> set[str]:
                inputs = seeded_inputs(toy.manifest.inputs, seed)
                expected = toy_outputs(inputs)
                who = set()
                for _ in range(20):
                    result = robot.infer(inputs)
                    assert_right(result, expected)
                    who.add(result.answered_by)
                return who

            with ThreadPoolExecutor(8) as pool:
                assert set().union(*pool.map(work, range(8))) == {"remote"}

    @pytest.mark.parametrize("kind", ["path", "text", "bundle", "several"])
    def test_a_server_loads_what_is_not_loaded_yet_and_closes_it(
        self, toy: Bundle, kind: str, inputs: Tensors, expected: Tensors
    ) -> None:
        given: Any = {
            "path": toy.folder, "text": str(toy.folder), "bundle": toy, "several": [toy.folder]
        }[kind]  # fmt: skip
        with Server(given, threads=1) as server:
            with Robot(toy, server=address(server), cut="offload", threads=1) as robot:
                assert_right(robot.infer(inputs), expected)
            program = next(iter(server._bundles.values())).program
        with pytest.raises(EngineError, match="closed"):
            program.run(inputs, 0, program.last)

    def test_what_a_server_was_given_loaded_stays_loaded(
        self, program: Program, inputs: Tensors
    ) -> None:
        with Server(program):
            pass
        assert program.run(inputs, 0, program.last)

    def test_a_server_that_cannot_begin_leaves_nothing(self, toy: Bundle, tmp_path: Path) -> None:
        # The conftest's fixture looks for threads and sockets that are left.
        with pytest.raises(BundleError, match="gone"):
            Server([toy, tmp_path / "gone"], threads=1)
        with pytest.raises(SplitError, match="at least one bundle"):
            Server([])

    def test_a_server_of_many_bundles_serves_each_its_own(
        self, toy: Bundle, tmp_path: Path, inputs: Tensors, expected: Tensors
    ) -> None:
        other = write_toy_bundle(tmp_path / "other", seed=1)
        backend = open_backend("ort", BackendOptions(threads=1))
        with (
            Program(toy, backend) as one,
            Program(other, backend) as two,
            Server([one, two]) as server,
            Robot(toy, server=address(server), cut="offload", threads=1) as first,
            Robot(other, server=address(server), cut="offload", threads=1) as second,
        ):
            result = first.infer(inputs)
            assert_right(result, expected)
            assert result.answered_by == "remote"
            result = second.infer(inputs)
            assert_right(result, toy_outputs(inputs, seed=1))
            assert result.answered_by == "remote"


class TestAuto:
    """With latency tables by hand: the robot takes seconds, the server microseconds."""

    @pytest.fixture
    def uneven(self, toy_copy: Path) -> Bundle:
        bundle = Bundle.open(toy_copy)
        for threads, seconds in ((1, 1e-6), (2, 0.5)):
            store_table(
                bundle,
                LatencyTable(
                    bundle=bundle.digest,
                    fingerprint=open_backend("ort", BackendOptions(threads=threads)).fingerprint(),
                    runs=3,
                    segments=(Timing(seconds, seconds),) * LAST,
                    whole=Timing(seconds * LAST, seconds * LAST),
                ),
            )
        return bundle

    def test_it_uses_a_quick_server_and_does_without_a_lost_one(
        self, uneven: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        with Program(uneven, open_backend("ort", BackendOptions(threads=1))) as program:
            server = Server([program])
            with Robot(uneven, server=address(server), threads=2) as robot:
                result = robot.infer(inputs)
                assert_right(result, expected)
                assert (result.answered_by, result.cut) == ("remote", uneven.manifest.cuts[0].id)
                assert result.predicted is not None
                assert result.predicted.server_s == pytest.approx(7e-6)
                server.close()
                assert robot.link is not None
                eventually(lambda: not robot.link.up, "the link's end")
                result = robot.infer(inputs)
                assert_right(result, expected)
                assert (result.answered_by, result.reason) == ("local", "no connection")

    def test_it_stays_on_the_robot_where_the_server_is_no_quicker(
        self, toy: Bundle, server: Server, inputs: Tensors, expected: Tensors
    ) -> None:
        with Robot(toy, server=address(server), threads=1) as robot:
            result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "local"

    def test_the_wait_that_the_server_tells_of_is_part_of_the_situation(
        self, toy: Bundle, server: Server, inputs: Tensors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[float] = []

        class Watching:
            def decide(self, situation: Situation) -> Decision:
                told.append(situation.queue_s)
                return Decision(LAST, "queue", None)

        with Robot(toy, server=address(server), threads=1) as robot:
            assert robot.link is not None
            robot.link.estimator.take(QueueTime(time.monotonic(), 1e6))
            monkeypatch.setattr(robot, "_selector", Watching())
            robot.infer(inputs)
        assert told[0] > 0


class TestRefusedServers:
    def test_a_server_of_another_bundle(self, server: Server, tmp_path: Path) -> None:
        other = write_toy_bundle(tmp_path / "other", seed=1)
        with pytest.raises(ConnectError) as caught:
            Robot(other, server=address(server), threads=1)
        assert other.digest[:12] in str(caught.value)
        assert "give both ends the same bundle" in str(caught.value)

    def test_an_http_server(self, toy: Bundle) -> None:
        class Silent(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as httpd:
            thread = threading.Thread(target=httpd.serve_forever)
            thread.start()
            try:
                with pytest.raises(RemoteProtocolError, match="not a SplitRT server"):
                    Robot(toy, server=f"127.0.0.1:{httpd.server_address[1]}", threads=1)
            finally:
                httpd.shutdown()
                thread.join()

    @pytest.mark.parametrize(
        "greeting",
        [b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(40), b"220 mail ready\r\n" * 4, bytes(64),
         b"SPRT\x02" + bytes(35), b"SPRT\x01\x63" + bytes(34)],
    )  # fmt: skip
    def test_a_server_that_speaks_something_else(self, toy: Bundle, greeting: bytes) -> None:
        def handle(peer: Peer) -> None:
            peer.say(greeting)
            peer.hangs_up()

        with FakeServer(handle) as fake, pytest.raises(RemoteProtocolError, match="SplitRT"):
            Robot(toy, server=fake.address, threads=1)

    def test_a_server_that_says_little_of_something_else(self, toy: Bundle) -> None:
        def handle(peer: Peer) -> None:
            peer.hear()
            provoked = peer.sock.recv(4)
            if provoked:  # nothing where a later attempt is given up with the robot
                assert provoked == b"\r\n\r\n"
                peer.say(b"?\n")

        with FakeServer(handle) as fake, pytest.raises(RemoteProtocolError, match="not a SplitRT"):
            Robot(toy, server=fake.address, threads=1)

    def test_a_server_that_answers_hello_with_a_result(self, toy: Bundle) -> None:
        def handle(peer: Peer) -> None:
            peer.hear()
            peer.send(Kind.RESULT, WireResult((), 0, 0, 0))
            peer.hangs_up()

        with FakeServer(handle) as fake, pytest.raises(RemoteProtocolError, match="sent RESULT"):
            Robot(toy, server=fake.address, threads=1)


class TestUnreachableServers:
    """None of these is an error: the robot works alone and goes on trying."""

    def test_nobody_listens(self, toy: Bundle, inputs: Tensors, expected: Tensors) -> None:
        with FakeServer(lambda _: None) as fake:
            free = fake.address
        with Robot(toy, server=free, cut="offload", threads=1) as robot:
            result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "fallback"
        assert result.reason.startswith("no connection")

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
    def test_no_such_host(
        self, toy: Bundle, inputs: Tensors, expected: Tensors, host: str
    ) -> None:
        with Robot(toy, server=f"{host}:80", cut="offload", threads=1) as robot:
            assert_right(robot.infer(inputs), expected)
            assert robot.link is not None
            assert host in robot.link.trouble

    def test_it_accepts_and_says_nothing(
        self, toy: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        with (
            FakeServer(Peer.hangs_up) as fake,
            Robot(toy, server=fake.address, cut="offload", threads=1) as robot,
        ):
            for _ in range(3):
                result = robot.infer(inputs)
                assert_right(result, expected)
                assert result.answered_by == "fallback"
            assert robot.link is not None
            assert "no WELCOME" in robot.link.trouble

    def test_it_closes_every_connection_at_once(
        self, toy: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        with (
            FakeServer(lambda _: None) as fake,
            Robot(toy, server=fake.address, cut="offload", threads=1) as robot,
        ):
            for _ in range(3):
                assert_right(robot.infer(inputs), expected)


def _result(message: Message, **more: int) -> dict[str, int]:
    header = message.header
    return {"request": header.request, "cut": header.cut, **more}


def _raw_result(message: Message, meta: dict[str, object], payload: bytes, size: int) -> bytes:
    """Write a RESULT that ``encode`` would refuse to write."""
    coded = msgspec.msgpack.encode(meta)
    header = message.header
    fixed = (b"SPRT", 1, 4, 0, header.request, header.cut, 0, 1, 2, 0, len(coded), size)
    return struct.pack("<4sBBHQIHHHHIQ", *fixed) + coded + payload


TIMES = {"receive_s": 0.0, "queue_s": 0.0, "compute_s": 0.0}
PARTS = [[0, 32], [0, 20]]
GOOD = WireResult((Part(0, 32), Part(0, 20)), 0.0, 0.0, 0.0)

FAULTS: dict[str, Callable[[Peer, Message], object]] = {
    "garbage": lambda p, m: p.say(b"\xff" * 200),
    "http": lambda p, m: p.say(b"HTTP/1.1 500 Oops\r\n\r\n" * 4),
    "closes": lambda p, m: p.sock.shutdown(2),
    "half a header, then closes": lambda p, m: (p.say(b"SPRT\x01\x04"), p.sock.shutdown(2)),
    "truncated result, then closes": lambda p, m: (
        p.say(_raw_result(m, {**TIMES, "parts": PARTS}, bytes(30), 52)),
        p.sock.shutdown(2),
    ),
    "truncated metadata, then closes": lambda p, m: (
        p.say(_raw_result(m, {**TIMES, "parts": PARTS}, b"", 52)[:60]),
        p.sock.shutdown(2),
    ),
    "unknown request": lambda p, m: p.send(
        Kind.RESULT, GOOD, bytes(52), **_result(m, tensors=2, request=m.header.request + 77)
    ),
    "wrong cut": lambda p, m: p.send(
        Kind.RESULT, GOOD, bytes(52), **_result(m, tensors=2, cut=m.header.cut ^ 1)
    ),
    "oversize part": lambda p, m: p.say(
        _raw_result(m, {**TIMES, "parts": [[0, 32], [0, 2**32 - 32]]}, bytes(100), 2**32)
    ),
    "too few parts": lambda p, m: p.send(
        Kind.RESULT, WireResult((Part(0, 32),), 0, 0, 0), bytes(32), **_result(m, tensors=1)
    ),
    "no parts": lambda p, m: p.send(Kind.RESULT, WireResult((), 0, 0, 0), **_result(m)),
    "short part": lambda p, m: p.send(
        Kind.RESULT,
        WireResult((Part(0, 31), Part(0, 20)), 0, 0, 0),
        bytes(51),
        **_result(m, tensors=2),
    ),
    "unknown codec": lambda p, m: p.send(
        Kind.RESULT,
        WireResult((Part(9, 32), Part(0, 20)), 0, 0, 0),
        bytes(52),
        **_result(m, tensors=2),
    ),
    "wrong codec": lambda p, m: p.send(
        Kind.RESULT,
        WireResult((Part(1, 1), Part(0, 20)), 0, 0, 0),
        bytes(21),
        **_result(m, tensors=2),
    ),
    "not a time": lambda p, m: p.say(
        _raw_result(m, {**TIMES, "parts": PARTS, "queue_s": float("nan")}, bytes(52), 52)
    ),
    "endless time": lambda p, m: p.say(
        _raw_result(m, {**TIMES, "parts": PARTS, "compute_s": float("inf")}, bytes(52), 52)
    ),
    "negative time": lambda p, m: p.say(
        _raw_result(m, {**TIMES, "parts": PARTS, "compute_s": -5.0}, bytes(52), 52)
    ),
    "deep metadata": lambda p, m: p.say(
        b"SPRT\x01\x05" + bytes(14) + b"\0\0\1\0" + bytes(4) + (4000).to_bytes(4, "little")
        + bytes(8) + b"\x81\xa1x" + b"\x91" * 3997
    ),
    "error for the request": lambda p, m: p.send(
        Kind.ERROR, Error("engine", "no"), request=m.header.request
    ),
    "error for all": lambda p, m: p.send(Kind.ERROR, Error("busy", "no")),
    "goodbye": lambda p, m: p.send(Kind.GOODBYE),
    "a request": lambda p, m: p.send(Kind.INFER, Infer(()), request=1),
    "another welcome": lambda p, m: p.say(
        b"SPRT\x01\x02" + bytes(14) + b"\0\0\1\0" + bytes(16)
    ),
    "a pong nobody asked for": lambda p, m: p.send(Kind.PONG, request=2**40),
    "silence": lambda p, m: None,
    "stops within the header": lambda p, m: p.say(b"SPRT\x01\x04"),
    "stops within the payload": lambda p, m: p.say(
        _raw_result(m, {**TIMES, "parts": PARTS}, bytes(30), 52)
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_server_answers_the_robot_answers_right(
    toy: Bundle, inputs: Tensors, expected: Tensors, fault: str
) -> None:
    """It falls back, it does not raise, it goes on, and what it reports is clean."""
    handle = polite_until(FAULTS[fault])
    cut = toy.manifest.cuts[2].id
    with (
        FakeServer(handle) as fake,
        Robot(toy, server=fake.address, cut=cut, threads=1, patience_s=0.4) as robot,
    ):
        assert robot.link is not None
        for _ in range(2):
            eventually(lambda: robot.link.up, "the link, again")
            result = robot.infer(inputs)
            assert_right(result, expected)
            assert result.answered_by == "fallback", result.reason
            assert result.cut == cut
            _json(result)
        assert robot.infer(inputs, cut="local").answered_by == "local"


def test_the_faults_above_are_the_only_difference_to_a_right_answer(
    toy: Bundle, inputs: Tensors, expected: Tensors
) -> None:
    """The negative control: the same fake server, answering well, is believed."""
    payload = expected["pooled"].tobytes() + expected["logits"].tobytes()
    handle = polite_until(lambda p, m: p.send(Kind.RESULT, GOOD, payload, **_result(m, tensors=2)))
    with (
        FakeServer(handle) as fake,
        Robot(toy, server=fake.address, cut=toy.manifest.cuts[2].id, threads=1) as robot,
    ):
        result = robot.infer(inputs)
    assert result.answered_by == "remote", result.reason
    assert_right(result, expected)


def test_a_frozen_server_costs_no_more_than_the_patience(
    toy: Bundle, inputs: Tensors, expected: Tensors
) -> None:
    with (
        FakeServer(polite_until(lambda *_: None)) as fake,
        Robot(toy, server=fake.address, cut="offload", threads=1, patience_s=0.3) as robot,
    ):
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "fallback"
        assert "no answer within" in result.reason
        assert 0.2 < result.latency_s < 10


@pytest.mark.parametrize("segments", [[], [0.1] * 3, [0.1] * 1000])
def test_a_servers_table_of_another_shape_is_ignored(
    toy: Bundle, inputs: Tensors, expected: Tensors, segments: list[float]
) -> None:
    handle = polite_until(lambda *_: None, table=Table(tuple(segments), "fake"))
    with FakeServer(handle) as fake, Robot(toy, server=fake.address, threads=1) as robot:
        result = robot.infer(inputs)
        assert_right(result, expected)
        assert result.answered_by == "local"
        assert "no latency table" in result.reason


def test_a_server_that_restarts_on_its_port_is_used_again(
    toy: Bundle, inputs: Tensors, expected: Tensors
) -> None:
    with Program(toy, open_backend("ort", BackendOptions(threads=1))) as program:
        server = Server([program])
        port = server.address[1]
        with Robot(toy, server=address(server), cut="offload", threads=1) as robot:
            for _ in range(3):
                assert robot.infer(inputs).answered_by == "remote"
                server.close()
                for _ in range(5):
                    result = robot.infer(inputs)
                    assert_right(result, expected)
                    assert result.answered_by == "fallback"
                server = Server([program], port=port)

                def again() -> bool:
                    result = robot.infer(inputs)
                    assert_right(result, expected)
                    return result.answered_by == "remote"

                eventually(again, "a remote answer", within_s=10)
        server.close()


def test_kill_9_of_the_server_while_100_inferences_run(
    toy: Bundle, inputs: Tensors, expected: Tensors
) -> None:
    code = "from runtime.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(toy.folder), "--listen", "127.0.0.1:0",
         "--threads", "1", "--json"],
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            where = json.loads(process.stdout.readline())["listening"]
            with Robot(toy, server=where, cut=toy.manifest.cuts[2].id, threads=1) as robot:
                who = []
                for number in range(100):
                    if number == 30:
                        killer = threading.Timer(0.01, os.kill, (process.pid, signal.SIGKILL))
                        killer.start()
                    result = robot.infer(inputs)
                    assert_right(result, expected)
                    assert result.latency_s < 10
                    who.append(result.answered_by)
                    time.sleep(0.002)
                killer.join()
        finally:
            process.kill()
            process.wait()
    assert who[:30] == ["remote"] * 30
    assert who[-1] == "fallback"
    assert len(who) == 100


def test_closing_while_inferences_run_leaves_nothing_behind(
    toy: Bundle, server: Server, inputs: Tensors, expected: Tensors
) -> None:
    robot = Robot(toy, server=address(server), cut="offload", threads=1)
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                assert_right(robot.infer(inputs), expected)
        except EngineError:
            pass  # the robot's own engines are closed: what was asked for
        except BaseException as exc:  # noqa: BLE001 (shown below)
            trouble.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    robot.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not trouble


def test_what_fails_while_it_is_made_leaves_no_link(
    toy: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(robot_module.Link, "wait_settled", fail)
    with pytest.raises(KeyboardInterrupt):
        Robot(toy, server=address(server), threads=1)


class TestObjective:
    def test_auto_chooses_for_it(self, toy: Bundle, server: Server, inputs: Tensors) -> None:
        for objective in ("latency", "energy", "rate"):
            with Robot(toy, server=address(server), threads=1, objective=objective) as robot:
                for _ in range(3):
                    result = robot.infer(inputs)
                assert result.predicted is not None
                assert result.predicted.rate_hz > 0
                reason = result.reason.partition(";")[0]
                assert reason.endswith(("goodput unknown", f"predicted {objective}"))
                with robot.stream([inputs] * 4, in_flight=2) as stream:
                    results = list(stream)
                for result in results:
                    assert result.predicted is not None
                    assert result.predicted.period_s >= result.predicted.latency_s / 2 * 0.999
                assert robot.infer(inputs, cut="local").reason == "named by the user"

    def test_another_is_refused(self, toy: Bundle) -> None:
        with pytest.raises(SplitError, match="objective 'speed': expected one of"):
            Robot(toy, objective="speed")
