"""Every architecture of the zoo compiles, and every frontier of its cuts is the model's own.

Not part of the default run: ``make test-zoo``. The compiler's own proof compares every frontier
with PyTorch; here the bundle is opened anew and a few more cuts replay its parity vectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.parity import TOLERANCE, verify_cuts
from compiler import CompileOptions, compile_model
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.program import Program
from tests.zoo.models import ZOO, Entry, build

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
    pytest.mark.usefixtures("torchvision_operators"),
]

VERIFIED = (0.25, 0.5, 0.75, 0.9, 1.0)
"""Cuts that are verified from the bundle on disk, as shares of all cuts."""


@pytest.mark.parametrize("name", ZOO)
def test_compiles(
    name: str, tmp_path: Path, record: Callable[[str, dict[str, Any]], None]
) -> None:
    entry = ZOO[name]
    pytest.importorskip(entry.library)
    row: dict[str, Any] = {
        "library": entry.library,
        "kind": entry.kind,
        "input": list(entry.shape),
    }
    try:
        row |= compile_and_verify(entry, tmp_path / "zoo.bundle")
    except Exception as exc:
        lines = str(exc).splitlines() or [""]
        record(name, {**row, "failed": f"{type(exc).__name__}: {lines[0]}"})
        raise
    record(name, row)


def compile_and_verify(entry: Entry, out: Path) -> dict[str, Any]:
    start = time.perf_counter()
    module, examples = build(entry)
    # Every boundary beside the family: each frontier of the graph is compared with PyTorch.
    options = CompileOptions(name=entry.name, cuts="all")
    bundle, report = compile_model((module, examples), out, options=options)
    cuts = len(bundle.manifest.cuts)
    some = sorted({round(share * (cuts - 1)) for share in VERIFIED})
    with Program(Bundle.open(bundle.folder), open_backend("ort"), fuse=False) as program:
        verified = list(verify_cuts(program, some))
    assert cuts > 2, "no cut but the two ends"
    assert len(verified) == len(some)
    assert [parity.cut for parity in verified if not parity.ok] == []
    assert report.max_error <= TOLERANCE["float32"]
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "cuts": cuts,
        "refused": len(bundle.manifest.refused),
        "verified": len(verified),
        "max_error": max(report.max_error, *(parity.error for parity in verified)),
        "seconds": round(time.perf_counter() - start, 2),
        "stages": {stage: round(spent, 3) for stage, spent in report.seconds.items()},
        "bundle_bytes": report.bundle_bytes,
        "weights_bytes": report.weights_bytes,
    }
