from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from calibration.parity import (
    TOLERANCE,
    error_of,
    largest_error,
    rms_error_of,
    seeded_inputs,
    tolerance_for,
    verify_cuts,
)
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.program import Program
from engines.tensors import DTYPES, TensorSpec
from tests.toy import reseal

NAN, INF = float("nan"), float("inf")


def _f(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("given_", "expected", "error"),
    [
        (_f(1, 2), _f(1, 2), 0.0),
        (_f(0.5), _f(0.25), 0.25),
        (_f(0, 110), _f(0, 100), 0.1),
        (_f(5, 100), _f(0, 100), 0.05),
        (_f(NAN, 1), _f(NAN, 1), 0.0),
        (_f(INF, -INF), _f(INF, -INF), 0.0),
        (_f(INF), _f(-INF), INF),
        (_f(NAN), _f(1), INF),
        (_f(1), _f(NAN), INF),
        (_f(1), _f(INF), INF),
        (_f(INF), _f(1), INF),
        (_f(NAN), _f(INF), INF),
        (_f(INF, 1.5), _f(INF, 1), 0.5),
        (_f(), _f(), 0.0),
        (np.zeros((0, 3), np.int8), np.zeros((0, 3), np.int8), 0.0),
        (np.array([1, 2]), np.array([1, 4]), 0.5),
        (np.array([3], np.uint8), np.array([255], np.uint8), 1.0),
        (np.array([0], np.uint64), np.array([2], np.uint64), 1.0),
        (np.array([True, False]), np.array([True, False]), 0.0),
        (np.array([True, True]), np.array([True, False]), 0.5),
        (np.arange(200_000), np.arange(200_000) + (np.arange(200_000) == 7), 5e-6),
        (np.array(2.0), np.array(1.0), 1.0),
    ],
)
def test_error_by_hand(given_: np.ndarray, expected: np.ndarray, error: float) -> None:
    assert error_of(given_, expected) == pytest.approx(error)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (np.zeros(2), np.zeros(3)),
        (np.zeros((1, 2)), np.zeros(2)),
        (np.zeros(2, np.float32), np.zeros(2, np.float64)),
        (np.zeros(2, np.int8), np.zeros(2, np.uint8)),
        (np.zeros((0, 2)), np.zeros((0, 3))),
        (np.zeros(2, bool), np.zeros(2, np.uint8)),
    ],
)
def test_another_shape_or_dtype_is_an_infinite_error(
    given_: np.ndarray, expected: np.ndarray
) -> None:
    assert error_of(given_, expected) == INF


@pytest.mark.parametrize("big", [2**53, 2**62, -(2**62)])
def test_large_integers_that_differ_by_one_differ(big: int) -> None:
    assert error_of(np.array([big + 1]), np.array([big])) > 0


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: st.tuples(*[hnp.arrays(np.dtype(dtype), (3,))] * 2)
    )
)
def test_only_equal_arrays_have_no_error(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    with np.errstate(over="ignore"):
        error = error_of(a, b)
    assert error >= 0
    equal = a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    assert (error == 0) == equal or a.dtype.kind == "f"  # floats may round to no difference
    if equal:
        assert error == 0


def test_largest_error_looks_at_every_expected_tensor() -> None:
    a, b = np.array([1.0]), np.array([1.25])
    assert largest_error({"p": a, "q": b}, {"p": a, "q": a}) == 0.25
    assert largest_error({"p": a, "extra": b}, {"p": a}) == 0.0
    assert largest_error({"p": a}, {"p": a, "q": a}) == INF
    assert largest_error({}, {}) == 0.0


@pytest.mark.parametrize(
    ("given_", "expected", "error"),
    [
        (_f(1, 2), _f(1, 2), 0.0),
        (_f(3, 0), _f(0, 4), 5 / 4),
        (_f(300, 0), _f(0, 400), 5 / 4),
        (_f(0.03, 0), _f(0, 0.04), 5 / 4),
        (_f(0.001, 0.001), _f(0, 0), 0.1),  # in units of 0.01, for want of a size
        (_f(NAN, 1), _f(NAN, 1), 0.0),
        (_f(INF, 3), _f(INF, 2), 2**-0.5 / 2),
        (_f(NAN), _f(1), INF),
        (_f(INF), _f(1), INF),
        (_f(1), _f(1, 2), INF),
        (_f(), _f(), 0.0),
        (np.array([3, 4], np.int8), np.array([3, 5], np.int8), (1 / 34) ** 0.5),
        (np.array([-128], np.int8), np.array([127], np.int8), 255 / 127),
        (np.array([1, 2]), np.array([1, 4]), 0.5),
        (np.array([1], np.int8), np.array([1], np.int16), INF),
    ],
)
def test_the_error_on_the_whole(given_: np.ndarray, expected: np.ndarray, error: float) -> None:
    assert rms_error_of(given_, expected) == pytest.approx(error, rel=1e-6)


def test_one_pixel_of_many_is_a_large_difference_and_a_small_error() -> None:
    scores = np.zeros((1, 1, 100, 100), np.float32)
    scores[..., 20:60, 20:60] = 1
    other = scores.copy()
    other[0, 0, 5, 5] = 1
    assert error_of(other, scores) == 1.0
    assert rms_error_of(other, scores) == pytest.approx(1 / 40)
    assert rms_error_of(1 - scores, scores) > 2


def test_tolerances_by_dtype() -> None:
    assert tolerance_for("float32", TOLERANCE) == 1e-4
    assert tolerance_for("int64", TOLERANCE) == tolerance_for("bool", TOLERANCE) == 1e-5


@pytest.mark.parametrize(("size", "ok"), [(1, False), (99_999, False), (100_000, True)])
def test_one_wrong_label_is_let_pass_among_a_hundred_thousand_only(size: int, ok: bool) -> None:
    labels = np.zeros(size, np.uint8)
    flipped = labels.copy()
    flipped[0] = 3
    assert (error_of(flipped, labels) <= tolerance_for("uint8", TOLERANCE)) == ok


class TestSeededInputs:
    def test_they_are_the_same_on_every_machine(self) -> None:
        """Literals: a bundle's seed means the same inputs wherever and whenever it is read."""
        specs = [
            TensorSpec("x", "float32", (3,)),
            TensorSpec("image", "uint8", (4,)),
            TensorSpec("ids", "int64", (6,)),
            TensorSpec("mask", "bool", (6,)),
        ]
        drawn = seeded_inputs(specs, 7)
        assert {name: array.tolist() for name, array in drawn.items()} == {
            "x": [-0.07392660528421402, 0.5207464098930359, -0.10361593961715698],
            "image": [150, 4, 22, 197],
            "ids": [0, 1, 0, 0, 0, 1],
            "mask": [True, True, True, True, False, False],
        }

    def test_each_input_has_its_own_stream(self) -> None:
        x, y = TensorSpec("x", "float32", (4,)), TensorSpec("y", "float32", (4,))
        both = seeded_inputs([y, x], 3)
        assert np.array_equal(both["x"], seeded_inputs([x], 3)["x"])
        assert not np.array_equal(both["x"], both["y"])
        assert not np.array_equal(both["x"], seeded_inputs([x], 4)["x"])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
    def test_every_dtype_and_shape_can_be_drawn(self, dtype: str, shape: tuple[int, ...]) -> None:
        spec = TensorSpec("t", dtype, shape)
        assert spec.mismatch(seeded_inputs([spec], 0)["t"]) == ""

    def test_integers_stay_below_their_bound(self) -> None:
        specs = [TensorSpec(name, "int64", (500,)) for name in ("ids", "other")]
        specs.append(TensorSpec("image", "uint8", (5000,)))
        drawn = seeded_inputs(specs, 0, bounds={"ids": 10})
        assert set(drawn["ids"].tolist()) == set(range(10))
        assert set(drawn["other"].tolist()) == {0, 1}
        assert set(drawn["image"].tolist()) == set(range(256))


@pytest.mark.parametrize("backend", ["ort", "reference"])
class TestVerifyCuts:
    def test_every_cut_of_a_right_bundle_is_within_tolerance(
        self, toy: Bundle, backend: str
    ) -> None:
        with Program(toy, open_backend(backend), fuse=False) as program:
            found = list(verify_cuts(program))
        assert [parity.cut.id for parity in found] == [cut.id for cut in toy.manifest.cuts]
        assert all(parity.ok for parity in found)
        assert max(parity.error for parity in found) < 1e-5

    def test_only_the_cuts_asked_for(self, toy: Bundle, backend: str) -> None:
        with Program(toy, open_backend(backend), fuse=False) as program:
            found = [parity.cut.id for parity in verify_cuts(program, [0, 3, 7])]
        assert found == [toy.manifest.cuts[index].id for index in (0, 3, 7)]

    def test_wrong_weights_fail_at_every_cut(self, toy_copy: Path, backend: str) -> None:
        weights = toy_copy / "graph" / "weights.bin"
        values = np.frombuffer(weights.read_bytes(), np.float32).copy()
        weights.write_bytes((values * 1.01).tobytes())
        with Program(reseal(toy_copy), open_backend(backend), fuse=False) as program:
            found = list(verify_cuts(program))
        assert not any(parity.ok for parity in found)
        assert all(1e-4 < parity.error < 1 for parity in found)

    @pytest.mark.parametrize("half", ["head", "tail"])
    def test_one_wrong_half_fails_at_its_own_cut_only(
        self, toy: Bundle, toy_copy: Path, backend: str, half: str
    ) -> None:
        index = 5 if half == "head" else 3
        file = getattr(toy.manifest.cuts[index], half)
        _change_constant(toy_copy / file, "c1", -2.0)
        with Program(reseal(toy_copy), open_backend(backend), fuse=False) as program:
            wrong = [parity.cut.id for parity in verify_cuts(program) if not parity.ok]
        assert wrong == [toy.manifest.cuts[index].id]

    def test_a_wrong_segment_fails_at_every_cut_before_and_after_it(
        self, toy_copy: Path, backend: str
    ) -> None:
        _change_constant(toy_copy / "graph" / "segment_0003.onnx", "c1", -2.0)
        with Program(reseal(toy_copy), open_backend(backend), fuse=False) as program:
            assert not any(parity.ok for parity in verify_cuts(program))


def _change_constant(path: Path, name: str, value: float) -> None:
    model = onnx.load(str(path), load_external_data=False)
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))
    path.write_bytes(model.SerializeToString())


def test_codes_by_how_far_they_are_apart() -> None:
    codes = np.array([[-128, 0, 127]], np.int8)
    assert error_of(codes, codes) == 0
    assert error_of(np.array([[-127, 1, 126]], np.int8), codes) == pytest.approx(1 / 127)
    assert error_of(np.array([[127, 0, 127]], np.int8), codes) == pytest.approx(255 / 127)
    assert error_of(codes.astype(np.int16), codes) == float("inf")
