"""Backend ``ort``: ONNX Runtime on the CPU, the embedded default.

The plan is the ONNX file's own bytes: ONNX Runtime optimises at load time. The weights stay in
the weights file beside the ONNX file, which every session maps from there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import onnxruntime

from engines.abort import Aborted, current_abort
from engines.backend import BackendOptions, CheckedEngine
from engines.errors import BuildError, EngineError
from engines.fingerprint import Fingerprint, device_name
from engines.rows import RowsEngine, RowsSpec
from engines.tensors import Array, TensorSpec

__all__ = ["OrtBackend", "OrtEngine", "OrtRowsEngine"]

_DTYPE_OF_ORT = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}

_LOG_FATAL_ONLY = 4
"""ONNX Runtime severity: its warnings speak of its own optimiser, not of the user's model, and
its errors are raised as well."""


class OrtEngine(CheckedEngine):
    """One ONNX Runtime session. Sessions may be run from several threads at once."""

    def __init__(self, name: str, session: Any) -> None:
        super().__init__(
            name,
            [_spec(value) for value in session.get_inputs()],
            [_spec(value) for value in session.get_outputs()],
        )
        self._session = session
        self._output_names = [spec.name for spec in self._outputs]

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        return _run(self._name, self._session, self._output_names, inputs)

    def _free(self) -> None:
        self._session = None


class OrtRowsEngine(RowsEngine):
    """One ONNX Runtime session of dynamic height."""

    def __init__(self, name: str, session: Any) -> None:
        super().__init__(
            name,
            [_rows_spec(value) for value in session.get_inputs()],
            [_rows_spec(value) for value in session.get_outputs()],
        )
        self._session = session
        self._output_names = [spec.name for spec in self.outputs]

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        return _run(self._name, self._session, self._output_names, inputs)

    def _free(self) -> None:
        self._session = None


class OrtBackend:
    """ONNX Runtime, CPU execution provider."""

    name = "ort"

    def __init__(self, options: BackendOptions = BackendOptions()) -> None:
        self._options = options
        self._files: Dict[bytes, Path] = {}

    def build(self, onnx_path: Path) -> bytes:
        """Return the ONNX file's bytes, which are this backend's plan."""
        try:
            plan = onnx_path.read_bytes()
        except OSError as exc:
            raise BuildError(f"{onnx_path}: cannot be read: {exc.strerror}") from exc
        self._files[hashlib.sha256(plan).digest()] = onnx_path
        return plan

    def load(self, plan: bytes, *, folder: Path) -> OrtEngine:
        """Open a session on ``plan``; external weights are looked up in ``folder``."""
        file = self._files.get(hashlib.sha256(plan).digest())
        options = self._session_options()
        source: "bytes | str" = plan
        if file is not None and file.parent == folder:
            # ONNX Runtime 1.19, the newest on Python 3.8, finds weights beside a file only.
            source = str(file)
        else:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        session = _open(source, options)
        names = ",".join(value.name for value in session.get_outputs())
        return OrtEngine(f"ort:{names[:60]}", session)

    def load_rows(self, onnx_path: Path) -> OrtRowsEngine:
        """Open a session on a striped form, whose row axis has a symbolic extent."""
        session = _open(str(onnx_path), self._session_options())
        return OrtRowsEngine(f"ort:{onnx_path.stem}", session)

    def fingerprint(self) -> Fingerprint:
        """Device, version and thread count: what ONNX Runtime's times depend on."""
        return Fingerprint(
            backend=self.name,
            fields={
                "device": device_name(),
                "version": str(onnxruntime.__version__),
                "threads": str(self._options.threads or "auto"),
            },
        )

    def _session_options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_FATAL_ONLY
        if self._options.threads:
            options.intra_op_num_threads = self._options.threads
        # Idle sessions that spin take the cores from the session that runs: with a chain of
        # segments, each with its own pool, two threads are then far slower than one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # DequantizeLinear before MatMul becomes one MatMulNBits, which by default rounds its other
        # input to 8 bits: errors of 0.05 to 0.3 were measured. 1 computes in float32.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        # Q/DQ pairs are computed as they are written. Fused into 8-bit kernels they would be wrong
        # on a processor without VNNI: VPMADDUBSW adds pairs of products in 16 bits, saturating,
        # and a network whose cosine to float32 is 0.99 came to 0.82.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options


def _open(source: "bytes | str", options: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime has no common base class for its errors
        raise EngineError(f"ONNX Runtime refused a plan: {_one_line(exc)}") from exc


def _run(
    name: str, session: Any, outputs: List[str], inputs: Dict[str, Array]
) -> Dict[str, Array]:
    abort = current_abort()
    try:
        if abort is None:
            values = session.run(outputs, inputs)
        else:
            options = onnxruntime.RunOptions()
            with abort.watched(lambda: setattr(options, "terminate", True)):
                values = session.run(outputs, inputs, options)
    except Exception as exc:  # ONNX Runtime has no common base class for its errors
        if abort is not None and abort.is_set():
            raise Aborted from exc
        raise EngineError(f"ONNX Runtime failed in {name!r}: {_one_line(exc)}") from exc
    return {output: np.asarray(value) for output, value in zip(outputs, values)}


def _spec(value: Any) -> TensorSpec:
    dtype = _DTYPE_OF_ORT.get(value.type)
    static = all(isinstance(extent, int) for extent in value.shape)
    if dtype is None or not static:
        raise EngineError(
            f"{value.name!r}: expected a tensor of a fixed shape, given {value.type} "
            f"{value.shape}; compile the model with --input to fix its shapes"
        )
    return TensorSpec(value.name, dtype, tuple(value.shape))


def _rows_spec(value: Any) -> RowsSpec:
    dtype = _DTYPE_OF_ORT.get(value.type)
    shape = tuple(extent if isinstance(extent, int) else None for extent in value.shape)
    if dtype is None or shape.count(None) > 1:
        raise EngineError(
            f"{value.name!r}: expected a tensor of fixed shape but for its rows, given "
            f"{value.type} {value.shape}; compile the model again"
        )
    return RowsSpec(value.name, dtype, shape)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:400]
