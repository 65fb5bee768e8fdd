from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.codecs import (
    CANDIDATES,
    CODECS,
    NEEDS,
    _installed,
    codec_by_id,
    codec_ids_here,
    codec_names_here,
    default_codec,
    open_codec,
)
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
    assert {number: name for number, (name, _) in CODECS.items()} == {
        0: "identity",
        1: "bitpack",
        2: "fp16",
        3: "int8",
        4: "int8-channel",
        5: "lz4",
        6: "zstd",
        7: "int8-zstd",
        8: "webp-lossless",
        9: "jpeg",
        10: "webp",
        11: "runs",
        12: "bitpack-zstd",
        13: "video",
    }


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_codec_is_what_the_registry_says(name: str) -> None:
    codec = open_codec(name)
    assert codec.name == name
    assert CODECS[codec.wire_id][0] == name.partition(":")[0]
    assert codec.name in codec_names_here()


@pytest.mark.parametrize("name", codec_names_here())
@given(ARRAYS)
def test_every_codec_gives_back_what_it_takes(name: str, array: np.ndarray) -> None:
    codec = open_codec(name)
    if not codec.applies(_spec(array)):
        return
    try:
        coded = _encode(name, array)
    except CodecError as exc:
        if "expected" not in str(exc):  # values that it cannot encode
            raise
        return
    assert len(coded) <= codec.max_encoded_bytes(_spec(array))
    decoded = _decode(name, coded, array)
    if codec.lossless:
        assert decoded.tobytes() == array.tobytes()
    elif name.startswith("int8"):
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        step = (high - low) / 255
        gap = np.abs(decoded.astype(np.float64) - array.astype(np.float64)).max(initial=0)
        assert gap <= step * 1.01 + 1e-35 + 0.001 * max(-low, high)


@pytest.mark.parametrize("name", codec_names_here())
@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (1, 4, 40, 6), (0, 4), ()])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool", "int64"])
def test_every_truncation_and_every_flipped_bit_is_refused_or_decoded(
    name: str, shape: tuple[int, ...], dtype: str
) -> None:
    codec = open_codec(name)
    spec = TensorSpec("t", dtype, shape)
    if not codec.applies(spec):
        return
    array = (np.arange(spec.size) // 9 % 2).astype(dtype).reshape(shape)
    coded = _encode(name, array)
    # An image's last bytes may be padding, which nobody misses.
    picture = NEEDS.get(name.partition(":")[0]) in ("PIL", "av")
    others = [coded[:length] for length in range(min(len(coded), 20 if picture else 10_000))]
    for other in others if picture else [*others, coded + b"\0\0"]:
        with pytest.raises(CodecError):
            _decode(name, other, array)
    for place in range(0, min(len(coded), 200) * 8, 3):
        damaged = bytearray(coded)
        damaged[place // 8] ^= 1 << place % 8
        out = np.empty(shape, dtype)
        try:
            codec.decode(memoryview(bytes(damaged)), out)
        except CodecError:
            continue
        assert dtype != "bool" or not out.size or out.view(np.uint8).max() <= 1


@pytest.mark.parametrize("name", codec_names_here())
def test_a_codec_decodes_stripes_of_what_it_codes_whole(name: str) -> None:
    """A stripe is coded like any tensor, from rows that lie within a larger one."""
    codec = open_codec(name)
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 2, (1, 48, 20, 3), np.uint8)
    for array in (whole, whole.astype(np.float32).transpose(0, 3, 1, 2)):
        rows = 1 if array is whole else 2
        if not codec.applies(TensorSpec("t", array.dtype.name, array.shape)):
            continue
        found = []
        for at in (0, 16, 40):
            index = [slice(None)] * 4
            index[rows] = slice(at, {0: 16, 16: 40, 40: 48}[at])
            stripe = np.ascontiguousarray(array[tuple(index)])
            found.append(_decode(name, _encode(name, stripe), stripe))
        again = np.concatenate(found, axis=rows)
        gap = np.abs(again.astype(float) - array.astype(float)).max()
        assert gap == 0 if codec.lossless else gap <= 16


@pytest.mark.parametrize("name", codec_names_here())
def test_too_small_a_scratch_is_refused_by_every_codec(name: str) -> None:
    codec = open_codec(name)
    array = np.ones((1, 9, 8, 3), np.uint8)
    if not codec.applies(_spec(array)):
        array = np.ones((1, 9, 8, 30), np.float32)
    if name == "identity":
        return
    with pytest.raises(CodecError, match=r"needs [0-9]+ bytes, given 3"):
        codec.encode(array, memoryview(bytearray(3)))


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


@given(st.sampled_from([*CODECS]), st.sampled_from(DTYPES), SHAPES, st.binary(max_size=80))
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
    if codec.name not in ("identity", "bitpack"):
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
        ("fp16", np.array([1.5, -2.0], np.float32), "003e00c0"),
        ("int8", np.array([0, 255, 128], np.float32), "000000000000803f00ff80"),
        ("int8", np.array([7, 7], np.float32), "0000e040000000000000"),
        ("int8", np.array([-128, 0, 127], np.float32), "000000c30000803f0080ff"),
        ("runs", np.array([5] * 9 + [6], np.uint8), "01090001000506"),
        ("runs", np.array([5, 6], np.uint8), "000506"),
        ("runs", np.zeros(65540, np.int16), "01ffff050000000000"),
        ("lz4", np.array([1, 2], np.int16), "0001000200"),
        ("zstd", np.zeros((0, 3), np.float32), "00"),
        ("int8-zstd", np.zeros(0, np.float32), "0000000000000000"),
        ("webp-lossless", np.array([[1, 2]], np.uint8), "000102"),
        ("bitpack-zstd", np.array([1, 0, 1], np.bool_), "00a0"),
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


@pytest.mark.parametrize("wire_id", [-1, 14, 255, 256])
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


def test_a_range_a_channel_is_nearer_where_channels_are_skewed() -> None:
    rng = np.random.default_rng(0)
    scales = np.array([0.01, 1, 100], np.float32)[:, None, None]
    array = (rng.standard_normal((1, 3, 16, 16)).astype(np.float32) * scales)[:]
    found = {n: _decode(n, _encode(n, array), array) for n in ("int8", "int8-channel")}
    gaps = {n: np.abs(v - array).reshape(3, -1).max(axis=1) for n, v in found.items()}
    assert gaps["int8-channel"][0] < gaps["int8"][0] / 100
    assert gaps["int8-channel"][2] <= gaps["int8"][2] * 1.01
    assert np.all(gaps["int8-channel"] <= np.ptp(array.reshape(3, -1), axis=1) / 255 * 1.01)


def test_channels_of_tokens_are_on_the_last_axis() -> None:
    array = np.zeros((1, 40, 2), np.float32)
    array[..., 1] = np.linspace(-50, 50, 40)
    array[..., 0] = np.linspace(0, 0.01, 40)
    again = _decode("int8-channel", _encode("int8-channel", array), array)
    assert np.abs(again - array)[..., 0].max() < 0.01 / 200


@pytest.mark.parametrize("name", ["int8", "int8-channel", "int8-zstd"])
def test_int8_keeps_zero_and_what_has_one_value(name: str) -> None:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((1, 2, 40, 40)).astype(np.float32)
    mixed[mixed < 0.5] = 0
    mixed[0, 0, 0, 0] = -0.37
    again = _decode(name, _encode(name, mixed), mixed)
    assert np.all(again[mixed == 0] == 0)
    flat = np.full((1, 2, 10, 10), 3.25, np.float32)
    assert np.array_equal(_decode(name, _encode(name, flat), flat), flat)


@pytest.mark.parametrize("name", ["int8", "int8-channel", "int8-zstd"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_int8_refuses_what_has_no_code(name: str, value: float) -> None:
    array = np.zeros((1, 2, 10, 10))
    array[0, 1, 2, 3] = value
    with pytest.raises(CodecError, match="finite values"):
        _encode(name, array)


@pytest.mark.parametrize("head", ["0000c07f0000803f", "0000000000000080", "ffff7f7fffff7f7f"])
def test_int8_refuses_ranges_that_nobody_writes(head: str) -> None:
    head = head if head != "0000000000000080" else "00000000000080bf"
    with pytest.raises(CodecError, match="finite values"):
        _decode("int8", bytes.fromhex(head) + b"\0", np.empty(1, np.float32))


def test_fp16_refuses_what_becomes_infinite_and_keeps_what_is() -> None:
    with pytest.raises(CodecError, match="65504"):
        _encode("fp16", np.array([65520.0], np.float32))
    array = np.array([np.inf, -np.inf, np.nan, 65504], np.float32)
    assert np.array_equal(_decode("fp16", _encode("fp16", array), array), array, equal_nan=True)


def _photo(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / 9 + y / 17), x * 255 / width, y * 255 / height]
    return np.stack(planes, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", ["webp-lossless", "jpeg:90", "webp:90"])
@pytest.mark.parametrize("form", ["hwc", "nhwc", "nchw", "two", "grey", "grey-channel"])
def test_pictures_of_every_form(name: str, form: str) -> None:
    photo = _photo()
    array = {
        "hwc": photo,
        "nhwc": photo[None],
        "nchw": photo.transpose(2, 0, 1)[None],
        "two": np.stack([photo, photo[::-1]]),
        "grey": photo[:, :, 1],
        "grey-channel": photo[:, :, 1:2],
    }[form]
    codec = open_codec(name)
    assert codec.applies(_spec(array)) == (codec.lossless or form != "grey")
    if not codec.applies(_spec(array)):
        return
    coded = _encode(name, array)
    assert len(coded) < array.nbytes / 2
    gap = np.abs(_decode(name, coded, array).astype(int) - array.astype(int))
    assert gap.max() == 0 if codec.lossless else gap.mean() < 4


def test_a_lower_quality_is_smaller_and_any_decoder_reads_it() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("jpeg", "webp"):
        sizes = [len(_encode(f"{name}:{quality}", photo)) for quality in (20, 60, 95)]
        assert sizes == sorted(sizes)
        _decode(name, _encode(f"{name}:20", photo), photo)


@pytest.mark.parametrize("name", ["jpeg:0", "jpeg:101", "jpeg:x", "jpeg:", "int8:4", "png"])
def test_a_quality_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match=name):
        open_codec(name)


def test_a_picture_of_another_size_is_refused_before_it_is_decoded() -> None:
    photo = _photo()
    for name in ("jpeg:90", "webp:90", "webp-lossless"):
        coded = _encode(name, photo)
        for shape in ((80, 60, 3), (61, 80, 3), (6000, 8000, 3)):
            with pytest.raises(CodecError, match="expected"):
                _decode(name, coded, np.empty(shape, np.uint8))


def test_jpegs_that_this_codec_does_not_write_are_refused() -> None:
    image = pytest.importorskip("PIL.Image").fromarray(_photo())
    like = _photo()
    for options, why in (
        ({"progressive": True}, "segment c2"),
        ({"comment": b"hello"}, "segment fe"),
        ({"restart_marker_rows": 1}, "segment dd"),
    ):
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        with pytest.raises(CodecError, match=why):
            _decode("jpeg", file.getvalue(), like)
    coded = bytearray(_encode("jpeg:90", like))
    coded[-20:-18] = b"\xff\xd9"
    with pytest.raises(CodecError, match="a marker within the scan"):
        _decode("jpeg", bytes(coded), like)


def _chunk(array: np.ndarray, **options: object) -> bytes:
    blosc2 = pytest.importorskip("blosc2")
    given_options = {"codec": blosc2.Codec.LZ4, "clevel": 1, "typesize": array.itemsize}
    given_options.update(options)
    return b"\1" + blosc2.compress2(array, **given_options)


def test_chunks_of_another_kind_are_refused() -> None:
    blosc2 = pytest.importorskip("blosc2")
    array = np.repeat(np.arange(100, dtype=np.float32), 50)
    shuffle = {"filters": [blosc2.Filter.SHUFFLE], "filters_meta": [0]}
    _decode("lz4", _chunk(array, **shuffle), array)
    for options, why in (
        ({**shuffle, "codec": blosc2.Codec.ZSTD}, "another kind"),
        ({"filters": [blosc2.Filter.BITSHUFFLE], "filters_meta": [0]}, "another kind"),
        ({**shuffle, "typesize": 8}, "expected 20000 bytes"),
    ):
        with pytest.raises(CodecError, match=why):
            _decode("lz4", _chunk(array, **options), array)
    with pytest.raises(CodecError, match="expected 20004 bytes"):
        _decode("lz4", _chunk(array, **shuffle), np.empty(array.size + 1, np.float32))


def test_a_chunk_that_leaves_memory_as_it_was_is_refused() -> None:
    """Blosc2 has chunks of unwritten memory: what the receiver had there would be the answer."""
    array = np.zeros(1000, np.float32)
    coded = bytearray(_encode("lz4", array))
    assert coded[-1] == 0x10
    for special in (0x20, 0x30, 0x40, 0x08, 0x80):
        coded[-1] = special
        with pytest.raises(CodecError, match="another kind"):
            _decode("lz4", bytes(coded), array)


def test_runs_that_do_not_add_up_are_refused() -> None:
    like = np.empty(10, np.uint8)
    for data in ("010900010005060708", "010900020005", "01090002000506", "010a0000000506", "01"):
        with pytest.raises(CodecError, match="run"):
            _decode("runs", bytes.fromhex(data), like)


def test_without_its_library_a_codec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.codecs import chunks, pictures  # noqa: PLC0415

    for cached in (chunks._library, pictures.pillow):
        cached.cache_clear()
    for module in set(NEEDS.values()):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("lz4", "jpeg"):
        with pytest.raises(CodecError, match=r"pip install 'splitrt\[codecs\]'"):
            _encode(name, np.zeros((8, 8, 3), np.uint8))


def test_codecs_without_a_library_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    try:
        assert codec_ids_here() == (0, 1, 2, 3, 4, 11)
        assert codec_names_here() == (
            "identity",
            "bitpack",
            "fp16",
            "int8",
            "int8-channel",
            "runs",
        )
    finally:
        _installed.cache_clear()
