"""NVIDIA ModelOpt as a quantizer: Q/DQ where TensorRT fuses them, thresholds by its calibration.

ModelOpt writes a Q/DQ graph of its own, of another opset and with weights as floats. Of that, it
is the placement that counts: which input of which node goes through a pair, and its scale. Pairs
are then written into the compiler's graph in the form that all quantizers share, so that codes
cross cuts, weights are stored as codes, and names stay. What is relied on, read in and run with
nvidia-modelopt 0.47.0 on a CPU:

- ``modelopt.onnx.quantization.quantize`` with ``quantize_mode="int8"``, ``calibration_method``
  ``entropy`` or ``max``, a calibration data reader with ``get_next``, ``get_first`` and
  ``rewind``, and ``nodes_to_exclude``, patterns that match from a name's beginning;
- nodes keep their names, and the order of their inputs;
- it replaces methods of ``onnxruntime.quantization`` every time that it runs, and leaves them so:
  here they are put back;
- convolutions of fewer than 16 channels are left out, but for some, as are products with a vector
  (the last layer of a classifier): TensorRT has no faster kernel for those in 8 bits.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from calibration.ranges import LEVELS
from calibration.samples import Sample, Samples
from compiler.passes.quantise import WEIGHTED, quantisable
from compiler.quantizers import Placement
from compiler.quiet import one_line, quiet
from engines.errors import SourceError, SplitError, TraceError
from engines.tensors import Array

__all__ = ["ModeloptQuantizer", "read_placement"]

_METHODS = {"entropy": "entropy", "minmax": "max"}
"""What ModelOpt calls ways of choosing thresholds, by what the compiler does."""

_LARGE_BYTES = 2**31 - 2**26
"""Weights from which on they cannot lie in the ONNX file itself, which ends at 2 GiB."""


class ModeloptQuantizer:
    """Quantises what ModelOpt does; see :class:`compiler.quantizers.Quantizer`.

    Raises:
        TraceError: ModelOpt is not installed.
    """

    def __init__(self) -> None:
        try:
            with quiet(stderr=True):
                module: Any = importlib.import_module("modelopt.onnx.quantization")
                self._quantize: Any = module.quantize
        except ImportError as exc:
            raise TraceError(
                "--quantizer modelopt needs the package nvidia-modelopt and its ONNX parts, which "
                f'cannot be imported here ({one_line(exc)}); pip install "splitrt[modelopt]", or '
                "leave --quantizer out"
            ) from exc

    def place(
        self,
        model: ir.Model,
        exact: Path,
        samples: Samples,
        *,
        left_out: Collection[str],
        method: str,
    ) -> Placement:
        """Choose the inputs that ModelOpt quantises, with its thresholds."""
        if next(iter(samples), None) is None:
            raise SourceError(f"{samples.name}: expected at least one sample, found none")
        if any(node.op_type == "QuantizeLinear" for node in model.graph):
            raise TraceError(
                "--quantizer modelopt: expected a graph without Q/DQ pairs, given one that has "
                "some; leave --quantizer out"
            )
        made = self._run(exact, samples, left_out, method)
        placement = read_placement(made, model, left_out)
        if not placement.sites:
            raise TraceError(
                "--quantizer modelopt: it quantises nothing in this model: it leaves out "
                "convolutions of fewer than 16 channels and products with a vector, which are no "
                "faster in 8 bits; leave --quantizer out, or use --precision fp16"
            )
        return placement

    def _run(
        self, exact: Path, samples: Samples, left_out: Collection[str], method: str
    ) -> onnx.ModelProto:
        """Return the graph that ModelOpt makes, its weights not loaded."""
        # It writes beside what it reads, and over it.
        with tempfile.TemporaryDirectory(dir=exact.parent.parent) as scratch:
            source, made = Path(scratch) / "float32.onnx", Path(scratch) / "int8.onnx"
            large = _copy(exact, source) > _LARGE_BYTES
            reader = _Reader(samples)
            try:
                with quiet(stderr=True), _put_back("onnxruntime.quantization"):
                    self._quantize(
                        str(source),
                        quantize_mode="int8",
                        calibration_data_reader=reader,
                        calibration_method=_METHODS[method],
                        calibration_eps=["cpu"],
                        nodes_to_exclude=[rf"{re.escape(name)}\Z" for name in sorted(left_out)],
                        high_precision_dtype="fp32",
                        use_external_data_format=large,
                        output_path=str(made),
                        log_level="CRITICAL",
                    )
            except SplitError:
                raise
            except Exception as exc:  # it raises assertions, and errors of what it uses
                raise TraceError(
                    f"--quantizer modelopt: ModelOpt failed ({type(exc).__name__}: "
                    f"{one_line(exc)}); leave --quantizer out"
                ) from exc
            return onnx.load(made)


@contextlib.contextmanager
def _put_back(package: str) -> Iterator[None]:
    """Undo what is assigned to a package's modules and classes, or put into its dicts, within."""
    modules = [m for n, m in list(sys.modules.items()) if f"{n}.".startswith(f"{package}.")]
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and f"{value.__module__}.".startswith(f"{package}.")
    }
    owners: list[Any] = [*modules, *classes]
    before = [(owner, dict(vars(owner))) for owner in owners]
    tables = [
        (value, dict(value))
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, dict) and not name.startswith("__")
    ]
    try:
        yield
    finally:
        for owner, old in before:
            for name, value in dict(vars(owner)).items():
                if name not in old:
                    delattr(owner, name)
                elif value is not old[name]:
                    setattr(owner, name, old[name])
        for table, entries in tables:
            table.clear()
            table.update(entries)


def _copy(exact: Path, to: Path) -> int:
    """Copy a graph and its weights; return the size of the weights in bytes."""
    shutil.copy(exact, to)
    graph = onnx.load(exact, load_external_data=False).graph
    size = 0
    for name in {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }:
        shutil.copy(exact.parent / name, to.parent / name)
        size += (exact.parent / name).stat().st_size
    return size


class _Reader:
    """The samples as ONNX Runtime's ``CalibrationDataReader`` gives them, one at a time."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._left: Iterator[Sample] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next sample's inputs; none at the end."""
        sample = next(self._left, None)
        return None if sample is None else sample.inputs

    def get_first(self) -> dict[str, Array] | None:
        """Return the first sample's inputs, and stay where it is."""
        sample = next(iter(self._samples), None)
        return None if sample is None else sample.inputs

    def rewind(self) -> None:
        """Begin anew."""
        self._left = iter(self._samples)


def read_placement(
    made: onnx.ModelProto, model: ir.Model, left_out: Collection[str] = ()
) -> Placement:
    """Return which inputs of a model's nodes go through pairs in a graph made of it.

    A value that is quantised for one node is so for all that take it, in graphs that ONNX
    Runtime's quantiser wrote: a node whose weight is not does not compute in 8 bits all the same.

    Args:
        made: The Q/DQ graph of another tool.
        model: The model that it was made of, in float32.
        left_out: Names of nodes that are to take no codes.

    Raises:
        TraceError: The pairs are not of the form that TensorRT takes, or not of this model.
    """
    nodes = {node.name: node for node in model.graph}
    able = quantisable(model)
    decoders = {n.output[0]: n for n in made.graph.node if n.op_type == "DequantizeLinear"}
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    sites: dict[str, list[int]] = {}
    thresholds: dict[str, float] = {}
    wrong: set[str] = set()
    unfit = set(left_out)
    for taker in made.graph.node:
        if taker.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for place, name in enumerate(taker.input):
            decoder = decoders.get(name)
            if decoder is None:
                continue
            node = nodes.get(taker.name)
            value = None if node is None or place >= len(node.inputs) else node.inputs[place]
            factor = _scale(decoder, constants)
            if value is None or factor is None:
                wrong.add(taker.name)
            elif value.dtype != ir.DataType.FLOAT:
                unfit.add(taker.name)
            elif value.const_value is not None:
                # Constants of other operators, and biases, stay as they are.
                if place == 1 and taker.name in able:
                    sites.setdefault(taker.name, []).append(place)
                elif place == 1 and taker.op_type in WEIGHTED:
                    unfit.add(taker.name)  # its weight cannot be stored by channel
            elif factor.size != 1:
                wrong.add(taker.name)
            else:
                sites.setdefault(taker.name, []).append(place)
                reach = float(factor.max()) * LEVELS
                thresholds[value.name or ""] = max(thresholds.get(value.name or "", 0.0), reach)
    if wrong:
        raise TraceError(
            "--quantizer modelopt: expected symmetric int8, a scale for each activation, and "
            f"nodes that are in the model, given something else at {', '.join(sorted(wrong))}; "
            "leave --quantizer out"
        )
    unfit.update(name for name in able if 1 not in sites.get(name, ()))
    return Placement({n: tuple(sites[n]) for n in sites if n not in unfit}, thresholds)


def _scale(
    decoder: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> np.ndarray[Any, Any] | None:
    """Return the scale of a pair; none where it is not symmetric int8."""
    if len(decoder.input) < 3 or any(name not in constants for name in decoder.input[1:]):
        return None
    scale, zero = (constants[name] for name in decoder.input[1:])
    if zero.data_type != onnx.TensorProto.INT8 or np.any(onnx.numpy_helper.to_array(zero)):
        return None
    return np.asarray(onnx.numpy_helper.to_array(scale), np.float32)
