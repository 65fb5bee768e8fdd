"""References: what a compiled model must compute, from code that the compiler did not write.

``ProgramReference`` runs the program that ``torch.export`` gave, node by node, in eager PyTorch.
The ONNX exporter names values after the nodes that they came from, so intermediate values can
be compared as well. ``CallReference`` has only the outputs: a TorchScript module's, or those of
the ONNX file as it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from compiler.images import ImageSpec
from compiler.quiet import one_line
from compiler.whole import plain_session
from engines.errors import EmitError
from engines.tensors import Array

__all__ = [
    "CallReference",
    "ImageReference",
    "ProgramReference",
    "Reference",
    "onnx_call",
    "run_program",
    "user_inputs",
    "user_outputs",
]

Call = Callable[[Sequence[Array]], Sequence[Array]]
"""A whole model: inputs in order to outputs in order."""


class Reference(Protocol):
    """What the compiled model is compared with."""

    @property
    def kind(self) -> str:
        """``pytorch`` or ``onnx``, for the manifest."""

    def run(self, inputs: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
        """Return every output, and those of the values ``names`` that the reference knows."""


class CallReference:
    """A model of which only the outputs are known."""

    def __init__(
        self, kind: str, call: Call, input_names: Sequence[str], output_names: Sequence[str]
    ) -> None:
        self.kind = kind
        self._call = call
        self._input_names = tuple(input_names)
        self._output_names = tuple(output_names)

    def run(self, inputs: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
        """Return the outputs; ``names`` are not known here."""
        del names
        given = self._call([inputs[name] for name in self._input_names])
        return dict(zip(self._output_names, given, strict=True))


class ProgramReference:
    """The model itself for the outputs, its decomposed program for the values between.

    Args:
        call: The model before anything was done to it.
        program: The decomposed program that the ONNX graph was made from.
        input_names: Names of the ONNX graph's inputs, in the order of the program's.
        output_names: Names of its outputs, in the order of the program's.
    """

    kind = "pytorch"

    def __init__(
        self,
        call: Call,
        program: torch.export.ExportedProgram,
        input_names: Sequence[str],
        output_names: Sequence[str],
    ) -> None:
        self._call = call
        self._program = program
        self._input_names = tuple(input_names)
        self._output_names = tuple(output_names)

    def run(self, inputs: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
        """Return the outputs and every value of ``names`` that is a node of the program."""
        given = [inputs[name] for name in self._input_names]
        outputs = dict(zip(self._output_names, self._call(given), strict=True))
        _, values = run_program(self._program, given, set(names) - set(outputs))
        return {**values, **outputs}


class ImageReference:
    """A reference in front of which raw pixels are normalised, in NumPy.

    Args:
        reference: Takes the model's own inputs.
        images: Inputs that take raw pixels.
        floats: Name of the normalised value in the ONNX graph, and its dtype, by input.
    """

    def __init__(
        self,
        reference: Reference,
        images: Sequence[ImageSpec],
        floats: Mapping[str, tuple[str, str]],
    ) -> None:
        self.kind = reference.kind
        self._reference = reference
        self._images = tuple(images)
        self._floats = dict(floats)

    def run(self, inputs: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
        """Normalise, then run the reference; normalised values are known too."""
        own = dict(inputs)
        known: dict[str, Array] = {}
        for image in self._images:
            name, dtype = self._floats[image.name]
            own[image.name] = image.normalise(inputs[image.name], dtype)
            if name in names:
                known[name] = own[image.name]
        return {**known, **self._reference.run(own, names)}


def user_inputs(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of the tensors that a program takes from its user, in order."""
    return [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    ]


def user_outputs(program: torch.export.ExportedProgram) -> list[Any]:
    """Return the arguments that a program gives to its user, tensors or not, in order."""
    return [
        spec.arg
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT
    ]


def run_program(
    program: torch.export.ExportedProgram, inputs: Sequence[Array], names: Collection[str]
) -> tuple[list[Array], dict[str, Array]]:
    """Run a program node by node in eager PyTorch.

    Args:
        program: Its parameters and buffers are taken as they are.
        inputs: Its tensor inputs, in order.
        names: Nodes whose values are wanted; those without a tensor are left out.

    Returns:
        The tensors among its outputs, in order, and the values of ``names``.
    """
    given = iter(inputs)
    flat: list[Any] = []
    for spec in program.graph_signature.input_specs:
        target = spec.target or ""
        if spec.kind is InputKind.USER_INPUT:
            tensor = isinstance(spec.arg, TensorArgument)
            flat.append(_tensor(next(given)) if tensor else getattr(spec.arg, "value", None))
        elif target in program.state_dict:
            flat.append(program.state_dict[target])
        else:
            flat.append(program.constants[target])
    recorder = _Recorder(program.graph_module, names)
    with torch.no_grad():
        result = recorder.run(*flat)
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    outputs = [
        _array(value)
        for value, kind in zip(result, kinds)
        if kind is OutputKind.USER_OUTPUT and isinstance(value, torch.Tensor)
    ]
    return outputs, recorder.values


def onnx_call(path: Path, output_names: Sequence[str]) -> Call:
    """Return an ONNX file as a call: ONNX Runtime on the CPU, its graph optimisation off.

    Args:
        path: The file as the user gave it.
        output_names: Outputs in the order to return them in.

    Raises:
        EmitError: From the call: ONNX Runtime refuses the file.
    """

    def call(inputs: Sequence[Array]) -> Sequence[Array]:
        try:
            session = plain_session(str(path))
            known = {tensor.name for tensor in session.get_overridable_initializers()}
            names = [i.name for i in session.get_inputs() if i.name not in known]
            values = session.run(list(output_names), dict(zip(names, inputs, strict=True)))
        except Exception as exc:  # ONNX Runtime has no common base class for its errors
            raise EmitError(f"{path}: ONNX Runtime cannot run it: {one_line(exc)}") from exc
        return [np.asarray(value) for value in values]

    return call


class _Recorder(torch.fx.Interpreter):
    """An interpreter that keeps the values of some nodes."""

    def __init__(self, module: torch.fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(module)
        self.values: dict[str, Array] = {}
        self._names = frozenset(names)

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        wanted = n.name in self._names and isinstance(result, torch.Tensor)
        if wanted and result.dtype is not torch.bfloat16:  # NumPy has no such type
            self.values[n.name] = _array(result)
        return result


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, copy=True))


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
