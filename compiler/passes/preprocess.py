"""Preprocess folding: an input of normalised floats becomes one of raw pixels.

A raw frame then crosses the wire as uint8, a quarter of its bytes as float32, with the same
result. The nodes are ordinary ones; a cut may fall between them. Transposing comes first, while
the elements are one byte each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from compiler.images import CHANNELS, ImageSpec
from engines.errors import TraceError

__all__ = ["fold_preprocess"]

_HWC_TO_CHW = (0, 3, 1, 2)

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def fold_preprocess(model: ir.Model, images: Sequence[ImageSpec]) -> dict[str, tuple[str, str]]:
    """Put cast and normalisation in front of image inputs, which keep their names.

    Returns:
        Name and dtype of the normalised value, by input.

    Raises:
        TraceError: No such input, or not of floats [1, 3, H, W].
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    floats: dict[str, tuple[str, str]] = {}
    builder = _Builder(model.graph)
    for image in images:
        value = inputs.get(image.name)
        if value is None or image.name in floats:
            raise TraceError(
                f"--preprocess {image.name}: expected one for an input of the model, "
                f"{' or '.join(inputs)}; each of them at most once"
            )
        floats[image.name] = builder.fold(value, image)
    builder.insert()
    return floats


class _Planes(NamedTuple):
    """An input's planes [1, C, H, W], of one dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: ir.DataType


class _Builder:
    """Collects the nodes that go in front of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes: list[ir.Node] = []
        self._taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        for node in ir.traversal.RecursiveGraphIterator(graph):
            self._taken |= {node.name, *(output.name for output in node.outputs)}

    def fold(self, value: ir.Value, image: ImageSpec) -> tuple[str, str]:
        """Replace the input ``value``; return name and dtype of what takes its place."""
        shape = tuple(int(str(extent)) for extent in value.shape or ())
        dtype = value.dtype
        is_image = len(shape) == 4 and shape[:2] == (1, CHANNELS)
        if dtype is None or dtype not in _FLOATS or not is_image:
            raise TraceError(
                f"--preprocess {image.name}: expected an input of floats [1, {CHANNELS}, H, W], "
                f"given {'unknown' if dtype is None else dtype.numpy().name} {list(shape)}"
            )
        last = ir.Value(
            name=image.name,
            type=ir.TensorType(ir.DataType.UINT8),
            shape=ir.Shape(image.raw_shape(shape)),
        )
        self._graph.inputs[list(self._graph.inputs).index(value)] = last
        raw = _Planes(image.name, image.raw_shape(shape), dtype)
        planes = _Planes(image.name, shape, dtype)
        # The cast comes first: it is all that TensorRT does with uint8.
        last = self._add("Cast", "float", [last], raw, {"to": int(dtype)})
        if image.layout == "hwc":
            last = self._add("Transpose", "chw", [last], planes, {"perm": _HWC_TO_CHW})
        if any(image.mean):
            mean = self._constant(f"{image.name}_mean", image.mean, dtype)
            last = self._add("Sub", "centred", [last, mean], planes, {})
        std = self._constant(f"{image.name}_std", image.std, dtype)
        last = self._add("Div", "normalised", [last, std], planes, {})
        value.replace_all_uses_with(last)
        return last.name or "", str(dtype.numpy().name)

    def insert(self) -> None:
        """Put the nodes in front of the graph's own."""
        first = next(iter(self._graph), None)
        if self._nodes and first is not None:
            self._graph.insert_before(first, self._nodes)

    def _add(
        self,
        op: str,
        suffix: str,
        inputs: list[ir.Value],
        planes: _Planes,
        attributes: dict[str, Any],
    ) -> ir.Value:
        node = ir.node(op, inputs=inputs, attributes=attributes)
        node.name = self._unique(f"preprocess_{planes.name}_{suffix}")
        output = node.outputs[0]
        output.name = self._unique(f"{planes.name}_{suffix}")
        output.type = ir.TensorType(planes.dtype)
        output.shape = ir.Shape(planes.shape)
        self._nodes.append(node)
        return output

    def _constant(self, name: str, values: tuple[float, ...], dtype: ir.DataType) -> ir.Value:
        name = self._unique(name)
        array = np.asarray(values, dtype.numpy()).reshape(1, CHANNELS, 1, 1)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._graph.initializers[name] = value
        return value

    def _unique(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name
