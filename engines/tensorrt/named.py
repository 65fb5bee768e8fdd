"""Plans whose tensors the builder named itself: the plan with the names that they go by here.

A plan's names cannot be changed once it is serialised. Such a plan is kept behind a head:

    magic (8 bytes) | length of the head (4 bytes, little-endian) | head (JSON) | plan

The head maps the plan's own names to those of the bundle. Without the magic it is a plan as the
library serialised it, and its names are its own.
"""

from __future__ import annotations

import struct
from typing import Dict, Mapping, Tuple

import msgspec

from engines.errors import EngineError

__all__ = ["named_plan", "split_plan"]

_MAGIC = b"SRTNAMED"
_LENGTH = struct.Struct("<I")
_MAX_HEAD_BYTES = 1 << 20


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    names: Dict[str, str]


def named_plan(plan: bytes, names: Mapping[str, str]) -> bytes:
    """Return a plan with the names that its tensors are to go by.

    Args:
        plan: What the library serialised.
        names: The plan's own name of a tensor -> the name in the bundle.
    """
    head = msgspec.json.encode(_Head(dict(names)))
    if len(head) > _MAX_HEAD_BYTES:
        raise AssertionError(f"{len(head)} bytes of names")
    return _MAGIC + _LENGTH.pack(len(head)) + head + plan


def split_plan(data: bytes) -> Tuple[bytes, Dict[str, str]]:
    """Return the library's plan, and the names of its tensors; none where they are its own.

    Raises:
        EngineError: It has the head of a named plan, and that cannot be read.
    """
    if not data.startswith(_MAGIC):
        return data, {}
    start = len(_MAGIC) + _LENGTH.size
    if len(data) < start:
        raise EngineError("a named plan: expected a head, given a plan that is cut off")
    (length,) = _LENGTH.unpack(data[len(_MAGIC) : start])
    if length > min(_MAX_HEAD_BYTES, len(data) - start):
        raise EngineError(
            f"a named plan: expected a head of at most {_MAX_HEAD_BYTES} bytes within the plan, "
            f"given {length} in {len(data)}; build it again"
        )
    try:
        head = msgspec.json.decode(data[start : start + length], type=_Head)
    except msgspec.MsgspecError as exc:
        raise EngineError(f"a named plan: its head cannot be read: {exc}") from exc
    return data[start + length :], head.names
