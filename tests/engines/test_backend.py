from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from engines import backend as backend_module
from engines.backend import (
    BACKENDS,
    BackendOptions,
    CheckedEngine,
    available_backends,
    open_backend,
)
from engines.bundle import Bundle
from engines.errors import (
    BuildError,
    EngineError,
    IncompatibleError,
    TensorMismatchError,
)
from engines.tensors import TensorSpec

SPEC = TensorSpec("x", "float32", (2,))


class Doubler(CheckedEngine):
    """The toy engine of these tests."""

    freed = 0

    def __init__(self) -> None:
        super().__init__("doubler", [SPEC], [TensorSpec("y", "float32", (2,))])

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}

    def _free(self) -> None:
        self.freed += 1


def test_an_engine_runs_what_fits() -> None:
    assert Doubler().run({"x": np.ones(2, np.float32)})["y"].tolist() == [2, 2]


def test_an_engine_never_sees_what_does_not_fit() -> None:
    with pytest.raises(
        TensorMismatchError, match=r"engine 'doubler': 'x': expected float32 \[2\]"
    ):
        Doubler().run({"x": np.ones(3, np.float32)})


def test_a_closed_engine_says_so_and_is_freed_once() -> None:
    engine = Doubler()
    assert "open" in repr(engine)
    engine.close()
    engine.close()
    assert engine.freed == 1
    assert "closed" in repr(engine)
    with pytest.raises(EngineError, match="'doubler' is closed"):
        engine.run({"x": np.ones(2, np.float32)})


def test_an_engine_without_run_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        CheckedEngine("bare", [], []).run({})


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(IncompatibleError, match="'tpu': expected one of ort, reference"):
        open_backend("tpu")


def test_a_backend_whose_library_is_missing_is_refused_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKENDS, "absent", "engines.no_such_module:Backend")
    with pytest.raises(IncompatibleError, match=r"'absent' cannot be used here.*runtime doctor"):
        open_backend("absent")
    found = available_backends()
    assert "cannot be used here" in found["absent"]
    assert found["ort"] == ""


def test_importing_the_registry_imports_no_backend() -> None:
    assert all(":" in target for target in BACKENDS.values())
    assert not hasattr(backend_module, "onnxruntime")


def test_negative_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="threads"):
        BackendOptions(threads=-1)


# Plans of TensorRT hold their weights and need a GPU, and replay computes nothing: their tests are
# beside these.
COMPUTING = sorted(n for n in BACKENDS if "tensorrt" not in n and n != "replay")


@pytest.mark.parametrize("name", COMPUTING)
class TestEveryBackend:
    def test_it_computes_what_numpy_computes(
        self,
        name: str,
        toy: Bundle,
        inputs: dict[str, np.ndarray],
        expected: dict[str, np.ndarray],
    ) -> None:
        backend = open_backend(name, BackendOptions(threads=1))
        path = toy.path("graph/model.onnx")
        engine = backend.load(backend.build(path), folder=path.parent)
        assert [str(spec) for spec in engine.inputs] == ["x: float32 [1, 3, 16, 16]"]
        assert {spec.name for spec in engine.outputs} == {"pooled", "logits"}
        given = engine.run(inputs)
        for output, array in expected.items():
            assert given[output].dtype == np.float32
            np.testing.assert_allclose(given[output], array, atol=1e-5)
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.run(inputs)

    def test_booleans_go_in_and_come_out(self, name: str, toy: Bundle) -> None:
        backend = open_backend(name)
        greater, where = (toy.path(f"graph/segment_000{i}.onnx") for i in (2, 3))
        b = np.linspace(-1, 2, 8 * 256, dtype=np.float32).reshape(1, 8, 16, 16)
        m = backend.load(backend.build(greater), folder=greater.parent).run({"b": b})["m"]
        assert m.dtype == np.bool_
        assert np.array_equal(m, b > 0.5)
        z = backend.load(backend.build(where), folder=where.parent).run({"b": b, "m": m})["z"]
        assert np.array_equal(z, np.where(b > 0.5, b, np.float32(-1)))

    def test_the_caller_owns_the_outputs(
        self, name: str, toy: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        backend = open_backend(name)
        path = toy.path("graph/model.onnx")
        engine = backend.load(backend.build(path), folder=path.parent)
        first = engine.run(inputs)
        kept = {key: array.copy() for key, array in first.items()}
        engine.run({"x": np.zeros_like(inputs["x"])})
        assert all(np.array_equal(first[key], kept[key]) for key in kept)

    def test_a_file_that_is_not_there_cannot_be_built(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match=r"gone\.onnx"):
            open_backend(name).build(tmp_path / "gone.onnx")

    def test_bytes_that_are_no_plan_are_refused_in_one_line(
        self, name: str, tmp_path: Path
    ) -> None:
        with pytest.raises(EngineError) as caught:
            open_backend(name).load(b"\xff not a plan", folder=tmp_path)
        assert "refused a plan" in str(caught.value)

    def test_a_plan_without_its_weights_is_refused(
        self, name: str, toy: Bundle, tmp_path: Path
    ) -> None:
        backend = open_backend(name)
        plan = backend.build(toy.path("graph/model.onnx"))
        with pytest.raises(EngineError):
            backend.load(plan, folder=tmp_path)

    def test_a_plan_from_elsewhere_finds_its_weights_in_the_folder(
        self, name: str, toy: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        """As when the plan was stored, and the backend that built it is gone."""
        path = toy.path("graph/model.onnx")
        plan = open_backend(name).build(path)
        engine = open_backend(name).load(plan, folder=path.parent)
        assert set(engine.run(inputs)) == {"pooled", "logits"}

    def test_a_refusal_is_told_by_the_error_alone(
        self, name: str, toy: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "model.onnx").write_bytes(toy.path("graph/model.onnx").read_bytes())
        backend = open_backend(name)
        with pytest.raises(EngineError):
            backend.load(backend.build(tmp_path / "model.onnx"), folder=tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_its_fingerprint_is_stable(self, name: str) -> None:
        first, again = (open_backend(name).fingerprint() for _ in range(2))
        assert first == again
        assert first.backend == name
        assert set(first.fields) >= {"device", "version"}


def test_thread_count_is_part_of_what_a_time_is_valid_for() -> None:
    keys = {open_backend("ort", BackendOptions(threads=n)).fingerprint().key for n in (0, 1, 2)}
    assert len(keys) == 3


@pytest.mark.parametrize("kind", ["int8", "uint4"])
def test_decoded_weights_are_not_multiplied_at_less_accuracy(tmp_path: Path, kind: str) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (128, 64))
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    made = {"x": (1, 128), "y": (1, 64)}
    x, y = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in made.items()]
    number = onnx.TensorProto.DataType.Value(kind.upper())
    weights = [
        helper.make_tensor("codes", number, codes.shape, codes.flatten().tolist()),
        helper.make_tensor("scale", onnx.TensorProto.FLOAT, (), [0.1]),
    ]
    graph = helper.make_graph(nodes, "decoded", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(tmp_path / "model.onnx"))
    backend = open_backend("ort")
    engine = backend.load(backend.build(tmp_path / "model.onnx"), folder=tmp_path)
    given = np.random.default_rng(1).standard_normal((1, 128)).astype(np.float32)
    expected = given @ (codes.astype(np.float32) * np.float32(0.1))
    np.testing.assert_allclose(engine.run({"x": given})["y"], expected, atol=1e-4)
