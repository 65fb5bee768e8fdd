"""Segments: the price of being able to cut anywhere, on the demo's bundle."""

from __future__ import annotations

from benches.row import Row, medians
from benches.workloads import demo_bundle

from engines.backend import BackendOptions, open_backend
from engines.program import Program


def run() -> list[Row]:
    """Compare chains of segments, and two fused halves, with the whole graph."""
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
