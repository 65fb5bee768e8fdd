"""Files that torch wrote: ``.pt2`` programs, TorchScript archives, pickled modules, state_dicts.

The suffix says little, so the entries of the zip archive decide: ``*/models/model.json`` is
``torch.export``'s, ``*/code/`` TorchScript's, ``*/data.pkl`` that of ``torch.save``. Only the
last may need unpickling, which runs code, and is done only where the user trusts the file.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compiler.quiet import one_line, quiet
from compiler.sources import ModuleSource, ProgramSource, ScriptSource, Source, source_from_object
from engines.errors import TraceError

__all__ = ["load_weights", "open_checkpoint"]


def open_checkpoint(path: Path, *, trust_pickle: bool) -> Source:
    """Open a ``.pt2``, ``.pt`` or ``.pth`` file.

    Raises:
        TraceError: It cannot be read, needs trust that was not given, or holds weights only.
    """
    kind = _kind(path)
    if kind == "program":
        return ProgramSource(path.stem, _load(path, "torch.export", _load_program))
    if kind == "script":
        return ScriptSource(path.stem, _load(path, "torch.jit", _load_script))
    return _open_saved(path, trust_pickle=trust_pickle)


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load a state_dict into ``module``, every key of both used.

    Raises:
        TraceError: It is no state_dict, or its keys or shapes are not the module's.
    """
    state = _load(path, "state_dict", _load_safely)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # as Lightning and many training scripts nest it
    if not _is_state_dict(state):
        raise TraceError(
            f"--weights {path}: expected a state_dict (tensors by name), given "
            f"{type(state).__name__}; save one with torch.save(module.state_dict(), FILE)"
        )
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{n} (expected {list(own[n].shape)}, given {list(state[n].shape)})"
        for n in own
        if n in state and own[n].shape != state[n].shape
    ]
    listed = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
    wrong = [f"{what}: {', '.join(names)}" for what, names in listed if names]
    if wrong:
        raise TraceError(
            f"--weights {path}: does not fit {type(module).__name__}: {'; '.join(wrong)}"
        )
    module.load_state_dict(state)


def _kind(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path):
            if path.suffix.lower() == ".pt2":
                raise TraceError(
                    f"{path}: expected an archive of torch.export.save, given a file that is no "
                    "zip archive; it may be truncated: copy or export it again"
                )
            return "saved"  # torch.save before 1.6 wrote a bare pickle
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as exc:
        raise TraceError(f"{path}: cannot be read: {one_line(exc)}") from exc
    below = ["/" + name.partition("/")[2] for name in names]
    if "/models/model.json" in below or "serialized_exported_program.json" in names:
        return "program"
    if any(name.startswith("/code/") for name in below):
        return "script"
    if "/data.pkl" in below:
        return "saved"
    raise TraceError(
        f"{path}: expected a file of torch.export.save, torch.jit.save or torch.save, given a zip "
        f"archive of {', '.join(names[:3]) or 'nothing'}"
    )


def _open_saved(path: Path, *, trust_pickle: bool) -> Source:
    try:
        saved = _load(path, "torch.save", _load_safely)
    except TraceError as exc:
        if not isinstance(exc.__cause__, pickle.UnpicklingError):
            raise
        if not trust_pickle:
            raise TraceError(
                f"{path}: expected a state_dict, TorchScript or torch.export file, given a "
                "pickled module (or a damaged file); unpickling runs code that its author put "
                "there: pass --trust-pickle if you trust the file"
            ) from exc
        saved = _load(path, "torch.save", _load_pickle)
    if _is_state_dict(saved) or isinstance(saved, dict):
        raise TraceError(
            f"{path}: holds weights (a state_dict), not a model; name a factory that builds the "
            f"module: split-compile package.module:factory --weights {path}"
        )
    source = source_from_object(saved, path.stem, where=str(path))
    if isinstance(source, ModuleSource):
        source.module.eval()
    return source


def _load(path: Path, what: str, load: Any) -> Any:
    try:
        with quiet():
            return load(path)
    except Exception as exc:  # torch has no common base class for its errors
        reason = getattr(exc, "strerror", None) or one_line(exc)
        raise TraceError(
            f"{path}: expected a {what} file, which cannot be read: {reason}; "
            "it may be truncated or made by another version of torch: save it again"
        ) from exc


def _load_program(path: Path) -> Any:
    load: Callable[..., Any] = torch.export.load
    return load(path)


def _load_script(path: Path) -> Any:
    load: Callable[..., Any] = torch.jit.load
    return load(str(path), map_location="cpu").eval()


def _load_safely(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_pickle(path: Path) -> Any:
    # The user said --trust-pickle: without it this is never reached.
    return torch.load(path, map_location="cpu", weights_only=False)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(v, torch.Tensor) for v in value.values())
    )
