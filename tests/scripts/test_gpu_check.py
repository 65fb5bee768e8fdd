"""``scripts/gpu_check.py``: here as it is, without a GPU; its GPU part on the fakes."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console

from engines.errors import BuildError, EngineError, IncompatibleError
from engines.tensorrt import api, memory
from engines.tensorrt.api import Api
from engines.tensorrt.memory import DeviceMemory
from scripts.gpu_checks import steps
from scripts.gpu_checks.child import GPU_LOST, Order, obey
from scripts.gpu_checks.kit import Budget, Kit, guarded
from scripts.gpu_checks.machine import PACKAGES, find_gpus, put_together
from scripts.gpu_checks.records import Check, Gpu, Gpus, Line, Listed, Machine, Package, Row
from scripts.gpu_checks.runner import Ended, examine_machine, run_step, spawn
from scripts.gpu_checks.speed import COPIES, time_copies
from scripts.gpu_checks.steps import INSTALLED, Step, carry_out, plan_steps
from scripts.gpu_checks.table import make_table, summary
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.onnx_trt import Operations, onnx_tensorrt
from tests.engines.fakes.trt import MAGIC
from tests.toy import write_toy_bundle

ROOT = Path(__file__).resolve().parents[2]
LISTED = Listed(models=("residual", "chain"), targets=("default", "sm86"))


class Bench:
    """A kit on a fake GPU, with a TensorRT of each kind that reads real ONNX files."""

    def __init__(self, work: Path, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
        self.memory = FakeMemory(capability=capability)
        self.modules = {}
        self.operations: dict[str, Operations] = {}
        apis = {}
        for name, generation in (("tensorrt", "11"), ("tensorrt-rtx", "rtx")):
            module, operations = onnx_tensorrt(generation, self.memory, monkeypatch)
            self.modules[name], self.operations[name] = module, operations
            apis[name] = Api(module)
        self.kit = Kit(work, Budget(600), api=apis.__getitem__, memory=self._open, runs=6)
        self.there = True

    def _open(self) -> DeviceMemory:
        if not self.there:
            raise IncompatibleError("no GPU can be used here: none was made")
        return self.memory

    def rows(self, name: str, backend: str, *subjects: str) -> list[Row]:
        return list(carry_out(self.kit, Step(name, backend, subjects, 600)))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch, "sm86")


class TestOnAGpu:
    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
    def test_every_cut_of_small_models_is_compared(self, bench: Bench, backend: str) -> None:
        names = ("residual", "two_ends", "half", "embedding")
        rows = {row.subject: row for row in bench.rows("models", backend, *names)}
        for name in names[:3]:
            row = rows[name]
            assert row.status == "ok", row.said
            assert row.plans > 1
            assert [e.side for e in row.cuts[:2]] == ["head", "tail"]
            assert {e.index for e in row.cuts} == set(range(len(row.cuts) // 2))
            assert all(e.ok and e.error is not None for e in row.cuts)
            assert f"{len(row.cuts) // 2} cuts, largest error" in row.said
        refused = rows["embedding"]
        assert refused.status == "refused"
        assert "unsupported type of tokens" in refused.said
        assert "\n" not in refused.said
        assert bench.memory.leaked == 0

    def test_wrong_results_are_seen_and_named(self, bench: Bench) -> None:
        """The negative control."""
        bench.operations["tensorrt-rtx"].skew = 1e-2
        (row,) = bench.rows("models", "tensorrt", "residual")
        assert row.status == "wrong"
        assert "sides wrong" in row.said
        wrong = [e for e in row.cuts if not e.ok]
        assert wrong
        assert all(e.error is not None and e.error > e.tolerance for e in wrong)
        inputs = next(e for e in row.cuts if e.index == 0 and e.side == "head")
        assert inputs.ok  # nothing was computed yet
        assert bench.memory.leaked == 0

    def test_results_that_are_not_finite(self, bench: Bench) -> None:
        bench.operations["tensorrt-rtx"].skew = float("nan")
        (row,) = bench.rows("models", "tensorrt", "residual")
        assert row.status == "wrong"
        assert "largest error not finite" in row.said
        again = msgspec.json.decode(msgspec.json.encode(row), type=Row)
        assert again == row
        assert any(e.error is None for e in again.cuts)

    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
    def test_times(self, bench: Bench, backend: str) -> None:
        (row,) = bench.rows("speed", backend, "residual")
        assert row.status == "ok", row.said
        names = [timing.what for timing in row.timings]
        assert names[0] == "segment 0 (Conv)"
        for what in ("whole, chain", "whole, fused", "whole, no CUDA graph"):
            assert what in names
        halves = [n for n in names if n.startswith(("head of cut", "tail of cut"))]
        assert len(halves) == 8  # two cuts, both sides, chain and fused
        assert all(t.runs >= 5 and t.p50_ms <= t.p95_ms for t in row.timings)
        assert "whole: with CUDA graph" in row.said
        assert ("launch" in bench.memory.calls) == (backend == "tensorrt")
        assert bench.memory.leaked == 0

    def test_copies(self, bench: Bench) -> None:
        row = guarded(
            "copies", "pinned", "fake", lambda: time_copies(bench.kit, "copies", bench.memory)
        )
        assert row.status == "ok", row.said
        assert [t.bytes for t in row.timings] == [size for size in COPIES for _ in range(2)]
        assert bench.memory.leaked == 0

    def test_copies_that_change_bytes(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench.memory, "to_device", lambda *_: None)
        row = guarded(
            "copies", "pinned", "fake", lambda: time_copies(bench.kit, "copies", bench.memory)
        )
        assert (row.status, "came back changed" in row.said) == ("refused", True)

    def test_targets_on_a_gpu_of_the_list(self, bench: Bench) -> None:
        rows = {r.subject: r for r in bench.rows("capability", "", "sm86", "sm89", "current")}
        assert rows["sm86"].status == "ok"
        assert "on sm86, said beforehand to be valid: runs, largest error" in rows["sm86"].said
        assert "said beforehand to be invalid" in rows["sm89"].said
        assert rows["current"].status == "refused"
        assert "has no target current" in rows["current"].said
        assert bench.memory.leaked == 0

    def test_targets_on_a_gpu_that_is_not_in_the_list(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(tmp_path, monkeypatch, "sm90")
        bench.modules["tensorrt-rtx"].Runtime = _Refusing
        rows = bench.rows("capability", "", "default", "sm89")
        for row in rows:
            assert row.status == "refused"
            assert row.said == (
                "on sm90, said beforehand to be unknown: does not deserialise: "
                "Unsupported compute capability 9.0"
            )
        (row,) = bench.rows("models", "tensorrt-rtx", "residual")
        assert row.status == "not done"
        assert "this GPU is sm90" in row.said

    def test_plans_by_torch_tensorrt(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        operations = bench.operations["tensorrt-rtx"]  # those of the last module hold for both

        def convert(program: Any, *, arg_inputs: Any, **_: Any) -> bytes:
            """Return a plan that runs the program in torch."""
            key = f"fx{len(operations)}"
            module = program.module()
            results = module(*arg_inputs)

            def run(place: int, *arrays: Any) -> Any:
                given = (torch.from_numpy(array.copy()) for array in arrays)
                return module(*given)[place].detach().numpy()

            for place in range(len(results)):
                operations[f"{key}:{place}"] = functools.partial(run, place)
            inputs = [
                [f"in{place}", "float32", list(given.shape)]
                for place, given in enumerate(arg_inputs)
            ]
            names = [entry[0] for entry in inputs]
            outputs = [
                [f"output{place}", "float32", list(result.shape), f"{key}:{place}", names]
                for place, result in enumerate(results)
            ]
            graph = {"inputs": inputs, "outputs": outputs, "targets": []}
            return MAGIC + json.dumps(graph).encode()

        module = types.ModuleType("torch_tensorrt")
        module.__version__ = "fake"  # type: ignore[attr-defined]
        module.dynamo = types.SimpleNamespace(  # type: ignore[attr-defined]
            convert_exported_program_to_serialized_trt_engine=convert
        )
        monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
        monkeypatch.setitem(api._found, "tensorrt", bench.kit.api("tensorrt"))
        monkeypatch.setattr(memory, "_opened", bench.memory)
        (row,) = bench.rows("fx", "tensorrt", "residual")
        assert row.status == "ok", row.said
        assert row.said.startswith("plans by torch-tensorrt: 7 cuts, largest error")
        assert bench.memory.leaked == 0

    def test_plans_by_torch_tensorrt_without_it(self, bench: Bench) -> None:
        (row,) = bench.rows("fx", "tensorrt", "residual")
        assert row.status == "not done"
        assert "torch_tensorrt" in row.said

    def test_a_bundle_that_was_compiled_elsewhere(self, bench: Bench, tmp_path: Path) -> None:
        path = str(write_toy_bundle(tmp_path / "toy.bundle").folder)
        compared, timed = (
            bench.rows("bundles", "tensorrt", path),
            bench.rows("speed", "tensorrt", path),
        )
        assert [row.status for row in (*compared, *timed)] == ["ok", "ok"]
        assert len(compared[0].cuts) == 16

    def test_a_device_that_is_lost_ends_the_process(self, bench: Bench, tmp_path: Path) -> None:
        step = Step("models", "tensorrt", ("residual", "chain"), 600)
        order = Order(step, str(tmp_path), str(tmp_path / "lines"))
        bench.memory.faults = {"allocate"}
        assert obey(order, bench.kit) == GPU_LOST
        (row,) = _lines(tmp_path / "lines")
        assert (row.subject, row.status) == ("residual", "refused")
        assert "allocate: out of luck" in row.said


class _Refusing:
    """A runtime that gives its reason as TensorRT does: to the logger."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, _: bytes) -> None:
        severity = type(self._logger).Severity.ERROR
        self._logger.log(severity, "Unsupported\ncompute capability 9.0")


class TestWithoutAGpu:
    def test_plans_are_built_where_they_can_be_and_nothing_is_run(self, bench: Bench) -> None:
        bench.there = False
        (built,) = bench.rows("models", "tensorrt-rtx", "residual")
        assert (built.status, built.said) == ("built", "not run: no GPU can be used here")
        assert built.plans > 1
        for step, backend in (
            ("models", "tensorrt"),
            ("speed", "tensorrt"),
            ("speed", "tensorrt-rtx"),
        ):
            (row,) = bench.rows(step, backend, "residual")
            assert row.status == "not done"
            assert "no GPU can be used here" in row.said
        (target,) = bench.rows("capability", "", "sm89")
        assert target.status == "built"
        assert bench.memory.calls == []

    def test_the_program_itself(self, tmp_path: Path) -> None:
        """A small subset, as a user starts it: table, JSON, exit status."""
        if any(path.exists() for path in (Path("/dev/nvidia0"), Path("/dev/nvhost-gpu"))):
            pytest.skip("there is a GPU here")
        bundle = write_toy_bundle(tmp_path / "toy.bundle").folder
        out = tmp_path / "out.json"
        done = _start("--only", "copies", "--bundle", str(bundle), "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr + done.stdout
        check = msgspec.json.decode(out.read_bytes(), type=Check)
        assert check.machine.gpus == ()
        assert check.machine.no_gpu
        assert {p.name for p in check.machine.packages} >= {"tensorrt", "tensorrt-rtx", "torch"}
        rows = {(r.step, r.backend): r for r in check.rows}
        assert set(rows) == {
            *(("copies", p) for p in ("cuda-python", "pycuda")),
            *((s, b) for s in ("bundles", "speed") for b in ("tensorrt", "tensorrt-rtx")),
        }
        assert {r.status for r in check.rows} <= {"not done", "built"}
        rtx = next(p for p in check.machine.packages if p.name == "tensorrt-rtx")
        assert rows["bundles", "tensorrt-rtx"].status == ("built" if rtx.works else "not done")
        for word in ("installed", "GPU", "copies", "bundles", "no GPU:"):
            assert word in done.stdout
        assert json.loads(out.read_text())["schema"] == 1
        required = _start("--only", "copies", "--require-gpu", "--out", str(out))
        assert required.returncode == 1

    def test_an_out_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        done = _start("--only", "copies", "--out", str(tmp_path))
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def _start(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), check=False
    )


def _lines(path: Path) -> list[Any]:
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


class TestSteps:
    @pytest.mark.parametrize(
        ("exc", "status"),
        [
            (IncompatibleError("not here"), "not done"),
            (ImportError("no module"), "not done"),
            (BuildError("will not"), "refused"),
            (EngineError("cannot"), "refused"),
            (RuntimeError("two\nlines"), "failed"),
        ],
    )
    def test_what_is_raised_is_a_row(self, exc: Exception, status: str) -> None:
        def work() -> Row:
            raise exc

        row = guarded("models", "chain", "tensorrt", work)
        assert row.status == status
        assert "\n" not in row.said
        assert (row.step, row.subject, row.backend) == ("models", "chain", "tensorrt")

    def test_a_budget_that_is_spent(self, bench: Bench) -> None:
        bench.kit.budget = Budget(0)
        rows = bench.rows("models", "tensorrt", "residual", "chain")
        assert [row.status for row in rows] == ["out of time", "out of time"]

    def test_parts(self) -> None:
        def names(*only: str, given: tuple[str, ...] = ()) -> list[tuple[str, str]]:
            return [(s.name, s.backend) for s in plan_steps(only, given, 9, LISTED)]

        both = ("tensorrt", "tensorrt-rtx")
        assert names("demo") == [(s, b) for s in ("demo", "speed") for b in both]
        assert names("capability") == [("capability", "tensorrt-rtx")]
        assert names(given=("/b",)) == [(s, b) for s in ("bundles", "speed") for b in both]
        assert {name for name, _ in names()} == {*steps.ONLY, "speed"}
        models = next(s for s in plan_steps((), (), 9, LISTED) if s.name == "models")
        assert models.subjects == LISTED.models


class TestProcesses:
    STEP = Step("models", "tensorrt", ("a", "b", "c"), 60)

    def run(self, *ends: Ended) -> tuple[list[Row], list[tuple[str, ...]]]:
        asked: list[tuple[str, ...]] = []
        left = iter(ends)

        def start(step: Step, work: Path, timeout_s: float) -> Ended:
            asked.append(step.subjects)
            return next(left)

        told: list[Row] = []
        rows = run_step(self.STEP, Path(), told.append, start=start)
        assert told == rows
        return rows, asked

    def row(self, subject: str) -> Row:
        return Row(step="models", subject=subject, backend="tensorrt", status="ok", said="")

    def test_one_that_crashes_is_a_row_and_the_others_are_done(self) -> None:
        rows, asked = self.run(
            Ended([self.row("a")], -11, "last words"), Ended([self.row("c")], 0, "")
        )
        assert asked == [("a", "b", "c"), ("c",)]
        assert [(r.subject, r.status) for r in rows] == [
            ("a", "ok"),
            ("b", "failed"),
            ("c", "ok"),
        ]
        assert rows[1].said == "its process ended with SIGSEGV: last words"

    def test_one_that_lost_the_gpu_blames_nobody_else(self) -> None:
        rows, asked = self.run(
            Ended([self.row("a")], GPU_LOST, ""), Ended([self.row("b"), self.row("c")], 0, "")
        )
        assert asked == [("a", "b", "c"), ("b", "c")]
        assert [r.status for r in rows] == ["ok"] * 3

    def test_one_that_hangs(self) -> None:
        rows, _ = self.run(Ended([], None, ""), Ended([], None, ""), Ended([self.row("c")], 0, ""))
        assert [r.status for r in rows] == ["out of time", "out of time", "ok"]
        assert "killed: its budget of 60 s is spent" in rows[0].said

    def test_a_real_process(self, tmp_path: Path) -> None:
        ended = spawn(Step("copies", "cuda-python", ("pinned memory",), 60), tmp_path, 60)
        assert ended.status == 0, ended.said
        (row,) = ended.lines
        assert isinstance(row, Row)
        assert row.step == "copies"

    def test_a_real_process_that_is_killed(self, tmp_path: Path) -> None:
        ended = spawn(INSTALLED, tmp_path, 0.0)
        assert ended == Ended([], None, "")

    def test_a_package_that_brings_its_process_down(self) -> None:
        asked = []

        def start(step: Step, work: Path, timeout_s: float) -> Ended:
            asked.append(step.subjects)
            done: list[Line] = []
            for name in step.subjects:
                if name == "torch-tensorrt":
                    return Ended(done, -6, "terminate called")
                package = Package(name=name, version="1", works=True, said="")
                others = {"GPU": Gpus(gpus=(), no_gpu="none"), "models and targets": LISTED}
                done.append(others.get(name, package))
            return Ended(done, 0, "")

        machine, listed = examine_machine(Path(), start=start)
        assert asked[1] == ("GPU", "models and targets")
        assert [p.name for p in machine.packages] == list(PACKAGES)
        assert [p.name for p in machine.packages if not p.works] == ["torch-tensorrt"]
        assert "ended with SIGABRT: terminate called" in machine.packages[-1].said
        assert (machine.no_gpu, listed) == ("none", LISTED)

    def test_nothing_comes_back(self) -> None:
        machine, listed = examine_machine(Path(), start=lambda *_: Ended([], 1, "no numpy"))
        assert not any(p.works for p in machine.packages)
        assert machine.no_gpu == "GPU: its process ended with exit status 1: no numpy"
        assert listed.models == ("small models",)


def _printed(machine: Machine, rows: list[Row]) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(make_table(machine, rows))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


class TestTable:
    def test_every_finding_is_a_line(self, bench: Bench) -> None:
        def opened(name: str) -> DeviceMemory:
            if name == "pycuda":
                raise ImportError("no pycuda [here]")
            return bench.memory

        machine = put_together([], find_gpus(opened))
        assert [gpu.name for gpu in machine.gpus] == ["Fake GPU"]
        assert machine.no_gpu == "pycuda: ImportError: no pycuda [here]"
        rows = bench.rows("models", "tensorrt", "residual")
        text = _printed(machine, rows)
        for word in ("Fake GPU, sm86, 1024 MiB, CUDA graphs", "residual", "largest error"):
            assert word in text
        assert summary(machine, rows) == "Fake GPU (sm86): 1 ok"

    def test_reasons_are_told_once_and_markup_is_text(self) -> None:
        package = Package(name="torch", version=None, works=False, said="[red]no")
        gpu = Gpu(
            provider="pycuda",
            name="A",
            compute_capability="sm87",
            total_bytes=1 << 30,
            cuda_graphs=False,
        )
        machine = Machine(
            device="d", system="s", python="3", packages=(package,), gpus=(gpu,), no_gpu=""
        )
        row = Row(step="models", subject="a", backend="", status="refused", said="why " * 30)
        text = _printed(machine, [row, row])
        assert "[red]no" in text
        assert "no CUDA graphs" in text
        assert text.count("(as above)") == 1
