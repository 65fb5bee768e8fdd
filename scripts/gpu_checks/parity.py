"""Steps ``models``, ``demo``, ``bundles`` and ``fx``: plans of every segment, every cut compared.

Both sides of a cut are compared with ONNX Runtime on the CPU. The head runs from the model's
inputs, as one chain whose every tensor is looked at; the tail of each cut runs from the frontier
that ONNX Runtime gives, so that what the head got wrong is not counted twice.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.parity import MEASURES, tolerance_for
from engines.backend import Engine, open_backend
from engines.bundle import Bundle
from engines.bundle_plans import BundlePlans
from engines.errors import EngineError
from engines.manifest import Cut
from engines.plans import Plan
from engines.tensors import Array
from scripts.gpu_checks.bundles import bundle_of
from scripts.gpu_checks.kit import NO_GPU, Kit, OutOfTimeError
from scripts.gpu_checks.records import CutError, Row, Status

__all__ = ["build_plan", "compare_bundle", "compare_from_fx", "expected_tensors", "loaded_chain"]

Load = Callable[[Path], Engine]


def compare_bundle(kit: Kit, step: str, subject: str, backend_name: str) -> Row:
    """Build the plans of a model's segments, and run every cut of it where there is a GPU."""
    kit.backend(backend_name)  # what is missing is missing before anything is compiled
    bundle = bundle_of(subject, kit.work)
    plans: list[Plan] = []
    for segment in bundle.manifest.segments:
        if kit.budget.left_s <= 0:
            raise OutOfTimeError(f"{len(plans)} of {len(bundle.manifest.segments)} plans built")
        plans.append(build_plan(kit, backend_name, bundle.path(segment.file)))
    size = sum(plan.header.size for plan in plans)
    fields: dict[str, Any] = {
        "step": step,
        "subject": subject,
        "backend": backend_name,
        "plans": len(plans),
    }
    if kit.no_gpu:
        said = f"not run: {NO_GPU}"
        return Row(**fields, status="built", said=said, plan_bytes=size)
    backend = kit.backend(backend_name)

    def load(path: Path) -> Engine:
        return backend.load(build_plan(kit, backend_name, path).data, folder=path.parent)

    status, said, cuts = _compare(bundle, load)
    return Row(**fields, status=status, said=said, plan_bytes=size, cuts=cuts)


def compare_from_fx(kit: Kit, step: str, subject: str, backend_name: str) -> Row:
    """Let Torch-TensorRT build a model's plans, and run every cut of it."""
    backend = kit.backend(backend_name)
    bundle = bundle_of(subject, kit.work, builder="torch-tensorrt")
    planned = BundlePlans(bundle, backend)

    def load(path: Path) -> Engine:
        return planned.load(planned.build(path), folder=path.parent)

    status, said, cuts = _compare(bundle, load)
    count = len(bundle.manifest.segments)
    return Row(
        step=step,
        subject=subject,
        backend=backend_name,
        status=status,
        said=f"plans by torch-tensorrt: {said}",
        plans=count,
        cuts=cuts,
    )


def build_plan(kit: Kit, backend_name: str, path: Path) -> Plan:
    """Return the plan of an ONNX file, built in this check or found."""
    return kit.store(backend_name).build(kit.backend(backend_name), path)


def expected_tensors(bundle: Bundle) -> dict[str, Array]:
    """Return every tensor between segments, from ONNX Runtime on the CPU."""
    ort = open_backend("ort")
    with loaded_chain(
        bundle, lambda path: ort.load(ort.build(path), folder=path.parent)
    ) as engines:
        return _run(engines, range(len(engines)), bundle.parity_vectors()[0])


def _compare(bundle: Bundle, load: Load) -> tuple[Status, str, tuple[CutError, ...]]:
    expected = expected_tensors(bundle)
    inputs = bundle.parity_vectors()[0]
    errors: list[CutError] = []
    with loaded_chain(bundle, load) as engines:
        _check_dtypes(bundle, engines)
        everything = range(len(engines))
        from_inputs = _run(engines, everything, inputs)
        for cut in bundle.manifest.cuts:
            errors.append(_worst(bundle, cut, "head", cut.tensors, from_inputs, expected))
            mine = set(cut.robot_segments)
            known = {name: expected[name] for name in cut.tensors}
            given = _run(engines, [i for i in everything if i not in mine], known)
            errors.append(_worst(bundle, cut, "tail", cut.results, given, expected))
    wrong = [e for e in errors if not e.ok]
    worst = max(errors, key=lambda e: math.inf if e.error is None else e.error / e.tolerance)
    at = f"{worst.side} of cut {worst.index}, {worst.tensor!r}"
    shown = "not finite" if worst.error is None else f"{worst.error:.1e}"
    said = f"{len(errors) // 2} cuts, largest error {shown} of {worst.tolerance:.0e} ({at})"
    if wrong:
        return "wrong", f"{len(wrong)} of {len(errors)} sides wrong: {said}", tuple(errors)
    return "ok", said, tuple(errors)


@contextlib.contextmanager
def loaded_chain(bundle: Bundle, load: Load) -> Iterator[list[Engine]]:
    """Load every segment; free them all, whatever happens."""
    engines: list[Engine] = []
    try:
        for segment in bundle.manifest.segments:
            try:
                engines.append(load(bundle.path(segment.file)))
            except EngineError as exc:
                raise type(exc)(f"{Path(segment.file).name}: {exc}") from exc
        yield engines
    finally:
        for engine in engines:
            engine.close()


def _check_dtypes(bundle: Bundle, engines: Sequence[Engine]) -> None:
    """Refuse engines of other dtypes than the graph's, which a library gives without a word."""
    tensors = bundle.manifest.tensors
    wrong = [
        f"{spec.name!r}: expected {tensors[spec.name].dtype}, the plan has {spec.dtype}"
        for engine in engines
        for spec in (*engine.inputs, *engine.outputs)
        if spec.dtype != tensors[spec.name].dtype
    ]
    if wrong:
        raise EngineError(f"the library changes dtypes: {'; '.join(dict.fromkeys(wrong))}")


def _run(
    engines: list[Engine], places: Iterable[int], given: Mapping[str, Array]
) -> dict[str, Array]:
    known = dict(given)
    for place in places:
        engine = engines[place]
        known.update(engine.run({spec.name: known[spec.name] for spec in engine.inputs}))
    return known


def _worst(
    bundle: Bundle,
    cut: Cut,
    side: str,
    names: Iterable[str],
    given: Mapping[str, Array],
    expected: Mapping[str, Array],
) -> CutError:
    """Return the error of the tensor that is furthest out, by its tolerance."""
    manifest = bundle.manifest
    measure = MEASURES[manifest.parity.measure]
    found = [("", 0.0, 1.0)]
    for name in names:
        limit = tolerance_for(expected[name].dtype.name, manifest.parity.tolerance)
        error = measure(given[name], expected[name]) if name in given else math.inf
        found.append((name, error, limit))
    tensor, error, limit = max(found, key=lambda item: (item[1] / item[2], bool(item[0])))
    return CutError(
        cut=cut.id,
        index=cut.index,
        side=side,  # type: ignore[arg-type]  # of two literals
        tensor=tensor,
        error=error if math.isfinite(error) else None,
        tolerance=limit,
        ok=error <= limit,
    )
