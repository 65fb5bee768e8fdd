"""Which sets of nodes become cuts: the union of what several proposers bring forward.

A proposer is a function from a :class:`Setting` to choices; ``PROPOSERS`` lists them in order:

- ``serial``: the family that is optimal for some goodput, speed ratio and objective
- ``spread``: a few low-byte boundaries spread evenly over the robot's time, for fixed use and for
  restarting after a fault
- ``local`` and ``offload``: always

Each choice says who proposed it and how useful it is. What a constraint (``--keep-local``,
``--robot-memory``) rules out is refused with the reason; the search itself knows the
constraints, so that it brings forward the best cuts among those that are allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.costs import SideCosts
from compiler.cuts import Candidate, frontiers
from compiler.family import Problem, Tensor, serial_family
from compiler.graph import Node, ValueGraph
from compiler.options import CutOptions
from engines.codecs import default_codec
from engines.errors import CutError

__all__ = [
    "PROPOSERS",
    "Choice",
    "Proposer",
    "Setting",
    "choose",
    "kept_local",
    "robot_bytes",
]

GOODPUT_BPS = (0.5e6, 10e9)
"""Range of goodputs that the family covers."""

RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The server's time is taken this many times as long as estimated: loads, other servers."""

SPREAD = 4
"""Low-byte boundaries that are kept beside the family."""

_MEMORY_PRICES = 12
"""Prices of a byte of robot memory that the search tries where memory is limited."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A set of nodes that someone wants as a cut.

    Attributes:
        nodes: Places in the order, closed under dependence.
        why: Who proposed it.
        usefulness: Share of the cases in which it is best; more is kept first.
    """

    nodes: frozenset[int]
    why: str
    usefulness: float = 0.0


class Setting:
    """A graph, its costs and the constraints: what proposers work on."""

    def __init__(
        self, graph: ValueGraph, robot: SideCosts, server: SideCosts, options: CutOptions
    ) -> None:
        self.graph = graph
        self.order: tuple[Node, ...] = tuple(node for node in graph.nodes if not node.free)
        self.robot = robot
        self.server = server
        self.options = options
        self.pinned = kept_local(self.order, options.keep_local)
        self._names = [*graph.inputs, *(n for node in self.order for n in node.outputs)]
        taken = (name for place in self.pinned for name in self.order[place].inputs)
        self._private = frozenset(self._names).intersection(taken)
        self.tensors = _tensors(graph, self.order, self._names, self._private)
        self.weights = np.asarray(
            [sum(_weights(graph, node).values()) for node in self.order], np.float64
        )

    def problem(self, *, ratio: float, energy: bool, memory_price: float = 0.0) -> Problem:
        """Return the cut problem for a speed ratio and an objective.

        Args:
            ratio: Factor on the server's time.
            energy: Joules instead of seconds.
            memory_price: Cost of a byte of weights on the robot.
        """
        power = self.robot.power
        robot = self.robot.seconds * (power.compute if energy else 1.0)
        server = self.server.seconds * ratio * (power.idle if energy else 1.0)
        robot = robot + memory_price * self.weights
        return Problem(robot.tolist(), server.tolist(), self.tensors, pinned=self.pinned)

    def cases(self) -> Iterator[tuple[Problem, float, float]]:
        """Yield every problem of the family with its range of costs of a byte."""
        low, high = 8.0 / GOODPUT_BPS[1], 8.0 / GOODPUT_BPS[0]
        prices = [0.0]
        if self.options.robot_memory is not None:
            # From a price that moves nothing to one that moves everything off the robot.
            top = float(self.server.seconds.sum() + 1.0) / max(float(self.weights.sum()), 1.0)
            prices += list(np.geomspace(top * 1e-6, top * 1e2, _MEMORY_PRICES))
        for price in prices:
            for ratio in RATIOS:
                yield self.problem(ratio=ratio, energy=False, memory_price=price), low, high
                unit = self.robot.power.communicate
                problem = self.problem(ratio=ratio, energy=True, memory_price=price)
                yield problem, low * unit, high * unit

    def refusal(self, nodes: frozenset[int]) -> tuple[str, tuple[str, ...]]:
        """Return why a set of nodes may not be a cut, and whom to blame; empty if it may."""
        missing = self.pinned - nodes
        if missing:
            names = tuple(self.order[place].name for place in sorted(missing)[:8])
            return "operators that --keep-local keeps on the robot would run on the server", names
        leaving = self._private.intersection(self._crossing(nodes) if self._private else ())
        if leaving:
            return "tensors would cross that --keep-local keeps", tuple(sorted(leaving))
        limit = self.options.robot_memory
        need = 0 if limit is None else robot_bytes(self.graph, self.order, nodes)
        if limit is not None and need > limit:
            return f"the robot would need {need} bytes, --robot-memory allows {limit}", ()
        return "", ()

    def _crossing(self, nodes: frozenset[int]) -> Iterator[str]:
        """Yield the names of what crosses, by the tensors' own consumers."""
        for name, tensor in zip(self._names, self.tensors, strict=True):
            here = tensor.producer < 0 or tensor.producer in nodes
            if here and any(consumer not in nodes for consumer in tensor.consumers):
                yield name


Proposer = Callable[[Setting], Iterable[Choice]]


def propose_ends(setting: Setting) -> Iterable[Choice]:
    """Everything on the server, everything on the robot."""
    yield Choice(frozenset(), "offload", 1.0)
    yield Choice(frozenset(range(len(setting.order))), "local", 1.0)


def propose_serial(setting: Setting) -> Iterable[Choice]:
    """The family of :mod:`compiler.family`."""
    shares = serial_family(setting.cases())
    why = "keep-local" if setting.pinned else "serial"
    for nodes, share in shares.items():
        yield Choice(nodes, why, share)


def propose_spread(setting: Setting) -> Iterable[Choice]:
    """The boundary of fewest bytes in each of a few equal parts of the robot's time."""
    elapsed = np.cumsum(setting.robot.seconds)
    sets = frontiers(setting.graph)
    specs = setting.graph.values.specs
    best: dict[int, tuple[int, int]] = {}
    for place in range(1, len(setting.order)):
        frontier = sets[place]
        usable = frontier and all(name in specs for name in frontier)
        if not usable or len(frontier) > setting.options.max_frontier:
            continue
        part = int(elapsed[place - 1] / elapsed[-1] * (SPREAD + 1)) if elapsed[-1] else 0
        size = sum(_encoded(setting.graph, name) or 0 for name in frontier)
        if 0 < part <= SPREAD and (part not in best or size < best[part][0]):
            best[part] = (size, place)
    for _, place in best.values():
        yield Choice(frozenset(range(place)), "spread")


def propose_boundaries(setting: Setting) -> Iterable[Choice]:
    """Every boundary of the order; for ``--cuts all``."""
    for place in range(1, len(setting.order)):
        yield Choice(frozenset(range(place)), "boundary")


PROPOSERS: tuple[Proposer, ...] = (propose_ends, propose_serial, propose_spread)
"""Who brings cuts forward, in this order; another kind of predictor adds itself here."""


def choose(setting: Setting, proposers: Sequence[Proposer] = PROPOSERS) -> list[Candidate]:
    """Return the candidates for cuts, the most useful first, each with everyone who proposed it.

    What a constraint forbids is among them, with the reason.
    """
    if setting.options.cuts == "all":
        proposers = (*proposers, propose_boundaries)
    why: dict[frozenset[int], list[str]] = {}
    useful: dict[frozenset[int], float] = {}
    for proposer in proposers:
        for choice in proposer(setting):
            whys = why.setdefault(choice.nodes, [])
            if choice.why not in whys:
                whys.append(choice.why)
            useful[choice.nodes] = max(useful.get(choice.nodes, 0.0), choice.usefulness)
    return [
        Candidate(nodes, tuple(why[nodes]), *setting.refusal(nodes))
        for nodes in sorted(why, key=lambda nodes: -useful[nodes])
    ]


def kept_local(order: Sequence[Node], points: Sequence[str]) -> frozenset[int]:
    """Return the nodes that ``--keep-local`` names, with all that they depend on.

    Args:
        order: The nodes that are not free.
        points: Numbers of operators, or paths of modules.

    Raises:
        CutError: No such module, or more operators than there are.
    """
    named: set[int] = set()
    for point in points:
        if point.isdecimal():
            if not 1 <= int(point) <= len(order):
                raise CutError(
                    f"--keep-local {point}: expected 1 to {len(order)} operators, or a module"
                )
            named.update(range(int(point)))
            continue
        inside = [
            place
            for place, node in enumerate(order)
            if node.path == point or node.path.startswith(f"{point}.")
        ]
        if not inside:
            paths = sorted({node.path for node in order if node.path})
            near = difflib.get_close_matches(point, paths, n=3, cutoff=0.3) or paths[:3]
            raise CutError(
                f"--keep-local {point}: no operator of such a module; "
                f"did you mean {', '.join(near)}?"
            )
        named.update(inside)
    where = {name: place for place, node in enumerate(order) for name in node.outputs}
    pending = list(named)
    while pending:
        for name in order[pending.pop()].inputs:
            place = where.get(name)
            if place is not None and place not in named:
                named.add(place)
                pending.append(place)
    return frozenset(named)


def robot_bytes(graph: ValueGraph, order: Sequence[Node], nodes: frozenset[int]) -> int:
    """Return the bytes that the weights and the largest activations of ``nodes`` take."""
    weights: dict[str, int] = {}
    largest = 0
    for place in nodes:
        node = order[place]
        own = _weights(graph, node)
        weights.update(own)
        around = [n for n in (*node.inputs, *node.outputs) if n not in own]
        specs = [graph.values.specs.get(name) for name in around]
        largest = max(largest, sum(spec.nbytes for spec in specs if spec is not None))
    return sum(weights.values()) + largest


def _weights(graph: ValueGraph, node: Node) -> dict[str, int]:
    """Return the bytes of a node's weights, by name; of decoded ones what they come from too."""
    weights = {name: graph.weight_bytes.get(name, 0) for name in node.initialisers}
    pending = list(node.inputs)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        place = graph.producer.get(name)
        if name in seen or place is None or not graph.nodes[place].free:
            continue
        seen.add(name)
        source = graph.nodes[place]
        weights.update({n: graph.weight_bytes.get(n, 0) for n in source.initialisers})
        pending.extend(source.inputs)
    for name in seen.intersection(node.inputs):
        spec = graph.values.specs.get(name)
        weights[name] = 0 if spec is None else spec.nbytes
    return weights


def _tensors(
    graph: ValueGraph, order: Sequence[Node], names: Sequence[str], private: frozenset[str]
) -> tuple[Tensor, ...]:
    """Describe every value; private ones, as those without a static shape, cannot cross."""
    where = {name: place for place, node in enumerate(order) for name in node.outputs}
    consumers: dict[str, list[int]] = {}
    for place, node in enumerate(order):
        for name in node.inputs:
            consumers.setdefault(name, []).append(place)
    outputs = set(graph.outputs)
    tensors: list[Tensor] = []
    for name in names:
        size = _encoded(graph, name)
        up = None if name in private else size
        down = (size or 0) if name in outputs else 0
        tensors.append(Tensor(where.get(name, -1), tuple(consumers.get(name, ())), up, down))
    return tuple(tensors)


def _encoded(graph: ValueGraph, name: str) -> int | None:
    """Return the bytes of a value as its default codec sends it; none if it cannot cross."""
    spec = graph.values.specs.get(name)
    return None if spec is None else default_codec(spec).max_encoded_bytes(spec)
