"""Parity: seeded inputs, the error between two results, and the tolerance for each dtype.

Results are compared by their largest difference; those of graphs with 8-bit operators by the
relative root mean square of all differences, since near ties between two codes, which the order
of summation decides, make one value of many differ by as much as an operator makes of a code.
"""

from __future__ import annotations

import zlib
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from engines.codecs import default_codec
from engines.manifest import Cut
from engines.program import Program
from engines.tensors import Array, TensorSpec

__all__ = [
    "MEASURES",
    "QUANTISED",
    "TOLERANCE",
    "CutParity",
    "error_of",
    "largest_error",
    "rms_error_of",
    "seeded_inputs",
    "tolerance_for",
    "verify_cuts",
]

TOLERANCE: Dict[str, float] = {
    "float64": 1e-6,
    "float32": 1e-4,
    "float16": 2e-2,
    "integer": 1e-5,
}
"""Largest :func:`error_of` allowed, by dtype; ``integer`` stands for every other dtype.

float32: a chain of segments differs from the whole graph by the order of summation only; 1e-6
to 1e-5 was measured. float16 has 11 significant bits and sums grow the rounding. Integers and
booleans: the share of values that differ. An arg max, or a comparison with a threshold, over
millions of values meets near ties that rounding decides; of fewer than 100 000 values none may.
"""


QUANTISED = 1e-1
"""The same for graphs of 8-bit operators, floats and codes alike, against the graph as it is
written: of :func:`rms_error_of`, and of :func:`error_of` where parts are compared in stripes.

The order of summation decides near ties between two codes, and further layers hand that on: behind
50 layers of EfficientNet-lite0 a fifth of the codes came to differ, and behind the steep sigmoid
of a text detector whole pixels. Wrong scales or weights, and kernels that saturate, give more.
"""

_LEAST_RMS = 1e-2
"""Root mean square below which :func:`rms_error_of` is an absolute error: an empty map of scores
has no size to be relative to."""

_CODES = 127
"""Codes on either side of 0: the range of a tensor that was quantised."""


def tolerance_for(dtype: str, tolerance: Mapping[str, float]) -> float:
    """Return the tolerance for a dtype out of a table like :data:`TOLERANCE`."""
    return tolerance.get(dtype, tolerance["integer"])


def error_of(given: Array, expected: Array) -> float:
    """Return how far two results are apart; 0 for equal ones.

    Floats: the largest absolute difference, in units of the larger of 1 and max |expected|. So it
    is an absolute error for values up to 1, and relative to the tensor's range above. Integers and
    booleans, which are labels, indices and masks: the share of values that differ; int8, which are
    codes: the largest difference, in units of 127. Two NaN, or two equal infinities, in one place
    are equal. Other shapes or dtypes, or a non-finite value in
    one of the two only, give infinity.
    """
    if given.shape != expected.shape or given.dtype != expected.dtype:
        return float("inf")
    if not expected.size:
        return 0.0
    if expected.dtype == np.int8:
        return float(np.max(np.abs(given.astype(np.int16) - expected))) / _CODES
    if expected.dtype.kind in "biu":
        return float(np.mean(given != expected))
    a = given.astype(np.float64)
    b = expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if bool(np.all(same)):
        return 0.0
    if not bool(np.all(np.isfinite(a[~same]) & np.isfinite(b[~same]))):
        return float("inf")
    finite = b[np.isfinite(b)]
    scale = max(1.0, float(np.max(np.abs(finite)))) if finite.size else 1.0
    return float(np.max(np.abs(a[~same] - b[~same]))) / scale


def rms_error_of(given: Array, expected: Array) -> float:
    """Return how far two results are apart on the whole; 0 for equal ones.

    Floats and int8, which are codes: the root mean square of the differences, in units of that of
    ``expected`` or of 0.01, whichever is larger. Everything else is as in :func:`error_of`.
    """
    codes = expected.dtype == np.int8
    if given.shape != expected.shape or not (codes or expected.dtype.kind == "f"):
        return error_of(given, expected)
    if given.dtype != expected.dtype or not expected.size:
        return error_of(given, expected)
    a = given.astype(np.float64)
    b = expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not bool(np.all(np.isfinite(a[~same]) & np.isfinite(b[~same]))):
        return float("inf")
    squares = float(np.sum((a[~same] - b[~same]) ** 2))
    finite = b[np.isfinite(b)]
    scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return float(np.sqrt(squares / b.size)) / max(scale, _LEAST_RMS)


MEASURES: Dict[str, Callable[[Array, Array], float]] = {"max": error_of, "rms": rms_error_of}
"""How a bundle's results are compared, by the name in its manifest."""


def largest_error(given: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Return the largest :func:`error_of` over every tensor of ``expected``; 0 for none."""
    missing = [name for name in expected if name not in given]
    if missing:
        return float("inf")
    return max((error_of(given[name], expected[name]) for name in expected), default=0.0)


def seeded_inputs(
    specs: Iterable[TensorSpec], seed: int, *, bounds: Optional[Mapping[str, int]] = None
) -> Dict[str, Array]:
    """Draw inputs that are the same on every machine and NumPy version.

    float: standard normal; uint8: 0 to 255; other integers: 0 up to a bound (default 2, which
    indexes any table of two rows or more); booleans: fair coins. Each input has its own stream.

    Args:
        specs: What to draw.
        seed: Seed of the whole draw.
        bounds: Exclusive upper bound of an integer input, by name.
    """
    drawn: Dict[str, Array] = {}
    for spec in specs:
        # PCG64's raw stream is fixed by NumPy's stream compatibility policy.
        stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(spec.name.encode())]))
        if spec.dtype.startswith("float"):
            values: Array = stream.standard_normal(spec.shape)
        elif spec.dtype == "bool":
            values = stream.integers(0, 2, spec.shape)
        else:
            bound = (bounds or {}).get(spec.name, 256 if spec.dtype == "uint8" else 2)
            values = stream.integers(0, bound, spec.shape)
        drawn[spec.name] = np.asarray(values).astype(spec.dtype).reshape(spec.shape)
    return drawn


class CutParity(NamedTuple):
    """How far one cut's result is from the parity vectors.

    Attributes:
        cut: The cut.
        error: Largest error over the model's outputs, as the bundle measures it.
        largest: Largest :func:`error_of` over them.
        ok: Whether every output is within its dtype's tolerance.
    """

    cut: Cut
    error: float
    largest: float
    ok: bool


def verify_cuts(program: Program, cuts: Optional[Sequence[int]] = None) -> Iterable[CutParity]:
    """Replay the parity vectors through cuts of a loaded program, as robot and server would.

    For each cut: the head on the inputs, every frontier tensor through its default codec, the
    tail on what was decoded, the outputs against those in the bundle. The fused half is proved
    as well as the chain of segments, since either may be used.

    Args:
        program: The bundle on the backend to prove.
        cuts: Indices of cuts; all of them by default.

    Yields:
        One :class:`CutParity` a cut, in the order of :meth:`Program.frontiers`.
    """
    manifest = program.bundle.manifest
    inputs, expected = program.bundle.parity_vectors()
    dtypes = {spec.name: spec.dtype for spec in manifest.outputs}
    measure = MEASURES[manifest.parity.measure]
    for index, env in program.frontiers(inputs):
        if cuts is not None and index not in cuts:
            continue
        given: List[Dict[str, Array]] = [_chain_tail(program, env, index)]
        if program.load_half(0, index) | program.load_half(index, program.last):
            head = program.run(inputs, 0, index)
            given.append(program.outputs(program.run(_received(program, head, index), index)))
        errors = {
            name: max(measure(outputs[name], expected[name]) for outputs in given)
            for name in expected
        }
        largest = max(largest_error(outputs, expected) for outputs in given)
        ok = all(
            error <= tolerance_for(dtypes[name], manifest.parity.tolerance)
            for name, error in errors.items()
        )
        error = max(errors.values(), default=0.0)
        yield CutParity(manifest.cuts[index], error, largest, ok=ok)


def _chain_tail(program: Program, env: Mapping[str, Array], index: int) -> Dict[str, Array]:
    """Run the rest of the model segment by segment from what a peer would have received."""
    done = set(program.bundle.manifest.cuts[index].robot_segments)
    received = _received(program, env, index)
    for segment in program.bundle.manifest.segments:
        if segment.index not in done:
            received.update(program.run_segment(segment.index, received))
    return program.outputs(received)


def _received(program: Program, env: Mapping[str, Array], index: int) -> Dict[str, Array]:
    """Pass the frontier of a cut through its codecs; outputs known before it stay as they are."""
    manifest = program.bundle.manifest
    received = dict(env)
    if index < program.last:
        for spec in manifest.specs(manifest.cuts[index].tensors):
            received[spec.name] = _through_codec(spec, env[spec.name])
    return received


def _through_codec(spec: TensorSpec, array: Array) -> Array:
    codec = default_codec(spec)
    scratch = memoryview(bytearray(codec.max_encoded_bytes(spec)))
    decoded = np.empty(spec.shape, spec.dtype)
    codec.decode(codec.encode(np.ascontiguousarray(array), scratch), decoded)
    return decoded
