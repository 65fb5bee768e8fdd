"""The serial family against brute force over every closed set of small random graphs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.family import Problem, Tensor, serial_family

COSTS = st.one_of(st.just(0.0), st.floats(1e-6, 10.0))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[float], list[float], list[Tensor]]:
    """A DAG of up to 7 nodes; any node may feed any later one, some values cannot cross."""
    count = draw(st.integers(1, 7))
    consumers: dict[int, set[int]] = {place: set() for place in range(-1, count)}
    for node in range(count):
        for producer in draw(st.sets(st.integers(-1, node - 1), min_size=1, max_size=3)):
            consumers[producer].add(node)
    outputs = {node for node in range(count) if not consumers[node]}
    outputs |= draw(st.sets(st.integers(0, count - 1), max_size=1))
    tensors = [
        Tensor(
            producer,
            tuple(sorted(consumers[producer])),
            None if producer >= 0 and draw(st.integers(0, 9)) == 0 else draw(st.integers(0, 1000)),
            draw(st.integers(1, 1000)) if producer in outputs else 0,
        )
        for producer in range(-1, count)
    ]
    costs = st.lists(COSTS, min_size=count, max_size=count)
    return draw(costs), draw(costs), tensors


def closed_sets(count: int, tensors: list[Tensor]) -> list[frozenset[int]]:
    sets = (
        frozenset(node for node in range(count) if number >> node & 1)
        for number in range(1 << count)
    )
    return [
        nodes
        for nodes in sets
        if all(
            tensor.producer < 0 or tensor.producer in nodes or not nodes & set(tensor.consumers)
            for tensor in tensors
        )
    ]


@settings(max_examples=1500, deadline=None)
@given(graphs(), st.lists(st.floats(1e-6, 1.0), max_size=6))
def test_nothing_better_than_the_envelope(
    graph: tuple[list[float], list[float], list[Tensor]], between: list[float]
) -> None:
    robot, server, tensors = graph
    problem = Problem(robot, server, tensors)
    wins = problem.envelope(1e-6, 1.0)
    sets = closed_sets(len(robot), tensors)
    found = {win.nodes for win in wins}
    assert found <= set(sets)
    for x in [1e-6, 1.0, *between]:
        best = min(problem.cost(nodes, x) for nodes in sets)
        ours = min(problem.cost(nodes, x) for nodes in found)
        assert ours <= best * (1 + 1e-6) + 1e-9


@settings(max_examples=300, deadline=None)
@given(graphs(), st.data())
def test_pinned_nodes_stay_with_all_that_they_depend_on(
    graph: tuple[list[float], list[float], list[Tensor]], data: st.DataObject
) -> None:
    robot, server, tensors = graph
    pins = data.draw(st.sets(st.integers(0, len(robot) - 1), min_size=1, max_size=2))
    problem = Problem(robot, server, tensors, pinned=pins)
    sets = [nodes for nodes in closed_sets(len(robot), tensors) if pins <= nodes]
    for win in problem.envelope(1e-6, 1.0):
        assert pins <= win.nodes
        assert win.nodes in sets
        for x in (win.low, win.high):
            best = min(problem.cost(nodes, x) for nodes in sets)
            assert problem.cost(win.nodes, x) <= best * (1 + 1e-6) + 1e-9


def test_a_value_with_many_consumers_is_paid_once() -> None:
    # One value of 10 bytes to three nodes. Paid once, sending it (10) beats computing all (12).
    tensors = [Tensor(-1, (0,), 100), Tensor(0, (1, 2, 3), 10)]
    tensors += [Tensor(node, (), 0) for node in (1, 2, 3)]
    problem = Problem([0.0, 4.0, 4.0, 4.0], [0.0] * 4, tensors)
    assert problem.best(1.0) == frozenset({0})
    assert problem.cost(frozenset({0}), 1.0) == pytest.approx(10.0)


def test_the_way_back_is_paid_only_for_what_the_server_computes() -> None:
    tensors = [Tensor(-1, (0,), 1), Tensor(0, (), 0, down=7)]
    problem = Problem([5.0], [1.0], tensors)
    assert problem.moved(frozenset()) == 8
    assert problem.moved(frozenset({0})) == 0


def test_a_value_that_cannot_cross_keeps_its_two_sides_together() -> None:
    tensors = [Tensor(-1, (0,), 100), Tensor(0, (1,), None), Tensor(1, (), 0, down=1)]
    problem = Problem([0.0, 50.0], [1.0, 0.0], tensors)
    assert math.isinf(problem.cost(frozenset({0}), 1.0))
    assert problem.best(1.0) in ({0, 1}, frozenset())


def test_the_family_has_each_plan_once_over_many_problems() -> None:
    tensors = [Tensor(-1, (0,), 1000), Tensor(0, (1,), 10), Tensor(1, (), 0, down=1)]
    problems = [Problem([1.0, 9.0], [1.0 / r, 9.0 / r], tensors) for r in (2, 5, 10)]
    family = serial_family((problem, 1e-6, 10.0) for problem in problems)
    assert set(family) == {frozenset(), frozenset({0}), frozenset({0, 1})}
    assert sum(family.values()) == pytest.approx(1.0)


def test_costs_spread_over_twelve_orders_of_magnitude_stay_exact() -> None:
    tensors = [Tensor(-1, (0,), 1), Tensor(0, (1,), 10**9), Tensor(1, (), 0, down=1)]
    problem = Problem([1e-6, 1e-6], [1e-7, 1e-7], tensors)
    assert problem.best(1e-9) == frozenset()
    assert problem.best(1e-2) == frozenset({0, 1})
