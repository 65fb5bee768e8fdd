"""Islands: nodes that a user names by node, tensor or module path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from engines.errors import TraceError

__all__ = ["named_nodes"]


def named_nodes(
    nodes: Iterable[ir.Node],
    paths: Mapping[str, str],
    islands: Sequence[str],
    *,
    option: str = "--fp32",
) -> set[ir.Node]:
    """Return the nodes that ``islands`` name.

    Args:
        nodes: The nodes of the graph.
        paths: Module path of the node that gives a value.
        islands: Nodes, tensors or module paths, which stand for all below them.
        option: Where the user named them.

    Raises:
        TraceError: There is no such node, tensor or module; near ones are named.
    """
    known: dict[str, list[ir.Node]] = {}
    for node in nodes:
        names = {node.name or "", *(value.name or "" for value in node.outputs)}
        for path in [paths.get(value.name or "", "") for value in node.outputs]:
            parts = path.split(".")
            names |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        for name in names:
            known.setdefault(name, []).append(node)
    known.pop("", None)
    found: set[ir.Node] = set()
    wrong = []
    for island in islands:
        found.update(known.get(island, ()))
        if island not in known:
            near = difflib.get_close_matches(island, known, n=3, cutoff=0.3)
            near = near or sorted(known)[:3]
            wrong.append(f"{island!r} (did you mean {', '.join(near)}?)")
    if wrong:
        raise TraceError(f"{option}: no such node, tensor or module: {'; '.join(wrong)}")
    return found
