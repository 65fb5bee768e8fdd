"""The serial family: every set of nodes that is the best robot side for some goodput.

A plan is a downward-closed set ``S`` of nodes (with a node, all that it depends on): the robot
runs ``S``, the server the rest. Per node ``v`` it costs ``robot[v]`` or ``server[v]``; a value
that exists on the robot and that the server needs costs its bytes times ``x``, the cost of a
byte, once, whatever the number of its consumers; an output that the server computes costs its
bytes times ``x`` for the way back.

1. **One minimum cut.** For one ``x`` the best ``S`` is the source side of a minimum cut: node
   ``v`` has an arc from the source of ``server[v]`` (paid if it is not in ``S``) and one to the
   sink of ``robot[v]``. Every value has a node of its own: producer -> value of bytes times
   ``x``, value -> consumer without limit, so it is paid once; consumer -> producer without limit
   keeps ``S`` closed. A value of the model's inputs has the source for a producer.
2. **Pins.** A node that must stay on the robot has an arc without limit from the source; a value
   that cannot cross (no static shape) has no limit either, so its two sides stay together.
3. **Breakpoints, not a grid.** For a fixed ``S`` the cost is a line in ``x``: the compute it
   holds plus ``x`` times the bytes it moves. The best sets over a range of ``x`` are the lower
   envelope of these lines. Two lines that are best at the ends of an interval meet at one ``x``;
   the minimum cut there either confirms that nothing lies below, or gives a new line. So ``k``
   sets take at most ``2 k`` cuts, and none is missed.
4. **Precision.** Capacities are integers of 64 bits: costs are scaled so that their sum stays
   below 2**50. A value never needs a capacity above the cost of the best plan known, so each is
   capped there, which keeps the scale fine at low goodputs.

Invariant: every returned set is closed, holds what is pinned, and is optimal for the ``x`` that
it is returned for, up to the scale's quantum.

Source:
    Eisner and Severance, *Mathematical techniques for efficient record segmentation in large
    shared databases*, J. ACM 23(4), 1976: the envelope by its breakpoints. Minimum cuts by
    push-relabel, OR-Tools ``SimpleMaxFlow``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import max_flow

__all__ = ["Problem", "Tensor", "Win", "serial_family"]

_SUM_LIMIT = float(1 << 50)
"""Bound on the scaled sum of all finite capacities; OR-Tools sums flows in 64 bits."""

_UNLIMITED = 1 << 52
"""Capacity that no cut of finite cost can hold: more than all finite ones together."""

_RELATIVE_GAIN = 1e-9
"""A line must lie below the envelope by more than this, relatively, to count as new."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value that may cross.

    Attributes:
        producer: Index of the node that gives it; -1 for an input of the model.
        consumers: Indices of the nodes that take it, each once.
        up: Bytes if it crosses from the robot to the server; none if it cannot cross.
        down: Bytes if the server sends it back; 0 unless it is an output of the model.
    """

    producer: int
    consumers: tuple[int, ...]
    up: int | None
    down: int = 0


@dataclass(frozen=True, slots=True)
class Win:
    """A set of nodes and where it is best.

    Attributes:
        nodes: Indices of the nodes that the robot runs.
        low: Smallest cost of a byte for which it is best.
        high: Largest cost of a byte for which it is best.
    """

    nodes: frozenset[int]
    low: float
    high: float


class Problem:
    """A graph with its costs, ready to be cut at any cost of a byte.

    Args:
        robot: Cost of each node on the robot, at least 0.
        server: Cost of each node on the server, at least 0.
        tensors: The values between them.
        pinned: Nodes that must stay on the robot, their ancestors with them.
    """

    def __init__(
        self,
        robot: Sequence[float],
        server: Sequence[float],
        tensors: Sequence[Tensor],
        *,
        pinned: Iterable[int] = (),
    ) -> None:
        self._count = len(robot)
        self._tensors = tuple(tensors)
        self._robot = np.asarray(robot, np.float64)
        self._server = np.asarray(server, np.float64)
        costs = np.concatenate([self._robot, self._server])
        assert len(robot) == len(server), "one cost a node on either side"
        assert bool(np.all(np.isfinite(costs)) and np.all(costs >= 0)), "costs are finite, >= 0"
        self._back = np.zeros(self._count)
        for tensor in self._tensors:
            if tensor.producer >= 0:
                self._back[tensor.producer] += tensor.down
        self._pinned = np.zeros(self._count, bool)
        self._pinned[list(pinned)] = True
        self._prepare()

    def _prepare(self) -> None:
        """Lay out the arcs once; only their capacities change from one cut to the next."""
        source, sink = self._count + len(self._tensors), self._count + len(self._tensors) + 1
        nodes = np.arange(self._count)
        tails = [np.full(self._count, source), nodes]
        heads = [nodes, np.full(self._count, sink)]
        values, up = [], []
        extra: list[tuple[int, int]] = []
        for place, tensor in enumerate(self._tensors):
            if not tensor.consumers:
                continue
            producer = tensor.producer if tensor.producer >= 0 else source
            values.append((producer, self._count + place))
            up.append(math.nan if tensor.up is None else float(tensor.up))
            for consumer in tensor.consumers:
                extra.append((self._count + place, consumer))
                if tensor.producer >= 0:
                    extra.append((consumer, tensor.producer))
        pairs = np.asarray(values + extra, np.int64).reshape(-1, 2)
        self._tails = np.concatenate([*tails, pairs[:, 0]])
        self._heads = np.concatenate([*heads, pairs[:, 1]])
        self._up = np.asarray(up, np.float64)
        self._unlimited = np.full(len(extra), _UNLIMITED, np.int64)
        self._ends = (source, sink)

    def compute(self, nodes: frozenset[int]) -> float:
        """Return the compute cost of a plan."""
        inside = self._mask(nodes)
        return float(self._robot[inside].sum() + self._server[~inside].sum())

    def moved(self, nodes: frozenset[int]) -> float:
        """Return the bytes that a plan moves, both ways; infinite if it cannot be."""
        total = 0.0
        for tensor in self._tensors:
            here = tensor.producer < 0 or tensor.producer in nodes
            if here and any(consumer not in nodes for consumer in tensor.consumers):
                total += math.inf if tensor.up is None else tensor.up
            if not here:
                total += tensor.down
        return total

    def cost(self, nodes: frozenset[int], x: float) -> float:
        """Return the whole cost of a plan where a byte costs ``x``."""
        return self.compute(nodes) + x * self.moved(nodes)

    def best(self, x: float) -> frozenset[int]:
        """Return the best plan where a byte costs ``x``, by one minimum cut."""
        everything = frozenset(range(self._count))
        pinned = frozenset(np.flatnonzero(self._pinned).tolist())
        bound = self.cost(everything, x)
        if not pinned:
            bound = min(bound, self.cost(frozenset(), x))
        # A cut that holds a capacity above the bound cannot be minimal: cap it just there.
        server = np.minimum(self._server + x * self._back, 2 * bound)
        crossing = np.nan_to_num(np.minimum(x * self._up, 2 * bound))
        finite: NDArray[np.float64] = np.concatenate([server, self._robot, crossing])
        total = float(finite.sum())
        if total <= 0:
            return everything
        scaled = np.rint(finite * (_SUM_LIMIT / total)).astype(np.int64)
        scaled[: self._count][self._pinned] = _UNLIMITED
        scaled[2 * self._count :][np.isnan(self._up)] = _UNLIMITED
        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(
            self._tails, self._heads, np.concatenate([scaled, self._unlimited])
        )
        status = flow.solve(*self._ends)
        assert status == flow.OPTIMAL, f"minimum cut: solver status {status}"
        return frozenset(v for v in flow.get_source_side_min_cut() if v < self._count)

    def envelope(self, low: float, high: float) -> list[Win]:
        """Return the best plans for every cost of a byte from ``low`` to ``high``, in order.

        Raises:
            AssertionError: Not ``0 <= low <= high``.
        """
        assert 0 <= low <= high < math.inf, f"costs of a byte from {low} to {high}"
        plans: list[tuple[float, float, frozenset[int]]] = []
        first, last = self._line(low), self._line(high)
        self._between(low, first, high, last, plans)
        plans = _without_repeats([first, *plans, last])
        wins: list[Win] = []
        at = low
        for place, (compute, moved, nodes) in enumerate(plans):
            until = high
            if place + 1 < len(plans):
                until = min(high, max(at, _meeting((compute, moved), plans[place + 1][:2])))
            wins.append(Win(nodes, at, until))
            at = until
        return wins

    def _between(
        self,
        low: float,
        left: tuple[float, float, frozenset[int]],
        high: float,
        right: tuple[float, float, frozenset[int]],
        plans: list[tuple[float, float, frozenset[int]]],
    ) -> None:
        """Append, in order, the lines of the envelope strictly between two of its lines."""
        pending = [(low, left, high, right)]
        found: list[tuple[float, float, frozenset[int]]] = []
        while pending:
            low, left, high, right = pending.pop()
            if left[1] <= right[1]:  # the same line, or parallel ones
                continue
            x = _meeting(left[:2], right[:2])
            if not low < x < high:
                continue
            middle = self._line(x)
            known = left[0] + x * left[1]
            if middle[0] + x * middle[1] >= known * (1 - _RELATIVE_GAIN):
                continue
            found.append(middle)
            pending += [(low, left, x, middle), (x, middle, high, right)]
        plans += sorted(found, key=lambda line: -line[1])

    def _line(self, x: float) -> tuple[float, float, frozenset[int]]:
        nodes = self.best(x)
        return self.compute(nodes), self.moved(nodes), nodes

    def _mask(self, nodes: frozenset[int]) -> NDArray[np.bool_]:
        mask = np.zeros(self._count, bool)
        mask[list(nodes)] = True
        return mask


def serial_family(
    cases: Iterable[tuple[Problem, float, float]],
) -> dict[frozenset[int], float]:
    """Return every plan that wins somewhere, with the share of the cases that it wins.

    Args:
        cases: One graph under several costs (speed ratios, objectives), each with the smallest
            and the largest cost of a byte; both 0 where bytes are free.

    Returns:
        Plan -> mean over the cases of the part of the range that it wins, on a logarithmic
        scale; a plan that wins in a single point has a share of 0.
    """
    shares: dict[frozenset[int], float] = {}
    count = 0
    for problem, low, high in cases:
        count += 1
        whole = math.log(high / low) if low else 0.0
        for win in problem.envelope(low, high):
            part = math.log(win.high / win.low) / whole if whole else 1.0
            shares[win.nodes] = shares.get(win.nodes, 0.0) + part
    return {nodes: share / count for nodes, share in shares.items()}


def _meeting(left: tuple[float, float], right: tuple[float, float]) -> float:
    """Return the ``x`` at which two lines (value at 0, slope) meet; slopes must differ."""
    return (right[0] - left[0]) / (left[1] - right[1])


def _without_repeats(
    plans: list[tuple[float, float, frozenset[int]]],
) -> list[tuple[float, float, frozenset[int]]]:
    kept: list[tuple[float, float, frozenset[int]]] = []
    for plan in plans:
        if not kept or plan[2] != kept[-1][2]:
            kept.append(plan)
    return kept
