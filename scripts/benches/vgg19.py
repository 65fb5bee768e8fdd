"""VGG19 compiled with its whole family of cuts: time, size and memory, against the naive way.

Compiled in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from benches.row import Row
from workloads import WORKLOADS

_CHILD = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from compiler import compile_model
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
bundle, report = compile_model(sys.argv[1] + "/workloads/vgg19.py:vgg19", Path(sys.argv[2]))
print(json.dumps({**report.to_json(), "grown": peak() - before}))
"""


def run() -> list[Row]:
    """Compile VGG19 once, then export its halves one by one at as many cuts."""
    scripts = str(Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _CHILD, scripts, f"{folder}/vgg19.bundle"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        report = json.loads(done.stdout)
        cuts = len(report["cuts"]) - 2
        naive_s, naive_bytes = _naive(Path(folder) / "naive", max(cuts, 1))
    seconds, weights_mb = report["seconds"], report["weights_bytes"] / 1e6
    export_s = seconds["export"]
    total_s = sum(seconds.values())
    bundle_mb, naive_mb = report["bundle_bytes"] / 1e6, naive_bytes / 1e6
    what = f"VGG19, {len(report['cuts'])} cuts"
    naive = f"naive, {2 * max(cuts, 1)} exports"
    weights = f"weights {weights_mb:.0f} MB"

    def row(name: str, value: float, unit: str, reference: str, base: float, limit: float) -> Row:
        ratio, target = value / base, f"at most {limit}"
        return Row(
            "vgg19", f"{what}: {name}", value, unit, reference, ratio, target, ratio <= limit
        )

    unproved_s = total_s - seconds["proof"]
    added_s = seconds["cuts"] + seconds["emit"]
    return [
        row("cutting", added_s, "s", f"its one ONNX export {export_s:.1f} s", export_s, 0.5),
        row("all but proof", unproved_s, "s", f"{naive}, no proof, {naive_s:.1f} s", naive_s, 1.0),
        row("bundle", bundle_mb, "MB", weights, weights_mb, 1.1),
        row("bundle", bundle_mb, "MB", f"{naive} {naive_mb:.0f} MB", naive_mb, 1.0),
        row("peak memory", report["grown"] / 1e6, "MB", weights, weights_mb, 3.0),
    ]


def _naive(folder: Path, cuts: int) -> tuple[float, int]:
    """Export head and tail of some cuts of the convolutions; return seconds and bytes."""
    module, examples = WORKLOADS["vgg19"].build()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    layers = [m for m in module.modules() if not list(m.children())]
    flatten = next(i for i, m in enumerate(layers) if isinstance(m, torch.nn.Linear))
    spent = 0.0
    for number in range(1, cuts + 1):
        at = number * (flatten - 1) // (cuts + 1)
        head = torch.nn.Sequential(*layers[:at])
        tail = torch.nn.Sequential(*layers[at:flatten], torch.nn.Flatten(), *layers[flatten:])
        with torch.no_grad():
            middle = head(*examples)
        for name, half, example in (("head", head, examples[0]), ("tail", tail, middle)):
            path = folder / f"{name}{number}"
            path.mkdir(parents=True)
            begin = time.perf_counter()
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    half.eval(), (example,), str(path / "half.onnx"), dynamo=True, verbose=False
                )
            spent += time.perf_counter() - begin
    return spent, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
