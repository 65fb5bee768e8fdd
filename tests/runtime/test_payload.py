from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.codecs import codec_names_here, open_codec
from engines.errors import CodecError, DeadlineError, LinkError, RemoteProtocolError
from engines.tensors import DTYPES, TensorSpec
from runtime.payload import (
    Clock,
    check_parts,
    known_codecs,
    pack_tensors,
    read_tensors,
    wished_codecs,
)
from runtime.transport import Deadline, Stream
from runtime.wire import Part

F = TensorSpec("f", "float32", (2, 3))
M = TensorSpec("m", "bool", (3, 3))
E = TensorSpec("e", "int64", (0, 4))
S = TensorSpec("s", "float64", ())


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, Stream]]:
    """Give a socket to write into and the stream that reads it."""
    here, there = socket.socketpair(socket.AF_UNIX)
    stream = Stream.__new__(Stream)
    there.setblocking(False)
    stream.peer, stream._sock, stream.bytes_read, stream.bytes_written = "peer", there, 0, 0
    stream._batch = 1
    with here:
        yield here, stream
        stream.close()


def _read(stream: Stream, specs: list[TensorSpec], parts: list[Part]) -> dict[str, np.ndarray]:
    return read_tensors(stream, specs, parts, deadline=Deadline(10), stall_s=5)


ARRAYS = st.lists(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0))
    ),
    max_size=4,
)


@given(ARRAYS)
def test_tensors_arrive_as_they_were_sent(arrays: list[np.ndarray]) -> None:
    specs = [TensorSpec(str(i), a.dtype.name, a.shape) for i, a in enumerate(arrays)]
    parts, buffers = pack_tensors(specs, {str(i): a for i, a in enumerate(arrays)})
    check_parts(specs, parts)
    assert [part.nbytes for part in parts] == [buffer.nbytes for buffer in buffers]
    here, there = socket.socketpair(socket.AF_UNIX)
    stream = Stream.__new__(Stream)
    there.setblocking(False)
    stream.peer, stream._sock, stream.bytes_read, stream.bytes_written = "peer", there, 0, 0
    with here:
        here.sendall(b"".join(buffers))
        read = _read(stream, specs, list(parts))
        stream.close()
    for spec, array in zip(specs, arrays):
        assert spec.mismatch(read[spec.name]) == ""
        assert read[spec.name].tobytes() == array.tobytes()


def test_the_payload_is_the_codecs_bytes_one_after_the_other() -> None:
    tensors = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "m": np.eye(3, dtype=np.bool_),
        "e": np.zeros((0, 4), np.int64),
        "s": np.array(1.0),
    }
    parts, buffers = pack_tensors([F, M, E, S], tensors)
    assert parts == (Part(0, 24), Part(1, 2), Part(0, 0), Part(0, 8))
    assert b"".join(buffers).hex() == (
        "000000000000803f000000400000404000008040" "0000a040" "8880" "" "000000000000f03f"
    )  # fmt: skip


def test_an_array_that_is_not_contiguous_is_sent_in_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2).T
    _, (buffer,) = pack_tensors([F], {"f": array})
    assert bytes(buffer) == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
    ("specs", "parts", "complaint"),
    [
        ([F], [], "expected 1 tensors, given 0"),
        ([F], [Part(0, 24), Part(0, 24)], "expected 1 tensors, given 2"),
        ([F], [Part(0, 25)], "at most 24 bytes as identity, given 25"),
        ([F], [Part(0, 1 << 32)], "at most 24 bytes"),
        ([M], [Part(1, 3)], "at most 2 bytes as bitpack, given 3"),
        ([E], [Part(0, 1)], "at most 0 bytes"),
        ([F], [Part(99, 24)], "tensor 'f': codec id 99"),
        ([F], [Part(255, 0)], "codec id 255"),
        ([F], [Part(1, 1)], "codec bitpack does not apply"),
    ],
)
def test_parts_that_cannot_be_these_tensors_are_refused_before_anything_is_read(
    specs: list[TensorSpec], parts: list[Part], complaint: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match=complaint):
            check_parts(specs, parts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_boolean_may_come_uncoded_and_an_integer_packed(
    wire: tuple[socket.socket, Stream],
) -> None:
    here, stream = wire
    here.sendall(bytes([1, 0, 0, 0, 1, 0, 0, 0, 1]) + b"\xa0")
    grid = TensorSpec("g", "uint8", (3,))
    read = _read(stream, [M, grid], [Part(0, 9), Part(1, 1)])
    assert np.array_equal(read["m"], np.eye(3, dtype=bool))
    assert read["g"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("spec", "part", "data"),
    [
        (F, Part(0, 23), bytes(23)),
        (F, Part(0, 0), b""),
        (M, Part(0, 9), b"\x02" * 9),
        (M, Part(1, 2), b"\xff\xff"),
        (M, Part(1, 1), b"\xff"),
    ],
)
def test_bytes_that_are_no_encoding_are_read_whole_so_that_the_connection_goes_on(
    wire: tuple[socket.socket, Stream], spec: TensorSpec, part: Part, data: bytes
) -> None:
    here, stream = wire
    here.sendall(data + np.float64(2.5).tobytes() + b"next")
    with pytest.raises(CodecError, match=f"tensor {spec.name!r}"):
        _read(stream, [spec, S], [part, Part(0, 8)])
    after = bytearray(4)
    stream.read_into(memoryview(after), deadline=Deadline(5))
    assert after == b"next"


def test_every_wrong_tensor_is_told(wire: tuple[socket.socket, Stream]) -> None:
    here, stream = wire
    here.sendall(b"\x02" * 9 + bytes(5))
    with pytest.raises(CodecError, match=r"'m'.*'f'"):
        _read(stream, [M, F], [Part(0, 9), Part(0, 5)])


def test_a_payload_that_ends_early_is_a_link_error(wire: tuple[socket.socket, Stream]) -> None:
    here, stream = wire
    here.sendall(bytes(10))
    here.close()
    with pytest.raises(LinkError, match="closed the connection"):
        _read(stream, [F], [Part(0, 24)])


def test_a_payload_that_stalls_is_a_deadline_error(wire: tuple[socket.socket, Stream]) -> None:
    here, stream = wire
    here.sendall(bytes(10))
    with pytest.raises(DeadlineError):
        read_tensors(stream, [F], [Part(0, 24)], deadline=Deadline(None), stall_s=0.1)


PHOTO = TensorSpec("p", "uint8", (1, 40, 60, 3))


def _photo() -> np.ndarray:
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, x + y], axis=-1).astype(np.uint8)[None]


@pytest.mark.parametrize("codec", ["webp-lossless", "zstd", "lz4", "runs"])
def test_a_codec_that_is_named_is_used_and_its_decoding_timed(
    codec: str, wire: tuple[socket.socket, Stream]
) -> None:
    here, stream = wire
    parts, buffers = pack_tensors([PHOTO, F], {"p": _photo(), "f": np.eye(2, 3, dtype="f4")},
                                  {"p": codec, "other": "lz4"})  # fmt: skip
    assert parts[0].codec == open_codec(codec).wire_id
    assert parts[1] == Part(0, 24)
    check_parts([PHOTO, F], parts)
    here.sendall(b"".join(buffers))
    clock = Clock()
    read = read_tensors(stream, [PHOTO, F], parts, deadline=Deadline(10), stall_s=5, clock=clock)
    assert np.array_equal(read["p"], _photo())
    assert clock.decoding_s > 0


def test_a_codec_that_cannot_is_replaced_by_the_default_one() -> None:
    values = {"f": np.full((2, 3), np.nan, np.float32)}
    for codec in ("int8", "jpeg:90", "bitpack"):
        assert pack_tensors([F], values, {"f": codec})[0] == (Part(0, 24),)


def test_wishes_for_codecs_that_are_not_here_are_left_out() -> None:
    names = ["zstd", "", "tarball", "jpeg:2000"]
    assert wished_codecs([F, M, E, S], names) == {"f": "zstd"}
    assert wished_codecs([F, M], ["lz4"]) == {"f": "lz4"}
    assert wished_codecs([F], ["lz4", "lz4", "lz4"]) == {"f": "lz4"}


def test_codecs_that_the_peer_lacks_are_left_out() -> None:
    codecs = {"f": "zstd", "p": "jpeg:80", "m": "bitpack", "x": "tarball"}
    assert known_codecs(codecs, (0, 1, 9)) == {"p": "jpeg:80", "m": "bitpack"}
    assert known_codecs(codecs, ()) == {}


def test_more_bytes_than_a_codec_can_make_are_refused_before_they_are_read() -> None:
    for name in codec_names_here():
        codec = open_codec(name)
        for spec in (F, PHOTO, E):
            if not codec.applies(spec):
                with pytest.raises(RemoteProtocolError, match="does not apply"):
                    check_parts([spec], [Part(codec.wire_id, 1)])
                continue
            most = codec.max_encoded_bytes(spec)
            check_parts([spec], [Part(codec.wire_id, most)])
            with pytest.raises(RemoteProtocolError, match=f"at most {most} bytes"):
                check_parts([spec], [Part(codec.wire_id, most + 1)])
