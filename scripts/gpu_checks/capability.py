"""Step ``capability``: whether TensorRT for RTX runs on this GPU, whatever it was built for.

The library builds for the compute capabilities that it lists. Here a small plan is built for each
of them, for its default and for the GPU at hand, and each is tried on this GPU: what the library
says of it beforehand, whether it deserialises, whether it runs, whether it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calibration.parity import TOLERANCE, largest_error
from engines.errors import BuildError, EngineError, IncompatibleError
from engines.tensorrt.api import Api
from engines.tensorrt.builder import BuildOptions, build_plan
from engines.tensorrt.engine import Session, TensorRTEngine
from engines.tensors import Array
from scripts.gpu_checks.bundles import TIMED, bundle_of
from scripts.gpu_checks.kit import NO_GPU, Kit
from scripts.gpu_checks.records import Row, Status

__all__ = ["CURRENT", "DEFAULT", "targets_of", "try_target"]

DEFAULT = "default"
CURRENT = "current"
"""Targets beside the listed ones: what the library builds for by itself; the GPU at hand."""

RTX = "tensorrt-rtx"


class _AnyTarget(Api):
    """The library, able to build for the GPU at hand whether its list has it or not."""

    def set_targets(self, config: Any, names: Sequence[str]) -> None:
        """Build for these, ``current`` among them."""
        if tuple(names) != (CURRENT,):
            super().set_targets(config, names)
            return
        if not hasattr(self.trt.ComputeCapability, "CURRENT"):
            raise BuildError(f"{self.library} {self.version} has no target {CURRENT}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(self.trt.ComputeCapability.CURRENT, 0)


def targets_of(kit: Kit) -> list[str]:
    """Return what to try. Raises IncompatibleError where the library is missing."""
    return [DEFAULT, CURRENT, *kit.api(RTX).target_names]


def try_target(kit: Kit, step: str, target: str) -> Row:
    """Build for one target, and try the plan on this GPU."""
    api = _api(kit)
    bundle = bundle_of(TIMED, kit.work)
    options = BuildOptions(compute_capabilities=() if target == DEFAULT else (target,))
    plan = build_plan(api, bundle.path(bundle.manifest.graph), options).data
    status: Status = "built"
    said = f"not run: {NO_GPU}"
    if not kit.no_gpu:
        status, said = _try(kit, api, plan, *bundle.parity_vectors())
    return Row(
        step=step,
        subject=target,
        backend=RTX,
        status=status,
        said=said,
        plans=1,
        plan_bytes=len(plan),
    )


def _api(kit: Kit) -> Api:
    found = kit.api(RTX)
    if not found.is_rtx:
        raise IncompatibleError(f"{found.library} has no targets")
    return _AnyTarget(found.trt)


def _try(
    kit: Kit, api: Api, plan: bytes, inputs: dict[str, Array], expected: dict[str, Array]
) -> tuple[Status, str]:
    memory = kit.memory()
    session = Session(memory)
    here = f"on {memory.device.compute_capability}"
    with memory.current(), api.errors() as errors:
        runtime = api.create_runtime()
        here += f", said beforehand to be {api.validity(runtime, plan)}"
        loaded = runtime.deserialize_cuda_engine(plan)
        context = None if loaded is None else api.create_context(loaded, graphs=False, cache=b"")
        if context is None:
            what = "deserialise" if loaded is None else "make a context"
            return "refused", f"{here}: does not {what}: {'; '.join(errors) or 'without a reason'}"
        try:
            engine = TensorRTEngine(
                "try", api, session, runtime=runtime, engine=loaded, context=context
            )
            try:
                given = engine.run(inputs)
            finally:
                engine.close()
        except EngineError as exc:
            return "refused", f"{here}: does not run: {exc}"
    error = largest_error(given, expected)
    right = error <= TOLERANCE["float32"]
    shown = f"{error:.1e}" if np.isfinite(error) else "not finite"
    return "ok" if right else "wrong", f"{here}: runs, largest error {shown}"
