"""ONNX files as a user gives them: opened without their weights, every input's shape fixed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from compiler.inputs import InputSpec
from compiler.quiet import one_line
from engines.errors import TraceError
from engines.tensors import DTYPES, Array

__all__ = ["OpenedOnnx", "open_onnx"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedOnnx:
    """An ONNX file, opened.

    Attributes:
        model: The graph; weights in files of their own are mapped, not read.
        names: Names of the inputs.
        shapes: Their static shapes.
        example: The user's arrays by name, where given.
    """

    model: ir.Model
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    example: dict[str, Array] | None


def open_onnx(
    path: Path, specs: Sequence[InputSpec], example: Mapping[str, Array] | None
) -> OpenedOnnx:
    """Open an ONNX file and settle the shape of every input.

    A dynamic first dimension becomes 1 where nothing is said of it.

    Raises:
        TraceError: It is no ONNX file, or an input's shape is not settled.
    """
    try:
        model = ir.load(path)
        onnx.checker.check_model(str(path))
    except Exception as exc:  # protobuf, onnx and onnx_ir raise errors of their own kinds
        raise TraceError(
            f"{path}: expected a valid ONNX file: {one_line(exc)}; "
            "it may be truncated: copy or export it again"
        ) from exc
    if not len(model.graph) or not model.graph.outputs:
        raise TraceError(f"{path}: expected an ONNX graph, given one without nodes or outputs")
    initialisers = model.graph.initializers
    inputs = [v for v in model.graph.inputs if v.name not in initialisers]
    names = [value.name or "" for value in inputs]
    given = _given(path, names, specs, example)
    shapes = []
    unsettled = []
    for value in inputs:
        shape = _settle(path, value, given.get(value.name or ""))
        if shape is None:
            unsettled.append(f"{value.name}: {_show(value)}")
        else:
            shapes.append(shape)
    if unsettled:
        name = unsettled[0].split(":")[0]
        raise TraceError(
            f"{path}: inputs of dynamic shape: {'; '.join(unsettled)}; fix each one with "
            f"--input, as in --input '{name}=float32[1,3,224,224]'"
        )
    used = {n: a for n, a in (example or {}).items() if n in names} if example else None
    return OpenedOnnx(model, tuple(names), tuple(shapes), used)


def _given(
    path: Path,
    names: Sequence[str],
    specs: Sequence[InputSpec],
    example: Mapping[str, Array] | None,
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of what the user said about the inputs, by name."""
    given = {name: (array.dtype.name, array.shape) for name, array in (example or {}).items()}
    for place, spec in enumerate(specs):
        name = spec.name or (names[place] if place < len(names) else f"number {place + 1}")
        if example is not None and given.get(name) != (spec.dtype, spec.shape):
            raise TraceError(f"--input {spec}: --example has something else; leave out one")
        given[name] = (spec.dtype, spec.shape)
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if name not in given] if example is not None else []
    if unknown or missing:
        raise TraceError(
            f"{path}: expected inputs {', '.join(names)}, given {', '.join(given)}; "
            "--input and --example take the names in the file"
        )
    return given


def _settle(
    path: Path, value: ir.Value, given: tuple[str, tuple[int, ...]] | None
) -> tuple[int, ...] | None:
    """Return an input's static shape, or none where a dimension stays open."""
    dtype = value.dtype.numpy().name if value.dtype is not None else ""
    if dtype not in DTYPES:
        raise TraceError(
            f"{path}: input {value.name!r}: expected one of {', '.join(DTYPES)}, "
            f"given {value.type}"
        )
    dims = None if value.shape is None else list(value.shape)
    if given is None:
        if dims is None:
            return None
        fixed = [dim if isinstance(dim, int) else None for dim in dims]
        if fixed and fixed[0] is None and None not in fixed[1:]:
            logger.warning(
                "input %r: dynamic first dimension %s fixed to 1; --input sets another",
                value.name,
                dims[0],
            )
            fixed[0] = 1
        return None if None in fixed else tuple(d for d in fixed if d is not None)
    fits = dims is None or (
        len(dims) == len(given[1])
        and all(not isinstance(d, int) or d == g for d, g in zip(dims, given[1]))
    )
    if not fits or given[0] != dtype:
        raise TraceError(
            f"{path}: input {value.name!r}: expected {_show(value)}, given "
            f"{given[0]}{list(given[1])}"
        )
    return given[1]


def _show(value: ir.Value) -> str:
    dtype = value.dtype.numpy().name if value.dtype is not None else "?"
    dims = "?" if value.shape is None else ",".join(str(dim) for dim in value.shape)
    return f"{dtype}[{dims}]"
