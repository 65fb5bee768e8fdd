"""Objects of the user's: ``package.module:name`` or ``path/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator

from engines.errors import SplitError

__all__ = ["load_object"]


def load_object(text: str, what: str) -> Any:
    """Import a module, or run a file, and return what it calls ``name``.

    Args:
        text: ``package.module:name`` or ``path/file.py:name``; dots in the name reach into
            classes. The current folder can be imported from.
        what: The option that named it, for messages.

    Raises:
        SplitError: It cannot be imported, or has no such name.
    """
    module, _, name = text.rpartition(":")
    try:
        with _importable(Path.cwd()):
            found: Any = _run(Path(module)) if module.endswith(".py") else _import(module)
    except Exception as exc:  # a user's own code raises what it likes
        raise SplitError(
            f"{what} {text!r}: cannot be imported: {type(exc).__name__}: {exc}; expected "
            "package.module:name or path/file.py:name"
        ) from exc
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in vars(found) if n[0] != "_"][:10]
            raise SplitError(f"{what} {text!r}: no {part!r} there; it has {', '.join(known)}")
        found = getattr(found, part)
    return found


def _import(module: str) -> ModuleType:
    return importlib.import_module(module)


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    with _importable(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
