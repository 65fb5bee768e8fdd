"""Reads one record out of a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Type, TypeVar

import msgspec

from engines.errors import SplitError

__all__ = ["read_record"]

R = TypeVar("R", bound=msgspec.Struct)


def read_record(path: Path, kind: Type[R], what: str) -> R:
    """Read a JSON file.

    Args:
        path: The file.
        kind: What it holds.
        what: What that is called, as in "a latency table".

    Raises:
        SplitError: It cannot be read, or holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as exc:
        raise SplitError(f"{path}: {exc.strerror}; expected {what}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SplitError(f"{path}: not {what}: {exc}") from exc
