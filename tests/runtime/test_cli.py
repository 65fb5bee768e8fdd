"""The ``runtime`` command. What a signal ends runs as a process of its own; the rest in here."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from calibration.latency_table import read_table
from calibration.parity import seeded_inputs
from calibration.plan_text import plan_text
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.console import interruptible
from engines.errors import EngineError
from engines.program import Program
from engines.replay_table import ReplayTable
from engines.stripe_plans import StripePlan
from runtime import Robot, Server
from runtime.cli import main
from runtime.sources import open_source
from runtime.transport import listen
from tests.runtime.helpers import address, assert_right, eventually
from tests.striped_toy import whole_outputs
from tests.toy import reseal, write_toy_bundle

CODE = "from runtime.cli import main; main()"
FIELDS = {
    "seq": int, "latency_ms": float, "cut": str, "answered_by": str, "bytes_up": int,
    "bytes_down": int, "robot_ms": float, "link_ms": float, "server_ms": float,
    "queue_ms": float, "goodput_mbps": (float, type(None)), "energy_j": float,
}  # fmt: skip


def _run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _assert_one_line(stderr: str, *parts: str) -> None:
    lines = stderr.strip().splitlines()
    assert "Traceback" not in stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def _assert_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 1
    _assert_one_line(result.stderr, *parts)


def _records(text: str) -> tuple[list[dict[str, object]], dict[str, object]]:
    *records, last = [json.loads(line) for line in text.splitlines()]
    assert set(last) == {"summary"}
    return records, last["summary"]


@contextmanager
def _process(*args: object, **more: object) -> Iterator[subprocess.Popen[str]]:
    """Run ``runtime ARGS`` as a process, and end it whatever happens."""
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _finished(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestInfer:
    def test_json_lines_have_the_documented_fields_and_a_summary_last(
        self, toy: Bundle, server: Server, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.jsonl"
        result = _run(
            "infer", toy.folder, "--server", address(server), "--source", "random:3",
            "--count", 7, "--cut", toy.manifest.cuts[2].id, "--out", out, "--threads", 1,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        records, summary = _records(out.read_text())
        assert len(records) == 7
        for number, record in enumerate(records):
            assert list(record)[:12] == list(FIELDS)
            assert set(record) - set(FIELDS) == {
                "predicted_ms", "reason", "source", "mode", "plan", "stripes", "sending_ms",
                "age_ms", "prediction_error", "objective", "predicted_hz", "lossy",
                "energy_source", "energy_modelled_j", "energy_uncertainty_j", "codecs",
                "hedge_ms", "bound_ms",
            }  # fmt: skip
            for name, kind in FIELDS.items():
                assert isinstance(record[name], kind), name
            assert record["seq"] == number
            assert record["answered_by"] == "remote"
            assert record["source"] == f"random:{number % 3}"
        assert summary["count"] == 7
        assert summary["failures"] == 0
        assert summary["answered_by"] == {"remote": 7}
        latencies = [record["latency_ms"] for record in records]
        assert summary["p50_ms"] == pytest.approx(np.median(latencies), abs=1e-3)
        assert summary["p50_ms"] <= summary["p95_ms"] <= summary["p99_ms"]
        assert "7 inferences (7 remote), 0 failed" in result.stdout

    def test_json_on_stdout_is_nothing_else(self, toy: Bundle) -> None:
        result = _run("infer", toy.folder, "--source", "random:2", "--json", "--threads", 1)
        assert result.exit_code == 0
        records, summary = _records(result.stdout)
        assert [record["answered_by"] for record in records] == ["local"] * 2
        assert summary["count"] == 2

    def test_outputs_are_saved_and_right(
        self, toy: Bundle, tmp_path: Path, inputs: dict[str, np.ndarray],
        expected: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        np.savez(tmp_path / "in.npz", **inputs)
        result = _run(
            "infer", toy.folder, "--source", tmp_path / "in.npz", "--save", tmp_path / "out",
            "--threads", 1,
        )  # fmt: skip
        assert result.exit_code == 0
        with np.load(tmp_path / "out" / "000000.npz") as saved:
            for name, array in expected.items():
                np.testing.assert_allclose(saved[name], array, atol=1e-5)

    def test_labels_and_power(self, toy: Bundle, tmp_path: Path) -> None:
        (tmp_path / "labels.txt").write_text("".join(f"name {i}\n" for i in range(8)))
        result = _run(
            "infer", toy.folder, "--source", "random:1", "--labels", tmp_path / "labels.txt",
            "--power", "compute=0,comm=0,idle=0", "--json", "--threads", 1,
        )  # fmt: skip
        (record,), _ = _records(result.stdout)
        assert str(record["label"]).startswith("name ")
        assert record["energy_j"] == 0

    def test_a_server_that_is_not_there_is_no_error(self, toy: Bundle) -> None:
        with listen("127.0.0.1", 0) as listening:
            port = listening.getsockname()[1]
        result = _run(
            "infer", toy.folder, "--source", "random:2", "--server", f"127.0.0.1:{port}",
            "--cut", "offload", "--json", "--threads", 1,
        )  # fmt: skip
        assert result.exit_code == 0
        records, _ = _records(result.stdout)
        assert [record["answered_by"] for record in records] == ["fallback"] * 2

    def test_a_replayed_device(self, toy: Bundle, tmp_path: Path) -> None:
        table = tmp_path / "slow.json"
        times = tuple((2.0,) for _ in toy.manifest.segments)
        replayed = ReplayTable(bundle=toy.digest, device="slow", floor_ms=0.0, segments_ms=times)
        table.write_bytes(msgspec.json.encode(replayed))
        args = ("infer", toy.folder, "--source", "random:2", "--json")
        done = _run(*args, "--backend", f"replay:{table}")
        assert done.exit_code == 0, done.stderr
        last = json.loads(done.stdout.splitlines()[-1])
        assert last["summary"]["modes"] == {"local": 2}

    @pytest.mark.parametrize("name", ["replay", "replay:", "ort:table.json", "nothing"])
    def test_a_backend_that_is_none_is_a_usage_error(self, toy: Bundle, name: str) -> None:
        done = _run("infer", toy.folder, "--source", "random:1", "--backend", name)
        assert done.exit_code == 2
        assert "replay:TABLE.json" in done.stderr

    def test_an_inference_that_fails_is_counted_and_told(
        self, toy: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right, calls = Robot._infer, []

        def fail_second(self: Robot, *args: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise EngineError("out of memory")
            return right(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Robot, "_infer", fail_second)
        result = _run("infer", toy.folder, "--source", "random:3", "--json", "--threads", 1)
        _assert_error(result, "out of memory")
        _, summary = _records(result.stdout)
        assert (summary["count"], summary["failures"]) == (1, 1)

    def test_what_a_source_dropped_or_could_not_read_is_told(
        self, toy: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = open_source("random:2", toy.manifest)
        drawn.dropped = 3
        monkeypatch.setattr("runtime.cli.open_source", lambda text, manifest: drawn)
        args = ("infer", toy.folder, "--source", "camera", "--threads", 1)
        result = _run(*args, "--json")
        assert result.exit_code == 0
        assert _records(result.stdout)[1]["dropped"] == 3
        drawn.unreadable = 1
        result = _run(*args)
        assert result.exit_code == 1
        assert "3 frames dropped; 1 files unreadable" in result.stdout.splitlines()[-1]

    @pytest.mark.parametrize("in_flight", [1, 3])
    def test_striped_and_with_frames_in_flight(
        self, dense: Bundle, tmp_path: Path, in_flight: int
    ) -> None:
        plan = StripePlan(cut=2, until=4, bounds=(16, 24, 32, 40, 48), robot=3)
        text = plan_text(plan, dense.manifest)
        with (
            Program(dense, open_backend("ort", BackendOptions(threads=1))) as program,
            Server([program]) as striped,
        ):
            result = _run(
                "infer", dense.folder, "--server", address(striped), "--source", "random:3",
                "--count", 9, "--cut", text, "--in-flight", in_flight, "--json", "--threads", 1,
                "--save", tmp_path,
            )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        records, summary = _records(result.stdout)
        assert [record["seq"] for record in records] == list(range(9))
        assert [record["source"] for record in records] == [f"random:{i % 3}" for i in range(9)]
        for record in records:
            assert (record["mode"], record["plan"], record["stripes"]) == ("two-sided", text, 5)
            assert record["age_ms"] >= record["latency_ms"] > 0
            expected = whole_outputs(
                dense, seeded_inputs(dense.manifest.inputs, record["seq"] % 3)
            )
            with np.load(tmp_path / f"{record['seq']:06d}.npz") as saved:
                np.testing.assert_array_equal(saved["y"], expected["y"])
        assert summary["rate_hz"] > 0
        assert summary["age_p50_ms"] > 0


class TestInferErrors:
    def test_a_missing_bundle(self, tmp_path: Path) -> None:
        _assert_error(
            _run("infer", tmp_path / "gone", "--source", "random:1"), "gone", "split-compile"
        )

    @pytest.mark.parametrize("name", ["graph/weights.bin", "manifest.json", "parity.npz"])
    def test_a_truncated_bundle(self, toy_copy: Path, name: str) -> None:
        path = toy_copy / name
        path.write_bytes(path.read_bytes()[:-1])
        for command in (["infer", "--source", "random:1"], ["verify"], ["profile"]):
            result = _run(command[0], toy_copy, *command[1:])
            _assert_error(result, name, "copy or compile the bundle again")

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            (["--cut", "nope"], ["cut 'nope'", "split-bundle inspect"]),
            (["--source", "gone.png"], ["source 'gone.png'", "no such file"]),
            (["--source", "random:0"], ["random:0"]),
            (["--server", "nowhere"], ["'nowhere'", "expected HOST:PORT"]),
            (["--server", "h:99999"], ["'h:99999'", "0 to 65535"]),
            (["--power", "watts=3"], ["--power", "compute=W"]),
            (["--labels", "gone.txt"], ["gone.txt"]),
            (["--out", "no/such/folder/out.jsonl"], ["no/such/folder/out.jsonl"]),
            (["--patience", "1e9"], ["patience"]),
        ],
    )
    def test_wrong_options(self, toy: Bundle, options: list[str], parts: list[str]) -> None:
        given = ["--source", "random:1", *options]
        _assert_error(_run("infer", toy.folder, *given), *parts)

    def test_an_image_for_a_model_that_takes_none(self, toy: Bundle, tmp_path: Path) -> None:
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        _assert_error(
            _run("infer", toy.folder, "--source", tmp_path / "a.png"), "a.png", "--preprocess"
        )

    def test_a_server_of_another_bundle(self, server: Server, tmp_path: Path) -> None:
        other = write_toy_bundle(tmp_path / "other", seed=1)
        result = _run("infer", other.folder, "--source", "random:1", "--server", address(server))
        _assert_error(result, address(server), "refused", "give both ends the same bundle")

    def test_a_server_that_speaks_http(self, toy: Bundle) -> None:
        with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
        ) as httpd:
            httpd.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[assignment]
            thread = threading.Thread(target=httpd.serve_forever)
            thread.start()
            where = f"127.0.0.1:{httpd.server_address[1]}"
            try:
                result = _run("infer", toy.folder, "--source", "random:1", "--server", where)
            finally:
                httpd.shutdown()
                thread.join()
        _assert_error(result, where, "not a SplitRT server")

    @pytest.mark.parametrize(
        "args",
        [[], ["infer"], ["infer", "b"], ["infer", "b", "--source", "random:1", "--count", "0"],
         ["infer", "b", "--source", "random:1", "--backend", "tpu"],
         ["infer", "b", "--source", "random:1", "--patience", "0"], ["serve"], ["fly"],
         ["profile", "b", "--runs", "2"]],
    )  # fmt: skip
    def test_wrong_usage_is_status_2(self, args: list[str]) -> None:
        assert _run(*args).exit_code == 2


class TestOtherCommands:
    def test_profile_measures_and_keeps_a_table(self, toy_copy: Path) -> None:
        args = ("profile", toy_copy, "--runs", 3, "--warmup", 0, "--threads", 1)
        result = _run(*args)
        assert result.exit_code == 0
        assert "3 runs" in result.stdout
        record = json.loads(_run(*args, "--json").stdout)
        assert record["runs"] == 3
        assert [row["segment"] for row in record["segments"]] == list(range(7))
        assert all(row["p50_ms"] <= row["p95_ms"] for row in record["segments"])
        assert record["fingerprint"]["backend"] == "ort"
        whole = record["halves"][0]
        assert (whole["cut"], whole["half"], whole["segments"]) == ("", "whole", 7)
        assert whole["ratio"] > 0
        assert whole["runs_as"] == ("fused" if whole["ratio"] > 1.03 else "chain")
        assert "chain/fused" in result.stdout
        kept = Path(record["file"])
        assert kept.is_file()
        assert kept.parent == Bundle.open(toy_copy).device_folder

    def test_profile_measures_codecs_on_a_source(self, toy_copy: Path) -> None:
        args = ("profile", toy_copy, "--runs", 3, "--warmup", 0, "--threads", 1)
        result = _run(*args, "--source", "random:2")
        assert result.exit_code == 0
        assert "encode ms" in result.stdout
        record = json.loads(_run(*args, "--source", "random:2", "--json").stdout)
        found = {(row["tensor"], row["codec"]) for row in record["codecs"]}
        assert {("x", "zstd"), ("x", "int8")} <= found
        assert read_table(Path(record["file"])).codecs != ()
        record = json.loads(_run(*args, "--no-codecs", "--json").stdout)
        assert record["codecs"] == []
        assert read_table(Path(record["file"])).codecs == ()
        result = _run(*args, "--source", toy_copy / "nothing.png")
        assert result.exit_code == 1

    def test_measured_codecs_are_explained(self, toy_copy: Path) -> None:
        table = json.loads(
            _run("profile", toy_copy, "--runs", 3, "--threads", 1, "--json").stdout
        )["file"]
        record = json.loads(
            _run("explain", toy_copy, "--goodput", "1", "--robot-table", table,
                 "--server-table", table, "--json").stdout
        )  # fmt: skip
        names = [candidate["name"] for candidate in record["candidates"]]
        assert any(name.endswith("zstd") for name in names)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--codec", "int8"], "--allow-lossy MAX_ERROR"),
            (["--codec", "tarball"], "expected one of identity"),
            (["--allow-lossy", "0.1"], "split-bundle verify BUNDLE --data DATA"),
        ],
    )
    def test_codecs_that_may_not_be_used_are_refused_in_one_line(
        self, toy_copy: Path, options: list[str], says: str
    ) -> None:
        result = _run("infer", toy_copy, "--source", "random:1", *options)
        assert result.exit_code == 1
        _assert_one_line(result.stderr, says)

    def test_verify_exits_0_for_a_right_bundle_and_1_for_a_wrong_one(self, toy_copy: Path) -> None:
        result = _run("verify", toy_copy, "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["max_error"] <= 1e-4
        weights = toy_copy / "graph" / "weights.bin"
        values = np.frombuffer(weights.read_bytes(), np.float32)
        weights.write_bytes((values * np.float32(1.01)).tobytes())
        reseal(toy_copy)
        result = _run("verify", toy_copy)
        assert result.exit_code == 1
        assert "over tolerance" in result.stdout

    def test_doctor(self) -> None:
        result = _run("doctor")
        assert result.exit_code == 0
        assert "backend ort" in result.stdout
        checks = json.loads(_run("doctor", "--json").stdout)
        assert {"name", "ok", "needed", "found", "mend"} == set(checks[0])

    def test_version_and_help(self) -> None:
        assert _run("--help").exit_code == 0
        for command in ("serve", "infer", "profile", "verify", "doctor"):
            result = _run(command, "--help")
            assert result.exit_code == 0
            assert len(result.output) > 100


class TestServe:
    def test_a_port_in_use(self, toy: Bundle) -> None:
        with listen("127.0.0.1", 0) as listening:
            where = f"127.0.0.1:{listening.getsockname()[1]}"
            done = _finished("serve", toy.folder, "--listen", where)
        assert done.returncode == 1
        _assert_one_line(done.stderr, where, "cannot listen", "choose another port")
        assert done.stdout == ""

    @pytest.mark.parametrize("where", ["nowhere", "127.0.0.1:x", "a..b:1"])
    def test_a_bad_address(self, toy: Bundle, where: str) -> None:
        done = _finished("serve", toy.folder, "--listen", where)
        assert done.returncode == 1
        _assert_one_line(done.stderr, where.rpartition(":")[0])

    def test_a_missing_bundle(self, tmp_path: Path) -> None:
        done = _finished("serve", tmp_path / "gone", "--listen", "127.0.0.1:0")
        assert done.returncode == 1
        _assert_one_line(done.stderr, "gone")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_cleanly_with_a_robot_connected(
        self, toy: Bundle, number: signal.Signals, inputs: dict[str, np.ndarray],
        expected: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        args = ("serve", toy.folder, "--listen", "127.0.0.1:0", "--threads", 1)
        with _process(*args, "--json") as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            assert first["bundles"] == [toy.digest]
            with Robot(toy, server=first["listening"], cut="offload", threads=1) as robot:
                assert robot.infer(inputs).answered_by == "remote"
                process.send_signal(number)
                assert process.wait(30) == 0
                result = robot.infer(inputs)
                assert_right(result, expected)
                assert result.answered_by == "fallback"
            out, err = process.communicate(timeout=30)
        assert out == ""
        assert "served 1 requests" in err
        assert "Traceback" not in err


class TestCtrlC:
    def test_infer_ends_with_its_summary_and_status_130(self, toy: Bundle, tmp_path: Path) -> None:
        out = tmp_path / "out.jsonl"
        with _process(
            "infer", toy.folder, "--source", "random:5", "--count", 10**9, "--out", out,
            "--threads", 1,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for _ in range(10):
                process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest, err = process.communicate(timeout=30)
            assert process.returncode == 130
        assert err == "interrupted\n"
        assert "inferences (" in rest.splitlines()[-1]
        records, summary = _records(out.read_text())
        assert len(records) >= 10
        # An inference that was under way, or written but not yet counted, may be one more.
        assert abs(int(str(summary["count"])) - len(records)) <= 1

    def test_a_reader_that_goes_away_ends_it_quietly(self, toy: Bundle) -> None:
        """As in ``runtime infer ... --json | head -1``."""
        with _process(
            "infer", toy.folder, "--source", "random:5", "--count", 10**9, "--json",
            "--threads", 1,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["seq"] == 0
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(30) == 0


def test_nothing_of_these_tests_is_still_running() -> None:
    """Every process above is a child of this one and has been waited for."""

    def children() -> list[str]:
        task = Path(f"/proc/self/task/{os.getpid()}/children")
        return task.read_text().split() if task.exists() else []

    eventually(lambda: not children(), f"the end of {children()}")


def test_the_rate_that_is_expected_is_shown(toy: Bundle, server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = _run(
        "infer", toy.folder, "--server", address(server), "--source", "random:3", "--count", 12,
        "--objective", "rate", "--in-flight", 2, "--out", out, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    records, _ = _records(out.read_text())
    expected = [r for r in records if str(r["reason"]).startswith("highest predicted rate")]
    assert expected
    assert all(float(str(record["predicted_hz"])) > 0 for record in expected)
    assert result.stdout.count("a second expected") == len(expected)
    refused = _run("infer", toy.folder, "--source", "random:1", "--objective", "speed")
    assert refused.exit_code == 1


def test_a_ctrl_c_that_a_library_drops_ends_the_loop_all_the_same() -> None:
    with interruptible() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):  # as a library's callback would
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_stays_ignored_where_it_was() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
