"""The whole graph in ONNX Runtime, its optimiser off: any value of it can be looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, ValueInfoProto

from compiler.graph import Values
from compiler.quiet import one_line
from engines.errors import EmitError
from engines.tensors import DTYPES, Array, TensorSpec

__all__ = ["WholeRun", "measure_values", "plain_session", "run_whole"]

_FATAL_ONLY = 4
"""ONNX Runtime severity: what it would log as an error is raised as well."""


def run_whole(
    model: ModelProto, folder: Path, inputs: Mapping[str, Array], names: Collection[str]
) -> dict[str, Array]:
    """Run a model and return the values ``names``, outputs or not.

    Args:
        model: The whole graph, its weights not loaded.
        folder: Where its weights file lies.
        inputs: Its inputs.
        names: Values that are tensors.

    Raises:
        EmitError: ONNX Runtime refuses it.
    """
    shown = ModelProto()
    shown.CopyFrom(model)
    known = {value.name for value in shown.graph.output}
    # ONNX Runtime infers the type of an output that has none.
    shown.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in known)
    try:
        session = plain_session(shown.SerializeToString(), folder)
        values = session.run(list(names), dict(inputs))
    except Exception as exc:  # ONNX Runtime has no common base class for its errors
        raise EmitError(f"ONNX Runtime cannot run the exported graph: {one_line(exc)}") from exc
    return {name: np.asarray(value) for name, value in zip(names, values)}


class WholeRun:
    """A model opened once, to be run on many inputs; Q/DQ pairs are computed as they are written.

    Args:
        model: The graph, its weights not loaded.
        folder: Where its weights file lies.
        names: Values to give beside the outputs.
        optimise: Whether ONNX Runtime may rewrite the graph.

    Raises:
        EmitError: ONNX Runtime refuses it.
    """

    def __init__(
        self,
        model: ModelProto,
        folder: Path,
        names: Collection[str] = (),
        *,
        optimise: bool = True,
    ) -> None:
        shown = ModelProto()
        shown.CopyFrom(model)
        known = [value.name for value in shown.graph.output]
        inputs = {value.name for value in shown.graph.input}
        more = [name for name in names if name not in known and name not in inputs]
        shown.graph.output.extend(ValueInfoProto(name=name) for name in more)
        self._names = known + more
        self._passed = [name for name in names if name in inputs]
        options: Any = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
        providers = ["CPUExecutionProvider"]
        try:
            self._session: Any = onnxruntime.InferenceSession(
                shown.SerializeToString(), options, providers=providers
            )
        except Exception as exc:  # ONNX Runtime has no common base class for its errors
            raise EmitError(f"ONNX Runtime cannot open the graph: {one_line(exc)}") from exc

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one inference.

        Raises:
            EmitError: ONNX Runtime fails.
        """
        try:
            values = self._session.run(self._names, dict(inputs))
        except Exception as exc:  # ONNX Runtime has no common base class for its errors
            raise EmitError(f"ONNX Runtime cannot run the graph: {one_line(exc)}") from exc
        found = {name: np.asarray(value) for name, value in zip(self._names, values)}
        return {**found, **{name: inputs[name] for name in self._passed}}


def plain_session(model: str | bytes, folder: Path | None = None) -> Any:
    """Open a model in ONNX Runtime as it is written: its optimiser off.

    Args:
        model: Path of the file, or its bytes.
        folder: Where its weights file lies; by default beside the file.
    """
    options: Any = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL_ONLY
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure_values(
    model: ModelProto, folder: Path, values: Values, runs: Sequence[Mapping[str, Array]]
) -> Values:
    """Take shapes that could not be inferred from running the model.

    Args:
        model: The whole graph, its weights not loaded.
        folder: Where its weights file lies.
        values: What was inferred.
        runs: Inputs of two runs or more; a shape that differs between them is not static.

    Returns:
        The same with what was found out.

    Raises:
        EmitError: ONNX Runtime refuses the model.
    """
    names = sorted(values.unknown)
    if not names:
        return values
    shapes = [
        {name: (a.dtype.name, a.shape) for name, a in run_whole(model, folder, x, names).items()}
        for x in runs
    ]
    specs = dict(values.specs)
    wrong = dict(values.wrong)
    for name in names:
        found = {run[name] for run in shapes}
        dtype, shape = shapes[0][name]
        if len(found) > 1:
            wrong[name] = "shape depends on values"
        elif dtype not in DTYPES:
            wrong[name] = f"dtype {dtype} cannot cross a cut"
        else:
            specs[name] = TensorSpec(name, dtype, shape)
            del wrong[name]
    return Values(specs, wrong, frozenset())
