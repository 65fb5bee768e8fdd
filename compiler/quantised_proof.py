"""The proof of a quantised graph: near the float32 model, and from then on the one to agree with.

Rounding to 8 bits is no error of the compiler's, so two questions are asked apart. Is the Q/DQ
graph a good stand-in for the float32 model? Its frontiers are compared by cosine, on inputs that
it was calibrated for. Do the segments compute what the Q/DQ graph says? They are compared with
it, run as a whole with every pair as it is written, at the tolerance of one code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from calibration.metrics import cosine_distance
from calibration.parity import QUANTISED, error_of
from compiler.graph import ValueGraph
from compiler.int8 import Quantised
from compiler.proof import Expected
from compiler.whole import run_whole
from engines.errors import EmitError
from engines.tensors import Array

__all__ = ["DISTANCE", "prove_quantised"]

DISTANCE = 0.1
"""Largest 1 - cosine of a frontier's tensor to the float32 model's. A wrong scale, or kernels that
saturate, give 0.2 and more; 8 bits gave up to 0.03 in the networks tried."""


def prove_quantised(
    model: ModelProto,
    folder: Path,
    graph: ValueGraph,
    expected: Expected,
    quantised: Quantised,
) -> Expected:
    """Compare every frontier and the outputs of the Q/DQ graph with the float32 model.

    Args:
        model: The Q/DQ graph, its weights not loaded.
        folder: Where its weights file lies.
        graph: Its value graph.
        expected: What the float32 model computes.
        quantised: How the graph was quantised.

    Returns:
        What the Q/DQ graph computes, which its segments are to agree with.

    Raises:
        EmitError: A tensor is too far from the float32 model's.
    """
    reference = {**expected.values, **expected.outputs}
    names = sorted(reference, key=lambda name: graph.producer.get(name, -1))
    given = run_whole(model, folder, expected.inputs, names)
    limit = max(DISTANCE, 2 * quantised.record.error)
    for name in names:
        distance = _distance(given[name], reference[name], quantised.names.scales.get(name))
        if distance > limit:
            node = graph.nodes[graph.producer[name]]
            raise EmitError(
                f"precision int8: tensor {name!r} differs from {expected.reference}: 1 - cosine "
                f"{distance:.3g}, at most {limit:g} expected; keep what computes it in float32 "
                f"(--fp32 {node.path or node.name}), calibrate with more data, or try another "
                "--ranges"
            )
    values: Mapping[str, Array] = given
    return Expected(
        dict(expected.inputs),
        {name: np.ascontiguousarray(values[name]) for name in expected.outputs},
        {name: values[name] for name in expected.values},
        "onnx",
    )


def _distance(given: Array, expected: Array, scale: float | None) -> float:
    """Return 1 - cosine of two tensors; integers that stand for themselves are not compared."""
    if scale is not None:
        given = given.astype(np.float32) * np.float32(scale)
    elif expected.dtype.kind != "f":
        return 0.0
    if not np.any(expected):
        return 0.0 if error_of(given.astype(expected.dtype), expected) <= QUANTISED else 1.0
    return cosine_distance({"": given}, {"": expected})
