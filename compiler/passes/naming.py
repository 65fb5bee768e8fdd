"""Names of nodes: refusals and reports name them, so every node needs one of its own."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["name_nodes"]


def name_nodes(model: ir.Model) -> None:
    """Name the nodes that have no name, or that of another, after operator and place."""
    taken: set[str] = set()
    for place, node in enumerate(model.graph):
        name = node.name or f"{node.op_type}_{place}"
        while name in taken:
            name += f"_{place}"
        taken.add(name)
        node.name = name
