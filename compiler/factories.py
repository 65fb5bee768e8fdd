"""Factories: a user's function that builds the model, found by module name or by file."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from compiler.quiet import one_line, stdout_to_stderr
from engines.errors import TraceError

__all__ = ["build_module"]


def build_module(module: str, factory: str) -> Any:
    """Import ``module`` and return what its function ``factory`` returns.

    What the user's code prints goes to stderr.

    Args:
        module: Dotted module name, with the current folder importable, or the path of a file.
        factory: Name in it; dots reach into classes.

    Raises:
        TraceError: It cannot be imported, has no such function, or the function failed.
    """
    where = f"{module}:{factory}"
    with stdout_to_stderr(), _importable(Path.cwd()):
        found: Any = _load_file(module) if module.endswith(".py") else _load_module(module)
        for name in factory.split("."):
            if not hasattr(found, name):
                known = [n for n, v in vars(found).items() if callable(v) and n[0] != "_"]
                raise TraceError(
                    f"{where}: no {name!r} there; it has {', '.join(known[:10]) or 'no function'}"
                )
            found = getattr(found, name)
        if not callable(found):
            raise TraceError(
                f"{where}: expected a function that builds the model, given {type(found).__name__}"
            )
        try:
            return found()
        except Exception as exc:  # a user's own code raises what it likes
            raise TraceError(f"{where}: the factory failed: {_named(exc)}") from exc


def _load_module(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as exc:  # a user's own code raises what it likes
        raise TraceError(
            f"{module}: cannot be imported: {_named(exc)}; "
            "run split-compile where `python -c 'import ...'` works"
        ) from exc


def _load_file(path: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        raise TraceError(f"{path}: no such file; expected path/file.py:factory")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    with _importable(file.parent):
        try:
            spec.loader.exec_module(module)
        except Exception as exc:  # a user's own code raises what it likes
            raise TraceError(f"{path}: cannot be imported: {_named(exc)}") from exc
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on the module path meanwhile."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _named(exc: Exception) -> str:
    return f"{type(exc).__name__}: {one_line(exc)}"
