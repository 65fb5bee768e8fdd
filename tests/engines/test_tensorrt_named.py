"""Named plans: literal bytes, both directions, every place where they may be cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.errors import EngineError
from engines.tensorrt.api import Api
from engines.tensorrt.backend import TensorRTBackend
from engines.tensorrt.named import named_plan, split_plan
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.trt import fake_tensorrt, write_graph


def test_the_bytes() -> None:
    head = b'{"names":{"in0":"image"}}'
    expected = b"SRTNAMED" + len(head).to_bytes(4, "little") + head + b"ftrt..."
    assert named_plan(b"ftrt...", {"in0": "image"}) == expected
    assert split_plan(expected) == (b"ftrt...", {"in0": "image"})


def test_a_plan_of_its_own_names_is_itself() -> None:
    assert split_plan(b"ftrt...") == (b"ftrt...", {})


def test_a_head_that_is_cut_off_or_wrong_is_refused() -> None:
    whole = named_plan(b"", {"in0": "image"})
    for length in range(len(b"SRTNAMED"), len(whole)):
        with pytest.raises(EngineError, match="named plan"):
            split_plan(whole[:length])
    for head in (b"{}", b"[]", b'{"names":{"a":1}}', b"\xff\xff", b'{"names":{},"more":1}'):
        with pytest.raises(EngineError, match="cannot be read"):
            split_plan(b"SRTNAMED" + len(head).to_bytes(4, "little") + head)
    with pytest.raises(EngineError, match="at most 1048576"):
        split_plan(b"SRTNAMED\xff\xff\xff\xff")


def test_an_engine_goes_by_the_names_it_was_given(tmp_path: Path) -> None:
    memory = FakeMemory()
    api = Api(fake_tensorrt("11", memory))
    backend = TensorRTBackend(api=api, memory=lambda: memory)
    pair = [["in0", "float32", [2]], ["in1", "float32", [2]]]
    path = write_graph(
        tmp_path / "g.onnx", pair, [["output0", "float32", [2], "add", ["in0", "in1"]]]
    )
    plan = backend.build(path)
    names = {"in0": "image", "in1": "output0", "output0": "in0"}  # names of others too
    engine = backend.load(named_plan(plan, names), folder=tmp_path)
    ones = np.ones(2, np.float32)
    for i in range(3):
        given = engine.run({"image": ones * i, "output0": ones})
        assert np.array_equal(given["in0"], ones * i + 1)
    engine.close()
    with pytest.raises(EngineError, match="expected names for in0, in1, output0, given in0"):
        backend.load(named_plan(plan, {"in0": "image"}), folder=tmp_path)
    assert memory.leaked == 0
