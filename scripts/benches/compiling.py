"""Compiling: all cuts at once against the naive way, one torch.onnx.export for each half."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import tempfile
import time
import warnings
from pathlib import Path

import torch
from benches.row import Row
from benches.workloads import ChainNet

from compiler import CompileOptions, compile_model, parse_input

NAIVE_CUTS = 4
"""Cuts that are exported the naive way: two exports each. Ours makes every cut there is."""


def run() -> list[Row]:
    """Compare time and size of a whole bundle with those of a few exported halves."""
    net = ChainNet().eval()
    shape = ",".join(str(extent) for extent in ChainNet.INPUT)
    options = CompileOptions(inputs=(parse_input(f"input=float32[{shape}]"),))
    with tempfile.TemporaryDirectory() as folder:
        _export(net, Path(folder))  # the exporter's own first use is slow: not ours to count
        begin = time.perf_counter()
        bundle, family = compile_model(net, Path(folder) / "chain.bundle", options=options)
        ours_s = time.perf_counter() - begin
        every = dataclasses.replace(options, cuts="all")
        _, all_cuts = compile_model(ChainNet().eval(), Path(folder) / "all.bundle", options=every)
        ours_bytes = sum(entry.bytes for entry in bundle.manifest.files.values())
        halves = Path(folder) / "halves"
        begin = time.perf_counter()
        for place in range(1, NAIVE_CUTS + 1):
            at = place * len(net) // (NAIVE_CUTS + 1)
            blocks = list(net)
            _export(torch.nn.Sequential(*blocks[:at]), halves / f"head{at}")
            _export(torch.nn.Sequential(*blocks[at:]), halves / f"tail{at}", channels=128)
        naive_s = time.perf_counter() - begin
        naive_bytes = sum(p.stat().st_size for p in halves.rglob("*") if p.is_file())
    further = len(all_cuts.manifest.cuts) - len(bundle.manifest.cuts)
    each_ms = (all_cuts.seconds["emit"] - family.seconds["emit"]) * 1e3 / further
    what = f"chain of {len(net)} blocks, {len(bundle.manifest.cuts)} cuts"
    naive = f"naive: {2 * NAIVE_CUTS} exports for {NAIVE_CUTS} cuts"
    return [
        Row(
            "compile",
            f"{what}: time with proof",
            ours_s,
            "s",
            f"{naive}, {naive_s:.1f} s",
            ours_s / naive_s,
            "below 1",
            ours_s < naive_s,
        ),
        Row(
            "compile",
            f"{what}: size",
            ours_bytes / 1e6,
            "MB",
            f"{naive}, {naive_bytes / 1e6:.1f} MB",
            ours_bytes / naive_bytes,
            "below 1",
            ours_bytes < naive_bytes,
        ),
        Row(
            "compile",
            f"{what}: writing each of {further} further cuts",
            each_ms,
            "ms",
            "20 ms",
            each_ms / 20,
            "at most 1",
            each_ms <= 20,
        ),
    ]


def _export(module: torch.nn.Module, folder: Path, *, channels: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.zeros((1, channels, *ChainNet.INPUT[2:]))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), str(folder / "half.onnx"), dynamo=True, verbose=False
        )
