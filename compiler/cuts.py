"""Cuts: sets of nodes that the robot runs, and the segments that all of them are made of.

How the cuts of a model come about:

1. The nodes are taken in the file's order, which is topological. Nodes that depend on no input
   (weights decoded from constants) are left out: each side that needs their results computes
   them itself, and nothing of theirs crosses.
2. A cut is a set of nodes that is closed under dependence: the robot runs these, the server the
   rest. ``compiler.selection`` proposes the sets. A *boundary* of the order, all nodes up to a
   place, is a special case.
3. The frontier of a cut is every value that exists on the robot by then, as an input of the
   model or as a result, and that a node of the server takes. For the empty set it is all inputs,
   those without use too; for the whole it is the outputs. Both are always there, as the ends
   that every chain of segments needs; where a constraint forbids one, it says so.
4. An output of the model that the robot has computed stays there. It crosses only if a node of
   the server takes it; the server sends back only outputs that it computes.
5. A set becomes a cut unless it is refused, for a reason that the bundle records: a constraint,
   too many tensors, a tensor without a static shape or of a dtype that has no fixed form, or an
   id that another cut has already. Sets with one frontier differ in the outputs that the robot
   computes beside it. Boundaries that have another cut's frontier are left out; a set that is the
   best of all in some case is kept, its id being made of the outputs as well.
6. The segments are the atoms of the cuts' common refinement: two nodes share a segment if no cut
   parts them. Between two segments dependence goes one way only, from the one that more cuts
   hold to the one that fewer do; that gives their order.

Invariants: cuts are sorted by the number of their nodes; every node that is not free is in one
segment; a segment follows all that it depends on; every cut is a union of segments.

Source:
    Liveness at program points, as in register allocation; a frontier is the set that is live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from compiler.graph import Node, ValueGraph
from engines.errors import CutError
from engines.manifest import Rejection

__all__ = [
    "Boundaries",
    "Boundary",
    "Candidate",
    "cut_id",
    "find_cuts",
    "frontier_of",
    "frontiers",
]

_MINOR = frozenset(("boundary", "spread"))
"""Proposers for whom one cut of a frontier is as good as another."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of nodes that is to become a cut.

    Attributes:
        nodes: Places in the order, closed under dependence.
        why: Who proposed it.
        refused: Why a constraint forbids it; empty if none does.
        blamed: Nodes or tensors to blame for that.
    """

    nodes: frozenset[int]
    why: tuple[str, ...]
    refused: str = ""
    blamed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Boundary:
    """A cut.

    Attributes:
        id: Eight hex digits of the frontier's names, and of the results' where another cut has
            the same frontier.
        nodes: Places in the order of the nodes that the robot runs.
        frontier: Names of what crosses, sorted.
        results: Outputs of the model that the server computes, in the model's order.
        flops_robot: Floating-point operations on the robot.
        flops_server: Floating-point operations on the server.
        after: Module path of the robot's last node; empty where it has none.
        why: What put it among the cuts.
        refused: Why it may not be used; empty if it may. Only the ends are kept all the same.
    """

    id: str
    nodes: frozenset[int]
    frontier: tuple[str, ...]
    results: tuple[str, ...]
    flops_robot: int
    flops_server: int
    after: str
    why: tuple[str, ...]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Boundaries:
    """The cuts of a graph, the segments they are made of, and what was refused.

    Attributes:
        order: The nodes that are not free, in the file's order.
        cuts: By number of nodes; the first has none of them, the last all.
        segments: Places in the order of each segment's nodes, ascending.
        refused: What did not become a cut, with the reason.
    """

    order: tuple[Node, ...]
    cuts: tuple[Boundary, ...]
    segments: tuple[tuple[int, ...], ...]
    refused: tuple[Rejection, ...]


def cut_id(frontier: Iterable[str], results: Iterable[str] | None = None) -> str:
    """Return the first eight hex digits of the SHA-256 of the sorted names, one a line.

    Args:
        frontier: Names of what crosses.
        results: Names of what the server sends back, where the frontier does not tell the cut
            from another; they follow after an empty line.
    """
    names = sorted(frontier)
    if results is not None:
        names += ["", *sorted(results)]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


def frontiers(graph: ValueGraph) -> list[frozenset[str]]:
    """Return the frontier of every boundary of the order, from the first to the last.

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


def frontier_of(graph: ValueGraph, order: Sequence[Node], nodes: frozenset[int]) -> frozenset[str]:
    """Return the frontier of a set of nodes: what is there and that the other nodes take."""
    if not nodes:
        return frozenset(graph.inputs)
    if len(nodes) == len(order):
        return frozenset(graph.outputs)
    there = {name for place in nodes for name in order[place].outputs} | set(graph.inputs)
    taken = (
        name for place, node in enumerate(order) if place not in nodes for name in node.inputs
    )
    return frozenset(there.intersection(taken))


def find_cuts(
    graph: ValueGraph,
    candidates: Iterable[Candidate],
    *,
    max_frontier: int,
    most: int | None = None,
) -> Boundaries:
    """Turn candidates into cuts and segments.

    Args:
        graph: The value graph.
        candidates: Sets of nodes, the most useful first. The two ends need not be among them.
        max_frontier: Most tensors across a cut that nothing but its place speaks for.
        most: Most cuts that may be used, the ends among them; none for no limit. The ends are
            there in any case.

    Raises:
        CutError: The constraints leave no cut.
    """
    order = tuple(node for node in graph.nodes if not node.free)
    assert order, "a graph without nodes has no cuts"
    whole = frozenset(range(len(order)))
    ends = {frozenset[int](): ("offload",), whole: ("local",)}
    wanted = {candidate.nodes: candidate for candidate in candidates}
    first = [wanted.pop(nodes, Candidate(nodes, why)) for nodes, why in ends.items()]
    cuts: list[Boundary] = []
    refused: list[Rejection] = []
    flops = sum(node.flops for node in order)
    taken: dict[str, frozenset[str]] = {}
    for candidate in [*first, *wanted.values()]:
        cut = _boundary(graph, order, candidate, flops)
        frontier = frozenset(cut.frontier)
        if candidate.nodes in ends:
            taken[cut.id] = frontier
            cuts.append(cut)
            continue
        reason, blamed = candidate.refused, candidate.blamed
        if not reason:
            if most is not None and sum(not kept.refused for kept in cuts) >= most:
                continue
            if taken.get(cut.id) == frontier:
                if _MINOR.issuperset(candidate.why):
                    continue
                cut = replace(cut, id=cut_id(frontier, cut.results))
            limit = max_frontier if candidate.why == ("boundary",) else None
            reason, blamed = _refusal(graph, frontier, limit)
            if not reason and cut.id in taken:
                reason, blamed = f"its id {cut.id} is another cut's", cut.frontier
        if reason:
            after = order[max(candidate.nodes)].name
            refused.append(Rejection(after=after, reason=reason, nodes=blamed))
            continue
        taken[cut.id] = frontier
        cuts.append(cut)
    if all(cut.refused for cut in cuts):
        reasons = "; ".join(f"{'/'.join(cut.why)}: {cut.refused}" for cut in cuts)
        raise CutError(f"no cut is allowed ({reasons}); loosen --keep-local or --robot-memory")
    cuts.sort(key=lambda cut: (len(cut.nodes), sorted(cut.nodes)))
    return Boundaries(order, tuple(cuts), _segments(len(order), cuts), tuple(refused))


def _boundary(
    graph: ValueGraph, order: Sequence[Node], candidate: Candidate, flops: int
) -> Boundary:
    nodes = candidate.nodes
    frontier = frontier_of(graph, order, nodes)
    flops_robot = sum(order[place].flops for place in nodes)
    robots = {name for place in nodes for name in order[place].outputs}
    return Boundary(
        id=cut_id(frontier),
        nodes=nodes,
        frontier=tuple(sorted(frontier)),
        results=tuple(name for name in graph.outputs if name not in robots),
        flops_robot=flops_robot,
        flops_server=flops - flops_robot,
        after=order[max(nodes)].path if nodes else "",
        why=candidate.why,
        refused=candidate.refused,
    )


def _segments(count: int, cuts: Sequence[Boundary]) -> tuple[tuple[int, ...], ...]:
    """Return the atoms of the cuts' common refinement, each after those that it depends on.

    A node is in every cut that one of its dependents is in. So of two segments, one of which
    depends on the other, the latter is in more cuts: the order by the number of cuts is right.
    """
    signatures: list[int] = [0] * count
    for index, cut in enumerate(cuts):
        for place in cut.nodes:
            signatures[place] |= 1 << index
    atoms: dict[int, list[int]] = {}
    for place, signature in enumerate(signatures):
        atoms.setdefault(signature, []).append(place)
    ranked = sorted(atoms.items(), key=lambda item: (-item[0].bit_count(), item[1][0]))
    return tuple(tuple(places) for _, places in ranked)


def _refusal(
    graph: ValueGraph, frontier: frozenset[str], max_frontier: int | None
) -> tuple[str, tuple[str, ...]]:
    """Return why a set of nodes cannot be a cut, and the tensors to blame; empty if it can."""
    wrong = {name: graph.values.wrong[name] for name in sorted(frontier & set(graph.values.wrong))}
    if max_frontier is not None and len(frontier) > max_frontier:
        return f"{len(frontier)} tensors cross, more than {max_frontier}", tuple(sorted(frontier))
    if wrong:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        return reasons, tuple(wrong)
    if not frontier:
        return "nothing crosses", ()
    return "", ()
