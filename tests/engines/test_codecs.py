from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.codecs import CODECS, codec_by_id, default_codec, open_codec
from engines.errors import CodecError
from engines.tensors import DTYPES, TensorSpec

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(np.dtype(dtype), SHAPES))
GRIDS = st.sampled_from([d for d in DTYPES if d == "bool" or "int" in d]).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype), SHAPES, elements=st.booleans() if dtype == "bool" else st.integers(0, 1)
    )
)


def _spec(array: np.ndarray) -> TensorSpec:
    return TensorSpec("t", array.dtype.name, array.shape)


def _encode(name: str, array: np.ndarray) -> bytes:
    codec = open_codec(name)
    scratch = memoryview(bytearray(codec.max_encoded_bytes(_spec(array))))
    return bytes(codec.encode(np.ascontiguousarray(array), scratch))


def _decode(name: str, data: bytes, like: np.ndarray) -> np.ndarray:
    out = np.empty(like.shape, like.dtype)
    open_codec(name).decode(memoryview(data), out)
    return out


def test_ids_on_the_wire_never_change() -> None:
    assert {number: name for number, (name, _) in CODECS.items()} == {0: "identity", 1: "bitpack"}


@given(ARRAYS)
def test_identity_gives_back_every_bit_of_every_dtype_and_shape(array: np.ndarray) -> None:
    coded = _encode("identity", array)
    assert coded == array.tobytes()
    assert len(coded) == open_codec("identity").max_encoded_bytes(_spec(array))
    assert _decode("identity", coded, array).tobytes() == array.tobytes()


@given(GRIDS)
def test_bitpack_gives_back_every_grid_of_every_shape(array: np.ndarray) -> None:
    coded = _encode("bitpack", array)
    assert len(coded) == (array.size + 7) // 8
    decoded = _decode("bitpack", coded, array)
    assert decoded.dtype == array.dtype
    assert np.array_equal(decoded, array)


@given(st.sampled_from(sorted(CODECS)), st.sampled_from(DTYPES), SHAPES, st.binary(max_size=80))
def test_any_bytes_decode_or_are_refused_and_never_crash(
    wire_id: int, dtype: str, shape: tuple[int, ...], data: bytes
) -> None:
    spec = TensorSpec("t", dtype, shape)
    codec = codec_by_id(wire_id)
    if not codec.applies(spec):
        return
    out = np.empty(shape, dtype)
    try:
        codec.decode(memoryview(data), out)
    except CodecError:
        return
    # What was accepted is the one encoding of those values.
    scratch = memoryview(bytearray(codec.max_encoded_bytes(spec)))
    assert bytes(codec.encode(out, scratch)) == data


@pytest.mark.parametrize(
    ("codec", "array", "literal"),
    [
        ("identity", np.array([1, 258], np.uint16), "01000201"),
        ("identity", np.array([1.0, -2.0], np.float32), "0000803f000000c0"),
        ("identity", np.array(1.0, np.float64), "000000000000f03f"),
        ("identity", np.array([1.5], np.float16), "003e"),
        ("identity", np.array([[True], [False]]), "0100"),
        ("identity", np.array([-2], np.int64), "feffffffffffffff"),
        ("identity", np.zeros((0, 3), np.int8), ""),
        ("bitpack", np.array([1, 0, 0, 0, 0, 0, 0, 0, 1], np.bool_), "8080"),
        ("bitpack", np.array([[0, 1], [1, 1]], np.int32), "70"),
        ("bitpack", np.array(True), "80"),
        ("bitpack", np.ones(8, np.uint8), "ff"),
        ("bitpack", np.zeros((4, 0), np.bool_), ""),
    ],
)
def test_the_bytes_are_the_documented_ones(codec: str, array: np.ndarray, literal: str) -> None:
    assert _encode(codec, array).hex() == literal
    assert np.array_equal(_decode(codec, bytes.fromhex(literal), array), array)


@pytest.mark.parametrize("name", ["identity", "bitpack"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 3), (8,), (17,)])
def test_every_wrong_length_is_refused(name: str, shape: tuple[int, ...]) -> None:
    out = np.empty(shape, np.bool_)
    right = open_codec(name).max_encoded_bytes(_spec(out))
    for length in {*range(right + 3)} - {right}:
        with pytest.raises(CodecError, match=f"expected {right} bytes"):
            open_codec(name).decode(memoryview(bytes(length)), out)


@pytest.mark.parametrize("values", [[2], [-1], [0, 1, 255]])
def test_bitpack_refuses_values_other_than_0_and_1(values: list[int]) -> None:
    with pytest.raises(CodecError, match="0 and 1"):
        _encode("bitpack", np.array(values, np.int16))


@pytest.mark.parametrize("elements", range(1, 8))
def test_bitpack_refuses_every_dirty_padding_bit(elements: int) -> None:
    for bit in range(8 - elements):
        with pytest.raises(CodecError, match="after the last element"):
            open_codec("bitpack").decode(memoryview(bytes([1 << bit])), np.empty(elements, bool))


@pytest.mark.parametrize("byte", [2, 0x80, 0xFF])
def test_identity_refuses_a_byte_that_is_no_boolean(byte: int) -> None:
    """NumPy and ONNX Runtime may do anything with a boolean of 2."""
    with pytest.raises(CodecError, match="booleans of 0 or 1"):
        _decode("identity", bytes([1, byte]), np.empty(2, np.bool_))


def test_too_small_a_scratch_is_refused() -> None:
    with pytest.raises(CodecError, match="needs 2 bytes, given 1"):
        open_codec("bitpack").encode(np.ones(9, np.bool_), memoryview(bytearray(1)))


def test_identity_copies_nothing() -> None:
    array = np.zeros(4, np.float32)
    view = open_codec("identity").encode(array, memoryview(b""))
    array[0] = 1
    assert bytes(view[:4]) == b"\0\0\x80?"


@pytest.mark.parametrize("wire_id", [-1, 2, 255, 256])
def test_an_id_without_a_codec_is_refused(wire_id: int) -> None:
    with pytest.raises(CodecError, match="another version"):
        codec_by_id(wire_id)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CodecError, match="identity, bitpack"):
        open_codec("zip")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_codec_is_lossless_and_applies(dtype: str) -> None:
    codec = default_codec(TensorSpec("t", dtype, (3,)))
    assert codec.lossless
    assert codec.applies(TensorSpec("t", dtype, (3,)))
    assert codec.name == ("bitpack" if dtype == "bool" else "identity")


def test_bitpack_does_not_apply_to_floats() -> None:
    assert not open_codec("bitpack").applies(TensorSpec("t", "float16", (3,)))
