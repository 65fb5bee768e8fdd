"""The plans of a bundle's targets, as far as they can be built on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.target_specs import CPU, TENSORRT, TargetSpec
from engines.backend import open_backend
from engines.bundle import sha256_file
from engines.errors import BuildError
from engines.halves import halves_of
from engines.manifest import Manifest, Target
from engines.plans import PlanHeader, PlanStore
from engines.tensorrt.backend import TensorRTOptions
from engines.tensorrt.builder import BuildOptions

if TYPE_CHECKING:
    import torch

__all__ = ["build_targets"]

logger = logging.getLogger(__name__)


def build_targets(
    folder: Path,
    manifest: Manifest,
    specs: Sequence[TargetSpec],
    *,
    workspace_bytes: int | None,
    halves: str = "auto",
    progress: Callable[[int, int], None],
    fx: torch.export.ExportedProgram | None = None,
) -> dict[str, Target]:
    """Build the plans that can be built here, into ``folder``.

    Args:
        folder: The bundle's folder, with all its ONNX files.
        manifest: The bundle's manifest so far.
        specs: The targets.
        workspace_bytes: Most scratch memory that a layer may use.
        halves: Which fused halves get plans too, one of :data:`engines.halves.HALVES`. One that
            cannot be built is left out: its cut runs as a chain.
        progress: Called with (plans built, plans in all).
        fx: The program that the graph was exported from, to build the plans of the target
            ``tensorrt`` from it with Torch-TensorRT; none to build them from ONNX.

    Returns:
        The targets by name, ``cpu`` excepted, which needs nothing.

    Raises:
        BuildError: A segment cannot be built; the message has the library's reason.
        IncompatibleError: The library or a GPU is missing here.
    """
    wanted = [spec for spec in specs if spec.name != CPU]
    names = [spec.name for spec in wanted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BuildError(f"--target {twice[0]}: given twice; list its compute capabilities in one")
    segments = [segment.file for segment in manifest.segments]
    fused = list(halves_of(manifest, halves).values())
    total = len(segments + fused) * sum(1 for spec in wanted if spec.here)
    weights = sha256_file(folder / manifest.weights) if manifest.weights else ""
    targets: dict[str, Target] = {}
    done = 0
    for spec in wanted:
        plans = f"plans/{spec.name}" if spec.here else None
        planned = fused
        files = segments + fused
        if plans is not None:
            build = BuildOptions(
                compute_capabilities=spec.compute_capabilities, workspace_bytes=workspace_bytes
            )
            backend: Any = open_backend(spec.backend, TensorRTOptions(build=build))
            if fx is not None and spec.name == TENSORRT:
                backend = _fx_builder(backend, fx, manifest, workspace_bytes)
                files = segments  # halves map to no fx program: cuts run as chains
            store = PlanStore(folder / plans)
            planned = []
            for file in files:
                try:
                    plan = store.build(backend, folder / file, weights_sha256=weights)
                except BuildError as exc:
                    if file in segments:
                        raise
                    logger.warning("%s: no fused half, its cut runs as a chain: %s", file, exc)
                else:
                    _check_dtypes(plan.header, file, manifest)
                    planned += [file] if file in fused else []
                done += 1
                progress(done, total)
        targets[spec.name] = Target(
            backend=spec.backend,
            opset=manifest.opset,
            precision=manifest.precision,
            compute_capabilities=spec.compute_capabilities,
            workspace_bytes=workspace_bytes,
            plans=plans,
            halves=tuple(planned),
        )
    return targets


def _fx_builder(
    backend: Any, fx: torch.export.ExportedProgram, manifest: Manifest, workspace_bytes: int | None
) -> Any:
    """Return what builds out of ``fx``, once every segment is known to map to it."""
    from compiler.fx_segments import FxSegments
    from compiler.torch_tensorrt import TorchTensorRTBuilder

    segments = FxSegments(fx, manifest)
    segments.check(manifest.segments)
    return TorchTensorRTBuilder(
        backend, segments, manifest.segments, workspace_bytes=workspace_bytes
    )


def _check_dtypes(header: PlanHeader, file: str, manifest: Manifest) -> None:
    """Refuse a plan that takes or gives other dtypes than the graph, as libraries silently do."""
    wrong = [
        f"{spec.name!r}: expected {manifest.tensors[spec.name].dtype}, the plan has {spec.dtype}"
        for spec in (*header.inputs, *header.outputs)
        if spec.name in manifest.tensors and spec.dtype != manifest.tensors[spec.name].dtype
    ]
    if wrong:
        raise BuildError(
            f"{file}: {header.fingerprint.backend} changes dtypes: {'; '.join(wrong)}; "
            "convert them inside of forward()"
        )
