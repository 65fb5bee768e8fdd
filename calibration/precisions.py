"""Which node of a quantised graph computes in which precision."""

from __future__ import annotations

from typing import Dict, Optional

from engines.manifest import Quantisation

__all__ = ["node_precisions", "precisions_text"]


def node_precisions(done: Quantisation) -> Dict[str, str]:
    """Return ``int8``, ``fp16`` or ``fp32`` by node, of all that could compute in 8 bits.

    Nodes between two in float16 are there too. Everything else is in float32.
    """
    # Bundles of before there was a choice have all that is not in 8 bits in float32.
    return {
        **dict.fromkeys(done.quantised, "int8"),
        **dict.fromkeys(done.kept, "fp32"),
        **done.floats,
    }


def precisions_text(done: Quantisation, *, most: Optional[int] = None) -> str:
    """Say how many nodes compute in what, and name those that do not in 8 bits.

    Args:
        done: What was quantised.
        most: How many of each precision to name, the most sensitive first; all by default.
    """
    by_node = node_precisions(done)
    parts = []
    for precision in ("int8", "fp16", "fp32"):
        names = [node for node, given in by_node.items() if given == precision]
        names.sort(key=lambda node: -done.kept.get(node, 0.0))
        if precision == "int8":
            parts.append(f"{len(names)} nodes in int8")
        elif names:
            more = ", ..." if most is not None and len(names) > most else ""
            parts.append(f"{len(names)} in {precision} ({', '.join(names[:most])}{more})")
    return ", ".join(parts)
