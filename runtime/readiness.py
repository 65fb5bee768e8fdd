"""Makes a bundle ready on the device that will run it: plans, proof, latency table."""

from __future__ import annotations

from typing import Optional

import msgspec

from calibration.latency_table import store_table
from calibration.measure import measure_latency
from calibration.measure_codecs import measure_codecs
from calibration.parity import verify_cuts
from engines.backend import BackendOptions
from engines.bundle import Bundle
from engines.bundle_plans import PLANNED, open_bundle_backend
from engines.errors import EngineError
from engines.program import Program
from runtime.build import build_plans

__all__ = ["make_ready"]


def make_ready(
    bundle: Bundle,
    backend: str = "ort",
    *,
    target: Optional[str] = None,
    threads: int = 0,
    runs: int = 30,
) -> None:
    """Build what this device must build, replay the parity vectors, measure the latency table.

    Plans and table lie in the bundle's device folder. The same as ``runtime build``, ``runtime
    verify`` and ``runtime profile``, but for the power of this device.

    Args:
        bundle: An opened bundle, where it will be run from.
        backend: Name of the backend that will run it.
        target: Name of the target whose plans are built, where the backend takes plans and the
            bundle has several targets for it.
        threads: Threads to compute with; 0 for the backend's own choice.
        runs: Runs of every segment that are measured.

    Raises:
        IncompatibleError: No such backend or target, or it cannot be used here.
        EngineError: A plan cannot be built or loaded, or a cut is over its tolerance.
    """
    if backend in PLANNED:
        targets = bundle.manifest.targets
        fitting = [name for name, recipe in targets.items() if recipe.backend == backend]
        if target is None and len(fitting) == 1:
            target = fitting[0]
        build_plans(bundle, target=target, backend=backend)
    engine = open_bundle_backend(bundle, backend, BackendOptions(threads=threads))
    with Program(bundle, engine) as program:
        parities = list(verify_cuts(program))
        wrong = [f"{parity.cut.id} by {parity.error:.2e}" for parity in parities if not parity.ok]
        if wrong:
            raise EngineError(
                f"{len(wrong)} of {len(parities)} cuts are over their tolerance on backend "
                f"{backend} of this device: {', '.join(wrong)}; `runtime verify` shows all"
            )
        table = measure_latency(program, runs=runs, halves=True, stripes=True)
        costs = measure_codecs(program, [bundle.parity_vectors()[0]])
        store_table(bundle, msgspec.structs.replace(table, codecs=costs))
