"""Every cut of every small model: head then tail gives what the whole model gives.

Each is compiled with every boundary of its order as a cut, many with those that are chosen too.
"""

from __future__ import annotations

import io
import itertools
import os
import site

import numpy as np
import onnx
import onnxruntime
import pytest

from calibration.parity import verify_cuts
from compiler.cuts import cut_id
from engines.backend import open_backend
from engines.program import Program
from tests.models import onnx_models, torch_models

NAMES = [*torch_models.MODELS, *onnx_models.MODELS]


CHOSEN = ["residual", "dense", "branches", "two_ends", "passing", "shared_weights", "embedding"]
CHOSEN += ["output_used_later", "captures", "decoded_weights", "value_dependent", "sequences"]
"""Models that branch, or have values that cannot cross: a chain has no other cuts."""

CASES = [*((name, "all") for name in NAMES), *((name, "auto") for name in CHOSEN)]


@pytest.fixture(params=CASES, ids="-".join)
def model(request, compiled):
    return compiled(*request.param)


def test_head_then_tail_is_the_whole_model_at_every_cut(model):
    with Program(model.bundle, open_backend("ort"), fuse=False) as program:
        results = list(verify_cuts(program))
    assert len(results) == len(model.bundle.manifest.cuts)
    assert [r.cut for r in results if not r.ok] == []


def test_every_graph_passes_the_checker_and_loads(model):
    for path in sorted((model.bundle.folder / "graph").glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_segments_take_what_is_there_and_give_what_is_needed(model):
    manifest = model.bundle.manifest
    ends = {spec.name for spec in manifest.outputs}
    there = {spec.name for spec in manifest.inputs}
    for segment in manifest.segments:
        assert set(segment.inputs) <= there
        assert segment.outputs
        assert not there & set(segment.outputs)
        there |= set(segment.outputs)
        taken = {n for other in manifest.segments[segment.index + 1 :] for n in other.inputs}
        assert set(segment.outputs) <= taken | ends


def test_a_cut_is_what_the_robots_segments_have_and_the_servers_take(model):
    manifest = model.bundle.manifest
    inputs = {spec.name for spec in manifest.inputs}
    for cut in manifest.cuts:
        robots = [manifest.segments[index] for index in cut.robot_segments]
        servers = [s for s in manifest.segments if s.index not in cut.robot_segments]
        there = inputs | {name for segment in robots for name in segment.outputs}
        assert {name for segment in robots for name in segment.inputs} <= there
        if robots and servers:
            taken = {name for segment in servers for name in segment.inputs}
            assert set(cut.tensors) == taken & there
        assert cut.results == tuple(s.name for s in manifest.outputs if s.name not in there)
        assert cut.flops_robot == sum(segment.flops for segment in robots)
        assert cut.flops_server == sum(segment.flops for segment in servers)


def test_no_cut_parts_a_segment_and_some_cut_parts_any_two(model):
    manifest = model.bundle.manifest
    signatures = [
        tuple(segment.index in cut.robot_segments for cut in manifest.cuts)
        for segment in manifest.segments
    ]
    assert len(set(signatures)) == len(signatures)


def test_cuts_run_from_all_inputs_to_all_outputs(model):
    manifest = model.bundle.manifest
    first, last = manifest.cuts[0], manifest.cuts[-1]
    assert set(first.tensors) == {spec.name for spec in manifest.inputs}
    assert set(last.tensors) == {spec.name for spec in manifest.outputs}
    assert (first.head, first.tail, first.after) == (None, manifest.graph, "")
    assert (last.head, last.tail, last.results) == (manifest.graph, None, ())
    assert first.results == tuple(spec.name for spec in manifest.outputs)
    for cut in manifest.cuts:
        same = [other for other in manifest.cuts if other.tensors == cut.tensors]
        assert cut.id in (cut_id(cut.tensors), cut_id(cut.tensors, cut.results))
        assert [c.id for c in same].count(cut_id(cut.tensors)) == 1
        assert cut.why
        assert not cut.refused
        assert cut.bytes == sum(spec.nbytes for spec in manifest.specs(cut.tensors))
        assert cut.flops_robot + cut.flops_server == last.flops_robot
        assert list(cut.tensors) == sorted(cut.tensors)
    assert all(len(cut.tensors) <= 4 for cut in manifest.cuts if cut.why == ("boundary",))
    for cut, larger in itertools.permutations(manifest.cuts, 2):
        if set(cut.robot_segments) < set(larger.robot_segments):
            assert cut.index < larger.index
            assert cut.flops_robot <= larger.flops_robot


def test_all_has_every_boundary_of_few_tensors(compiled):
    cuts = compiled("dense").bundle.manifest.cuts
    assert len([cut for cut in cuts if "boundary" in cut.why]) > len(cuts) / 2
    assert not any("boundary" in c.why for c in compiled("dense", "auto").bundle.manifest.cuts)


def test_halves_cost_at_most_half_as_much_again_as_the_graph(model):
    folder, manifest = model.bundle.folder, model.bundle.manifest
    graph = onnx.load(folder / manifest.graph, load_external_data=False)
    whole = (folder / manifest.graph).stat().st_size
    if len(graph.graph.node) < 5:
        pytest.skip("an ONNX file's own header outweighs so few nodes")
    for cut in manifest.cuts[1:-1]:
        halves = sum((folder / file).stat().st_size for file in (cut.head, cut.tail))
        assert halves <= 1.5 * whole, (cut.id, halves, whole)


def test_nothing_local_is_shipped(model):
    secrets = [os.getcwd(), *site.getsitepackages(), os.path.dirname(onnx.__file__)]
    for path in model.bundle.folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        assert [s for s in secrets if s.encode() in content] == [], path.name
        if path.suffix == ".onnx":
            proto = onnx.load(path, load_external_data=False)
            assert not proto.metadata_props
            assert not any(n.metadata_props or n.doc_string for n in proto.graph.node)
            assert proto.ir_version <= 10


def test_parity_vectors_are_the_references_outputs(model):
    manifest = model.bundle.manifest
    inputs, outputs = model.bundle.parity_vectors()
    assert [*inputs] == [spec.name for spec in manifest.inputs]
    assert [*outputs] == [spec.name for spec in manifest.outputs]
    assert not any(spec.mismatch(inputs[spec.name]) for spec in manifest.inputs)
    assert not any(spec.mismatch(outputs[spec.name]) for spec in manifest.outputs)
    expected = "pytorch" if manifest.name in torch_models.MODELS else "onnx"
    assert manifest.parity.compared_with == expected


def perturb(data: bytes) -> bytes:
    """Change every floating-point weight embedded in an ONNX file."""
    proto = onnx.load(io.BytesIO(data))
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.raw_data:
            array = onnx.numpy_helper.to_array(tensor) + np.float32(0.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return proto.SerializeToString()


@pytest.mark.parametrize("name", ["residual", "chain", "two_ends"])
def test_a_wrong_weight_does_not_go_unnoticed(compiled, name):
    bundle = compiled(name).bundle
    backend = open_backend("ort")

    class Wrong:
        name = "ort"

        def build(self, path):
            data = backend.build(path)
            return perturb(data) if "segment_0000" in path.name else data

        def load(self, plan, *, folder):
            return backend.load(plan, folder=folder)

        def fingerprint(self):
            return backend.fingerprint()

    with Program(bundle, Wrong(), fuse=False) as program:
        assert not any(r.ok for r in verify_cuts(program, [len(bundle.manifest.cuts) - 1]))


def test_a_wrong_frontier_does_not_go_unnoticed(compiled):
    bundle = compiled("residual").bundle
    inputs, outputs = bundle.parity_vectors()
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        for index in range(1, program.last):
            env = program.run(inputs, 0, index)
            for name in bundle.manifest.cuts[index].tensors:
                wrong = {**env, name: env[name] + np.float32(0.5)}
                given = program.run(wrong, index, program.last)
                assert not np.allclose(given["output"], outputs["output"], atol=1e-3), name
