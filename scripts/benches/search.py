"""The search: every goodput at once by breakpoints, against a grid of minimum cuts."""

from __future__ import annotations

import random
import time

import networkx as nx
import numpy as np
from benches.row import Row

from compiler.family import Problem, Tensor, serial_family

OPERATORS = 700
RATIOS = (2.0, 5.0, 10.0, 20.0, 50.0)
POWERS = ((1.0, 1.0, 1.0), (13.35, 4.25, 4.04))
"""Weights of robot, link and server: seconds, and joules of a Jetson Xavier NX robot."""

GRID = 30
LOW, HIGH = 8 / 10e9, 8 / 0.5e6
"""Seconds a byte, at 10 Gbps and at 0.5 Mbps."""


def run() -> list[Row]:
    """Time the family of a random DAG; a grid with the same solver, and one networkx cut."""
    robot, tensors = _random_dag()
    cases = [
        (
            Problem([r * t for t in robot], [s * t / ratio for t in robot], tensors),
            LOW * x,
            HIGH * x,
        )
        for ratio in RATIOS
        for r, x, s in POWERS
    ]
    begin = time.perf_counter()
    family = serial_family(cases)
    ours_s = time.perf_counter() - begin
    begin = time.perf_counter()
    grid = {
        problem.best(float(x))
        for problem, low, high in cases
        for x in np.geomspace(low, high, GRID)
    }
    grid_s = time.perf_counter() - begin
    begin = time.perf_counter()
    _networkx_cut(robot, [t / 10 for t in robot], tensors, 8 / 50e6)
    one_s = time.perf_counter() - begin
    count = len(cases) * GRID
    what = f"{OPERATORS} operators, {len(RATIOS)} speed ratios, 2 objectives"
    return [
        Row(
            "search",
            f"{what}: {len(family)} cuts",
            ours_s,
            "s",
            f"a grid of {GRID} goodputs, same solver, {grid_s:.2f} s for {len(grid)} cuts",
            ours_s / grid_s,
            "below 2 s",
            ours_s < 2,
        ),
        Row(
            "search",
            f"{what}: {len(family)} cuts",
            ours_s,
            "s",
            f"one networkx cut {one_s:.2f} s, of the {count} of the grid",
            ours_s / (one_s * count),
        ),
    ]


def _random_dag() -> tuple[list[float], list[Tensor]]:
    draw = random.Random(0)  # noqa: S311 (a benchmark's graph, not a secret)
    consumers: dict[int, set[int]] = {place: set() for place in range(-1, OPERATORS)}
    for node in range(OPERATORS):
        consumers[node - 1].add(node)
        for _ in range(draw.choice([0, 0, 1, 2])):
            consumers[draw.randrange(max(-1, node - 40), node)].add(node)
    tensors = [
        Tensor(
            place,
            tuple(sorted(consumers[place])),
            150_000
            if place < 0
            else int(draw.uniform(0.3, 1) * 400_000 * 0.5 ** (place / 70)) + 500,
            4000 if place == OPERATORS - 1 else 0,
        )
        for place in range(-1, OPERATORS)
    ]
    return [draw.uniform(1e-5, 5e-4) for _ in range(OPERATORS)], tensors


def _networkx_cut(
    robot: list[float], server: list[float], tensors: list[Tensor], x: float
) -> float:
    graph = nx.DiGraph()
    for node, (mine, other) in enumerate(zip(robot, server, strict=True)):
        graph.add_edge("source", node, capacity=other)
        graph.add_edge(node, "sink", capacity=mine)
    for place, tensor in enumerate(tensors):
        producer = "source" if tensor.producer < 0 else tensor.producer
        graph.add_edge(producer, ("value", place), capacity=x * (tensor.up or 0))
        for consumer in tensor.consumers:
            graph.add_edge(("value", place), consumer)
            if tensor.producer >= 0:
                graph.add_edge(consumer, tensor.producer)
    value: float = nx.minimum_cut(graph, "source", "sink")[0]
    return value
