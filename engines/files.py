"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["write_at_once"]


def write_at_once(path: Path, data: bytes) -> None:
    """Replace a file by ``data`` in one step; its folder is made if it is missing.

    Whatever fails leaves the old file as it was, and nothing beside it.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for their owner alone; a server may run as somebody else.
        Path(temporary).chmod(0o644)
        os.replace(temporary, str(path))
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
