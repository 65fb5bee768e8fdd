"""Segments: the price of being able to cut anywhere, and which fused halves are worth it."""

from __future__ import annotations

from benches.row import Row, medians
from benches.workloads import ChainNet, DenseNet, demo_bundle, model_bundle

from calibration.measure import measure_latency
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.halves import segments_of
from engines.program import Program


def run() -> list[Row]:
    """Compare chains with what is fused: the demo's cut in several ways, then model by model."""
    bundles = [
        demo_bundle(),
        model_bundle(ChainNet(), ChainNet.INPUT),
        model_bundle(DenseNet(), DenseNet.INPUT),
    ]
    return _demo() + [row for bundle in bundles for row in _halves(bundle)]


def _halves(bundle: Bundle) -> list[Row]:
    """Measure the likely halves both ways, and print the whole and the two that differ most."""
    backend = open_backend("ort", BackendOptions(threads=1))
    manifest = bundle.manifest
    with Program(bundle, backend, fuse=False) as program:
        table = measure_latency(program, runs=30, budget_s=30.0, halves=True)
        last = program.last
    # The whole first, then the halves by what fusing saves.
    ordered = sorted(table.halves, key=lambda h: ((h.start, h.stop) != (0, last), -h.ratio))
    shown = ordered[:2] + ordered[-1:] if len(ordered) > 3 else ordered
    rows = []
    for half in shown:
        side = (
            "whole" if (half.start, half.stop) == (0, last) else "tail" if half.start else "head"
        )
        cut = "" if side == "whole" else f" of {manifest.cuts[half.start or half.stop].id}"
        count = len(segments_of(manifest, (half.start, half.stop)))
        rows.append(
            Row(
                "segments",
                f"{manifest.name}, 1 thread, {side}{cut}: chain of {count}",
                half.chain.p50_s * 1e3,
                "ms",
                f"fused {half.fused.p50_s * 1e3:.2f} ms",
                half.ratio,
                f"runs {'fused' if half.pays else 'as a chain'}",
            )
        )
    return rows


def _demo() -> list[Row]:
    bundle, every = demo_bundle(), demo_bundle(cuts="all")
    inputs, _ = bundle.parity_vectors()
    backend = open_backend("ort", BackendOptions(threads=1))
    what = f"{bundle.manifest.name}, 1 thread"
    with (
        Program(every, backend, fuse=False) as singles,
        Program(bundle, backend, fuse=False) as chain,
        Program(bundle, backend) as fused,
    ):
        middle = fused.last // 2
        for start, stop in ((0, fused.last), (0, middle), (middle, fused.last)):
            fused.load_half(start, stop)
        whole_s, singles_s, chain_s, halves_s = medians(
            lambda: fused.run(inputs),
            lambda: singles.run(inputs),
            lambda: chain.run(inputs),
            lambda: fused.run(fused.run(inputs, 0, middle), middle),
            runs=40,
        )
        counts = len(singles.loaded), len(chain.loaded)
    reference = f"whole graph {whole_s * 1e3:.2f} ms"

    def row(name: str, seconds: float, limit: float | None) -> Row:
        ratio = seconds / whole_s
        target, met = ("", None) if limit is None else (f"at most {limit}", ratio <= limit)
        workload = f"{what}, {name}"
        return Row("segments", workload, seconds * 1e3, "ms", reference, ratio, target, met)

    return [
        row(f"chain of {counts[0]} (--cuts all)", singles_s, None),
        row(f"chain of {counts[1]} (--cuts auto)", chain_s, 1.25),
        row("two fused halves", halves_s, 1.1),
    ]
