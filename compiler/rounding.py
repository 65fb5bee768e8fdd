"""The proof of a float16 graph: run it as a processor would that has float16 arithmetic.

ONNX Runtime computes in float32 on a CPU and drops the casts between two nodes, even with its
optimiser off, so that neither rounding nor overflow shows inside of a segment. With an Identity,
which it does run in float16, behind every node each value is rounded as it is on a GPU; what
happens inside of one operator (sums of a convolution) stays float32, as on tensor cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, helper

from calibration.parity import error_of, tolerance_for
from compiler.graph import ValueGraph
from compiler.proof import Expected, widened
from compiler.whole import run_whole
from engines.errors import EmitError
from engines.tensors import Array

__all__ = ["prove_rounded", "rounded"]


def rounded(model: ModelProto, halves: set[str]) -> ModelProto:
    """Return the model with every value of ``halves`` rounded to float16 where it is given."""
    made = ModelProto()
    made.CopyFrom(model)
    taken = {name for node in model.graph.node for name in (node.name, *node.output)}
    nodes: list[NodeProto] = []
    for node in made.graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name not in halves:
                continue
            inner = f"{name}_unrounded"
            while inner in taken:
                inner += "_"
            taken.add(inner)
            node.output[place] = inner
            nodes.append(helper.make_node("Identity", [inner], [name], name=inner))
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(kept)
    del made.graph.value_info[:]
    return made


def prove_rounded(
    model: ModelProto,
    folder: Path,
    graph: ValueGraph,
    expected: Expected,
    tolerance: Mapping[str, float],
) -> float:
    """Compare every frontier and the outputs of the rounded graph with the float32 reference.

    Args:
        model: The whole graph, its weights not loaded.
        folder: Where its weights file lies.
        graph: Its value graph.
        expected: What to compare with.
        tolerance: Largest error allowed, by dtype.

    Returns:
        The largest error.

    Raises:
        EmitError: An error is above its tolerance.
    """
    specs = graph.values.specs
    halves = {n for n, spec in specs.items() if spec.dtype == "float16" and n in graph.producer}
    reference = {**expected.values, **expected.outputs}
    names = sorted(reference, key=lambda name: graph.producer.get(name, -1))
    run = rounded(model, halves)
    given = run_whole(run, folder, expected.inputs, names)
    largest = 0.0
    for name in names:
        error = error_of(widened(given[name], reference[name]), reference[name])
        if error > tolerance_for(specs[name].dtype, tolerance):
            culprit = _first_overflow(run, folder, graph, expected.inputs, halves)
            node = graph.nodes[graph.producer[culprit or name]]
            what = f"; {culprit!r} overflows float16" if culprit else ""
            raise EmitError(
                f"precision fp16: tensor {name!r} differs from {expected.reference}: error "
                f"{error:.3g}, tolerance {tolerance_for(specs[name].dtype, tolerance):g}{what}; "
                f"keep what computes it in float32: --fp32 {node.path or node.name}, and what "
                "its result goes into"
            )
        largest = max(largest, error)
    return largest


def _first_overflow(
    run: ModelProto,
    folder: Path,
    graph: ValueGraph,
    inputs: Mapping[str, Array],
    halves: set[str],
) -> str | None:
    """Return the first value, in the order of the file, that is not finite."""
    names = sorted(halves, key=lambda name: graph.producer[name])
    given = run_whole(run, folder, inputs, names)
    return next((name for name in names if not np.all(np.isfinite(given[name]))), None)
