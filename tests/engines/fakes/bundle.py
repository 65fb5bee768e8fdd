"""A bundle for the fake TensorRT: four segments, with a skip connection and an early output.

    x -> double -> a
    a, x -> add -> b
    b -> double -> c (an output, used again)
    c, a -> add -> d

So for an input x the outputs are c = 6x and d = 8x.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from calibration.parity import TOLERANCE
from engines.bundle import Bundle, file_entries, new_bundle
from engines.manifest import SPEC, Cut, Manifest, Parity, Segment
from engines.tensors import TensorSpec
from tests.engines.fakes.trt import write_graph

SHAPE = (2, 3)
FRONTIERS = [["x"], ["a", "x"], ["a", "b"], ["a", "c"], ["c", "d"]]
RESULTS = [["c", "d"], ["c", "d"], ["c", "d"], ["d"], []]
STEPS: dict[str, tuple[str, list[str]]] = {
    "a": ("double", ["x"]),
    "b": ("add", ["a", "x"]),
    "c": ("double", ["b"]),
    "d": ("add", ["c", "a"]),
}
FACTORS = {"x": 1, "a": 2, "b": 3, "c": 6, "d": 8}


def write_fake_bundle(target: Path) -> Bundle:
    specs = {name: TensorSpec(name, "float32", SHAPE) for name in FACTORS}
    last = len(FRONTIERS) - 1
    with new_bundle(target) as (folder, finish):
        (folder / "graph").mkdir()

        def emit(name: str, inputs: list[str], outputs: list[str]) -> str:
            taken = [[n, "float32", list(SHAPE)] for n in inputs]
            given: list[Any] = [[n, "float32", list(SHAPE), *STEPS[n]] for n in outputs]
            write_graph(folder / "graph" / name, taken, given)
            return f"graph/{name}"

        segments = [
            Segment(
                index=i,
                file=emit(f"segment_{i:04d}.onnx", STEPS[name][1], [name]),
                inputs=tuple(STEPS[name][1]),
                outputs=(name,),
                operators=(STEPS[name][0],),
                flops=1,
            )
            for i, name in enumerate(STEPS)
        ]
        whole = emit("model.onnx", ["x"], list(STEPS))
        cuts = [
            Cut(
                id=hashlib.sha256("\n".join(frontier).encode()).hexdigest()[:8],
                index=i,
                tensors=tuple(frontier),
                bytes=24 * len(frontier),
                results=tuple(RESULTS[i]),
                result_bytes=24 * len(RESULTS[i]),
                flops_robot=i,
                flops_server=last - i,
                after="",
                why=("serial",),
                head=whole if i == last else None,
                tail=whole if i == 0 else None,
                robot_segments=tuple(range(i)),
            )
            for i, frontier in enumerate(FRONTIERS)
        ]
        x = np.ones(SHAPE, np.float32)
        vectors = {"input:x": x, "output:c": x * 6, "output:d": x * 8}
        np.savez(str(folder / "parity.npz"), **vectors)  # type: ignore[arg-type]
        return finish(
            Manifest(
                spec=SPEC,
                name="fake",
                model_digest="0" * 64,
                producer={"splitrt": "test"},
                opset=18,
                precision="fp32",
                graph=whole,
                weights="",
                inputs=(specs["x"],),
                outputs=(specs["c"], specs["d"]),
                images={},
                tensors=specs,
                cuts=tuple(cuts),
                segments=tuple(segments),
                refused=(),
                estimates={},
                targets={},
                parity=Parity(
                    file="parity.npz", seed=0, tolerance=TOLERANCE, max_error=0.0,
                    compared_with="onnx",
                ),
                files=file_entries(folder),
            )
        )  # fmt: skip
