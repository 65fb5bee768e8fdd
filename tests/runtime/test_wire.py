from __future__ import annotations

import contextlib
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import LocalProtocolError, RemoteProtocolError
from engines.stripe_plans import RowPlan, StripePlan
from runtime.wire import (
    HEADER_BYTES,
    MAX_PROBE_BYTES,
    Error,
    Header,
    Hello,
    Infer,
    Kind,
    Nothing,
    Part,
    Prepare,
    Prepared,
    Result,
    Table,
    Welcome,
    decode_header,
    decode_meta,
    encode,
)

KIB = 1024
MAX_META = {
    Kind.HELLO: 256 * KIB,
    Kind.WELCOME: 256 * KIB,
    Kind.INFER: 16 * KIB,
    Kind.RESULT: 16 * KIB,
    Kind.ERROR: 4 * KIB,
    Kind.PING: 0,
    Kind.PONG: 0,
    Kind.CANCEL: 0,
    Kind.GOODBYE: 0,
    Kind.PREPARE: 16 << 10,
    Kind.PREPARED: 4 << 10,
}
MAX_PAYLOAD = {
    **dict.fromkeys(Kind, 0),
    Kind.INFER: 1 << 32,
    Kind.RESULT: 1 << 32,
    Kind.PING: MAX_PROBE_BYTES,
}

# kind, metadata, fields, and the very bytes: magic version kind 0 | request | cut | stripe
# stripes tensors 0 | metadata's size | payload's size | metadata
LITERALS: list[tuple[Kind, msgspec.Struct, dict[str, int], str]] = [
    (
        Kind.HELLO,
        Hello("ab", "s", None),
        {},
        (
            "53505254 01 01 0000 0000000000000000 00000000 0000 0100 0000 0000 1d000000"
            "0000000000000000"
            "83 a6 62756e646c65 a2 6162 a8 736f667477617265 a1 73 a5 7461626c65 c0"
        ),
    ),
    (
        Kind.HELLO,
        Hello("", "", Table((0.5,), "d")),
        {},
        (
            "53505254 01 01 0000 0000000000000000 00000000 0000 0100 0000 0000 38000000"
            "0000000000000000"
            "83 a6 62756e646c65 a0 a8 736f667477617265 a0 a5 7461626c65"
            "82 aa 7365676d656e74735f73 91 cb3fe0000000000000 a6 646576696365 a1 64"
        ),
    ),
    (
        Kind.WELCOME,
        Welcome("s", None, 4, True),
        {},
        (
            "53505254 01 02 0000 0000000000000000 00000000 0000 0100 0000 0000 25000000"
            "0000000000000000"
            "84 a8 736f667477617265 a1 73 a5 7461626c65 c0 a7 70656e64696e67 04"
            "a7 73747269706573 c3"
        ),
    ),
    (
        Kind.INFER,
        Infer((Part(0, 5), Part(1, 256))),
        {"request": 7, "cut": 0xDEADBEEF, "tensors": 2, "payload_bytes": 261},
        (
            "53505254 01 03 0000 0700000000000000 efbeadde 0000 0100 0200 0000 10000000"
            "0501000000000000"
            "81 a5 7061727473 92 92 00 05 92 01 cd0100"
        ),
    ),
    (
        Kind.INFER,
        Infer((Part(0, 8),), StripePlan(cut=3, until=4, bounds=(16, 48), robot=2)),
        {"request": 7, "cut": 1, "stripe": 1, "stripes": 2, "tensors": 1, "payload_bytes": 8},
        (
            "53505254 01 03 0000 0700000000000000 01000000 0100 0200 0100 0000 3b000000"
            "0800000000000000"
            "82 a5 7061727473 91 92 00 08 a4 706c616e"
            "85 a4 74797065 a7 73747269706573 a3 637574 03 a5 756e74696c 04"
            "a6 626f756e6473 92 10 30 a5 726f626f74 02"
        ),
    ),
    (
        Kind.PREPARE,
        Prepare(RowPlan(cut=2, bound=20)),
        {"request": 4},
        (
            "53505254 01 0a 0000 0400000000000000 00000000 0000 0100 0000 0000 1d000000"
            "0000000000000000"
            "81 a4 706c616e"
            "83 a4 74797065 a4 726f7773 a3 637574 02 a5 626f756e64 14"
        ),
    ),
    (
        Kind.PREPARED,
        Prepared("x"),
        {"request": 4},
        (
            "53505254 01 0b 0000 0400000000000000 00000000 0000 0100 0000 0000 0b000000"
            "0000000000000000"
            "81 a7 74726f75626c65 a1 78"
        ),
    ),
    (
        Kind.RESULT,
        Result((Part(0, 1),), 0.0, 0.25, 1.0),
        {"request": 2**64 - 1, "cut": 1, "tensors": 1, "payload_bytes": 1},
        (
            "53505254 01 04 0000 ffffffffffffffff 01000000 0000 0100 0100 0000 42000000"
            "0100000000000000"
            "84 a5 7061727473 91 92 00 01 a9 726563656976655f73 cb0000000000000000"
            "a7 71756575655f73 cb3fd0000000000000 a9 636f6d707574655f73 cb3ff0000000000000"
        ),
    ),
    (
        Kind.ERROR,
        Error("busy", "é"),
        {"request": 3},
        (
            "53505254 01 05 0000 0300000000000000 00000000 0000 0100 0000 0000 16000000"
            "0000000000000000"
            "82 a4 636f6465 a4 62757379 a7 6d657373616765 a2 c3a9"
        ),
    ),
    (
        Kind.PING,
        Nothing(),
        {"request": 1, "payload_bytes": 32768},
        (
            "53505254 01 06 0000 0100000000000000 00000000 0000 0100 0000 0000 00000000"
            "0080000000000000"
        ),
    ),
    (
        Kind.PONG,
        Nothing(),
        {"request": 1},
        (
            "53505254 01 07 0000 0100000000000000 00000000 0000 0100 0000 0000 00000000"
            "0000000000000000"
        ),
    ),
    (
        Kind.CANCEL,
        Nothing(),
        {"request": 258, "stripe": 2, "stripes": 3},
        (
            "53505254 01 08 0000 0201000000000000 00000000 0200 0300 0000 0000 00000000"
            "0000000000000000"
        ),
    ),
    (
        Kind.GOODBYE,
        Nothing(),
        {},
        (
            "53505254 01 09 0000 0000000000000000 00000000 0000 0100 0000 0000 00000000"
            "0000000000000000"
        ),
    ),
]


def _header(
    kind: int = Kind.PONG,
    *,
    magic: bytes = b"SPRT",
    version: int = 1,
    reserved: tuple[int, int] = (0, 0),
    stripe: int = 0,
    stripes: int = 1,
    tensors: int = 0,
    meta_bytes: int = 0,
    payload_bytes: int = 0,
) -> bytes:
    fixed = (magic, version, kind, reserved[0], 0, 0, stripe, stripes, tensors, reserved[1])
    return struct.pack("<4sBBHQIHHHHIQ", *fixed, meta_bytes, payload_bytes)


def _decode(data: bytes) -> msgspec.Struct:
    header = decode_header(data[:HEADER_BYTES])
    return decode_meta(header, data[HEADER_BYTES : HEADER_BYTES + header.meta_bytes])


@pytest.mark.parametrize(("kind", "meta", "fields", "text"), LITERALS)
class TestLiteralBytes:
    def test_written(
        self, kind: Kind, meta: msgspec.Struct, fields: dict[str, int], text: str
    ) -> None:
        assert encode(kind, meta, **fields).hex() == text.replace(" ", "")

    def test_read(
        self, kind: Kind, meta: msgspec.Struct, fields: dict[str, int], text: str
    ) -> None:
        data = bytes.fromhex(text)
        header = decode_header(data[:HEADER_BYTES])
        assert header == Header(kind, meta_bytes=len(data) - HEADER_BYTES, **fields)
        assert decode_meta(header, memoryview(data)[HEADER_BYTES:]) == meta

    def test_every_truncation_of_the_header_is_this_programs_fault(
        self, kind: Kind, meta: msgspec.Struct, fields: dict[str, int], text: str
    ) -> None:
        """The stream gives whole headers; a peer cannot cause a short one."""
        data = bytes.fromhex(text)
        for end in range(HEADER_BYTES):
            with pytest.raises(LocalProtocolError, match="expected 40 bytes"):
                decode_header(data[:end])

    def test_every_truncation_of_the_metadata_is_refused(
        self, kind: Kind, meta: msgspec.Struct, fields: dict[str, int], text: str
    ) -> None:
        data = bytes.fromhex(text)
        header = decode_header(data[:HEADER_BYTES])
        for size in range(header.meta_bytes):
            with pytest.raises(LocalProtocolError):
                decode_meta(header, data[HEADER_BYTES : HEADER_BYTES + size])
            short = Header(kind, meta_bytes=size, **fields)
            with pytest.raises(RemoteProtocolError, match="malformed metadata"):
                decode_meta(short, data[HEADER_BYTES : HEADER_BYTES + size])

    def test_trailing_metadata_is_refused(
        self, kind: Kind, meta: msgspec.Struct, fields: dict[str, int], text: str
    ) -> None:
        data = bytes.fromhex(text)[HEADER_BYTES:] + b"\0"
        if isinstance(meta, Nothing):
            with pytest.raises(RemoteProtocolError, match="1 bytes of metadata, at most 0"):
                decode_header(_header(kind, meta_bytes=1))
        else:
            with pytest.raises(RemoteProtocolError):
                decode_meta(Header(kind, meta_bytes=len(data), **fields), data)


def test_every_kind_has_a_literal() -> None:
    assert {kind for kind, *_ in LITERALS} == set(Kind)


@pytest.mark.parametrize("kind", list(Kind))
class TestLimits:
    def test_metadata_at_its_limit_is_accepted_and_one_byte_more_refused(self, kind: Kind) -> None:
        limit = MAX_META[kind]
        assert decode_header(_header(kind, meta_bytes=limit)).meta_bytes == limit
        for over in (limit + 1, 2**32 - 1):
            with pytest.raises(RemoteProtocolError, match=f"{over} bytes of metadata"):
                decode_header(_header(kind, meta_bytes=over))

    def test_a_payload_at_its_limit_is_accepted_and_one_byte_more_refused(
        self, kind: Kind
    ) -> None:
        limit = MAX_PAYLOAD[kind]
        assert decode_header(_header(kind, payload_bytes=limit)).payload_bytes == limit
        for over in (limit + 1, 2**64 - 1):
            with pytest.raises(RemoteProtocolError, match=f"{over} bytes of payload"):
                decode_header(_header(kind, payload_bytes=over))

    def test_tensors_at_their_limit_are_accepted_and_one_more_refused(self, kind: Kind) -> None:
        assert decode_header(_header(kind, tensors=1024)).tensors == 1024
        for over in (1025, 2**16 - 1):
            with pytest.raises(RemoteProtocolError, match=f"{over} tensors, at most 1024"):
                decode_header(_header(kind, tensors=over))

    @pytest.mark.parametrize(("stripe", "stripes"), [(0, 0), (1, 1), (65535, 65535), (3, 2)])
    def test_a_stripe_beyond_the_stripes_is_refused(
        self, kind: Kind, stripe: int, stripes: int
    ) -> None:
        with pytest.raises(RemoteProtocolError, match=f"stripe {stripe} of {stripes}"):
            decode_header(_header(kind, stripe=stripe, stripes=stripes))


@pytest.mark.parametrize("number", [0, 12, 127, 255])
def test_an_unknown_kind_is_refused(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"unknown kind {number}"):
        decode_header(_header(number))


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_with_what_to_do(version: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"version 1, given {version}; install the same"):
        decode_header(_header(version=version))


@pytest.mark.parametrize("magic", [b"HTTP", b"\0\0\0\0", b"SPRU", b"sprt"])
def test_another_magic_asks_whether_the_peer_is_splitrt(magic: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="is the other end SplitRT"):
        decode_header(_header(magic=magic))


@pytest.mark.parametrize("bit", range(16))
def test_every_reserved_bit_is_refused(bit: int) -> None:
    for reserved in ((1 << bit, 0), (0, 1 << bit)):
        with pytest.raises(RemoteProtocolError, match="reserved bits"):
            decode_header(_header(reserved=reserved))


class TestMetadata:
    @pytest.mark.parametrize(
        ("parts", "tensors", "payload"),
        [
            ([(0, 4)], 2, 4),
            ([(0, 4), (0, 4)], 1, 8),
            ([(0, 4)], 1, 5),
            ([(0, 4)], 1, 3),
            ([(256, 4)], 1, 4),
            ([(-1, 4)], 1, 4),
            ([(0, -4), (0, 8)], 2, 4),
            ([(0, 2**63), (0, 2**63)], 2, 0),
            ([], 1, 0),
        ],
    )
    @pytest.mark.parametrize("kind", [Kind.INFER, Kind.RESULT])
    def test_parts_that_contradict_the_header_are_refused(
        self, kind: Kind, parts: list[tuple[int, int]], tensors: int, payload: int
    ) -> None:
        meta: dict[str, Any] = {"parts": parts}
        if kind is Kind.RESULT:
            meta |= {"receive_s": 0.0, "queue_s": 0.0, "compute_s": 0.0}
        data = msgspec.msgpack.encode(meta)
        header = Header(kind, tensors=tensors, meta_bytes=len(data), payload_bytes=payload)
        with pytest.raises(RemoteProtocolError):
            decode_meta(header, data)

    @pytest.mark.parametrize("name", ["receive_s", "queue_s", "compute_s"])
    @pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1e-9, 1e300])
    def test_a_time_that_cannot_be_is_refused(self, name: str, seconds: float) -> None:
        meta = {"parts": [], "receive_s": 0.0, "queue_s": 0.0, "compute_s": 0.0, name: seconds}
        data = msgspec.msgpack.encode(meta)
        with pytest.raises(RemoteProtocolError, match="expected seconds"):
            decode_meta(Header(Kind.RESULT, meta_bytes=len(data)), data)

    @pytest.mark.parametrize("seconds", [float("nan"), float("-inf"), -1.0])
    @pytest.mark.parametrize("kind", [Kind.HELLO, Kind.WELCOME])
    def test_a_table_of_impossible_times_is_refused(self, kind: Kind, seconds: float) -> None:
        table = {"segments_s": [0.1, seconds], "device": ""}
        data = msgspec.msgpack.encode({"bundle": "", "software": "", "table": table})
        with pytest.raises(RemoteProtocolError, match="expected seconds"):
            decode_meta(Header(kind, meta_bytes=len(data)), data)

    @pytest.mark.parametrize(
        "stripes",
        [
            {"striped_s": [[0.1] * 5]},
            {"striped_s": [[0.1] * 4, []]},
            {"striped_s": [[0.1] * 4 + [-1.0], []]},
            {"striped_s": [[0.1] * 4 + [float("nan")], []]},
            {"row_splits_s": [[0.1] * 6]},
            {"row_splits_s": [[float("inf")] * 5]},
            {"row_splits_s": [[]] * 3},
        ],
    )
    def test_a_table_of_impossible_stripes_is_refused(self, stripes: dict[str, Any]) -> None:
        table = {"segments_s": [0.1, 0.2], "device": "", **stripes}
        data = msgspec.msgpack.encode({"bundle": "", "software": "", "table": table})
        with pytest.raises(RemoteProtocolError, match="malformed metadata"):
            decode_meta(Header(Kind.HELLO, meta_bytes=len(data)), data)

    @pytest.mark.parametrize("kind", [k for k in Kind if MAX_META[k]])
    @pytest.mark.parametrize(
        "data",
        [b"\x80", b"\x90", b"\xc0", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
         b"\x81\xa1a" * 1000, b"\x91" * 4000, b"\x81\xa5parts\xdd\xff\xff\xff\xff",
         b"\x81\xa6bundle\xdb\xff\xff\xff\xff", b"\x81\xa2\xff\xfe\x01", b"\x81\xa4code\xa1\xff"],
    )  # fmt: skip
    def test_malformed_metadata_is_the_peers_fault(self, kind: Kind, data: bytes) -> None:
        with pytest.raises(RemoteProtocolError, match="malformed metadata"):
            decode_meta(Header(kind, meta_bytes=len(data)), data)

    @pytest.mark.parametrize(
        "change",
        [{"cut": float("nan")}, {"cut": "3"}, {"bounds": [1, 2.5]}, {"bounds": [None]},
         {"bounds": 48}, {"robot": float("inf")}, {"type": "stripe"}, {"type": 1},
         {"until": None}, {"bounds": {"0": 1}}, {"cut": True}],
    )  # fmt: skip
    def test_a_plan_that_is_none_is_refused(self, change: dict[str, Any]) -> None:
        plan = {"type": "stripes", "cut": 1, "until": 1, "bounds": [8, 48], "robot": 1, **change}
        for kind in (Kind.INFER, Kind.PREPARE):
            data = msgspec.msgpack.encode({"parts": [], "plan": plan})
            with pytest.raises(RemoteProtocolError, match="malformed metadata"):
                decode_meta(Header(kind, meta_bytes=len(data)), data)

    def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack(self) -> None:
        for data in (b"\x81\xa1a" * 60_000, b"\x91" * 200_000, b"\x81\xa1x" + b"\x91" * 200_000):
            with pytest.raises(RemoteProtocolError):
                decode_meta(Header(Kind.HELLO, meta_bytes=len(data)), data)

    def test_a_field_of_a_later_version_is_ignored(self) -> None:
        data = msgspec.msgpack.encode({"code": "busy", "message": "m", "later": [1, {"a": 2}]})
        meta = decode_meta(Header(Kind.ERROR, meta_bytes=len(data)), data)
        assert meta == Error("busy", "m")


class TestEncodeRefusesWhatAPeerWould:
    def test_another_kinds_metadata(self) -> None:
        with pytest.raises(LocalProtocolError, match="expected Hello, given Nothing"):
            encode(Kind.HELLO)

    @pytest.mark.parametrize(
        "fields",
        [{"payload_bytes": MAX_PROBE_BYTES + 1}, {"tensors": 1025}, {"stripe": 1},
         {"request": 2**64}, {"request": -1}, {"cut": 2**32}],
    )  # fmt: skip
    def test_numbers_beyond_their_limits(self, fields: dict[str, int]) -> None:
        with pytest.raises(LocalProtocolError, match="PING"):
            encode(Kind.PING, Nothing(), **fields)

    def test_metadata_beyond_its_limit(self) -> None:
        with pytest.raises(LocalProtocolError, match="bytes of metadata, at most 4096"):
            encode(Kind.ERROR, Error("engine", "x" * 5000))


PARTS = st.lists(st.builds(Part, st.integers(0, 255), st.integers(0, 2**20)), max_size=5)
TIMES = st.floats(0, 1e6)
POINTS = st.just(()) | st.tuples(TIMES, TIMES, TIMES, TIMES, TIMES)
TABLES = st.none() | st.lists(TIMES, max_size=5).flatmap(
    lambda times: st.builds(
        Table,
        st.just(tuple(times)),
        st.text(),
        st.just(()) | st.tuples(*[POINTS] * len(times)),
        st.lists(POINTS, max_size=len(times)).map(tuple),
    )
)
SMALL = st.integers(-9, 70)
PLANS = st.one_of(
    st.builds(RowPlan, cut=SMALL, bound=SMALL),
    st.builds(StripePlan, cut=SMALL, until=SMALL, bounds=st.lists(SMALL).map(tuple), robot=SMALL),
)
METAS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.HELLO: st.builds(Hello, st.text(), st.text(), TABLES),
    Kind.WELCOME: st.builds(Welcome, st.text(), TABLES, st.integers(0, 99), st.booleans()),
    Kind.INFER: st.builds(Infer, PARTS.map(tuple), st.none() | PLANS),
    Kind.PREPARE: st.builds(Prepare, PLANS),
    Kind.PREPARED: st.builds(Prepared, st.text(max_size=100)),
    Kind.RESULT: st.builds(Result, PARTS.map(tuple), TIMES, TIMES, TIMES),
    Kind.ERROR: st.builds(Error, st.text(max_size=100), st.text(max_size=100)),
}


@st.composite
def messages(draw: st.DrawFn) -> tuple[Kind, msgspec.Struct, dict[str, int]]:
    kind = draw(st.sampled_from(list(Kind)))
    meta = draw(METAS.get(kind, st.just(Nothing())))
    fields = {"request": draw(st.integers(0, 2**64 - 1)), "cut": draw(st.integers(0, 2**32 - 1))}
    if isinstance(meta, (Infer, Result)):
        fields["tensors"] = len(meta.parts)
        fields["payload_bytes"] = sum(part.nbytes for part in meta.parts)
    return kind, meta, fields


@given(messages())
def test_every_message_is_read_as_it_was_written(
    message: tuple[Kind, msgspec.Struct, dict[str, int]],
) -> None:
    kind, meta, fields = message
    data = encode(kind, meta, **fields)
    header = decode_header(data[:HEADER_BYTES])
    assert header == Header(kind, meta_bytes=len(data) - HEADER_BYTES, **fields)
    assert decode_meta(header, data[HEADER_BYTES:]) == meta


@given(st.binary(min_size=HEADER_BYTES, max_size=400))
def test_random_bytes_are_refused_by_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_header(data[:HEADER_BYTES])


@given(messages(), st.data())
def test_mutated_messages_never_raise_anything_else(
    message: tuple[Kind, msgspec.Struct, dict[str, int]], data: st.DataObject
) -> None:
    kind, meta, fields = message
    mutated = bytearray(encode(kind, meta, **fields))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        mutated[place] = data.draw(st.integers(0, 255))
    try:
        header = decode_header(mutated[:HEADER_BYTES])
        body = mutated[HEADER_BYTES : HEADER_BYTES + header.meta_bytes]
        decode_meta(header, body)
    except (RemoteProtocolError, LocalProtocolError):
        pass


@given(st.sampled_from([k for k in Kind if MAX_META[k]]), st.binary(max_size=300))
def test_random_metadata_never_raises_anything_else(kind: Kind, data: bytes) -> None:
    header = Header(kind, meta_bytes=len(data))
    with contextlib.suppress(RemoteProtocolError):
        decode_meta(header, data)


def test_declared_sizes_are_not_allocated() -> None:
    bombs = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
    bombs += [b"\x81\xa5parts" + bomb for bomb in bombs]
    tracemalloc.start()
    try:
        for kind in (Kind.HELLO, Kind.INFER, Kind.RESULT):
            for bomb in bombs:
                with pytest.raises(RemoteProtocolError):
                    decode_meta(Header(kind, meta_bytes=len(bomb)), bomb)
        decode_header(_header(Kind.INFER, payload_bytes=1 << 32))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_examples_of_the_documentation_are_bytes_of_this_program() -> None:
    page = Path(__file__).parents[2] / "docs" / "wire.md"
    text = page.read_text(encoding="utf-8").split("## An example")[1]
    rows = re.findall(r"^(?:[0-9a-f]{2} {1,2})*[0-9a-f]{2}(?=  |\n)", text, re.MULTILINE)
    given = bytes.fromhex("".join(rows).replace(" ", ""))
    fields = {"request": 7, "cut": 0x2D711642, "tensors": 1}
    first, second = [1.0, -1.0], [0.0, 1.0, -1.0]
    plan = StripePlan(cut=3, until=4, bounds=(16, 48), robot=2)
    expected = encode(Kind.INFER, Infer((Part(0, 8),)), payload_bytes=8, **fields)
    expected += struct.pack("<2f", *first)
    fields["stripes"] = 2
    expected += encode(Kind.INFER, Infer((Part(0, 8),), plan), payload_bytes=8, **fields)
    expected += struct.pack("<2f", *first)
    fields["stripe"] = 1
    expected += encode(Kind.INFER, Infer((Part(0, 12),)), payload_bytes=12, **fields)
    expected += struct.pack("<3f", *second)
    assert given == expected
