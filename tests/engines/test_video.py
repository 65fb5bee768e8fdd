"""Codec ``video``: frames that refer to those before them, and what becomes of a missing one."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.codecs import codec_by_id, open_codec
from engines.codecs.decoders import Decoders
from engines.codecs.encoders import Encoders
from engines.codecs.video import VideoCodec, VideoStream
from engines.errors import CodecError, DeadlineError
from engines.tensors import TensorSpec

pytest.importorskip("av")

ID = 13
SHAPE = (1, 48, 64, 3)
SPEC = TensorSpec("t", "uint8", SHAPE)


def _frames(count: int, shape: tuple[int, ...] = SHAPE) -> list[np.ndarray]:
    """Return a smooth picture that moves, bluer in each frame by 15 levels."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    found = []
    for n in range(count):
        planes = [
            127 + 100 * np.sin((columns + 2 * n) / 9),
            127 + 100 * np.cos((rows + n) / 7),
            np.clip(15 * n + (rows + columns) / 2, 0, 255),
        ]
        found.append(np.stack(planes, axis=-1).astype(np.uint8)[None])
    return found


def _codec(quality: int = 85) -> VideoCodec:
    return VideoCodec(ID, quality)


def _encode(stream: VideoStream | VideoCodec, array: np.ndarray) -> bytes:
    spec = TensorSpec("t", array.dtype.name, array.shape)
    return bytes(stream.encode(array, memoryview(bytearray(stream.max_encoded_bytes(spec)))))


def _decode(stream: VideoStream | VideoCodec, data: bytes, like: np.ndarray) -> np.ndarray:
    out = np.empty(like.shape, like.dtype)
    stream.decode(memoryview(data), out)
    return out


def _head(data: bytes) -> tuple[int, int, int, int]:
    return struct.unpack_from("<IIHH", data)  # type: ignore[return-value]


def _is(given_: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether a picture is this frame, and not the one before."""
    blue = [array[..., 2].mean() for array in (given_, wanted)]
    return _gap(given_, wanted) < 10 and abs(blue[0] - blue[1]) < 6


def _gap(given_: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(given_.astype(float) - wanted).mean())


@pytest.mark.parametrize("shape", [(1, 48, 64, 3), (48, 64, 3), (1, 3, 48, 64), (1, 7, 9, 3)])
def test_a_sequence_comes_back_and_costs_less_than_its_first_frame(
    shape: tuple[int, ...],
) -> None:
    planar = shape[-1] != 3
    whole = (1, *shape[-2:], 3) if planar else (1, *shape[-3:])
    frames = [f.transpose(0, 3, 1, 2) if planar else f for f in _frames(6, whole)]
    frames = [np.ascontiguousarray(f).reshape(shape) for f in frames]
    writer, reader = _codec().stream(), _codec().stream()
    sizes = []
    for number, frame in enumerate(frames):
        coded = _encode(writer, frame)
        stream, count, width, height = _head(coded)
        assert (count, width, height) == (number, whole[2], whole[1])
        assert stream == _head(coded)[0]
        assert _gap(_decode(reader, coded, frame), frame) < 10
        sizes.append(len(coded))
    assert max(sizes[1:]) < sizes[0] or whole[1] < 16


def test_the_bytes_of_a_frame() -> None:
    """12 bytes of head, little-endian, then what RFC 6386 calls a frame."""
    coded = _encode(_codec(), _frames(1)[0])
    assert coded[4:12] == bytes([0, 0, 0, 0, 64, 0, 48, 0])
    assert not coded[12] & 1  # a key frame
    assert coded[15:22] == b"\x9d\x01\x2a\x40\x00\x30\x00"


def test_better_quality_is_nearer_and_larger() -> None:
    frame = _frames(1)[0]
    coded = {quality: _encode(_codec(quality), frame) for quality in (10, 60, 100)}
    gaps = [_gap(_decode(_codec(), data, frame), frame) for data in coded.values()]
    assert gaps[0] > gaps[1] > gaps[2]
    assert len(coded[10]) < len(coded[60]) < len(coded[100])


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 200, 90)])
def test_colours_stay_what_they_are(colour: tuple[int, int, int]) -> None:
    frame = np.broadcast_to(np.asarray(colour, np.uint8), SHAPE).copy()
    assert (
        np.abs(_decode(_codec(), _encode(_codec(95), frame), frame) - frame.astype(int)).max() < 5
    )


def test_without_a_stream_every_frame_is_a_key_frame() -> None:
    for frame in _frames(3):
        coded = _encode(_codec(), frame)
        assert _head(coded)[1] == 0
        assert _gap(_decode(codec_by_id(ID), coded, frame), frame) < 10


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_lost_frame_is_an_error_up_to_the_next_key_frame(lost: int) -> None:
    frames = _frames(6)
    writer, reader = _codec().stream(), _codec().stream()
    for number, frame in enumerate(frames):
        coded = _encode(writer, frame)
        if number < lost:
            _decode(reader, coded, frame)
        elif number > lost:
            with pytest.raises(CodecError, match=r"expected frame|the first is missing"):
                _decode(reader, coded, frame)
    again = _encode(_codec().stream(), frames[0])
    assert _gap(_decode(reader, again, frames[0]), frames[0]) < 10


def test_a_frame_twice_or_of_another_stream_is_an_error() -> None:
    one, two, three = _frames(3)
    writer, other = _codec().stream(), _codec().stream()
    coded = [_encode(writer, frame) for frame in (one, two, three)]
    _encode(other, one)
    foreign = _encode(other, two)
    for wrong in (coded[1], foreign):
        reader = _codec().stream()
        _decode(reader, coded[0], one)
        if wrong is coded[1]:
            _decode(reader, coded[1], two)
        with pytest.raises(CodecError, match="expected frame"):
            _decode(reader, wrong, two)
        with pytest.raises(CodecError, match="the first is missing"):
            _decode(reader, coded[2], three)  # what was refused ended the stream


def test_other_sizes_are_refused_before_anything_is_decoded() -> None:
    frame = _frames(1)[0]
    coded = bytearray(_encode(_codec(), frame))
    other = np.empty((1, 48, 32, 3), np.uint8)
    with pytest.raises(CodecError, match="expected 32 x 48 pixels, given 64 x 48"):
        _decode(_codec(), bytes(coded), other)
    coded[8:12] = struct.pack("<HH", 32, 48)  # the head lies, the frame does not
    with pytest.raises(CodecError, match="expected a key frame of 32 x 48 pixels"):
        _decode(_codec(), bytes(coded), other)
    scaled = bytearray(_encode(_codec(), frame))
    scaled[12 + 7] |= 0x40
    with pytest.raises(CodecError, match="expected a key frame of 64 x 48"):
        _decode(_codec(), bytes(scaled), frame)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data[:15], "expected 16 to"),
        (lambda data: data + bytes(60_000), "expected 16 to"),
        (lambda data: data[:4] + b"\1" + data[5:], "not a frame as this codec writes it"),
        (lambda data: data[:12] + bytes([data[12] | 1]) + data[13:], "not a frame as"),
        (lambda data: data[:12] + bytes([data[12] & ~16]) + data[13:], "not a frame as"),
        (lambda data: data[:12] + bytes([data[12] | 2]) + data[13:], "not a frame as"),
        (lambda data: data[:13] + b"\xff\xff" + data[15:], "not a frame as"),
    ],
)
def test_what_no_encoder_writes_is_refused(change, complaint: str) -> None:  # type: ignore[no-untyped-def]
    frame = _frames(1)[0]
    coded = change(_encode(_codec(), frame))
    with pytest.raises(CodecError, match=complaint):
        _decode(_codec(), coded, frame)


@pytest.mark.parametrize(
    ("dtype", "shape", "fits"),
    [
        ("uint8", (1, 20, 30, 3), True),
        ("uint8", (1, 3, 20, 30), True),
        ("uint8", (20, 30, 3), True),
        ("uint8", (2, 20, 30, 3), False),  # two pictures
        ("uint8", (1, 20, 30, 1), False),
        ("uint8", (1, 20, 30, 4), False),
        ("uint8", (20, 30), False),
        ("float32", (1, 20, 30, 3), False),
        ("uint8", (1, 20, 16384, 3), False),
        ("uint8", (1, 0, 30, 3), False),
    ],
)
def test_it_is_for_single_pictures_of_three_channels(
    dtype: str, shape: tuple[int, ...], fits: bool
) -> None:
    spec = TensorSpec("t", dtype, shape)
    assert _codec().applies(spec) is fits
    assert (_codec().max_encoded_bytes(spec) > 0) is fits


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["sent", "lost", "other", "error", "plain"]), max_size=12))
def test_whatever_happens_on_the_way_no_picture_is_wrong(events: list[str]) -> None:
    """Both ends of a connection: what is decoded is always near what was encoded."""
    encoders, decoders = Encoders(), Decoders()
    codecs = {"t": "video:85"}
    frames = _frames(len(events))
    behind = False  # whether the server lacks a frame that the robot thinks it has
    for event, frame in zip(events, frames):
        if event == "other":  # another cut, another codec
            with encoders.message({"u": "zstd"}):
                pass
            continue
        codec = codecs["t"]
        try:
            with encoders.message(codecs):
                stream = encoders.open(codec, "t")
                coded = _encode(stream, frame)  # type: ignore[arg-type]
                if event == "error":
                    raise OSError("not written")
        except OSError:
            continue
        if event == "lost":
            behind = True
            continue
        out = np.empty(SHAPE, np.uint8)
        try:
            decoders.open(ID, "t").decode(memoryview(coded), out)
        except CodecError:
            assert behind
            encoders.restart()  # as on an ERROR
            behind = False
        else:
            assert _is(out, frame)
            behind = False


class TestEncoders:
    def _number(self, encoders: Encoders, frame: np.ndarray, codec: str = "video:85") -> int:
        with encoders.message({"t": codec}):
            stream = encoders.open(codec, "t")
            return _head(_encode(stream, frame))[1]  # type: ignore[arg-type]

    def test_frames_follow_each_other(self) -> None:
        encoders = Encoders()
        assert [self._number(encoders, frame) for frame in _frames(3)] == [0, 1, 2]

    def test_after_anything_else_comes_a_key_frame(self) -> None:
        encoders, frame = Encoders(), _frames(1)[0]

        def other(codecs: dict[str, str]) -> None:
            with encoders.message(codecs):
                pass

        def failed() -> None:
            with pytest.raises(OSError, match="unwritten"), encoders.message({"t": "video:85"}):
                raise OSError("unwritten")

        for between in (
            encoders.restart,
            failed,
            lambda: self._number(encoders, frame, "video:60"),
            lambda: other({"u": "zstd"}),
            lambda: other({"u": "video:60"}),
        ):
            self._number(encoders, frame)
            assert self._number(encoders, frame) > 0
            between()
            assert self._number(encoders, frame) == 0

    def test_outside_a_message_nothing_is_referred_to(self) -> None:
        encoders = Encoders()
        opened = encoders.open("video:85", "t")
        assert opened is open_codec("video:85")
        assert repr(encoders).endswith("0 streams>")

    def test_one_message_at_a_time(self) -> None:
        encoders = Encoders()
        late: list[BaseException] = []

        def second() -> None:
            try:
                with encoders.message({"t": "video:85"}, timeout_s=0.01):
                    pass
            except DeadlineError as exc:
                late.append(exc)

        with encoders.message({"t": "video:85"}):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            with encoders.message({"u": "zstd"}):  # nothing that this depends on
                pass
        assert len(late) == 1
        assert "another message is still being written" in str(late[0])


def test_a_peer_cannot_make_a_connection_keep_more_than_a_stream_a_tensor() -> None:
    decoders = Decoders()
    for frame in _frames(4):
        decoders.open(ID, "t").decode(memoryview(_encode(_codec(), frame)), np.empty_like(frame))
    assert len(decoders._streams) == 1
    assert decoders.open(0, "u").name == "identity"
    assert len(decoders._streams) == 1
