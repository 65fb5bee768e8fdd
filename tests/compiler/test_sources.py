"""Every form of MODEL, and everything that can be wrong with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from calibration.parity import verify_cuts
from compiler import CompileOptions, compile_model, parse_input
from compiler.cli import main
from compiler.quiet import quiet
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.errors import TraceError
from engines.program import Program
from tests.models import onnx_models, torch_models

CHAIN = "tests.models.torch_models:chain"
SHAPE = "input=float32[1,3,16,16]"

FACTORIES = """
import sys
import torch
from torch import nn

print("noise on stdout")

def build():
    print("more noise")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

def with_examples():
    return build(), torch.zeros(1, 3, 8, 8)

def program():
    return torch.export.export(build().eval(), (torch.zeros(1, 3, 8, 8),))

def broken():
    raise RuntimeError("the weights are\\non another disk")

def number():
    return 3

def training():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())

class Branchy(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x

class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count

class Brain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4).bfloat16()

    def forward(self, x):
        return self.layer(x.bfloat16()).float()

def brain_input():
    return nn.Linear(4, 4).bfloat16(), torch.zeros(1, 4, dtype=torch.bfloat16)

class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

not_a_function = 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    (tmp_path / "factories.py").write_text(FACTORIES)
    return tmp_path


def compile_here(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments), "-o", "out.bundle"])


def compiled_ok(*arguments: object) -> Bundle:
    result = compile_here(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    bundle = Bundle.open("out.bundle")
    assert [cut["id"] for cut in report["cuts"]] == [cut.id for cut in bundle.manifest.cuts]
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        assert all(r.ok for r in verify_cuts(program))
    return bundle


def complaint(*arguments: object) -> str:
    """Run, expect one line of error and nothing left behind, and return it."""
    before = {p for p in Path().rglob("*") if "__pycache__" not in p.parts}
    result = compile_here(*arguments)
    assert result.exit_code == 1, (result.exit_code, result.stderr)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "noise" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    assert {p for p in Path().rglob("*") if "__pycache__" not in p.parts} == before
    return lines[0]


# Forms of MODEL


def test_factory_in_a_module(place):
    bundle = compiled_ok(CHAIN, "--name", "chained")
    assert bundle.manifest.name == "chained"


@pytest.mark.parametrize("factory", ["build", "with_examples", "program"])
def test_factory_in_a_file(place, factory):
    inputs = ["--input", "input=float32[1,3,8,8]"] if factory == "build" else []
    bundle = compiled_ok(f"factories.py:{factory}", *inputs)
    assert bundle.manifest.name == factory
    assert [spec.shape for spec in bundle.manifest.inputs] == [(1, 3, 8, 8)]


def test_factory_in_the_current_folder(place):
    compiled_ok("factories:with_examples")


def test_weights_for_a_factory(place):
    module, _ = torch_models.chain()
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.25)
    torch.save(module.state_dict(), "w.pth")
    bundle = compiled_ok(CHAIN, "--weights", "w.pth")
    inputs, outputs = bundle.parity_vectors()
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs["input"])).numpy()
    np.testing.assert_allclose(outputs["output"], expected, rtol=1e-5)


def test_module_in_training_mode_is_compiled_for_inference(place):
    result = compile_here("factories.py:training", "--input", "input=float32[1,3,8,8]")
    assert result.exit_code == 0, result.stderr
    assert "training mode" in result.stderr


def test_exported_program(place):
    module, examples = torch_models.two_ends()
    with quiet():
        torch.export.save(torch.export.export(module, examples), "model.pt2")
    bundle = compiled_ok("model.pt2")
    assert [spec.name for spec in bundle.manifest.inputs] == ["image", "state"]


def test_exported_program_under_another_suffix(place):
    module, examples = torch_models.chain()
    with quiet():
        torch.export.save(torch.export.export(module, examples), "model.pt2")
    os.rename("model.pt2", "model.pt")
    compiled_ok("model.pt")


def test_exported_program_with_a_dynamic_batch(place):
    module, _ = torch_models.chain()
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, 3, 16, 16)
    with quiet():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, "model.pt2")
    bundle = compiled_ok("model.pt2", "--input", "float32[3,3,16,16]")
    assert [spec.shape for spec in bundle.manifest.outputs] == [(3, 10)]
    operators = [op for segment in bundle.manifest.segments for op in segment.operators]
    assert "Shape" not in operators


def test_torchscript(place):
    module, examples = torch_models.residual()
    with quiet():
        torch.jit.trace(module, examples).save("model.pt")
    bundle = compiled_ok("model.pt", "--input", "x=float32[1,4,8,8]", "--cuts", "all")
    boundaries = [cut for cut in bundle.manifest.cuts if "boundary" in cut.why]
    assert len(bundle.manifest.cuts) == 7
    assert len(boundaries) == 5


def test_torchscript_by_the_older_exporter(place, monkeypatch):
    module, examples = torch_models.chain()
    with quiet():
        torch.jit.trace(module, examples).save("model.pt")
    monkeypatch.setattr("compiler.export.program_of_script", lambda *_: None)
    bundle = compiled_ok("model.pt", "--input", SHAPE)
    assert [spec.name for spec in bundle.manifest.inputs] == ["input"]
    assert bundle.manifest.parity.compared_with == "pytorch"


def test_pickled_module(place):
    module, _ = torch_models.chain()
    torch.save(module, "model.pth")
    assert "--trust-pickle" in complaint("model.pth", "--input", SHAPE)
    compiled_ok("model.pth", "--input", SHAPE, "--trust-pickle")


def test_onnx_with_a_fixed_axis(place):
    onnx.save(onnx_models.dynamic_length(), "model.onnx")
    message = complaint("model.onnx")
    assert "length" in message
    assert "--input" in message
    bundle = compiled_ok("model.onnx", "--input", "x=float32[1,7,2]")
    assert bundle.manifest.outputs[0].shape == (1, 7, 2)


def test_onnx_with_weights_in_a_file_of_their_own(place):
    model = onnx_models.decoded_weights()
    onnx.save(model, "model.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    bundle = compiled_ok("model.onnx")
    assert not (bundle.folder / "graph" / "m.data").exists()


def test_example_gives_shapes_and_parity_inputs(place):
    example = np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)
    np.savez("example.npz", input=example)
    bundle = compiled_ok(CHAIN, "--example", "example.npz")
    np.testing.assert_array_equal(bundle.parity_vectors()[0]["input"], example)


def test_inputs_inside_a_dict_and_a_tuple(place):
    names = ["batch.a=float32[1,3]", "batch.b=float32[1,2]", "pair.0=float32[1,4]"]
    options = CompileOptions(inputs=tuple(map(parse_input, [*names, "pair.1=float32[1,4]"])))
    module, _ = torch_models.structured()
    bundle, _ = compile_model(module, Path("out.bundle"), options=options)
    assert [s.name for s in bundle.manifest.inputs] == ["batch_a", "batch_b", "pair_0", "pair_1"]
    assert [s.name for s in bundle.manifest.outputs] == ["sum", "parts_0", "parts_1_0"]


# What can be wrong


def test_missing_file(place):
    assert "no such file" in complaint("missing.onnx")


def test_unknown_suffix(place):
    Path("model.h5").write_bytes(b"x")
    assert ".h5" in complaint("model.h5")


def test_folder(place):
    Path("model.pt").mkdir()
    assert "folder" in complaint("model.pt")


@pytest.mark.parametrize("suffix", ["pt2", "pt", "pth", "onnx"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 cut short"])
def test_corrupt_file(place, suffix, content):
    Path(f"model.{suffix}").write_bytes(content)
    assert f"model.{suffix}" in complaint(f"model.{suffix}")


def test_truncated_archive(place):
    torch.save(torch_models.chain()[0].state_dict(), "model.pt")
    Path("model.pt").write_bytes(Path("model.pt").read_bytes()[:-100])
    complaint("model.pt")


def test_state_dict(place):
    torch.save(torch_models.chain()[0].state_dict(), "model.pth")
    message = complaint("model.pth")
    assert "package.module:factory --weights model.pth" in message


def test_missing_input_shows_the_signature(place):
    message = complaint("factories.py:build")
    assert "forward(input)" in message
    assert "--input 'input=float32[" in message


def test_unknown_input(place):
    assert "'image'" in complaint(CHAIN, "--input", "image=float32[1,3,16,16]")


def test_shape_that_does_not_fit_names_the_module(place):
    message = complaint(CHAIN, "--input", "input=float32[1,4,16,16]")
    assert "module '0' (Conv2d)" in message
    assert "float32[1, 4, 16, 16]" in message


@pytest.mark.parametrize(
    "text", ["input", "input=float33[1]", "input=float32", "input=float32[a]"]
)
def test_malformed_input(place, text):
    assert "input" in complaint(CHAIN, "--input", text)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("factories.py:broken", "the weights are on another disk"),
        ("factories.py:missing", "no 'missing'"),
        ("factories.py:number", "int"),
        ("factories.py:not_a_function", "int"),
        ("nowhere.py:build", "no such file"),
        ("nowhere.module:build", "nowhere"),
    ],
)
def test_bad_factory(place, factory, reason):
    assert reason in complaint(factory)


def test_factory_file_that_cannot_be_imported(place):
    Path("bad.py").write_text("import missing_package\n")
    assert "missing_package" in complaint("bad.py:build")


@pytest.mark.parametrize(
    ("factory", "reason"),
    [("Branchy", "control flow"), ("Keeps", "state"), ("Noisy", "random")],
)
def test_module_that_cannot_be_split(place, factory, reason):
    assert reason in complaint(f"factories.py:{factory}", "--input", "x=float32[1,4]")


def test_types_that_cannot_be_run_or_sent(place):
    assert "Gemm" in complaint("factories.py:Brain", "--input", "x=float32[1,4]")
    assert "given bfloat16" in complaint("factories.py:brain_input")


def test_weights_that_do_not_fit(place):
    torch.save({"0.weight": torch.zeros(1), "extra": torch.zeros(1)}, "w.pth")
    message = complaint(CHAIN, "--weights", "w.pth")
    assert all(word in message for word in ("missing: 0.bias", "unexpected: extra", "0.weight ("))


def test_weights_without_a_factory(place):
    onnx.save(onnx_models.constants(), "model.onnx")
    assert "--weights" in complaint("model.onnx", "--weights", "w.pth")


def test_example_that_does_not_fit(place):
    np.savez("example.npz", image=np.zeros((1, 3, 16, 16), np.float32))
    assert "'image'" in complaint(CHAIN, "--example", "example.npz")
    np.save("example.npy", np.zeros(3))
    assert "npz" in complaint(CHAIN, "--example", "example.npy")
    assert "npz" in complaint(CHAIN, "--example", "missing.npz")


def test_exported_program_refuses_other_shapes(place):
    module, examples = torch_models.chain()
    with quiet():
        torch.export.save(torch.export.export(module, examples), "model.pt2")
    message = complaint("model.pt2", "--input", "input=float32[2,3,16,16]")
    assert "[2, 3, 16, 16]" in message


def test_opset_that_the_exporter_does_not_have(place):
    assert "opset" in complaint("tests.models.torch_models:transformer", "--opset", 16)


def test_out_is_something_else(place):
    Path("out.bundle").mkdir()
    Path("out.bundle/precious.txt").write_text("mine")
    assert "out.bundle" in complaint(CHAIN)
    assert Path("out.bundle/precious.txt").read_text() == "mine"


def test_out_cannot_be_written(place):
    Path("file").write_text("")
    result = CliRunner().invoke(main, [CHAIN, "-o", "file/out.bundle"])
    assert result.exit_code == 1
    assert [line[:7] for line in result.stderr.splitlines()] == ["error: "]


def test_failure_leaves_the_older_bundle_and_no_new_folders(place):
    first = compiled_ok(CHAIN)
    result = compile_here(CHAIN, "--input", "input=float32[1,4,16,16]")
    assert result.exit_code == 1
    assert Bundle.open("out.bundle").digest == first.digest
    target = ["-o", "deep/er/out.bundle", "--input", "input=float32[1,4,16,16]"]
    assert CliRunner().invoke(main, [CHAIN, *target]).exit_code == 1
    assert not Path("deep").exists()


@pytest.mark.parametrize("stage", ["compiler.segments.emit", "compiler.proof.prove"])
def test_interrupted_leaves_nothing(place, monkeypatch, stage):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, interrupted)
    before = set(os.listdir())
    result = compile_here(CHAIN)
    assert result.exit_code == 130
    assert set(os.listdir()) == before


def test_python_interface_takes_objects_only():
    with pytest.raises(TraceError, match="given int"):
        compile_model(3)


# The command itself


def test_console_keeps_stdout_for_results(place):
    command = [sys.executable, "-m", "compiler.cli", "factories.py:with_examples", "--json"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bundle"] == "with_examples.bundle"
    assert {"inputs", "outputs", "segments", "refused", "max_error"} <= report.keys()
    assert list(report["seconds"]) == [
        *("load", "trace", "export", "passes", "cuts"),
        *("emit", "proof", "calibrate", "plans", "report", "write"),
    ]
    assert set(done.stderr.splitlines()) == {"noise on stdout", "more noise"}
    assert report["bundle_bytes"] > report["weights_bytes"] >= 0


def test_help_needs_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; from compiler.cli import main; "
        "print(CliRunner().invoke(main, ['--help']).exit_code, "
        "CliRunner().invoke(main, ['missing.onnx']).exit_code, "
        "sorted({'torch', 'onnx'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "0 1 []", done.stderr


def test_text_names_the_next_command(place):
    result = compile_here(CHAIN)
    assert result.exit_code == 0, result.stderr
    assert "runtime infer out.bundle" in result.stdout
    assert result.stderr == ""


def test_the_same_model_gives_the_same_bytes(place):
    first = compiled_ok(CHAIN, "--seed", 7)
    second = compiled_ok(CHAIN, "--seed", 7)
    assert first.digest == second.digest
    assert compiled_ok(CHAIN, "--seed", 8).digest != first.digest
