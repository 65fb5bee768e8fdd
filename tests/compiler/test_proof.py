"""The proof must fail where the compiler is wrong: each of these breaks it on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler import CompileOptions, assemble, compile_model, cuts, segments
from compiler.reference import ProgramReference
from engines.errors import EmitError
from tests.models import torch_models

OPTIONS = CompileOptions(name="m", cuts="all")


def compile_chain(tmp_path: Path):
    return compile_model(torch_models.residual(), tmp_path / "m.bundle", options=OPTIONS)[1]


def test_frontiers_are_compared_with_pytorch_not_with_onnx(tmp_path, monkeypatch):
    seen: set[str] = set()
    run = ProgramReference.run

    def spy(self, inputs, names):
        values = run(self, inputs, names)
        seen.update(values)
        return values

    monkeypatch.setattr(ProgramReference, "run", spy)
    report = compile_chain(tmp_path)
    given = {name for segment in report.manifest.segments for name in segment.outputs}
    assert given <= seen
    assert report.manifest.parity.compared_with == "pytorch"


def test_a_graph_with_wrong_weights_is_refused(tmp_path, monkeypatch):
    prepare = assemble.prepare

    def wrong(traced, *args, **kwargs):
        for value in traced.model.graph.initializers.values():
            if value.name == "first.weight":
                array = value.const_value.numpy() + np.float32(0.01)
                value.const_value = assemble.ir.tensor(array, name=value.name)
        return prepare(traced, *args, **kwargs)

    monkeypatch.setattr(assemble, "prepare", wrong)
    with pytest.raises(EmitError, match=r"cut \w{8} \(after first\): tensor 'conv2d_1' differs"):
        compile_chain(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_segment_is_refused(tmp_path, monkeypatch):
    write = segments.write_graph

    def wrong(path, model):
        if path.name == "segment_0002.onnx":
            for node in model.graph.node:
                node.op_type = {"Relu": "Neg"}[node.op_type]
        write(path, model)

    monkeypatch.setattr(segments, "write_graph", wrong)
    with pytest.raises(EmitError, match=r"tensor 'relu' differs from pytorch: error [\d.]+, tol"):
        compile_chain(tmp_path)


@pytest.mark.parametrize("half", ["head", "tail"])
def test_a_wrong_half_is_refused(tmp_path, monkeypatch, half):
    write = segments.write_graph

    def wrong(path, model):
        if path.name.startswith(half):
            for node in model.graph.node:
                if node.op_type == "Relu":
                    node.op_type = "Sigmoid"
        write(path, model)

    monkeypatch.setattr(segments, "write_graph", wrong)
    with pytest.raises(EmitError, match="head and tail give another result"):
        compile_chain(tmp_path)


def test_a_frontier_that_lacks_a_tensor_fails(tmp_path, monkeypatch):
    frontier_of = cuts.frontier_of
    monkeypatch.setattr(cuts, "frontier_of", lambda *a: frontier_of(*a) - {"conv2d"})
    with pytest.raises(KeyError, match="conv2d"):  # a bug of ours: no message for the user
        compile_chain(tmp_path)


def test_another_seed_gives_other_vectors(tmp_path):
    def outputs(seed):
        options = CompileOptions(name="m", seed=seed)
        out = tmp_path / f"{seed}.bundle"
        bundle, _ = compile_model(torch_models.chain(), out, options=options)
        return bundle.parity_vectors()[1]["output"]

    assert not np.allclose(outputs(0), outputs(1), atol=1e-3)
