"""The fake TensorRT, reading real ONNX files: ONNX Runtime computes what is on the fake GPU.

An engine's outputs are enqueued as the operation ``onnx:FILE:OUTPUT``, which runs the file when
the stream is synchronised. So whatever the compiler writes goes through the real run path:
buffers, copies, graphs, chains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.engines.fakes import trt
from tests.engines.fakes.gpu import FakeMemory

_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
}


@functools.lru_cache(maxsize=64)
def _session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Operations(dict):  # type: ignore[type-arg]
    """The fake's operations, and every ONNX file; ``skew`` is added to every float."""

    skew = 0.0

    def __missing__(self, key: str) -> Callable[..., Any]:
        _, path, output = key.split(":")

        def run(*arrays: np.ndarray) -> Any:
            session = _session(path)
            given = {value.name: a.copy() for value, a in zip(session.get_inputs(), arrays)}
            (result,) = session.run([output], given)
            return result + self.skew if result.dtype.kind == "f" else result

        return run


class OnnxParser(trt.Parser):
    def parse_from_file(self, path: str) -> bool:
        graph = onnx.load(path, load_external_data=False).graph
        values = [*graph.input, *graph.output]
        wrong = [v.name for v in values if v.type.tensor_type.elem_type not in _TYPES]
        if wrong:
            return self._refuse(0, wrong[0], "Cast", f"unsupported type of {', '.join(wrong)}")
        self.network.graph = {
            "inputs": [_entry(value) for value in graph.input],
            "outputs": [
                [*_entry(v), f"onnx:{path}:{v.name}", [value.name for value in graph.input]]
                for v in graph.output
            ],
        }
        return True


def _entry(value: onnx.ValueInfoProto) -> list[Any]:
    kind = value.type.tensor_type
    return [value.name, _TYPES[kind.elem_type], [d.dim_value for d in kind.shape.dim]]


def onnx_tensorrt(
    generation: str, memory: FakeMemory, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Operations]:
    """Return a module that reads real ONNX files, and the operations it computes with."""
    operations = Operations(trt.OPERATIONS)
    monkeypatch.setattr(trt, "OPERATIONS", operations)
    module = trt.fake_tensorrt(generation, memory)
    module.OnnxParser = lambda network, logger: OnnxParser(module, network, logger)
    return module, operations
