"""Cuts: every boundary of the graph's order across which few enough tensors go.

How the cuts of a model are found:

1. The nodes are taken in the file's order, which is topological. Nodes that depend on no input
   (weights decoded from constants) are left out: each side that needs their results computes
   them itself, and nothing of theirs crosses.
2. Boundary ``k`` lies after the ``k``-th of the rest; the robot runs what comes before it. Its
   frontier is every value that exists by then, as an input of the model or as a result, and
   that a later node takes. It is kept up to date from boundary to boundary: a node adds its
   results and removes the values that it was the last to take.
3. Boundary 0 has all inputs of the model cross, those without use too. The last one has the
   outputs, which are with the robot then. Both always become cuts.
4. An output of the model that the robot has computed stays there. It crosses only if a later
   node takes it; the server sends back only outputs that come after the cut.
5. A boundary becomes a cut unless it is refused, for a reason that the bundle records: too many
   tensors, a tensor without a static shape or of a dtype that has no fixed form, or an id that
   another cut has already. Of boundaries with one frontier the first is kept, which leaves most
   to the server: what lies between them only computes outputs.

Invariants: cuts lie in the order of their boundaries; between two neighbouring cuts lies at
least one node; the nodes between the first and the last cut are all that are not free.

Source:
    Liveness at program points, as in register allocation; a frontier is the set that is live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from compiler.graph import Node, ValueGraph
from engines.manifest import Rejection

__all__ = ["Boundary", "Boundaries", "cut_id", "find_cuts", "frontiers"]


@dataclass(frozen=True, slots=True)
class Boundary:
    """A boundary that became a cut.

    Attributes:
        id: Eight hex digits of the frontier's names.
        position: Number of ordered nodes before it.
        frontier: Names of what crosses, sorted.
        results: Outputs of the model that are computed after it, in the model's order.
        flops_robot: Floating-point operations before it.
        flops_server: Floating-point operations after it.
        after: Module path of the last node before it; empty for the first.
        why: What put it among the cuts.
    """

    id: str
    position: int
    frontier: tuple[str, ...]
    results: tuple[str, ...]
    flops_robot: int
    flops_server: int
    after: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Every boundary of a graph: those that became cuts, those that were refused.

    Attributes:
        order: The nodes that boundaries lie between: all that are not free.
        cuts: In order; the first has the inputs cross, the last the outputs.
        refused: The others, each with its reason.
    """

    order: tuple[Node, ...]
    cuts: tuple[Boundary, ...]
    refused: tuple[Rejection, ...]


def cut_id(frontier: Iterable[str]) -> str:
    """Return the first eight hex digits of the SHA-256 of the sorted names, one a line."""
    return hashlib.sha256("\n".join(sorted(frontier)).encode()).hexdigest()[:8]


def frontiers(graph: ValueGraph) -> list[frozenset[str]]:
    """Return the frontier of every boundary, from the first to the last.

    The time is linear in the size of the graph, and of the frontiers.
    """
    order = [node for node in graph.nodes if not node.free]
    given = {name for node in order for name in node.outputs} | set(graph.inputs)
    last_use = {n: place for place, node in enumerate(order) for n in node.inputs if n in given}
    live = {name for name in graph.inputs if name in last_use}
    found = [frozenset(graph.inputs)]
    for place, node in enumerate(order[:-1]):
        live.difference_update([name for name in node.inputs if last_use.get(name) == place])
        live.update(name for name in node.outputs if name in last_use)
        found.append(frozenset(live))
    found.append(frozenset(graph.outputs))
    return found


def find_cuts(graph: ValueGraph, *, max_frontier: int) -> Boundaries:
    """Find every cut whose frontier has at most ``max_frontier`` tensors."""
    order = tuple(node for node in graph.nodes if not node.free)
    assert order, "a graph without nodes has no cuts"
    sets = frontiers(graph)
    last = len(order)
    where = {name: place for place, node in enumerate(order) for name in node.outputs}
    flops = [0]
    for node in order:
        flops.append(flops[-1] + node.flops)
    cuts: list[Boundary] = []
    refused: list[Rejection] = []
    taken = {cut_id(sets[place]): sets[place] for place in (0, last)}
    seen: set[frozenset[str]] = {sets[last]}
    for place, frontier in enumerate(sets):
        middle = 0 < place < last
        if middle and frontier in seen:
            continue
        identity = cut_id(frontier)
        if middle:
            reason, blamed = _refusal(graph, frontier, max_frontier)
            if not reason and taken.setdefault(identity, frontier) != frontier:
                reason, blamed = f"its id {identity} is another cut's", sorted(frontier)
            if reason:
                refused.append(
                    Rejection(after=order[place - 1].name, reason=reason, nodes=tuple(blamed))
                )
                continue
        seen.add(frontier)
        cuts.append(
            Boundary(
                id=identity,
                position=place,
                frontier=tuple(sorted(frontier)),
                results=tuple(n for n in graph.outputs if where[n] >= place),
                flops_robot=flops[place],
                flops_server=flops[last] - flops[place],
                after=order[place - 1].path if place else "",
                why=("boundary",) if middle else ("local",) if place else ("offload",),
            )
        )
    return Boundaries(order, tuple(cuts), tuple(refused))


def _refusal(
    graph: ValueGraph, frontier: frozenset[str], max_frontier: int
) -> tuple[str, list[str]]:
    """Return why a boundary cannot be a cut, and the tensors to blame; empty if it can."""
    wrong = {name: graph.values.wrong[name] for name in sorted(frontier & set(graph.values.wrong))}
    if len(frontier) > max_frontier:
        return f"{len(frontier)} tensors cross, more than {max_frontier}", sorted(frontier)
    if wrong:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        return reasons, list(wrong)
    if not frontier:
        return "nothing crosses", []
    return "", []
