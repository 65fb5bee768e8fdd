"""Wire format, version 1: messages <-> bytes, without any I/O. ``docs/wire.md`` draws it.

A message is a header of 40 bytes, metadata in msgpack, and a payload:

    offset  size  field
         0     4  magic, ``SPRT``
         4     1  version, 1
         5     1  kind
         6     2  reserved, 0
         8     8  request id
        16     4  cut id, as a number
        20     2  stripe, from 0
        22     2  stripes of the request, at least 1
        24     2  tensors in the payload
        26     2  reserved, 0
        28     4  size of the metadata in bytes
        32     8  size of the payload in bytes

All numbers are unsigned and little-endian. Every length is checked against its kind's limit
before anything is allocated. The payload of ``INFER`` and ``RESULT`` is the encoded tensors one
after the other, in the order of the manifest; the metadata says how each is coded.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Dict, Generic, Optional, Tuple, Type, TypeVar

import msgspec

from calibration.codings import CodecCost
from calibration.segment_times import SHARES
from engines.errors import LocalProtocolError, RemoteProtocolError
from engines.stripe_plans import Plan

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "MAX_PROBE_BYTES",
    "VERSION",
    "Error",
    "Header",
    "Hello",
    "Infer",
    "Kind",
    "Meta",
    "Nothing",
    "Part",
    "Prepare",
    "Prepared",
    "Result",
    "Table",
    "Welcome",
    "decode_header",
    "decode_meta",
    "encode",
    "message_bytes",
]

MAGIC = b"SPRT"
VERSION = 1
HEADER_BYTES = 40
MAX_PROBE_BYTES = 1 << 16
"""Largest payload of a ``PING``: enough to measure a link, too little to fill one."""

_LONGEST_S = 1e6
"""No inference takes that long; what says so is not a measured time."""

_LAYOUT = struct.Struct("<4sBBHQIHHHHIQ")
assert _LAYOUT.size == HEADER_BYTES


class Kind(enum.IntEnum):
    """What a message is. Numbers are never reused."""

    HELLO = 1
    WELCOME = 2
    INFER = 3
    RESULT = 4
    ERROR = 5
    PING = 6
    PONG = 7
    CANCEL = 8
    GOODBYE = 9
    PREPARE = 10
    PREPARED = 11


@dataclass(frozen=True)
class Header:
    """The fixed part of a message.

    Attributes:
        kind: What the message is.
        request: Chosen by the robot, unique on its connection; 0 where there is none.
        cut: Cut id as a number; 0 where there is none.
        stripe: Which stripe this is.
        stripes: Stripes of the request.
        tensors: Tensors in the payload.
        meta_bytes: Size of the metadata.
        payload_bytes: Size of the payload.
    """

    kind: Kind
    request: int = 0
    cut: int = 0
    stripe: int = 0
    stripes: int = 1
    tensors: int = 0
    meta_bytes: int = 0
    payload_bytes: int = 0


def _check_seconds(*times_s: float) -> None:
    """Refuse what is no time: one NaN of a peer would spoil every estimate made with it."""
    for seconds in times_s:
        if not 0 <= seconds <= _LONGEST_S:
            raise ValueError(f"expected seconds from 0 to {_LONGEST_S:.0f}, given {seconds}")


class Table(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device's latency table on the wire: medians in seconds.

    Attributes:
        segments_s: Of each segment as a whole.
        device: Name of the device, for logs.
        striped_s: For each segment, of one stripe at each of ``SHARES``; empty where it has none,
            and as a whole where none was timed.
        row_splits_s: Likewise for each row split.
        codec_ids: The codecs that the device can read and write.
        codecs: What they cost on it, where that was measured.
    """

    segments_s: Tuple[float, ...]
    device: str = ""
    striped_s: Tuple[Tuple[float, ...], ...] = ()
    row_splits_s: Tuple[Tuple[float, ...], ...] = ()
    codec_ids: Tuple[int, ...] = ()
    codecs: Tuple[CodecCost, ...] = ()

    def __post_init__(self) -> None:
        _check_seconds(*self.segments_s)
        if len(self.striped_s) not in (0, len(self.segments_s)):
            raise ValueError(
                f"expected stripes of {len(self.segments_s)} segments, given {len(self.striped_s)}"
            )
        # A row split belongs to a cut, and a peer has no more use for splits than for segments.
        if len(self.row_splits_s) > len(self.segments_s):
            raise ValueError(f"{len(self.row_splits_s)} row splits, at most one a segment")
        for points in self.striped_s + self.row_splits_s:
            if len(points) not in (0, len(SHARES)):
                raise ValueError(f"expected {len(SHARES)} times of stripes, given {len(points)}")
            _check_seconds(*points)


class Hello(msgspec.Struct, frozen=True):
    """The robot's first message.

    Attributes:
        bundle: Digest of the robot's bundle, 64 hex digits.
        software: Name and version of the peer's program, for logs.
        table: The robot's latency table.
    """

    bundle: str
    software: str
    table: Optional[Table] = None


class Welcome(msgspec.Struct, frozen=True):
    """The server's answer to ``HELLO``.

    Attributes:
        software: Name and version of the server's program, for logs.
        table: The server's latency table.
        pending: Requests that the server holds for one robot at a time.
        stripes: Whether it takes requests that have a plan.
    """

    software: str
    table: Optional[Table] = None
    pending: int = 1
    stripes: bool = False


class Part(msgspec.Struct, frozen=True, array_like=True):
    """How one tensor lies in the payload: its codec's wire id and its encoded size in bytes."""

    codec: int
    nbytes: int


class Infer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request, or one stripe of it.

    Attributes:
        parts: The tensors: the frontier of a cut, to be run to the end of the model, or what
            ``engines.stripe_plans.sent`` says of the stripe.
        plan: How the request is striped: in its first message, and there only.
        results: In its first message too: names of the codecs that the robot would have the
            results in, in their order; a wish, empty where it has none.
    """

    parts: Tuple[Part, ...]
    plan: Optional[Plan] = None
    results: Tuple[str, ...] = ()


class Prepare(msgspec.Struct, frozen=True):
    """A hint that requests with such a plan will come: the server loads what they need."""

    plan: Plan


class Prepared(msgspec.Struct, frozen=True):
    """The answer to ``PREPARE``: an empty string, or why such requests cannot be served."""

    trouble: str


class Result(msgspec.Struct, frozen=True):
    """The answer to a request.

    Attributes:
        parts: The cut's results, coded.
        receive_s: Seconds from a message's header to its last byte, at the server; the sum over
            the request's stripes, as are the others.
        queue_s: Seconds it waited for its turn while others were computed.
        compute_s: Seconds of decoding it, and from its turn to the coded answer.
    """

    parts: Tuple[Part, ...]
    receive_s: float
    queue_s: float
    compute_s: float

    def __post_init__(self) -> None:
        _check_seconds(self.receive_s, self.queue_s, self.compute_s)


class Error(msgspec.Struct, frozen=True):
    """A request, or a whole connection (request 0), that the peer cannot serve.

    Attributes:
        code: ``bundle``, ``request``, ``engine``, ``busy`` or ``protocol``.
        message: One line for people.
    """

    code: str
    message: str


class Nothing(msgspec.Struct, frozen=True):
    """No metadata."""


Meta = msgspec.Struct
M = TypeVar("M", bound=msgspec.Struct)


@dataclass(frozen=True)
class _Rule(Generic[M]):
    meta: Type[M]
    max_meta_bytes: int
    max_payload_bytes: int


_KIB = 1 << 10
_MAX_TENSORS = 1024
_MAX_PAYLOAD = 1 << 32
"""4 GiB, no limit of its own: a server knows each cut's size and refuses more (see payload)."""

_RULES: Dict[Kind, _Rule[msgspec.Struct]] = {
    Kind.HELLO: _Rule(Hello, 256 * _KIB, 0),
    Kind.WELCOME: _Rule(Welcome, 256 * _KIB, 0),
    Kind.INFER: _Rule(Infer, 16 * _KIB, _MAX_PAYLOAD),
    Kind.RESULT: _Rule(Result, 16 * _KIB, _MAX_PAYLOAD),
    Kind.ERROR: _Rule(Error, 4 * _KIB, 0),
    Kind.PING: _Rule(Nothing, 0, MAX_PROBE_BYTES),
    Kind.PONG: _Rule(Nothing, 0, 0),
    Kind.CANCEL: _Rule(Nothing, 0, 0),
    Kind.GOODBYE: _Rule(Nothing, 0, 0),
    Kind.PREPARE: _Rule(Prepare, 16 * _KIB, 0),
    Kind.PREPARED: _Rule(Prepared, 4 * _KIB, 0),
}
_DECODERS = {kind: msgspec.msgpack.Decoder(rule.meta) for kind, rule in _RULES.items()}


def encode(
    kind: Kind,
    meta: msgspec.Struct = Nothing(),
    *,
    request: int = 0,
    cut: int = 0,
    stripe: int = 0,
    stripes: int = 1,
    tensors: int = 0,
    payload_bytes: int = 0,
) -> bytes:
    """Return header and metadata of a message; the payload follows them on the wire.

    Raises:
        LocalProtocolError: The message breaks a rule that the peer would refuse it for.
    """
    rule = _RULES[kind]
    if type(meta) is not rule.meta:
        raise LocalProtocolError(
            f"{kind.name}: expected {rule.meta.__name__}, given {type(meta).__name__}"
        )
    coded = b"" if isinstance(meta, Nothing) else msgspec.msgpack.encode(meta)
    header = Header(kind, request, cut, stripe, stripes, tensors, len(coded), payload_bytes)
    wrong = _complaint(header)
    if wrong:
        raise LocalProtocolError(f"{kind.name}: {wrong}")
    fixed = (MAGIC, VERSION, int(kind), 0, request, cut, stripe, stripes, tensors, 0)
    try:
        return _LAYOUT.pack(*fixed, len(coded), payload_bytes) + coded
    except struct.error as exc:
        raise LocalProtocolError(f"{kind.name}: a number does not fit its field: {exc}") from exc


def message_bytes(meta: msgspec.Struct, payload_bytes: int) -> int:
    """Return the size of a whole message on the wire."""
    coded = b"" if isinstance(meta, Nothing) else msgspec.msgpack.encode(meta)
    return HEADER_BYTES + len(coded) + payload_bytes


def decode_header(data: "bytes | bytearray | memoryview") -> Header:
    """Read a header.

    Args:
        data: Exactly :data:`HEADER_BYTES` bytes.

    Raises:
        RemoteProtocolError: Not a header of this version, or a length over its limit.
    """
    if len(data) != HEADER_BYTES:
        raise LocalProtocolError(f"header: expected {HEADER_BYTES} bytes, given {len(data)}")
    (magic, version, number, reserved, request, cut, stripe, stripes, tensors, reserved_2) = (
        _LAYOUT.unpack(data)[:10]
    )
    meta_bytes, payload_bytes = _LAYOUT.unpack(data)[10:]
    if magic != MAGIC:
        raise RemoteProtocolError(
            f"expected a SplitRT message ({MAGIC!r}), given {bytes(magic)!r}; "
            "is the other end SplitRT?"
        )
    if version != VERSION:
        raise RemoteProtocolError(
            f"expected wire version {VERSION}, given {version}; "
            "install the same version of SplitRT on both ends"
        )
    try:
        kind = Kind(number)
    except ValueError:
        raise RemoteProtocolError(f"message of unknown kind {number}") from None
    header = Header(kind, request, cut, stripe, stripes, tensors, meta_bytes, payload_bytes)
    wrong = "reserved bits are set" if reserved or reserved_2 else _complaint(header)
    if wrong:
        raise RemoteProtocolError(f"{kind.name}: {wrong}")
    return header


def decode_meta(header: Header, data: "bytes | bytearray | memoryview") -> msgspec.Struct:
    """Read a message's metadata.

    Args:
        header: The message's header.
        data: Exactly ``header.meta_bytes`` bytes.

    Raises:
        RemoteProtocolError: Not the metadata of this kind of message.
    """
    if len(data) != header.meta_bytes:
        raise LocalProtocolError(
            f"metadata: expected {header.meta_bytes} bytes, given {len(data)}"
        )
    if _RULES[header.kind].meta is Nothing:
        return Nothing()
    try:
        meta = _DECODERS[header.kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError(f"{header.kind.name}: malformed metadata: {exc}") from exc
    if isinstance(meta, (Infer, Result)):
        _check_parts(header, meta.parts)
    return meta


def _complaint(header: Header) -> str:
    """Say which rule a header breaks; an empty string if none."""
    rule = _RULES[header.kind]
    if header.meta_bytes > rule.max_meta_bytes:
        return f"{header.meta_bytes} bytes of metadata, at most {rule.max_meta_bytes}"
    if header.payload_bytes > rule.max_payload_bytes:
        return f"{header.payload_bytes} bytes of payload, at most {rule.max_payload_bytes}"
    if header.tensors > _MAX_TENSORS:
        return f"{header.tensors} tensors, at most {_MAX_TENSORS}"
    if header.stripe >= header.stripes:
        return f"stripe {header.stripe} of {header.stripes}"
    return ""


def _check_parts(header: Header, parts: Tuple[Part, ...]) -> None:
    if len(parts) != header.tensors:
        raise RemoteProtocolError(
            f"{header.kind.name}: header says {header.tensors} tensors, metadata {len(parts)}"
        )
    if any(not 0 <= part.codec <= 255 or part.nbytes < 0 for part in parts):
        raise RemoteProtocolError(f"{header.kind.name}: codec or size out of range")
    total = sum(part.nbytes for part in parts)
    if total != header.payload_bytes:
        raise RemoteProtocolError(
            f"{header.kind.name}: header says {header.payload_bytes} bytes, "
            f"the tensors add up to {total}"
        )
