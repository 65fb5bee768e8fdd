"""Builds a bundle's plans on this device, by the recipe of one of its targets."""

from __future__ import annotations

import logging
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from calibration.plan_text import parse_plan
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.bundle_plans import device_store, target_of
from engines.errors import BuildError
from engines.form_rows import form_rows
from engines.plans import Plan
from engines.striped import Side, form_files
from engines.tensorrt.backend import TensorRTOptions
from engines.tensorrt.builder import BuildOptions

__all__ = ["build_plans"]

logger = logging.getLogger(__name__)


def build_plans(
    bundle: Bundle,
    *,
    target: Optional[str] = None,
    backend: Optional[str] = None,
    compute_capabilities: Optional[Tuple[str, ...]] = None,
    halves: bool = True,
    stripes: Sequence[str] = (),
    progress: Optional[Callable[[int, int], None]] = None,
) -> List[Plan]:
    """Build the plans of a target into the device folder, or find them there.

    Segments come first, then the target's fused halves; one of these that cannot be built is left
    out, and its cut runs as a chain.

    Args:
        bundle: An opened bundle.
        target: Name of one of its targets; none where it has one only.
        backend: Backend to build with instead of the target's own.
        compute_capabilities: GPUs to build for, as ``sm86``; the target's by default.
        halves: Build the fused halves too.
        stripes: Striped plans (``calibration.plan_text``) of which the forms are built too, those
            of both sides: each holds weights of its own.
        progress: Called with (plans done, plans in all).

    Raises:
        IncompatibleError: No such target; the library, or the GPU that it builds for, is missing.
        ManifestError: Not a striped plan of this bundle.
        BuildError: A segment or a form cannot be built.
    """
    _, recipe = target_of(bundle, target)
    manifest = bundle.manifest
    forms: Dict[str, None] = {}
    for text in stripes:
        wanted = parse_plan(text, manifest)
        for side in Side:
            forms.update(dict.fromkeys(form_files(wanted, manifest, side)))
    capabilities = recipe.compute_capabilities
    if compute_capabilities is not None:
        capabilities = compute_capabilities
    store = device_store(bundle)
    options = TensorRTOptions(
        build=BuildOptions(
            compute_capabilities=capabilities,
            workspace_bytes=recipe.workspace_bytes,
            timing_cache=store.folder / "timing.cache",
        )
    )
    builder = open_backend(backend or recipe.backend, options)
    weights = manifest.files[manifest.weights].sha256 if manifest.weights else ""
    plans: List[Plan] = []
    segments = [segment.file for segment in manifest.segments]
    files = segments + (list(recipe.halves) if halves else [])
    total = len(files) + len(forms)
    for done, file in enumerate(files, 1):
        try:
            plan = store.build(builder, bundle.path(file), weights_sha256=weights)  # type: ignore[arg-type]
            plans.append(plan)
        except BuildError as exc:
            if file in segments:
                raise
            logger.warning("%s: no fused half, its cut runs as a chain: %s", file, exc)
        if progress is not None:
            progress(done, total)
    for done, file in enumerate(forms, len(files) + 1):
        form_builder = builder.with_rows(form_rows(bundle, file))  # type: ignore[attr-defined]
        plans.append(store.build(form_builder, bundle.path(file), weights_sha256=weights))
        if progress is not None:
            progress(done, total)
    return plans
