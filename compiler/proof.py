"""Proof: a compiled model is run, segment by segment, against the model that it came from.

1. The reference runs once on the parity inputs and gives every value that some cut has cross,
   as far as it knows them: PyTorch all that the exporter kept by name.
2. The values that it does not know come from the whole ONNX graph, run with the optimiser off.
3. The segments run once, in a chain, each on what the one before gave; every frontier is
   compared. An error in one segment therefore shows at the first cut after it.
4. Head and tail of a few cuts, the whole graph among them, run against the parity outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from calibration.parity import MEASURES, error_of, tolerance_for, verify_cuts
from compiler.reference import Reference
from compiler.stripes.proof import prove_stripes
from compiler.whole import run_whole
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.errors import EmitError, EngineError
from engines.manifest import Manifest
from engines.ondemand import OnDemandBackend
from engines.program import Program
from engines.tensors import Array

__all__ = ["PARITY_FILE", "Exact", "Expected", "expect", "prove", "widened", "write_parity"]

PARITY_FILE = "parity.npz"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model computes on the parity inputs.

    Attributes:
        inputs: By name.
        outputs: The reference's, by name.
        values: Every other tensor of some frontier, by name.
        reference: ``pytorch`` or ``onnx``.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    values: dict[str, Array]
    reference: str


@dataclass(frozen=True, slots=True)
class Exact:
    """The graph before it was converted to float16 or int8.

    Attributes:
        model: The graph, its weights not loaded.
        folder: Where its weights file lies.
        aliases: Name in this graph of every value that got another by the conversion.
    """

    model: ModelProto
    folder: Path
    aliases: Mapping[str, str]


def expect(
    reference: Reference,
    model: ModelProto,
    folder: Path,
    inputs: Mapping[str, Array],
    specs: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    exact: Exact | None = None,
) -> Expected:
    """Compute what is to be compared with.

    Args:
        reference: The model as it was given.
        model: The whole ONNX graph, its weights not loaded.
        folder: Where its weights file lies.
        inputs: The parity inputs.
        specs: Dtype and shape of every tensor to compare, inputs excepted.
        exact: The float32 graph, where ``model`` is its conversion: what the reference does not
            know is computed by this one.

    Raises:
        EmitError: The reference or the graph fails on the inputs, or the reference's outputs
            are of another dtype or shape than the graph's.
    """
    names = {name: name if exact is None else exact.aliases.get(name, name) for name in specs}
    found = reference.run(inputs, names.values())
    known = {name: found[old] for name, old in names.items() if old in found}
    ends = [value.name for value in model.graph.output]
    wrong = [
        f"{n}: expected {known[n].dtype} {list(known[n].shape)}, exported {specs[n][0]} "
        f"{list(specs[n][1])}"
        for n in ends
        if (known[n].dtype.name, known[n].shape) != specs[n]
    ]
    if wrong:
        raise EmitError(
            f"the exported graph gives other outputs than the model: {'; '.join(wrong)}"
        )
    values = {
        name: array
        for name, array in known.items()
        if array.shape == specs[name][1] and _fits(array, specs[name][0], exact)
    }
    rest = [name for name in specs if name not in values]
    if rest and exact is None:
        values.update(run_whole(model, folder, inputs, rest))
    elif rest and exact is not None:
        olds = sorted({names[name] for name in rest} - set(inputs))
        whole = {**inputs, **run_whole(exact.model, exact.folder, inputs, olds)}
        values.update({name: whole[names[name]] for name in rest})
    outputs = {name: np.ascontiguousarray(values.pop(name)) for name in ends}
    outputs = {name: array.reshape(specs[name][1]) for name, array in outputs.items()}
    return Expected(dict(inputs), outputs, values, reference.kind)


def _fits(array: Array, dtype: str, exact: Exact | None) -> bool:
    """Say whether a reference's value is of a dtype, or of float32 where that was converted."""
    narrow = dtype in ("float16", "int8")
    converted = exact is not None and array.dtype.name == "float32" and narrow
    return array.dtype.name == dtype or converted


def widened(given: Array, expected: Array) -> Array:
    """Return a float16 value as float32 if it is to be compared with one.

    Not the other way round: what overflows float16 would equal a reference that does so too.
    """
    wider = given.dtype == np.float16 and expected.dtype == np.float32
    return given.astype(np.float32) if wider else given


def _remedy(precision: str) -> str:
    if precision == "int8":
        return (
            "keep the nodes before it out of int8 (--fp16 or --fp32 NAME), or give more --samples"
        )
    island = ", or --fp32 NAME for the nodes before it" if precision == "fp16" else ""
    return (
        "the model may compute differently from run to run, or the exporter is wrong: try another "
        f"--opset or --seed{island}"
    )


def _off(manifest: Manifest, error: float, largest: float) -> str:
    """Say an error, and the largest difference where that is another matter."""
    by_rms = manifest.parity.measure == "rms"
    return f"error {error:.3g}" + (f" (largest difference {largest:.3g})" if by_rms else "")


def write_parity(folder: Path, expected: Expected) -> None:
    """Write inputs and outputs for the robot to replay."""
    arrays = {f"input:{name}": array for name, array in expected.inputs.items()}
    arrays.update({f"output:{name}": array for name, array in expected.outputs.items()})
    np.savez_compressed(folder / PARITY_FILE, allow_pickle=False, **arrays)


def prove(bundle: Bundle, expected: Expected, *, progress: Callable[[int, int], None]) -> float:
    """Run the chain of segments, and the halves of a few cuts.

    Args:
        bundle: The bundle, all its files written.
        expected: What to compare with.
        progress: Called with (segments loaded, segments in all).

    Returns:
        The largest error over every frontier and the outputs.

    Raises:
        EmitError: An error is above its tolerance; or a segment cannot be loaded or run.
    """
    try:
        return _prove(bundle, expected, progress)
    except EngineError as exc:
        raise EmitError(
            f"{exc}; ONNX Runtime, which proves every bundle, cannot run this model on the CPU"
        ) from exc


def _prove(bundle: Bundle, expected: Expected, progress: Callable[[int, int], None]) -> float:
    # Every engine holds a copy of the weights it uses: never two of them at a time.
    backend = OnDemandBackend(open_backend("ort"))
    with Program(bundle, backend, fuse=False, progress=progress) as program:
        largest = _prove_chain(program, expected)
        middle = program.last // 2
        for parity in verify_cuts(program, sorted({0, 1, middle, program.last - 1})):
            if not parity.ok:
                raise EmitError(
                    f"cut {parity.cut.id}: head and tail give another result than the model: "
                    f"{_off(bundle.manifest, parity.error, parity.largest)}, tolerance "
                    f"{bundle.manifest.parity.tolerance}; "
                    f"{_remedy(bundle.manifest.precision)}"
                )
            largest = max(largest, parity.error)
        return max(largest, prove_stripes(program, expected.inputs, progress=progress))


def _prove_chain(program: Program, expected: Expected) -> float:
    manifest = program.bundle.manifest
    reference = {**expected.values, **expected.outputs}
    largest = 0.0
    seen = set(expected.inputs)
    for index, env in program.frontiers(expected.inputs):
        cut = manifest.cuts[index]
        for name in sorted(set(env) - seen):
            seen.add(name)
            given = widened(env[name], reference[name])
            error = MEASURES[manifest.parity.measure](given, reference[name])
            tolerance = tolerance_for(env[name].dtype.name, manifest.parity.tolerance)
            if error > tolerance:
                raise EmitError(
                    f"cut {cut.id} (after {cut.after or 'the end'}): tensor {name!r} differs from "
                    f"{expected.reference}: "
                    f"{_off(manifest, error, error_of(given, reference[name]))}, tolerance "
                    f"{tolerance:g}; {_remedy(manifest.precision)}"
                )
            largest = max(largest, error)
    return largest
