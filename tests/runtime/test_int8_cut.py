"""A cut within an INT8 region: its codes cross as they are, one byte for an element."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compiler import CompileOptions, compile_model, pipeline
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.manifest import Cut
from engines.program import Program
from runtime import Robot
from runtime.payload import pack_tensors
from runtime.wire import Kind
from runtime.wire import Result as WireResult
from tests.runtime.helpers import FakeServer, Message, Peer, polite_until

Tensors = dict[str, np.ndarray]
SHAPE = (1, 3, 16, 16)


class Skipping(nn.Module):
    """Convolutions, of which two take one value, and a skip connection beside these."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.beside = nn.Conv2d(8, 8, 3, padding=1)
        self.other = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.last(torch.relu(x + self.beside(x) + self.other(x)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Compile the network in INT8, with all cuts."""
    folder = tmp_path_factory.mktemp("int8")
    rows = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    np.savez(folder / "data.npz", x=rows)
    torch.manual_seed(0)
    options = CompileOptions(
        name="m", cuts="all", precision="int8", calibrate=str(folder / "data.npz"), stripes="none"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "render_report", lambda *a, **k: "")
        model = Skipping().eval(), (torch.zeros(*SHAPE),)
        yield compile_model(model, folder / "m.bundle", options=options)[0]


def coded(bundle: Bundle) -> list[Cut]:
    """Return the cuts within the INT8 region: something of codes crosses there."""
    tensors = bundle.manifest.tensors
    return [c for c in bundle.manifest.cuts if any(tensors[n].dtype == "int8" for n in c.tensors)]


def _nodes(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path, load_external_data=False).graph.node)


def _sides(bundle: Bundle, cut: Cut) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Return the nodes of the head and those of the tail."""
    head: list[onnx.NodeProto] = []
    tail: list[onnx.NodeProto] = []
    for segment in bundle.manifest.segments:
        side = head if segment.index in cut.robot_segments else tail
        side += _nodes(bundle.path(segment.file))
    return head, tail


def test_nothing_but_codes_crosses_and_no_pair_is_there_twice(bundle: Bundle) -> None:
    manifest = bundle.manifest
    cuts = coded(bundle)
    # The input; what two convolutions and the skip connection take; what the last one takes.
    only = [cut for cut in cuts if len(cut.tensors) == 1]
    assert len({cut.tensors for cut in only}) == len(only) == 3
    whole = _nodes(bundle.path(manifest.graph))
    assert sum(node.op_type == "QuantizeLinear" for node in whole) == 3
    for cut in only:
        (name,) = cut.tensors  # no float beside it, and not its dequantised form
        spec = manifest.tensors[name]
        assert cut.bytes == int(np.prod(spec.shape))
        head, tail = _sides(bundle, cut)
        made = [n for n in head + tail if n.op_type == "QuantizeLinear" and name in n.output]
        assert len(made) == 1
        assert made[0] in head
        taken = [n for n in tail if name in n.input]
        assert {n.op_type for n in taken} == {"DequantizeLinear"}
        assert not any(name in n.input for n in head)
        # Its codes are not made again of what they stand for.
        decoded = {output for node in taken for output in node.output}
        assert not [n for n in tail if n.op_type == "QuantizeLinear" and decoded & set(n.input)]
        assert sum(n.op_type == "QuantizeLinear" for n in head + tail) == 3


def test_between_branches_the_codes_cross_that_both_sides_take(bundle: Bundle) -> None:
    tensors, found = bundle.manifest.tensors, 0
    for cut in coded(bundle):
        codes = [name for name in cut.tensors if tensors[name].dtype == "int8"]
        if len(cut.tensors) != 2 or len(codes) != 1 or "dequantised" in "".join(cut.tensors):
            continue  # not the codes and what one branch gave
        head, tail = _sides(bundle, cut)
        for side in (head, tail):
            assert {n.op_type for n in side if codes[0] in n.input} == {"DequantizeLinear"}
        found += 1
    assert found


def test_a_byte_for_an_element_is_on_the_wire(bundle: Bundle) -> None:
    manifest = bundle.manifest
    x = {"x": np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)}
    backend = open_backend("ort", BackendOptions(threads=1))
    heard: list[Message] = []
    with Program(bundle, backend) as program:
        expected = program.outputs(program.run(x))

        def answer(peer: Peer, message: Message) -> None:
            """Compute the rest of what came, taken for codes."""
            heard.append(message)
            (cut,) = [c for c in manifest.cuts if int(c.id, 16) == message.header.cut]
            (spec,) = manifest.specs(cut.tensors)
            codes = np.frombuffer(message.payload, np.int8).reshape(spec.shape)
            given = program.run({spec.name: codes}, cut.index)
            results = manifest.specs(cut.results)
            parts, buffers = pack_tensors(results, given)
            fields = {"request": message.header.request, "cut": message.header.cut}
            meta = WireResult(parts, 0.0, 0.0, 0.0)
            peer.send(Kind.RESULT, meta, b"".join(buffers), tensors=len(parts), **fields)

        with (
            FakeServer(polite_until(answer)) as fake,
            Robot(bundle, server=fake.address, threads=1, codec="none") as robot,
        ):
            for cut in coded(bundle):
                if len(cut.tensors) > 1:
                    continue
                result = robot.infer(x, cut=cut.id)
                assert result.answered_by == "remote"
                (output,) = expected
                np.testing.assert_allclose(result.outputs[output], expected[output], atol=1e-5)
                (spec,) = manifest.specs(cut.tensors)
                (part,) = heard[-1].meta.parts
                assert part.nbytes == len(heard[-1].payload) == int(np.prod(spec.shape))
                right = program.run(x, 0, cut.index)[spec.name]
                assert right.dtype == np.int8
                assert heard[-1].payload == right.tobytes()
                assert len(set(heard[-1].payload)) > 16  # codes, not a few constants
    assert len(heard) == 3
