"""Shapes: every input gets the static shape that the model is compiled for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

__all__ = ["fix_shapes"]


def fix_shapes(model: ir.Model, shapes: Sequence[tuple[int, ...]]) -> None:
    """Fix the shapes of the inputs; where that changes any, forget every other shape.

    Shapes further down are inferred again from these, without symbols.
    """
    inputs = list(model.graph.inputs)
    assert len(inputs) == len(shapes), (len(inputs), len(shapes))
    changed = False
    for value, shape in zip(inputs, shapes, strict=True):
        if value.shape is None or list(value.shape) != list(shape):
            value.shape = ir.Shape(shape)
            changed = True
    if not changed:
        return
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            output.shape = None
