"""Codecs for writing: calibrated ranges, what they clip, and that any decoder reads it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.codecs import CALIBRATED, codec_by_id, codec_names_here, open_codec
from engines.codecs.encoders import Encoders, ValueRange
from engines.errors import CodecError
from engines.tensors import TensorSpec

BOUNDS = st.floats(-1e6, 1e6, width=32)
ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=6),
    elements=st.floats(-1e7, 1e7, width=32),
)


def _range(least: float, most: float, channels: int = 1) -> ValueRange:
    return ValueRange(np.full(channels, float(least)), np.full(channels, float(most)))


def _through(encoders: Encoders, name: str, array: np.ndarray) -> np.ndarray:
    """Write by a calibrated range, read as whoever has none does."""
    codec = encoders.open(name, "t")
    assert codec is not None
    spec = TensorSpec("t", array.dtype.name, array.shape)
    scratch = memoryview(bytearray(codec.max_encoded_bytes(spec)))
    coded = codec.encode(array, scratch)
    assert coded.nbytes <= codec_by_id(codec.wire_id).max_encoded_bytes(spec)
    out = np.empty(array.shape, array.dtype)
    codec_by_id(codec.wire_id).decode(coded, out)
    return out


@given(st.sampled_from(["int8:mse", "int8-zstd:minmax"]), ARRAYS, BOUNDS, BOUNDS)
def test_values_within_the_range_are_near_and_others_clipped(
    name: str, array: np.ndarray, a: float, b: float
) -> None:
    least, most = min(a, b), max(a, b)
    out = _through(Encoders({("t", name): _range(least, most)}), name, array)
    clipped = np.clip(array.astype(np.float64), least, most)
    step = (most - least) / 255
    # 0 stays exact where it is within: that moves the ends by up to half a step.
    rounding = 1e-5 * max(-least, most, 1e-30)
    assert np.abs(out - clipped).max() <= step * 1.001 + rounding
    assert out.min() >= least - step / 2 - rounding
    assert out.max() <= most + step / 2 + rounding
    if least < 0 < most and step > 1e-37:
        assert (out[array == 0] == 0).all()


@given(ARRAYS, st.data())
def test_each_channel_has_its_range(array: np.ndarray, data: st.DataObject) -> None:
    channels = array.shape[1]
    tops = np.asarray(data.draw(st.lists(st.floats(1, 1e6), min_size=channels, max_size=channels)))
    found = ValueRange(-tops / 2, tops)
    encoders = Encoders({("t", "int8-channel:mse"): found})
    out = _through(encoders, "int8-channel:mse", array)
    low, high = (bound.reshape(1, -1, 1, 1) for bound in found)
    gap = np.abs(out - np.clip(array.astype(np.float64), low, high))
    assert (gap <= (high - low) / 255 * 1.001 + 1e-5 * high).all()


@given(ARRAYS)
def test_the_tensors_own_range_gives_the_same_bytes(array: np.ndarray) -> None:
    """Looking for the range and being given it differ in nothing else."""
    bound = Encoders({("t", "int8:minmax"): _range(array.min(), array.max())})
    codec = bound.open("int8:minmax", "t")
    assert codec is not None
    size = codec.max_encoded_bytes(TensorSpec("t", "float32", array.shape))
    given_range = bytes(codec.encode(array, memoryview(bytearray(size))))
    assert given_range == bytes(open_codec("int8").encode(array, memoryview(bytearray(size))))


@pytest.mark.parametrize("name", ["int8:percentile", "int8-zstd:percentile"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, -1])
def test_what_is_not_finite_is_refused_though_nobody_looks_for_a_range(
    name: str, wrong: float, place: int
) -> None:
    array = np.zeros((1, 4, 20, 1000), np.float32)
    array.reshape(-1)[place] = wrong
    for bounds in ((-1.0, 1.0), (0.0, 0.0)):
        with pytest.raises(CodecError, match="expected finite values"):
            _through(Encoders({("t", name): _range(*bounds)}), name, array)


def test_stripes_are_coded_by_the_range_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((1, 3, 24, 8)).astype(np.float32)
    encoders = Encoders({("t", "int8-channel:mse"): _range(-2.0, 2.0, 3)})
    whole = _through(encoders, "int8-channel:mse", array)
    parts = [np.ascontiguousarray(array[:, :, at : at + 8]) for at in (0, 8, 16)]
    again = np.concatenate([_through(encoders, "int8-channel:mse", p) for p in parts], axis=2)
    assert np.array_equal(whole, again)


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_tensor_without_a_range_has_no_such_codec(name: str) -> None:
    encoders = Encoders({("other", name): _range(-1.0, 1.0)})
    assert encoders.open(name, "t") is None
    assert name not in encoders.names("t")
    assert name in encoders.names("other")
    assert set(encoders.names("t")) == set(codec_names_here())
    array = np.zeros((1, 2, 8, 8), np.float32)
    with pytest.raises(CodecError, match="expected a tensor whose range was calibrated"):
        open_codec(name).encode(array, memoryview(bytearray(1000)))


def test_a_range_of_other_channels_is_refused() -> None:
    encoders = Encoders({("t", "int8-channel:mse"): _range(-1.0, 1.0, 5)})
    with pytest.raises(CodecError, match="expected 5 channels, given 2"):
        _through(encoders, "int8-channel:mse", np.zeros((1, 2, 8, 8), np.float32))


@pytest.mark.parametrize("name", ["int8:best", "int8:", "int8-channel:80"])
def test_a_method_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match="expected one of minmax, percentile, mse"):
        open_codec(name)


def test_a_range_beyond_float32_is_refused() -> None:
    encoders = Encoders({("t", "int8:mse"): _range(-1.0, 1e300)})
    with pytest.raises(CodecError, match="expected finite values"):
        encoders.open("int8:mse", "t")
