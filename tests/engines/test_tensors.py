from __future__ import annotations

import numpy as np
import pytest

from engines.errors import TensorMismatchError
from engines.tensors import DTYPES, TensorSpec, check_tensors

X = TensorSpec("x", "float32", (1, 2))
Y = TensorSpec("y", "int64", ())


def test_size_and_bytes_follow_shape_and_dtype() -> None:
    assert (X.size, X.nbytes) == (2, 8)
    assert (Y.size, Y.nbytes) == (1, 8)
    assert TensorSpec("empty", "float16", (3, 0)).nbytes == 0
    assert str(X) == "x: float32 [1, 2]"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_the_list_is_a_numpy_dtype_of_that_name(dtype: str) -> None:
    assert np.dtype(TensorSpec("t", dtype, ()).dtype).name == dtype


@pytest.mark.parametrize("dtype", ["object", "float", "complex64", "str", ""])
def test_a_dtype_without_a_fixed_representation_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="dtype"):
        TensorSpec("t", dtype, ())


def test_a_negative_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="negative extent"):
        TensorSpec("t", "float32", (1, -1))


def test_arrays_that_fit_come_back_in_the_order_of_the_specifications() -> None:
    x, y = np.zeros((1, 2), np.float32), np.asarray(3, np.int64)
    checked = check_tensors([X, Y], {"y": y, "x": x}, where="here")
    assert list(checked) == ["x", "y"]
    assert checked["x"] is x
    assert checked["y"] is y


def test_every_offender_is_listed_with_what_was_expected_and_given() -> None:
    given = {"x": np.zeros((2, 1), np.float64), "z": np.zeros(1)}
    with pytest.raises(TensorMismatchError) as caught:
        check_tensors([X, Y], given, where="engine 'e'", hint="do this")
    message = str(caught.value)
    assert message.startswith("engine 'e': ")
    assert "'x': expected float32 [1, 2], given float64 [2, 1]" in message
    assert "'y': expected int64 [], given nothing" in message
    assert "'z': not an input here" in message
    assert message.endswith("; do this")
    assert "\n" not in message


def test_what_is_not_contiguous_is_copied_into_order() -> None:
    spec = TensorSpec("t", "float32", (3, 2))
    strided = np.arange(6, dtype=np.float32).reshape(2, 3).T
    array = check_tensors([spec], {"t": strided}, where="here")["t"]
    assert array.flags.c_contiguous
    assert np.array_equal(array, strided)


def test_big_endian_values_become_native_ones() -> None:
    swapped = np.array([[1.0, -2.5]], ">f4")
    array = check_tensors([X], {"x": swapped}, where="here")["x"]
    assert array.dtype.isnative
    assert array.tobytes() == np.array([[1.0, -2.5]], "<f4").tobytes()


@pytest.mark.parametrize("value", [[[1.0, 2.0]], 3.0, "text", None])
def test_what_is_no_array_is_a_mismatch_and_not_a_crash(value: object) -> None:
    with pytest.raises(TensorMismatchError, match="'x': expected float32"):
        check_tensors([X], {"x": value}, where="here")  # type: ignore[dict-item]


def test_specifications_may_come_from_an_iterator() -> None:
    x = np.zeros((1, 2), np.float32)
    assert check_tensors(iter([X]), {"x": x}, where="here") == {"x": x}
