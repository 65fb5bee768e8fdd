"""The proof of a quantised graph: near the float32 model, and from then on the one to agree with.

Rounding to 8 bits is no error of the compiler's, so two questions are asked apart. Is the Q/DQ
graph a good stand-in for the float32 model? Its outputs are compared by cosine, on inputs that it
was calibrated for, unless the user judges by a metric of their own, which the choice of the nodes
has kept already. Do the segments compute what the Q/DQ graph says? They are compared with it, run
as a whole with every pair as it is written, by the relative root mean square of all differences.
Neither looks at the largest difference: a steep operator makes one code as large as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from calibration.metrics import cosine_distance
from calibration.parity import QUANTISED, error_of, rms_error_of
from compiler.graph import ValueGraph
from compiler.int8 import Quantised
from compiler.proof import Expected
from compiler.rounding import rounded
from compiler.whole import run_whole
from engines.errors import EmitError
from engines.manifest import OutputError, Quantisation
from engines.tensors import Array

__all__ = ["DISTANCE", "apart_from_float32", "prove_quantised"]

DISTANCE = 0.1
"""Largest 1 - cosine of an output to the float32 model's. A wrong scale, or kernels that saturate,
give 0.2 and more; 8 bits gave up to 0.03 in the networks tried."""


def prove_quantised(
    model: ModelProto,
    folder: Path,
    graph: ValueGraph,
    expected: Expected,
    quantised: Quantised,
) -> tuple[Expected, dict[str, OutputError]]:
    """Compare the outputs of the Q/DQ graph with the float32 model's.

    Args:
        model: The Q/DQ graph, its weights not loaded.
        folder: Where its weights file lies.
        graph: Its value graph.
        expected: What the float32 model computes.
        quantised: How the graph was quantised.

    Returns:
        What the Q/DQ graph computes, which its segments are to agree with; and how far its
        outputs of floats are from the float32 model's.

    Raises:
        EmitError: An output is too far from the float32 model's, or not finite where that is.
    """
    reference = {**expected.values, **expected.outputs}
    names = sorted(reference, key=lambda name: graph.producer.get(name, -1))
    specs = graph.values.specs
    halves = {n for n, spec in specs.items() if spec.dtype == "float16" and n in graph.producer}
    run = rounded(model, halves) if halves else model
    given = run_whole(run, folder, expected.inputs, names)
    record = quantised.record
    limit = max(DISTANCE, 2 * record.error) if record.metric == "cosine" else 1.0
    distances = {
        name: _distance(given[name], reference[name], quantised.names.scales.get(name))
        for name in names
    }
    errors = {
        name: OutputError(
            distance=distances[name],
            rms=rms_error_of(given[name], wanted),
            largest=error_of(given[name], wanted),
        )
        for name, wanted in expected.outputs.items()
        if wanted.dtype.kind == "f"
    }
    for name, error in errors.items():
        if error.distance > limit or not np.isfinite(error.rms):
            first = next(n for n in names if distances[n] > min(limit, DISTANCE) or n == name)
            node = graph.nodes[graph.producer[first]]
            raise EmitError(_too_far(name, error, limit, node.path or node.name, record))
    values: Mapping[str, Array] = given
    proved = Expected(
        dict(expected.inputs),
        {name: np.ascontiguousarray(values[name]) for name in expected.outputs},
        {name: values[name] for name in expected.values},
        "onnx",
    )
    return proved, errors


def apart_from_float32(record: Quantisation) -> float:
    """Return how far a quantised graph is from float32 over the data, as a relative RMS error.

    That follows from the error that was measured over all samples, where the metric allows; else
    it is that of the outputs on the parity inputs.
    """
    if record.metric == "cosine":
        return math.sqrt(2 * record.error)  # of vectors of one length
    if record.metric == "rms":
        return record.error
    return max((error.rms for error in record.outputs.values()), default=0.0)


def _too_far(name: str, error: OutputError, limit: float, node: str, record: Quantisation) -> str:
    """Say which output is how far off, and what helps."""
    return (
        f"precision int8: output {name!r} differs from the float32 model: 1 - cosine "
        f"{error.distance:.3g}, at most {limit:g} expected (relative RMS error {error.rms:.3g}, "
        f"largest difference {error.largest:.3g}); keep what is as far off first out of int8 "
        f"(--fp16 {node}, or --fp32), calibrate with more samples ({record.samples} given), try "
        f"another --ranges ({record.method} given), or judge by what counts for you (--metric)"
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
