"""Segments: the price of being able to cut anywhere, on the demo's bundle."""

from __future__ import annotations

from benches.row import Row, medians
from benches.workloads import demo_bundle

from engines.backend import BackendOptions, open_backend
from engines.program import Program


def run() -> list[Row]:
    """Compare the chain of segments, and two fused halves, with the whole graph."""
    bundle = demo_bundle()
    inputs, _ = bundle.parity_vectors()
    backend = open_backend("ort", BackendOptions(threads=1))
    what = f"{bundle.manifest.name}, 1 thread"
    with Program(bundle, backend, fuse=False) as chain, Program(bundle, backend) as fused:
        middle = fused.last // 2
        for start, stop in ((0, fused.last), (0, middle), (middle, fused.last)):
            fused.load_half(start, stop)
        whole_s, chain_s, halves_s = medians(
            lambda: fused.run(inputs),
            lambda: chain.run(inputs),
            lambda: fused.run(fused.run(inputs, 0, middle), middle),
            runs=40,
        )
        count = fused.last
    reference = f"whole graph {whole_s * 1e3:.2f} ms"
    return [
        Row(
            "segments",
            f"{what}, chain of {count}",
            chain_s * 1e3,
            "ms",
            reference,
            chain_s / whole_s,
        ),
        Row(
            "segments",
            f"{what}, two fused halves",
            halves_s * 1e3,
            "ms",
            reference,
            halves_s / whole_s,
            "at most 1.1",
            halves_s / whole_s <= 1.1,
        ),
    ]
