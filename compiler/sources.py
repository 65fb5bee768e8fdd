"""Where a model comes from: the MODEL argument of ``split-compile``, told apart and opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import TraceError

if TYPE_CHECKING:
    import torch

__all__ = [
    "ModuleSource",
    "OnnxSource",
    "ProgramSource",
    "ScriptSource",
    "Source",
    "open_source",
    "source_from_object",
]

_FORMS = (
    "expected MODEL.pt2, MODEL.pt or .pth, MODEL.onnx, package.module:factory or "
    "path/file.py:factory"
)


@dataclass(frozen=True, slots=True)
class ModuleSource:
    """A module to be traced, and example inputs where its factory gave some."""

    name: str
    module: torch.nn.Module
    examples: Any = None


@dataclass(frozen=True, slots=True)
class ProgramSource:
    """A program that ``torch.export`` made."""

    name: str
    program: torch.export.ExportedProgram


@dataclass(frozen=True, slots=True)
class ScriptSource:
    """A TorchScript module."""

    name: str
    module: Any


@dataclass(frozen=True, slots=True)
class OnnxSource:
    """An ONNX file."""

    name: str
    path: Path


Source = ModuleSource | ProgramSource | ScriptSource | OnnxSource


def open_source(model: str, *, weights: Path | None, trust_pickle: bool) -> Source:
    """Open MODEL.

    Args:
        model: A file, or ``package.module:factory`` or ``path/file.py:factory``.
        weights: A state_dict to load into what the factory returns.
        trust_pickle: Whether a pickled module may be loaded, which runs code of its author.

    Raises:
        TraceError: It is none of these, or cannot be read.
    """
    path = Path(model)
    module, colon, factory = model.rpartition(":")
    if colon and not path.exists():
        from compiler.factories import build_module  # torch takes seconds to import

        built = build_module(module, factory)
        source = source_from_object(built, factory, where=model)
        if weights is not None:
            _load_weights(source, weights)
        return source
    if weights is not None:
        raise TraceError(
            f"--weights {weights}: expected MODEL to be package.module:factory, given {model}; "
            "only a factory builds a module that weights can be loaded into"
        )
    if not path.exists():
        raise TraceError(f"{model}: no such file; {_FORMS}")
    if path.is_dir():
        raise TraceError(f"{model}: is a folder; {_FORMS}")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxSource(path.stem, path)
    if suffix in (".pt2", ".pt", ".pth"):
        from compiler.checkpoints import open_checkpoint  # torch takes seconds to import

        return open_checkpoint(path, trust_pickle=trust_pickle)
    raise TraceError(f"{model}: unknown suffix {path.suffix!r}; {_FORMS}")


def source_from_object(built: Any, name: str, *, where: str) -> Source:
    """Wrap what a factory returned, or what was given to ``compile_model``.

    Args:
        built: A module, (module, example inputs), or an ExportedProgram.
        name: The model's name.
        where: Where it came from, for the message.

    Raises:
        TraceError: It is none of these.
    """
    import torch  # torch takes seconds to import

    examples = None
    if isinstance(built, tuple) and len(built) == 2:
        built, examples = built
    if isinstance(built, torch.export.ExportedProgram):
        return ProgramSource(name, built)
    if isinstance(built, torch.jit.ScriptModule):
        return ScriptSource(name, built)
    if isinstance(built, torch.nn.Module):
        return ModuleSource(name, built, examples)
    raise TraceError(
        f"{where}: expected an nn.Module, (module, example_inputs) or an ExportedProgram, "
        f"given {type(built).__name__}"
    )


def _load_weights(source: Source, weights: Path) -> None:
    if not isinstance(source, ModuleSource):
        raise TraceError(
            f"--weights {weights}: expected a factory that returns an nn.Module, given "
            f"{type(source).__name__.removesuffix('Source').lower()} {source.name!r}"
        )
    from compiler.checkpoints import load_weights  # torch takes seconds to import

    load_weights(source.module, weights)
