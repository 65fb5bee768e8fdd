"""Segments as fx programs: what maps gives what the ONNX segment gives, the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from calibration.parity import error_of, tolerance_for
from compiler import CompileOptions, compile_model
from compiler.fx_segments import FxSegments
from compiler.quiet import quiet
from compiler.sources import source_from_object
from compiler.trace import TraceOptions, trace
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.errors import BuildError
from engines.manifest import Segment
from engines.tensors import Array
from tests.models import torch_models

REFUSED = {
    "transformer": {
        *("val_3", "val_67", "val_69", "val_71", "val_74", "val_75", "val_76"),
        *("val_89", "val_91", "val_92", "val_94", "val_96", "val_98"),
    },
    "recurrent": {"val_6", "val_45", "val_46", "val_59", "val_61"},
    "passing": {"output_1", "output_2", "output_3"},
}
"""Tensors by which segments are refused, of the models that have such; the others map whole."""


def fx_of(model: Any, bundle: Bundle) -> FxSegments:
    traced = trace(source_from_object(model, "model", where="test"), TraceOptions())
    assert traced.program is not None
    return FxSegments(traced.program, bundle.manifest)


def all_tensors(bundle: Bundle) -> dict[str, Array]:
    """Run the chain of ONNX segments; return every tensor on the way."""
    backend = open_backend("ort")
    tensors = dict(bundle.parity_vectors()[0])
    for segment in bundle.manifest.segments:
        path = bundle.path(segment.file)
        engine = backend.load(backend.build(path), folder=path.parent)
        tensors.update(engine.run({name: tensors[name] for name in segment.inputs}))
    return tensors


@pytest.mark.parametrize("name", torch_models.MODELS)
def test_what_maps_gives_what_the_onnx_segment_gives(
    name: str, compiled: Callable[..., Any]
) -> None:
    bundle = compiled(name).bundle
    manifest = bundle.manifest
    fx = fx_of(torch_models.MODELS[name](), bundle)
    tensors = all_tensors(bundle)
    refused = set()
    for segment in manifest.segments:
        why = fx.refusals(segment)
        if why:
            named = {tensor for tensor in manifest.tensors if any(f"'{tensor}'" in w for w in why)}
            assert named, f"{segment.file} is refused without a name: {why}"
            refused |= named
            with pytest.raises(BuildError, match=segment.file):
                fx.extract(segment)
            continue
        piece = fx.extract(segment)
        assert [spec.name for spec in piece.inputs] == list(segment.inputs)
        assert [spec.name for spec in piece.outputs] == list(segment.outputs)
        given = piece.program.module()(
            *(torch.from_numpy(np.array(tensors[n])) for n in segment.inputs)
        )
        for tensor, value in zip(segment.outputs, given, strict=True):
            limit = tolerance_for(manifest.tensors[tensor].dtype, manifest.parity.tolerance)
            assert error_of(value.detach().numpy(), tensors[tensor]) <= limit, tensor
    assert refused == REFUSED.get(name, set())


def test_a_wrong_weight_is_seen(compiled: Callable[..., Any]) -> None:
    """The negative control: a program of other weights gives other tensors."""
    bundle = compiled("residual").bundle
    model, examples = torch_models.residual()
    with torch.no_grad():
        model.get_submodule("stem").bias.add_(0.1)
    fx = fx_of((model, examples), bundle)
    tensors = all_tensors(bundle)
    first = bundle.manifest.segments[0]
    given = fx.extract(first).program.module()(torch.from_numpy(tensors["x"].copy()))
    assert error_of(given[0].detach().numpy(), tensors["conv2d"]) > 1e-2


def test_the_names_that_a_plan_will_have(compiled: Callable[..., Any]) -> None:
    """Placeholders keep their names through what Torch-TensorRT does to a program first."""
    bundle = compiled("two_ends").bundle
    fx = fx_of(torch_models.two_ends(), bundle)
    (segment,) = (s for s in bundle.manifest.segments if s.outputs == ("cat",))
    assert segment.inputs == ("state", "output_0")
    with quiet():
        module = fx.extract(segment).program.run_decompositions().module()
    assert [n.target for n in module.graph.nodes if n.op == "placeholder"] == ["in0", "in1"]


def test_batch_norm_folded_into_the_convolution_before_it(compiled: Callable[..., Any]) -> None:
    """The convolution's own value is gone from ONNX: the two fx nodes are one segment."""
    bundle = compiled("chain").bundle
    fx = fx_of(torch_models.chain(), bundle)
    first = bundle.manifest.segments[0]
    assert (first.operators, first.outputs) == (("Conv",), ("getitem",))
    nodes = [str(n.target) for n in fx.extract(first).program.graph.nodes]
    assert {"aten.conv2d.default", "aten._native_batch_norm_legit_no_training.default"} <= {*nodes}
    gone = Segment(
        index=0,
        file="graph/by_hand.onnx",
        inputs=("input",),
        outputs=("conv2d_1",),
        operators=("Conv",),
        flops=0,
    )
    with pytest.raises(BuildError, match=r"graph/by_hand.onnx: 'conv2d_1' has no fx node; leave"):
        fx.extract(gone)


def test_other_inputs_than_fx_needs_are_refused(compiled: Callable[..., Any]) -> None:
    bundle = compiled("residual").bundle
    fx = fx_of(torch_models.residual(), bundle)
    known = {"index": 0, "file": "graph/by_hand.onnx", "operators": (), "flops": 0}
    short = Segment(inputs=("conv2d_2",), outputs=("add",), **known)
    assert fx.refusals(short) == ["fx computes it from input 'x' too"]
    long = Segment(inputs=("x", "conv2d"), outputs=("conv2d_1",), **known)
    assert fx.refusals(long) == ["fx does not need 'x' for it"]


def test_raw_pixels_do_not_map(tmp_path: Any) -> None:
    from compiler.images import parse_image

    model = torch_models.chain()
    image = parse_image("input=uint8[hwc],color=rgb,mean=127:127:127,std=128:128:128")
    options = CompileOptions(images=(image,), cuts="all")
    compile_model(model, tmp_path / "b", options=options)
    bundle = Bundle.open(tmp_path / "b")
    fx = fx_of(torch_models.chain(), bundle)
    with pytest.raises(BuildError) as caught:
        fx.check(bundle.manifest.segments)
    said = str(caught.value)
    assert "'input': expected uint8" in said
    assert "its fx node gives float32 [1, 3, 16, 16]" in said
    assert "leave --builder out" in said
    assert "\n" not in said
