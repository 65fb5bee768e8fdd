"""INT8 graphs are evaluated without 8-bit kernels, which saturate on processors without VNNI.

Which kernels ONNX Runtime is about to run is read off the graph that it has optimised: that is
the same on every processor, so a machine with VNNI, whose sums are right, shows it as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx import helper as h

from compiler.whole import WholeRun, run_whole
from engines.backend import open_backend

CHANNELS, SIDE = 32, 6
SCALE = 1 / 127
LAYOUTS = {"ReorderInput", "ReorderOutput"}
AS_WRITTEN = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Conv",
    "FusedConv",
    "MatMul",
    "Gemm",
    *LAYOUTS,
}
"""What computes in float32, and casts between float32 and codes."""

Outputs = dict[str, np.ndarray]
Evaluate = Callable[[Path, dict[str, np.ndarray]], Outputs]


def backend_ort(file: Path, x: Outputs) -> Outputs:
    backend = open_backend("ort")
    with contextlib.closing(backend.load(backend.build(file), folder=file.parent)) as engine:
        return engine.run(x)


def backend_ort_rows(file: Path, x: Outputs) -> Outputs:
    with contextlib.closing(open_backend("ort").load_rows(file)) as engine:
        return engine.run(x)


def search(file: Path, x: Outputs) -> Outputs:
    """Evaluate as the search for sensitive nodes and calibration do."""
    return WholeRun(onnx.load(file), file.parent)(x)


def search_of_halves(file: Path, x: Outputs) -> Outputs:
    return WholeRun(onnx.load(file), file.parent, optimise=False)(x)


def proof(file: Path, x: Outputs) -> Outputs:
    return run_whole(onnx.load(file), file.parent, x, ["y"])


EVERY = [backend_ort, backend_ort_rows, search, search_of_halves, proof]


def plain(file: Path, x: Outputs) -> Outputs:
    """Evaluate as ONNX Runtime does by default."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return {"y": session.run(["y"], x)[0]}


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """Write a convolution and a product of codes that are as large as codes can be."""

    def pair(value: str, zero: str = "zero") -> list[onnx.NodeProto]:
        return [
            h.make_node("QuantizeLinear", [value, f"{value}_s", zero], [f"{value}_q"]),
            h.make_node("DequantizeLinear", [f"{value}_q", f"{value}_s", zero], [f"{value}_d"]),
        ]

    nodes = [
        *pair("x"),
        h.make_node("DequantizeLinear", ["w", "w_s"], ["w_d"], axis=0),
        h.make_node("Conv", ["x_d", "w_d"], ["c"], pads=[1] * 4),
        *pair("c"),
        h.make_node("DequantizeLinear", ["v", "v_s"], ["v_d"], axis=1),
        h.make_node("MatMul", ["c_d", "v_d"], ["p"]),
        *pair("p"),
        h.make_node("Identity", ["p_d"], ["y"]),
    ]
    weights = {
        "zero": np.int8(0),
        "x_s": np.float32(SCALE),
        "c_s": np.float32(9 * CHANNELS * SCALE),
        "p_s": np.float32(9 * CHANNELS * SIDE * SCALE),
        "w": np.full((CHANNELS, CHANNELS, 3, 3), 127, np.int8),
        "w_s": np.full(CHANNELS, SCALE, np.float32),
        "v": np.full((SIDE, SIDE), 127, np.int8),
        "v_s": np.full(SIDE, SCALE, np.float32),
    }
    shape = [1, CHANNELS, SIDE, SIDE]
    graph = h.make_graph(
        nodes,
        "loud",
        [h.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [h.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "loud.onnx")
    return tmp_path / "loud.onnx"


@pytest.fixture
def run_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """Give the operators of the graph that the last session was about to run."""
    real = onnxruntime.InferenceSession
    optimised = tmp_path / "optimised.onnx"

    def opened(source: object, options: object = None, **more: object) -> object:
        options = options or onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimised)  # type: ignore[attr-defined]
        return real(source, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return lambda: {node.op_type for node in onnx.load(optimised).graph.node} - {"Identity"}


def pixels() -> Outputs:
    return {"x": np.ones((1, CHANNELS, SIDE, SIDE), np.float32)}


def test_by_default_there_would_be_such_kernels(
    loud: Path, run_operators: Callable[[], set[str]]
) -> None:
    plain(loud, pixels())
    assert {"QLinearConv", "QLinearMatMul"} & run_operators()


@pytest.mark.parametrize("evaluate", EVERY)
def test_pairs_are_computed_as_they_are_written(
    evaluate: Evaluate, loud: Path, run_operators: Callable[[], set[str]]
) -> None:
    evaluate(loud, pixels())
    found = run_operators()
    assert {"QuantizeLinear", "DequantizeLinear"} <= found
    assert found <= AS_WRITTEN


@pytest.mark.parametrize("evaluate", EVERY)
def test_the_largest_codes_do_not_saturate(evaluate: Evaluate, loud: Path) -> None:
    x = pixels()
    given = evaluate(loud, x)["y"]
    # Every product is 1 but for those with the rows and columns of zeros around the picture.
    inner = np.pad(np.ones((SIDE, SIDE)), 1)
    counts = sum(inner[a : a + SIDE, b : b + SIDE] for a in range(3) for b in range(3))
    wanted = CHANNELS * counts.sum(axis=1, keepdims=True) * np.ones((1, CHANNELS, 1, SIDE))
    step = 9 * CHANNELS * SIDE * SCALE
    assert np.abs(given - wanted).max() <= 0.51 * step + 0.51 * SIDE * 9 * CHANNELS * SCALE
