"""Export: a torch program to an ONNX graph, with torch's own exporters."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from compiler.binding import Bound
from compiler.quiet import one_line, quiet
from compiler.reference import user_outputs
from engines.errors import TraceError

__all__ = [
    "Exported",
    "check_eager",
    "output_names",
    "program_of_module",
    "program_of_script",
    "script_to_onnx",
    "to_onnx",
]


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX graph and the program it was made from.

    Attributes:
        model: The graph; its weights share memory with the program's.
        program: The decomposed program: its nodes' names are names of the graph's values.
    """

    model: ir.Model
    program: torch.export.ExportedProgram


def check_eager(module: torch.nn.Module, bound: Bound, where: str) -> Any:
    """Run a module once as it is, to fail with the module's own reason, in its own place.

    Raises:
        TraceError: It fails; the message names the submodule.
    """
    path: list[str] = []
    scripted = isinstance(module, torch.jit.ScriptModule)  # takes no hooks
    handles = [
        handle
        for name, child in (() if scripted else module.named_modules())
        for handle in (
            child.register_forward_pre_hook(_entered(path, name)),
            child.register_forward_hook(_left(path)),
        )
    ]
    try:
        with torch.no_grad(), quiet():
            return module(*bound.args, **bound.kwargs)
    except Exception as exc:  # a user's own code raises what it likes
        inner = path[-1] if path else ""
        child = module.get_submodule(inner) if inner else module
        at = f"module {inner!r} ({type(child).__name__})" if inner else type(module).__name__
        raise TraceError(
            f"{where}: {at} fails on inputs {bound.describe()}: {one_line(exc)}; "
            "check --input against the shapes that the model takes"
        ) from exc
    finally:
        for handle in handles:
            handle.remove()


def program_of_module(
    module: torch.nn.Module, bound: Bound, where: str
) -> torch.export.ExportedProgram:
    """Trace a module with ``torch.export``.

    Raises:
        TraceError: It cannot be traced.
    """
    try:
        with quiet(stderr=True):
            return torch.export.export(module, bound.args, bound.kwargs)
    except Exception as exc:  # torch.export has no common base class for its errors
        raise TraceError(
            f"{where}: torch.export cannot trace it: {_root_cause(exc)}; "
            "make its control flow independent of the data, or give an .onnx file"
        ) from exc


def program_of_script(module: Any, bound: Bound) -> torch.export.ExportedProgram | None:
    """Convert a TorchScript module into a program; none where torch's converter fails."""
    from torch._export.converter import TS2EPConverter

    make: Callable[..., Any] = TS2EPConverter
    try:
        with quiet():
            program = make(module, bound.args, bound.kwargs).convert()
    except Exception:  # noqa: BLE001 (any failure means: take the older exporter)
        return None
    assert isinstance(program, torch.export.ExportedProgram)
    return program


def to_onnx(program: torch.export.ExportedProgram, opset: int, where: str) -> Exported:
    """Export a program to ONNX.

    Raises:
        TraceError: An operator has no ONNX form, the model keeps state from one inference to
            the next, or the exporter cannot give the opset.
    """
    for arg in user_outputs(program):
        if not isinstance(arg, TensorArgument) and getattr(arg, "value", None) is not None:
            raise TraceError(
                f"{where}: expected tensors as outputs, given {arg.value!r}; "
                "return only tensors from forward()"
            )
    try:
        with quiet():
            onnx_program = torch.onnx.export(
                _with_plain_attention(program),
                dynamo=True,
                opset_version=opset,
                optimize=True,
                verbose=False,
            )
    except Exception as exc:  # the exporter has no common base class for its errors
        raise TraceError(
            f"{where}: cannot be exported to ONNX: {_root_cause(exc)}; "
            "replace the operator, or give an .onnx file"
        ) from exc
    assert onnx_program is not None
    decomposed = onnx_program.exported_program
    assert decomposed is not None
    mutated = sorted(set(decomposed.graph_signature.buffers_to_mutate.values()))
    if mutated:
        raise TraceError(
            f"{where}: keeps state from one inference to the next in {', '.join(mutated)}; "
            "make it an input and an output, or call .eval() where it is a batch norm"
        )
    given = onnx_program.model.opset_imports.get("")
    if given != opset:
        raise TraceError(
            f"{where}: expected opset {opset}, given {given}: the exporter has no lower; "
            "leave out --opset"
        )
    return Exported(onnx_program.model, decomposed)


def script_to_onnx(module: Any, bound: Bound, opset: int, where: str) -> ir.Model:
    """Export a TorchScript module with the older exporter.

    Raises:
        TraceError: It cannot be exported.
    """
    file = io.BytesIO()
    args: tuple[Any, ...] = bound.args
    if bound.kwargs:
        args = (*bound.args, bound.kwargs)
    try:
        with quiet():
            # The annotation has no file objects; the older exporter takes them.
            to_file: Callable[..., Any] = torch.onnx.export
            to_file(module, args, file, dynamo=False, opset_version=opset)
        return ir.serde.deserialize_model(onnx.load_from_string(file.getvalue()))
    except Exception as exc:  # the exporter has no common base class for its errors
        raise TraceError(
            f"{where}: this TorchScript module cannot be exported: {_root_cause(exc)}; "
            "give the module it was made from, as package.module:factory"
        ) from exc


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Name a program's tensor outputs after their place in what ``forward()`` returns."""
    args = user_outputs(program)
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != len(args):
        paths: list[str] = [f"output_{place}" for place in range(len(args))]
    else:
        tree = pytree.tree_unflatten(list(range(len(args))), spec)
        paths = [_path_name(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    return [path for path, arg in zip(paths, args, strict=True) if isinstance(arg, TensorArgument)]


def _path_name(path: Sequence[Any]) -> str:
    parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    if not parts or parts[0].isdigit():
        parts.insert(0, "output")
    return "_".join(parts)


def _entered(path: list[str], name: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        path.append(name)

    return hook


def _left(path: list[str]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        path.pop()

    return hook


def _root_cause(exc: BaseException) -> str:
    """Return the reason at the bottom of a chain of errors, in one line."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return inspect.cleandoc(one_line(exc))


def _with_plain_attention(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Lower attention over tensors that are not 4-D to its arithmetic; the exporter refuses it."""
    attention = torch.ops.aten.scaled_dot_product_attention.default

    def lower(query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.dim() == 4:
            return NotImplemented
        plain = torch.ops.aten._scaled_dot_product_attention_math.default
        return plain(query, *args, **kwargs)[0]

    found = (node for node in program.graph.nodes if node.target is attention)
    if all(node.args[0].meta["val"].dim() == 4 for node in found):
        return program
    lowered: torch.export.ExportedProgram = program.run_decompositions({attention: lower})
    return lowered
