"""What the rules may know of a graph: shapes, constants, attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from onnx.helper import get_attribute_value

from compiler.graph import ValueGraph

__all__ = ["Facts", "RowAxis", "Unstriped"]


class Unstriped(Exception):  # noqa: N818 (a verdict on an operator, not an error)
    """An operator cannot be given rows; the message says why, for people."""


class RowAxis(NamedTuple):
    """Along which dimension of a tensor its rows run, and how many there are."""

    axis: int
    rows: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Shapes and constants of a graph.

    Attributes:
        opset: Of the standard domain.
        shapes: By the name of a value or an initialiser.
        constants: Initialisers that are kept in the file.
        free: Values that depend on no input of the graph.
    """

    opset: int
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, onnx.TensorProto]
    free: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: ModelProto, graph: ValueGraph) -> Facts:
        """Collect the facts of a model whose weights need not be loaded."""
        shapes = {name: spec.shape for name, spec in graph.values.specs.items()}
        shapes.update({t.name: tuple(t.dims) for t in model.graph.initializer})
        inline = {
            t.name: t
            for t in model.graph.initializer
            if t.data_location != onnx.TensorProto.EXTERNAL
        }
        opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        free = frozenset(name for node in graph.nodes if node.free for name in node.outputs)
        return cls(opset, shapes, inline, free)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value.

        Raises:
            Unstriped: It is not known.
        """
        try:
            return self.shapes[name]
        except KeyError:
            raise Unstriped(f"the shape of {name} is not known") from None

    def constant(self, name: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        """Return the values of a small initialiser; none if it is none."""
        tensor = self.constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def attribute(self, node: NodeProto, name: str, default: Any) -> Any:
        """Return an attribute's value."""
        for attribute in node.attribute:
            if attribute.name == name:
                return get_attribute_value(attribute)
        return default

    def text(self, node: NodeProto, name: str, default: str) -> str:
        """Return an attribute's text."""
        value = self.attribute(node, name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def setting(self, node: NodeProto, name: str, place: int) -> list[int] | None:
        """Return integers that are an attribute in old opsets and an input in new ones.

        Raises:
            Unstriped: They are an input that is not constant.
        """
        given = self.attribute(node, name, None)
        if given is not None:
            return [int(value) for value in given]
        if len(node.input) <= place or not node.input[place]:
            return None
        values = self.constant(node.input[place])
        if values is None:
            raise Unstriped(f"its {name} are computed")
        return [int(value) for value in values.reshape(-1)]
