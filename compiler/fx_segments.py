"""Segments as fx programs: the part of the traced program that one ONNX segment came from.

The ONNX exporter names a value after the fx node that it came from, and the passes keep the names
of the values they leave. So a tensor of a segment maps to an fx node where

1. it is an input or an output of the model, which map by their place, or a node has its name, and
2. that node gives one tensor of the same dtype and static shape.

A segment maps where all its tensors do and the nodes between them need exactly its inputs, beside
parameters and constants. What the exporter or a pass made of one node (the product in a linear
layer, the scaled query in attention) has no node of its own: such segments are refused by name.
That equal names mean equal values is not taken on trust: the proof compares every frontier tensor
with the value of the node of that name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.export.graph_signature import TensorArgument
from torch.fx import Node

from compiler.quiet import one_line, quiet
from compiler.reference import user_inputs, user_outputs
from engines.errors import BuildError
from engines.manifest import Manifest, Segment
from engines.tensors import TensorSpec

__all__ = ["FxSegment", "FxSegments"]

_SHOWN = 12
"""Segments that a message names; a model with attention has hundreds that do not map."""


@dataclass(frozen=True, slots=True)
class FxSegment:
    """A segment as a program of its own.

    Attributes:
        program: Takes the tensors of ``inputs`` by position as ``in0``, ``in1``, ...; gives a
            tuple of those of ``outputs``. Its parameters share memory with the traced program's.
        inputs: What it takes, in the segment's order.
        outputs: What it gives, in the segment's order.
        precision: ``fp16`` where it computes in float16 anywhere, else ``fp32``.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str


class FxSegments:
    """Takes a bundle's segments out of the program that its ONNX graph was exported from.

    Args:
        program: The decomposed program: its nodes' names are names of the graph's values.
        manifest: The bundle's manifest.
    """

    def __init__(self, program: torch.export.ExportedProgram, manifest: Manifest) -> None:
        self._program = program
        self._manifest = manifest
        self._order = {node: place for place, node in enumerate(program.graph.nodes)}
        by_name = {node.name: node for node in self._order}
        taken = user_inputs(program)
        given = [arg.name for arg in user_outputs(program) if isinstance(arg, TensorArgument)]
        ends = [
            *zip((spec.name for spec in manifest.inputs), taken, strict=True),
            *zip((spec.name for spec in manifest.outputs), given, strict=True),
        ]
        self._user_inputs = frozenset(by_name[name] for name in taken)
        self._nodes = {**by_name, **{name: by_name[node] for name, node in ends}}

    def check(self, segments: Iterable[Segment]) -> None:
        """Refuse the segments that do not map.

        Raises:
            BuildError: Names each of them, with the tensors that have no fx node.
        """
        wrong = {segment.file: self.refusals(segment) for segment in segments}
        refused = [f"{file}: {'; '.join(why)}" for file, why in wrong.items() if why]
        if refused:
            more = f" | and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
            raise BuildError(
                f"--builder torch-tensorrt: {len(refused)} of {len(wrong)} segments do not map "
                f"one to one to fx nodes: {' | '.join(refused[:_SHOWN])}{more}; leave --builder "
                "out to build every segment from ONNX, or choose other cuts with --cuts"
            )

    def refusals(self, segment: Segment) -> list[str]:
        """Say why a segment does not map; nothing where it does."""
        names = dict.fromkeys((*segment.inputs, *segment.outputs))
        wrong = [why for name in names if (why := self._unmapped(name))]
        if wrong:
            return wrong
        inputs = {self._nodes[name]: name for name in segment.inputs}
        outputs: dict[Node, str] = {}
        for name in segment.outputs:
            node = self._nodes[name]
            if node in inputs or node.op == "placeholder":
                wrong.append(f"{name!r} is passed on as it is, no fx node gives it")
            elif node in outputs:
                wrong.append(f"{name!r} is the same fx node as {outputs[node]!r}")
            outputs.setdefault(node, name)
        if wrong:
            return wrong
        needed = self._between(inputs, outputs)
        missing = sorted(node.name for node in needed & self._user_inputs - inputs.keys())
        unused = [name for node, name in inputs.items() if node not in needed]
        wrong += [f"fx computes it from input {name!r} too" for name in missing]
        wrong += [f"fx does not need {name!r} for it" for name in unused]
        return wrong

    def extract(self, segment: Segment) -> FxSegment:
        """Return a segment as a program.

        Raises:
            BuildError: It does not map, or torch cannot export its nodes by themselves.
        """
        self.check([segment])
        inputs = [self._nodes[name] for name in segment.inputs]
        outputs = [self._nodes[name] for name in segment.outputs]
        needed = self._between(inputs, outputs)
        module = self._module(inputs, outputs, needed)
        examples = tuple(
            torch.zeros(tuple(node.meta["val"].shape), dtype=node.meta["val"].dtype)
            for node in inputs
        )
        try:
            with quiet(stderr=True):
                program = torch.export.export(module, examples)
        except Exception as exc:  # torch.export has no common base class for its errors
            raise BuildError(
                f"{segment.file}: torch.export cannot take its fx nodes by themselves: "
                f"{one_line(exc)}; leave --builder out"
            ) from exc
        tensors = self._manifest.tensors
        half = any(_dtype(node) == "float16" for node in needed)
        return FxSegment(
            program,
            tuple(tensors[name] for name in segment.inputs),
            tuple(tensors[name] for name in segment.outputs),
            "fp16" if half else "fp32",
        )

    def _unmapped(self, name: str) -> str:
        """Say why a tensor has no fx node; empty where it has one."""
        node = self._nodes.get(name)
        if node is None:
            return f"{name!r} has no fx node"
        value, spec = node.meta.get("val"), self._manifest.tensors[name]
        if not isinstance(value, torch.Tensor):
            return f"{name!r} is an fx node that gives no tensor"
        dtype = _dtype(node)
        shape = [extent if isinstance(extent, int) else str(extent) for extent in value.shape]
        if (dtype, shape) != (spec.dtype, list(spec.shape)):
            return (
                f"{name!r}: expected {spec.dtype} {list(spec.shape)}, its fx node gives "
                f"{dtype} {shape}"
            )
        return ""

    def _between(self, inputs: Iterable[Node], outputs: Iterable[Node]) -> set[Node]:
        """Return the nodes that give ``outputs``, back to ``inputs`` and with those."""
        stop = set(inputs)
        seen: set[Node] = set()
        pending = list(outputs)
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += [] if node in stop else node.all_input_nodes
        return seen

    def _module(
        self, inputs: Sequence[Node], outputs: Sequence[Node], needed: set[Node]
    ) -> torch.fx.GraphModule:
        """Copy nodes into a module that holds their parameters and constants."""
        root = torch.nn.Module()
        graph = torch.fx.Graph()
        copies = {node: graph.placeholder(f"in{place}") for place, node in enumerate(inputs)}
        for node in sorted(needed - copies.keys(), key=self._order.__getitem__):
            if node.op in ("placeholder", "get_attr"):
                name = f"held_{node.name}"
                _hold(root, name, self._held(node))
                copies[node] = graph.get_attr(name)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in outputs))
        return torch.fx.GraphModule(root, graph)

    def _held(self, node: Node) -> object:
        """Return the parameter, buffer, constant or subgraph that a node stands for."""
        program = self._program
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(program.graph_module)
        specs = program.graph_signature.input_specs
        target = next(spec.target for spec in specs if spec.arg.name == node.name) or ""
        return {**program.constants, **program.state_dict}[target]


def _hold(root: torch.nn.Module, name: str, value: object) -> None:
    if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)


def _dtype(node: Node) -> str:
    return str(getattr(node.meta.get("val"), "dtype", "")).removeprefix("torch.")
