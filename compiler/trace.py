"""Trace: any source of a model to an ONNX graph, with the reference it must agree with."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from compiler import binding, export, onnxfile
from compiler.inputs import InputSpec
from compiler.quiet import stdout_to_stderr
from compiler.reference import (
    CallReference,
    ProgramReference,
    Reference,
    onnx_call,
    run_program,
    user_inputs,
)
from compiler.sources import ModuleSource, OnnxSource, ProgramSource, ScriptSource, Source
from engines.errors import TraceError
from engines.tensors import Array

__all__ = ["TraceOptions", "Traced", "trace"]

logger = logging.getLogger(__name__)

_DIFFERENT_IN_TRAINING = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.dropout._DropoutNd,
)
"""Modules that compute something else in training mode."""


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What to trace with.

    Attributes:
        inputs: Names, dtypes and shapes.
        example: Arrays by input name, where given.
        opset: Opset to export to; an ONNX file keeps its own.
        seed: Of the inputs that stand in where there is no example.
    """

    inputs: tuple[InputSpec, ...] = ()
    example: Mapping[str, Array] | None = None
    opset: int = 18
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Traced:
    """A model as an ONNX graph.

    Attributes:
        model: The graph, its inputs and outputs not yet named.
        shapes: Static shape of every input, in order.
        input_names: What to call the inputs, in order.
        output_names: What to call the outputs, in order.
        reference: What to compare with.
        example: The user's arrays by the names of ``input_names``, where given.
        fold: Whether constants are still to be folded.
        seconds: Time spent, by stage: ``trace`` and ``export``.
        program: The decomposed program that the graph was exported from, where there is one.
    """

    model: ir.Model
    shapes: tuple[tuple[int, ...], ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    reference: Reference
    example: dict[str, Array] | None
    fold: bool
    seconds: dict[str, float] = field(default_factory=dict)
    program: torch.export.ExportedProgram | None = None


def trace(source: Source, options: TraceOptions) -> Traced:
    """Trace a model.

    Raises:
        TraceError: It cannot be traced, or its inputs do not fit.
    """
    if isinstance(source, OnnxSource):
        return _trace_onnx(source, options)
    if isinstance(source, ProgramSource):
        return _trace_program(source, options)
    if isinstance(source, ScriptSource):
        return _trace_script(source, options)
    return _trace_module(source, options)


def _trace_module(source: ModuleSource, options: TraceOptions) -> Traced:
    start = time.perf_counter()
    module = source.module
    if any(isinstance(m, _DIFFERENT_IN_TRAINING) and m.training for m in module.modules()):
        logger.warning("%s is in training mode; compiled in inference mode (.eval())", source.name)
    module.eval()
    bound = _bind(source.name, module.forward, options, source.examples)
    export.check_eager(module, bound, source.name)
    program = export.program_of_module(module, bound, source.name)
    seconds = {"trace": time.perf_counter() - start}
    return _exported(source.name, program, bound, _module_call(module, bound), options, seconds)


def _trace_script(source: ScriptSource, options: TraceOptions) -> Traced:
    start = time.perf_counter()
    module = source.module
    bound = _bind(source.name, module.forward, options, None)
    export.check_eager(module, bound, source.name)
    call = _module_call(module, bound)
    program = export.program_of_script(module, bound)
    seconds = {"trace": time.perf_counter() - start}
    if program is not None:
        try:
            return _exported(source.name, program, bound, call, options, dict(seconds))
        except TraceError as exc:
            logger.info("%s; taking torch's older exporter", exc)
    start = time.perf_counter()
    model = export.script_to_onnx(module, bound, options.opset, source.name)
    seconds["export"] = time.perf_counter() - start
    names = [name.replace(".", "_") for name in bound.names]
    outputs = [f"output_{place}" for place in range(len(model.graph.outputs))]
    outputs = ["output"] if len(outputs) == 1 else outputs
    return Traced(
        model=model,
        shapes=tuple(tuple(t.shape) for t in bound.tensors),
        input_names=tuple(names),
        output_names=tuple(outputs),
        reference=CallReference("pytorch", call, names, outputs),
        example=_example(options, bound, names),
        fold=True,
        seconds=seconds,
    )


def _trace_program(source: ProgramSource, options: TraceOptions) -> Traced:
    start = time.perf_counter()
    program = source.program
    names = user_inputs(program)
    arrays = binding.example_arrays(options.inputs, options.example, options.seed)
    if arrays:
        bound = _bind_program(source.name, names, arrays)
    elif program.example_inputs is not None:
        args, kwargs = program.example_inputs
        bound = binding.Bound(tuple(args), dict(kwargs), tuple(names))
    else:
        raise TraceError(
            f"{source.name}: the file has no example inputs; give --input for "
            f"{', '.join(names)}, as in --input '{(names or ['x'])[0]}=float32[1,3,224,224]'"
        )
    _check_program_shapes(source.name, program, names, bound.tensors)
    seconds = {"trace": time.perf_counter() - start}

    def call(inputs: Sequence[Array]) -> Sequence[Array]:
        return run_program(program, inputs, ())[0]

    return _exported(source.name, program, bound, call, options, seconds)


def _trace_onnx(source: OnnxSource, options: TraceOptions) -> Traced:
    start = time.perf_counter()
    opened = onnxfile.open_onnx(source.path, options.inputs, options.example)
    outputs = [value.name or "" for value in opened.model.graph.outputs]
    call = onnx_call(source.path, outputs)
    return Traced(
        model=opened.model,
        shapes=opened.shapes,
        input_names=opened.names,
        output_names=tuple(outputs),
        reference=CallReference("onnx", call, opened.names, outputs),
        example=opened.example,
        fold=True,
        seconds={"trace": time.perf_counter() - start, "export": 0.0},
    )


def _exported(
    name: str,
    program: torch.export.ExportedProgram,
    bound: binding.Bound,
    call: Callable[[Sequence[Array]], Sequence[Array]],
    options: TraceOptions,
    seconds: dict[str, float],
) -> Traced:
    start = time.perf_counter()
    inputs = user_inputs(program)
    if bound.names and all("." not in given and given for given in bound.names):
        inputs = list(bound.names)  # as the user called them
    outputs = export.output_names(program)
    exported = export.to_onnx(program, options.opset, name)
    seconds["export"] = time.perf_counter() - start
    shapes = tuple(tuple(int(extent) for extent in t.shape) for t in bound.tensors)
    symbolic = any(
        not all(isinstance(extent, int) for extent in value.shape or ())
        for value in exported.model.graph.inputs
    )
    return Traced(
        model=exported.model,
        shapes=shapes,
        input_names=tuple(inputs),
        output_names=tuple(outputs),
        reference=ProgramReference(call, exported.program, inputs, outputs),
        example=_example(options, bound, inputs),
        fold=symbolic,
        seconds=seconds,
        program=exported.program,
    )


def _bind(name: str, forward: Any, options: TraceOptions, examples: Any) -> binding.Bound:
    arrays = binding.example_arrays(options.inputs, options.example, options.seed)
    if not arrays and examples is not None:
        return binding.bind_examples(examples)
    return binding.bind(binding.signature_of(forward), arrays, name)


def _bind_program(
    where: str, names: list[str], arrays: Mapping[str | int, Array]
) -> binding.Bound:
    by_name: dict[str, Array] = {}
    unknown = []
    for key, array in arrays.items():
        name = key.replace(".", "_") if isinstance(key, str) else (names[key : key + 1] or [""])[0]
        if name in names:
            by_name[name] = array
        else:
            unknown.append(str(key))
    missing = [name for name in names if name not in by_name]
    if unknown or missing:
        raise TraceError(
            f"{where}: expected inputs {', '.join(names)}, given "
            f"{', '.join(map(str, arrays))}; name each one of them in --input or --example"
        )
    tensors = tuple(torch.from_numpy(by_name[name].copy()) for name in names)
    return binding.Bound(tensors, {}, tuple(names))


def _check_program_shapes(
    where: str,
    program: torch.export.ExportedProgram,
    names: list[str],
    tensors: Sequence[torch.Tensor],
) -> None:
    """Refuse inputs that contradict what the program was exported for."""
    fakes = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    wrong = []
    for name, tensor in zip(names, tensors):
        fake = fakes.get(name)
        if fake is None:
            continue
        fixed = [extent if isinstance(extent, int) else None for extent in fake.shape]
        fits = len(fixed) == tensor.dim() and all(
            extent is None or extent == given for extent, given in zip(fixed, tensor.shape)
        )
        if not fits or fake.dtype != tensor.dtype:
            want = ",".join("*" if extent is None else str(extent) for extent in fixed)
            wrong.append(
                f"{name}: expected {_dtype(fake)}[{want}], given "
                f"{_dtype(tensor)}{list(tensor.shape)}"
            )
    if wrong:
        raise TraceError(f"{where}: {'; '.join(wrong)}; it was exported for these shapes")


def _module_call(module: Any, bound: binding.Bound) -> Callable[[Sequence[Array]], list[Array]]:
    def call(inputs: Sequence[Array]) -> list[Array]:
        replaced = bound.replace([torch.from_numpy(array.copy()) for array in inputs])
        with torch.no_grad(), stdout_to_stderr():
            result = module(*replaced.args, **replaced.kwargs)
        leaves = torch.utils._pytree.tree_leaves(result)
        return [leaf.cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]

    return call


def _example(
    options: TraceOptions, bound: binding.Bound, names: Sequence[str]
) -> dict[str, Array] | None:
    if options.example is None:
        return None
    return {name: t.numpy() for name, t in zip(names, bound.tensors, strict=True)}


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
