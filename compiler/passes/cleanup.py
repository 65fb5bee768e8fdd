"""Cleanup: what no output depends on is removed, inputs excepted."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

__all__ = ["remove_dead"]


def remove_dead(model: ir.Model) -> None:
    """Remove nodes and initialisers without use; put the nodes in topological order.

    The order is kept where it is topological already.
    """
    RemoveUnusedNodesPass()(model)
    if not _sorted(model.graph):
        TopologicalSortPass()(model)


def _sorted(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in graph:
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer.graph is graph and producer not in seen:
                return False
        seen.add(node)
    return True
