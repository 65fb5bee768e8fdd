"""Small models whose best plan is no prefix of the file's order, and how to count its cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnx import helper as h

from calibration.energy import StatePower
from compiler.graph import Node, ValueGraph, build_graph, infer_values
from engines.codecs import default_codec

SIZE = 64
LARGE = 4096


def value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, tuple[int, ...]],
) -> onnx.ModelProto:
    draw = np.random.default_rng(0)
    tensors = [
        onnx.numpy_helper.from_array((draw.standard_normal(s) / 8).astype(np.float32), name)
        for name, s in weights.items()
    ]
    for node in nodes:
        node.name = f"n_{node.output[0]}"
    graph = h.make_graph(nodes, "made", inputs, outputs, tensors)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def fork() -> onnx.ModelProto:
    """Two inputs: heavy work on few bytes comes first in the file, then many bytes shrink.

    On a slow robot with a fast server the robot should shrink and leave the heavy work.
    """
    nodes = [
        h.make_node("MatMul", ["few", "w1"], ["h1"]),
        h.make_node("Relu", ["h1"], ["h2"]),
        h.make_node("MatMul", ["h2", "w2"], ["heavy"]),
        h.make_node("ReduceMax", ["many"], ["shrunk"], keepdims=1),
        h.make_node("Add", ["heavy", "shrunk"], ["sum"]),
        h.make_node("MatMul", ["sum", "w3"], ["y"]),
    ]
    weights = dict.fromkeys(("w1", "w2", "w3"), (SIZE, SIZE))
    inputs = [value("few", 1, SIZE), value("many", 1, LARGE)]
    return model_of(nodes, inputs, [value("y", 1, SIZE)], weights)


def ladder() -> onnx.ModelProto:
    """One input, three branches in turn; an output in the middle that is used again."""
    nodes = [
        h.make_node("MatMul", ["x", "w1"], ["a"]),
        h.make_node("ReduceMax", ["x"], ["b"], keepdims=1),
        h.make_node("MatMul", ["a", "w2"], ["c"]),
        h.make_node("Tanh", ["b"], ["d"]),
        h.make_node("Add", ["c", "d"], ["e"]),
        h.make_node("ReduceMax", ["a"], ["f"], keepdims=1),
        h.make_node("MatMul", ["e", "w3"], ["g"]),
        h.make_node("Mul", ["g", "f"], ["y"]),
    ]
    weights = dict.fromkeys(("w1", "w2", "w3"), (SIZE, SIZE))
    outputs = [value("y", 1, SIZE), value("c", 1, SIZE)]
    return model_of(nodes, [value("x", 1, SIZE)], outputs, weights)


def deep() -> onnx.ModelProto:
    """A chain of six matrices."""
    names = ["x", *(f"v{n}" for n in range(6))]
    nodes = [h.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(6)]
    weights = {f"w{n}": (SIZE, SIZE) for n in range(6)}
    return model_of(nodes, [value("x", 1, SIZE)], [value("v5", 1, SIZE)], weights)


def graph_of(model: onnx.ModelProto) -> ValueGraph:
    return build_graph(model, {}, infer_values(model))


def order_of(graph: ValueGraph) -> list[Node]:
    return [node for node in graph.nodes if not node.free]


def write_device(path: Path, *, tflops: float, launch_us: float = 1.0, **other: object) -> Path:
    fields = {
        "title": path.stem,
        "fp32_tflops": tflops,
        "fp16_tflops": tflops,
        "memory_gb_per_s": 1000.0,
        "launch_us": launch_us,
        "memory_gib": 8,
        "source": "made up",
        **other,
    }
    path.write_text(json.dumps(fields))
    return path


def closed_sets(graph: ValueGraph) -> Iterator[frozenset[int]]:
    """Yield every set of nodes that is closed under dependence."""
    order = order_of(graph)
    where = {name: place for place, node in enumerate(order) for name in node.outputs}
    needs = [{where[n] for n in node.inputs if n in where} for node in order]
    pending: list[tuple[int, frozenset[int]]] = [(0, frozenset())]
    while pending:
        place, nodes = pending.pop()
        if place == len(order):
            yield nodes
            continue
        pending.append((place + 1, nodes))
        if needs[place] <= nodes:
            pending.append((place + 1, nodes | {place}))


def cost(
    graph: ValueGraph,
    nodes: frozenset[int],
    seconds: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    goodput_bps: float,
    ratio: float = 1.0,
    power: StatePower | None = None,
) -> float:
    """Return seconds, or joules where there is a power; infinite if something cannot cross."""
    order = order_of(graph)
    robot = sum(seconds[0][place] for place in nodes)
    server = sum(seconds[1][place] for place in range(len(order)) if place not in nodes) * ratio
    made = {name for place in nodes for name in order[place].outputs}
    there = made | set(graph.inputs)
    servers = [node for place, node in enumerate(order) if place not in nodes]
    up = {name for node in servers for name in node.inputs} & there
    moved = [*up, *(name for name in graph.outputs if name not in made)]
    specs = graph.values.specs
    if any(name not in specs for name in moved):
        return float("inf")
    link = sum(default_codec(specs[n]).max_encoded_bytes(specs[n]) for n in moved) * 8
    if power is None:
        return float(robot + server + link / goodput_bps)
    return power.energy_j(compute_s=robot, communicate_s=link / goodput_bps, idle_s=server)
