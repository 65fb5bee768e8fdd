"""Builder ``torch-tensorrt``: plans of segments out of their fx programs, not their ONNX files.

Torch-TensorRT converts a segment's program (:mod:`compiler.fx_segments`) with its own converters
and gives a serialised engine: a plan of the TensorRT that it imports, which is the one that the
backend ``tensorrt`` finds. What is relied on, read in torch_tensorrt 2.13.0:

1. ``dynamo.convert_exported_program_to_serialized_trt_engine(program, arg_inputs=...)`` returns
   the plan as bytes, and takes the settings that are passed here.
2. The plan calls its inputs as the program calls its placeholders, here ``in0``, ``in1``, ..., and
   its outputs ``output0``, ``output1``, ... in their order
   (``conversion/_TRTInterpreter.py``, ``placeholder`` and ``output``).

The second is checked: the plan is loaded once after it was built, and one with other names or
shapes is refused. The names of the bundle are put before the plan (:mod:`engines.tensorrt.named`).

Torch-TensorRT needs a CUDA build of torch and a GPU even to be imported, so it is imported when it
is asked for, and only here.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from compiler.fx_segments import FxSegment, FxSegments
from compiler.quiet import one_line, quiet
from engines.backend import Engine
from engines.errors import BuildError, EngineError, IncompatibleError
from engines.fingerprint import Fingerprint
from engines.manifest import Segment
from engines.plans import BuiltPlan
from engines.tensorrt.backend import TensorRTBackend
from engines.tensorrt.named import named_plan
from engines.tensors import TensorSpec

__all__ = ["TorchTensorRTBuilder", "find_torch_tensorrt"]

logger = logging.getLogger(__name__)

_OTHERWISE = "leave --builder out to build it from ONNX"


def find_torch_tensorrt() -> Any:
    """Return the module ``torch_tensorrt``.

    Raises:
        IncompatibleError: It is not installed, or cannot be imported here.
    """
    try:
        return importlib.import_module("torch_tensorrt")
    except (
        Exception
    ) as exc:  # its libraries and its look at the GPU fail with errors of every kind
        raise IncompatibleError(
            "--builder torch-tensorrt needs the Python module torch_tensorrt, which cannot be "
            f"imported here ({type(exc).__name__}: {one_line(exc)}); it takes an NVIDIA GPU, a "
            "CUDA build of torch and pip install 'splitrt[torch-tensorrt]', or leave --builder out"
        ) from exc


class TorchTensorRTBuilder:
    """Builds plans for the backend ``tensorrt``; see :class:`engines.plans.PlanBuilder`.

    Args:
        backend: What runs the plans, and says what they are valid for.
        fx: The fx programs of the segments.
        segments: The bundle's segments.
        workspace_bytes: Most scratch memory that a layer may use; none for the library's bound.
        device: Where torch puts weights and inputs meanwhile; none for the GPU, if torch has one.

    Raises:
        IncompatibleError: Torch-TensorRT cannot be imported here.
    """

    name = "tensorrt"

    def __init__(
        self,
        backend: TensorRTBackend,
        fx: FxSegments,
        segments: Sequence[Segment],
        *,
        workspace_bytes: int | None = None,
        device: str | None = None,
    ) -> None:
        self._torch_tensorrt = find_torch_tensorrt()
        self._backend = backend
        self._fx = fx
        self._segments = {Path(segment.file).name: segment for segment in segments}
        self._workspace_bytes = workspace_bytes
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def build_plan(self, onnx_path: Path) -> BuiltPlan:
        """Build the plan of the segment that this ONNX file is of.

        Raises:
            BuildError: It does not map to fx nodes, or Torch-TensorRT cannot convert it.
        """
        piece = self._fx.extract(self._segments[onnx_path.name])
        started = time.perf_counter()
        plan = self._convert(onnx_path.name, piece)
        names, specs = self._names(onnx_path, plan, piece)
        seconds = time.perf_counter() - started
        logger.info("built %s from fx: %d bytes, %.1f s", onnx_path.name, len(plan), seconds)
        count = len(piece.inputs)
        return BuiltPlan(
            named_plan(plan, names),
            piece.precision,
            seconds,
            inputs=tuple(specs[:count]),
            outputs=tuple(specs[count:]),
        )

    def load(self, plan: bytes, *, folder: Path) -> Engine:
        """Load as the backend does."""
        return self._backend.load(plan, folder=folder)

    def fingerprint(self) -> Fingerprint:
        """Say what this device is."""
        return self._backend.fingerprint()

    def plan_fingerprint(self) -> Fingerprint:
        """Say what a plan built now is valid for."""
        return self._backend.plan_fingerprint()

    def plan_options(self) -> dict[str, str]:
        """Return every option that changes a plan."""
        return {
            "builder": "torch-tensorrt",
            "torch_tensorrt": str(self._torch_tensorrt.__version__),
            "torch": str(torch.__version__),
            "workspace_bytes": str(self._workspace_bytes or "default"),
        }

    def _convert(self, file: str, piece: FxSegment) -> bytes:
        library = self._torch_tensorrt
        program = _on_device(piece.program, self._device)
        inputs = tuple(
            torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=self._device)
            for spec in piece.inputs
        )
        try:
            with quiet(), _no_tracebacks():
                plan = library.dynamo.convert_exported_program_to_serialized_trt_engine(
                    program,
                    arg_inputs=inputs,
                    workspace_size=self._workspace_bytes or 0,  # 0: the library's own bound
                    disable_tf32=True,  # FP32 is FP32, as in plans from ONNX
                    require_full_compilation=True,  # an engine has nothing that runs in torch
                    truncate_double=False,
                    immutable_weights=True,  # as plans from ONNX: nothing refits them
                )
        except Exception as exc:  # converters and bindings raise errors of every kind
            raise BuildError(
                f"{file}: torch_tensorrt {library.__version__} cannot convert it: "
                f"{one_line(exc)}; {_OTHERWISE}"
            ) from exc
        return bytes(plan)

    def _names(
        self, onnx_path: Path, plan: bytes, piece: FxSegment
    ) -> tuple[dict[str, str], list[TensorSpec]]:
        """Return the bundle's name of each of the plan's tensors, and the tensors as it has them.

        Raises:
            BuildError: They are not those that it was built from.
        """
        try:
            engine = self._backend.load(plan, folder=onnx_path.parent)
        except EngineError as exc:
            raise BuildError(f"{onnx_path.name}: its plan does not load: {exc}") from exc
        try:
            given = {spec.name: spec for spec in (*engine.inputs, *engine.outputs)}
        finally:
            engine.close()
        wanted = {f"in{place}": spec for place, spec in enumerate(piece.inputs)}
        wanted.update({f"output{place}": spec for place, spec in enumerate(piece.outputs)})
        shapes = {name: spec.shape for name, spec in wanted.items()}
        if {name: spec.shape for name, spec in given.items()} != shapes:
            raise BuildError(
                f"{onnx_path.name}: torch_tensorrt {self._torch_tensorrt.__version__}: expected a "
                f"plan with {_list(wanted)}, given one with {_list(given)}; {_OTHERWISE}"
            )
        names = {name: spec.name for name, spec in wanted.items()}
        specs = [
            TensorSpec(spec.name, given[name].dtype, spec.shape) for name, spec in wanted.items()
        ]
        return names, specs


@contextlib.contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Keep the library from logging what it raises as well, with its graph and a traceback."""
    loud = logging.getLogger("torch_tensorrt")
    level = loud.level
    loud.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        loud.setLevel(level)


def _on_device(program: torch.export.ExportedProgram, device: str) -> torch.export.ExportedProgram:
    from torch.export.passes import move_to_device_pass

    moved: torch.export.ExportedProgram = move_to_device_pass(program, device)
    return moved


def _list(tensors: dict[str, TensorSpec]) -> str:
    return ", ".join(f"{name} {list(spec.shape)}" for name, spec in sorted(tensors.items()))
