"""One record in a JSON file: read, and written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Type, TypeVar

import msgspec

from engines.errors import SplitError
from engines.files import write_at_once

__all__ = ["read_record", "write_record"]

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


def write_record(path: Path, record: msgspec.Struct, what: str) -> None:
    """Write a JSON file, indented, for people too; its folder is made if it is missing.

    Args:
        path: The file.
        record: What it is to hold.
        what: What that is called, as in "a latency table".

    Raises:
        SplitError: It cannot be written; an older file is as it was.
    """
    try:
        write_at_once(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    except OSError as exc:
        raise SplitError(f"{path}: {what} cannot be written: {exc.strerror}") from exc
