"""The report: what was compiled, for people and as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from calibration.modes import bounded_text
from calibration.precisions import precisions_text
from engines.bundle import Bundle
from engines.manifest import Manifest, Quantisation
from engines.stripes import BoundedCut
from engines.tensors import TensorSpec

__all__ = ["Report", "make_report"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a compilation did.

    Attributes:
        bundle: Where the bundle lies.
        manifest: Its index.
        seconds: Wall-clock time by stage, from ``load`` to ``write``.
        weights_bytes: Size of the weights file.
        bundle_bytes: Size of every file of the bundle, its index excepted.
    """

    bundle: Path
    manifest: Manifest
    seconds: Mapping[str, float]
    weights_bytes: int
    bundle_bytes: int

    @property
    def max_error(self) -> float:
        """Largest error over every frontier, as the parity of the bundle says."""
        return self.manifest.parity.max_error

    def to_json(self) -> dict[str, Any]:
        """Return what ``split-compile --json`` prints."""
        manifest = self.manifest
        hidden = ("head", "tail")  # files: a matter between the bundle and its program
        return {
            "bundle": str(self.bundle),
            "model": manifest.name,
            "inputs": [_plain(spec) for spec in manifest.inputs],
            "outputs": [_plain(spec) for spec in manifest.outputs],
            "cuts": [
                {k: v for k, v in _plain(cut).items() if k not in hidden} for cut in manifest.cuts
            ],
            "segments": [_plain(segment) for segment in manifest.segments],
            "refused": [_plain(refusal) for refusal in manifest.refused],
            "seconds": {stage: round(spent, 4) for stage, spent in self.seconds.items()},
            "weights_bytes": self.weights_bytes,
            "bundle_bytes": self.bundle_bytes,
            "precision": manifest.precision,
            "max_error": self.max_error,
            "quantisation": None
            if manifest.quantisation is None
            else _plain(manifest.quantisation),
            "bounded": [_plain(bounded) for bounded in _bounded(manifest)],
        }

    def to_text(self) -> str:
        """Return what ``split-compile`` prints."""
        manifest = self.manifest
        smallest = min(manifest.cuts[:-1], key=lambda cut: cut.bytes)
        total = sum(self.seconds.values())
        slowest = ", ".join(
            f"{stage} {spent:.1f} s"
            for stage, spent in sorted(self.seconds.items(), key=lambda item: -item[1])[:3]
        )
        flops = manifest.cuts[-1].flops_robot
        rms = " (relative RMS)" if manifest.parity.measure == "rms" else ""
        computes = f"{manifest.precision}, opset {manifest.opset}"
        rows = [
            ("model", f"{manifest.name} ({computes}, {flops / 1e9:.3g} GFLOP)"),
            ("inputs", "; ".join(_show(manifest, spec) for spec in manifest.inputs) or "none"),
            ("outputs", "; ".join(str(spec) for spec in manifest.outputs)),
            ("cuts", f"{len(manifest.cuts)}, {len(manifest.refused)} boundaries refused"),
            (
                "smallest cut",
                f"{smallest.id}: {_bytes(smallest.bytes)} after {smallest.after or 'the input'}",
            ),
            ("max error", f"{self.max_error:.3g}{rms} against {manifest.parity.compared_with}"),
            *([("lossy", bounded_text(manifest))] if _bounded(manifest) else []),
            ("size", f"{_bytes(self.bundle_bytes)}, weights {_bytes(self.weights_bytes)}"),
            ("time", f"{total:.1f} s ({slowest})"),
            ("written to", str(self.bundle)),
            ("next", f"runtime infer {self.bundle} --source random:10"),
        ]
        if manifest.quantisation is not None:
            rows.insert(-4, ("int8", _quantised(manifest.quantisation)))
            rows.insert(-4, ("outputs off", _outputs(manifest.quantisation) or "none of floats"))
        width = max(len(label) for label, _ in rows) + 2
        return "\n".join(f"{label:<{width}}{text}" for label, text in rows)


def _bounded(manifest: Manifest) -> tuple[BoundedCut, ...]:
    return () if manifest.striping is None else manifest.striping.bounded


def make_report(bundle: Bundle, where: Path, seconds: Mapping[str, float]) -> Report:
    """Make the report of a bundle that has just been written to ``where``."""
    files = bundle.manifest.files
    weights = files[bundle.manifest.weights].bytes if bundle.manifest.weights else 0
    size = sum(entry.bytes for entry in files.values())
    return Report(where, bundle.manifest, dict(seconds), weights, size)


def _quantised(done: Quantisation) -> str:
    """Say what was quantised, at what cost."""
    metric = "1 - cosine" if done.metric == "cosine" else done.metric
    return (
        f"{precisions_text(done, most=4)}; {metric} {done.error:.2g} to float32, by "
        f"{done.samples} samples"
    )


def _outputs(done: Quantisation) -> str:
    """Say how far each output is from the float32 model's."""
    return "; ".join(
        f"{name}: 1 - cosine {error.distance:.2g}, relative RMS {error.rms:.2g}, largest "
        f"difference {error.largest:.2g}"
        for name, error in done.outputs.items()
    )


def _plain(record: msgspec.Struct) -> dict[str, Any]:
    """Return a record as JSON has it: lists, not tuples."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    return plain


def _show(manifest: Manifest, spec: TensorSpec) -> str:
    image = manifest.images.get(spec.name)
    return f"{spec} ({image.color} pixels, {image.layout})" if image is not None else str(spec)


def _bytes(size: int) -> str:
    """Say a size in bytes, kB or MB (powers of ten)."""
    if size < 10_000:
        return f"{size} B"
    return f"{size / 1e3:.1f} kB" if size < 10_000_000 else f"{size / 1e6:.1f} MB"
