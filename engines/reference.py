"""Backend ``reference``: the ONNX reference evaluator. Slow and independent; for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.reference

from engines.backend import BackendOptions, CheckedEngine
from engines.errors import BuildError, EngineError
from engines.fingerprint import Fingerprint, device_name
from engines.tensors import Array, TensorSpec

__all__ = ["ReferenceBackend", "ReferenceEngine"]


class ReferenceEngine(CheckedEngine):
    """One evaluator of one ONNX graph."""

    def __init__(self, name: str, model: Any) -> None:
        initialisers = {tensor.name for tensor in model.graph.initializer}
        super().__init__(
            name,
            [_spec(v) for v in model.graph.input if v.name not in initialisers],
            [_spec(v) for v in model.graph.output],
        )
        self._evaluator: Any = onnx.reference.ReferenceEvaluator(model)

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        names = [spec.name for spec in self._outputs]
        try:
            values = self._evaluator.run(names, inputs)
        except Exception as exc:  # operators of the evaluator raise what they like
            raise EngineError(f"ONNX reference evaluator failed in {self._name!r}: {exc}") from exc
        return {
            spec.name: np.asarray(value, dtype=spec.dtype).reshape(spec.shape)
            for spec, value in zip(self._outputs, values)
        }

    def _free(self) -> None:
        self._evaluator = None


class ReferenceBackend:
    """The evaluator that the ONNX project ships with its specification."""

    name = "reference"

    def __init__(self, options: BackendOptions = BackendOptions()) -> None:
        del options  # the evaluator has none

    def build(self, onnx_path: Path) -> bytes:
        """Return the ONNX file's bytes, which are this backend's plan."""
        try:
            return onnx_path.read_bytes()
        except OSError as exc:
            raise BuildError(f"{onnx_path}: cannot be read: {exc.strerror}") from exc

    def load(self, plan: bytes, *, folder: Path) -> ReferenceEngine:
        """Load ``plan`` and its weights from ``folder``."""
        try:
            model = onnx.load_from_string(plan)
            onnx.external_data_helper.load_external_data_for_model(model, str(folder))
        except Exception as exc:  # protobuf and onnx raise errors of their own kinds
            raise EngineError(f"the ONNX reference evaluator refused a plan: {exc}") from exc
        names = ",".join(value.name for value in model.graph.output)
        return ReferenceEngine(f"reference:{names[:60]}", model)

    def fingerprint(self) -> Fingerprint:
        """Device and version."""
        return Fingerprint(
            backend=self.name,
            fields={"device": device_name(), "version": str(onnx.__version__)},
        )


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    shape = tuple(int(d.dim_value) for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)
