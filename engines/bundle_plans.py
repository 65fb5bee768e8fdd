"""A bundle's plans: those that came with it, and those that this device built.

Plans that were built when the bundle was compiled lie in the bundle, below ``plans/<target>``.
What a device builds (``runtime build``) lies in the bundle's device folder. The plan of a segment
or a half is looked up in both: it is taken if it was made from this very ONNX file and these
weights, and fits this device. Only then does the backend see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Iterable, List, Optional, Tuple

from engines.backend import Backend, BackendOptions, Engine, open_backend
from engines.bundle import Bundle
from engines.errors import IncompatibleError, MissingPlanError
from engines.fingerprint import Fingerprint
from engines.manifest import Target
from engines.plans import ROWS, PlanBuilder, PlanHeader, PlanStore, fits, plan_key
from engines.rows import RowsEngine

if TYPE_CHECKING:
    from engines.tensorrt.backend import TensorRTBackend

__all__ = ["PLANNED", "BundlePlans", "device_store", "open_bundle_backend", "target_of"]

PLANNED = ("tensorrt", "tensorrt-rtx")
"""Backends whose plans are built ahead; the others load ONNX files."""


def device_store(bundle: Bundle) -> PlanStore:
    """Return the store of the plans that this device built for a bundle."""
    return PlanStore(bundle.device_folder / "plans")


def target_of(bundle: Bundle, name: Optional[str]) -> Tuple[str, Target]:
    """Return a target of a bundle by its name; the only one where no name is given.

    Raises:
        IncompatibleError: No such target, or several and no name.
    """
    targets = bundle.manifest.targets
    names = ", ".join(sorted(targets)) or "none"
    if name is None and len(targets) == 1:
        name = next(iter(targets))
    if name is None or name not in targets:
        given = "none named" if name is None else f"given {name!r}"
        raise IncompatibleError(
            f"bundle {bundle.manifest.name!r}: expected one of its targets ({names}), {given}; "
            "split-compile --target adds one"
        )
    return name, targets[name]


class BundlePlans:
    """A backend that takes the plans of a bundle, and never builds by itself.

    Args:
        bundle: An opened bundle.
        backend: What loads the plans.
    """

    def __init__(self, bundle: Bundle, backend: PlanBuilder) -> None:
        self._bundle = bundle
        self._backend = backend
        self.name = backend.name
        stores = [device_store(bundle)]
        for target in bundle.manifest.targets.values():
            if target.backend == backend.name and target.plans is not None:
                stores.append(PlanStore(bundle.folder / target.plans))
        self._headers = [(store, header) for store in stores for header in store.headers()]

    @property
    def striped(self) -> bool:
        """Whether there are plans of striped forms, for whichever device."""
        return any(ROWS in header.options for _, header in self._headers)

    def build(self, onnx_path: Path) -> bytes:
        """Return the plan of one of the bundle's ONNX files.

        Raises:
            MissingPlanError: There is none for this device; the message has both fingerprints.
            DigestError: It is not the plan that was written.
        """
        device = self._backend.fingerprint()
        made = list(_of_this_file(self._headers, onnx_path, self._weights_sha256()))
        for store, header in made:
            if fits(header.fingerprint, device):
                return store.open(header.key, device)
        known = "; ".join(dict.fromkeys(str(header.fingerprint) for _, header in made))
        raise MissingPlanError(
            f"{onnx_path.name}: expected a plan for [{device}], "
            + (f"there are plans for [{known}]" if made else "there is none")
            + f"; `runtime build {self._bundle.folder} --backend {self.name}` builds it here"
        )

    def load(self, plan: bytes, *, folder: Path) -> Engine:
        """Load as the backend does."""
        return self._backend.load(plan, folder=folder)

    def fingerprint(self) -> Fingerprint:
        """Say what this device is."""
        return self._backend.fingerprint()

    def _weights_sha256(self) -> str:
        manifest = self._bundle.manifest
        return manifest.files[manifest.weights].sha256 if manifest.weights else ""


class RowsBundlePlans(BundlePlans):
    """The same, for a device that has plans of striped forms too."""

    def __init__(self, bundle: Bundle, backend: TensorRTBackend) -> None:
        super().__init__(bundle, backend)
        self._rows_backend = backend

    def load_rows(self, onnx_path: Path) -> RowsEngine:
        """Load a striped form.

        Raises:
            MissingPlanError: There is no plan of it for this device.
            EngineError: The backend refused it.
        """
        return self._rows_backend.load_rows_plan(self.build(onnx_path))

    def holds(self, onnx_path: Path) -> bool:
        """Whether there is a plan of a form for this device."""
        device = self._backend.fingerprint()
        made = _of_this_file(self._headers, onnx_path, self._weights_sha256())
        return any(fits(header.fingerprint, device) for _, header in made)


def open_bundle_backend(
    bundle: Bundle, name: str, options: BackendOptions = BackendOptions()
) -> Backend:
    """Return the backend to run a bundle on: with its plans, where the backend takes plans.

    What TensorRT for RTX compiles when a plan first runs is kept in the device folder, so that the
    next start need not compile it again.

    Raises:
        IncompatibleError: No such backend, or it cannot be used here.
    """
    if name not in PLANNED:
        return open_backend(name, options)
    from engines.tensorrt.backend import TensorRTOptions

    cache = bundle.device_folder / "runtime-cache"
    planned = TensorRTOptions(threads=options.threads, runtime_cache=cache)
    backend = open_backend(name, planned)
    plans = BundlePlans(bundle, backend)  # type: ignore[arg-type]
    return RowsBundlePlans(bundle, backend) if plans.striped else plans  # type: ignore[arg-type]


def _of_this_file(
    made: List[Tuple[PlanStore, PlanHeader]], onnx_path: Path, weights_sha256: str
) -> Iterable[Tuple[PlanStore, PlanHeader]]:
    """Keep the plans made from a file like this one and these weights, whatever the options.

    By content: files of one content share a plan, which is named after the first of them.
    """
    onnx_bytes = onnx_path.read_bytes()
    for store, header in made:
        key = plan_key(onnx_bytes, weights_sha256, header.options, header.fingerprint)
        if key == header.key:
            yield store, header
