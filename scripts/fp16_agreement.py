"""What float16 costs and saves: EfficientNet-lite0 in both precisions, on photographs.

Compiles the demo model with ``--precision fp32`` and ``fp16``, then runs both over photographs
that scikit-image carries. The float16 graph is rounded behind every operator, as on a GPU: ONNX
Runtime by itself computes between two operators in float32 on a CPU. With TensorRT-RTX's builder
installed, which needs no GPU, it builds a plan of each whole graph too.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import skimage
from demo_model import INPUT, PREPROCESS
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from compiler import CompileOptions, compile_model
from compiler.graph import infer_values
from compiler.images import parse_image
from compiler.inputs import parse_input
from compiler.rounding import rounded
from compiler.whole import run_whole
from engines.bundle import Bundle
from runtime.sources import read_image

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "fp16"
LABELS = ROOT / "scripts" / "data" / "imagenet_classes.txt"
MODEL = f"{ROOT / 'scripts' / 'demo_model.py'}:efficientnet_lite0"
PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg"),
)
PRECISIONS = ("fp32", "fp16")


def main() -> int:
    """Compile, compare and print; returns the exit status."""
    console = Console(width=max(100, Console().width))
    bundles = {precision: compile_demo(precision) for precision in PRECISIONS}
    print_sizes(console, bundles)
    agreed = print_labels(console, bundles)
    print_plans(console)
    return 0 if agreed == len(PHOTOS) else 1


def compile_demo(precision: str, *, pixels: bool = True) -> Bundle:
    """Compile the demo model in one precision, for raw pixels or for normalised floats."""
    options = CompileOptions(
        inputs=(parse_input(INPUT),),
        images=(parse_image(PREPROCESS),) if pixels else (),
        cuts="auto" if pixels else "2",
        precision=precision,
    )
    name = precision if pixels else f"{precision}-floats"
    return compile_model(MODEL, BUILD / f"{name}.bundle", options=options)[0]


def print_sizes(console: Console, bundles: dict[str, Bundle]) -> None:
    """Print sizes and the largest error of every cut, by precision."""
    table = Table("precision", "largest cut error", "weights", "bundle", box=SIMPLE)
    for precision, bundle in bundles.items():
        manifest = bundle.manifest
        table.add_row(
            precision,
            f"{manifest.parity.max_error:.2g}",
            megabytes(manifest.files[manifest.weights].bytes),
            megabytes(sum(entry.bytes for entry in manifest.files.values())),
        )
    console.print(table)


def print_labels(console: Console, bundles: dict[str, Bundle]) -> int:
    """Print each photograph's label in both precisions; returns how many agree."""
    labels = LABELS.read_text(encoding="utf-8").splitlines()
    table = Table("photograph", "fp32 label", "fp16 label", "cosine", box=SIMPLE)
    agreed = 0
    for photo in PHOTOS:
        path = Path(skimage.__file__).parent / "data" / photo
        exact, half = (scores(bundles[precision], path) for precision in PRECISIONS)
        cosine = float(exact @ half / np.linalg.norm(exact) / np.linalg.norm(half))
        agreed += int(exact.argmax() == half.argmax())
        table.add_row(photo, labels[exact.argmax()], labels[half.argmax()], f"{cosine:.6f}")
    console.print(table)
    console.print(f"same label: {agreed} of {len(PHOTOS)}")
    return agreed


def scores(bundle: Bundle, photo: Path) -> Any:
    """Return the scores of one photograph, every float16 value of the graph rounded."""
    manifest = bundle.manifest
    spec = manifest.inputs[0]
    path = bundle.folder / manifest.graph
    model = onnx.load(path, load_external_data=False)
    values = infer_values(model).specs
    given = {name for node in model.graph.node for name in node.output}
    halves = {name for name in given if name in values and values[name].dtype == "float16"}
    inputs = {spec.name: read_image(photo, spec, manifest.images[spec.name])}
    output = manifest.outputs[0].name
    run = run_whole(rounded(model, halves), path.parent, inputs, [output])
    return run[output].reshape(-1).astype(np.float64)


def print_plans(console: Console) -> None:
    """Print the size of a TensorRT-RTX plan of each whole graph, where its builder is here.

    The graphs take normalised floats: TensorRT transposes no uint8.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        console.print("plans: tensorrt_rtx is not installed")
        return
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    table = Table("precision", f"TensorRT-RTX {trt.__version__} plan, SM 8.6", box=SIMPLE)
    for precision in PRECISIONS:
        bundle = compile_demo(precision, pixels=False)
        builder = trt.Builder(logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(bundle.folder / bundle.manifest.graph)):
            table.add_row(precision, f"refused: {parser.get_error(0).desc()}")
            continue
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        plan = builder.build_serialized_network(network, config)
        table.add_row(precision, "refused" if plan is None else megabytes(plan.nbytes))
    console.print(table)


def megabytes(size: int) -> str:
    """Say a size in MB (powers of ten)."""
    return f"{size / 1e6:.2f} MB"


if __name__ == "__main__":
    sys.exit(main())
