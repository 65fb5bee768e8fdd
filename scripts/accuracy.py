"""What 8 bits cost: on pretrained networks and photographs, on text, and on labelled digits.

    python scripts/accuracy.py [--only lite0|mobilenet|text|digits]

Two things are measured, each on inputs that calibration has not seen. *At the cut*: the model
computes in float32, and what crosses a cut goes as int8, with scales from the calibrated ranges,
one for the tensor or one for each channel; and by codecs int8 and int8-channel, with their own
ranges and with those of each method of calibration. *INT8*: the whole model quantised, Q/DQ pairs
computed as they are written. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import photographs
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from calibration.codec_ranges import open_encoders
from calibration.metrics import cosine_distance, label_disagreement
from calibration.precisions import precisions_text
from calibration.ranges import METHODS, dequantised, quantised, scale_of, stored_ranges
from compiler import CompileOptions, compile_model
from compiler.quantizers import DEFAULT_QUANTIZER, QUANTIZERS
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.codecs.encoders import Encoders
from engines.program import Program
from engines.tensors import TensorSpec

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "accuracy"
SCRIPTS = ROOT / "scripts"

Inputs = Mapping[str, NDArray[Any]]
Outputs = Mapping[str, NDArray[Any]]
Score = Callable[[Outputs, Outputs], float]

console = Console(width=max(110, Console().width))
missed: list[str] = []


def goal(what: str, *, met: bool) -> None:
    """Print whether a goal is met, and remember if it is not."""
    console.print(f"{'met   ' if met else 'MISSED'} {what}")
    if not met:
        missed.append(what)


def compiled(model: Any, name: str, data: str, precision: str, **options: Any) -> Bundle:
    """Compile a model in one precision, calibrated over ``data``."""
    given = CompileOptions(
        **{"name": name, "precision": precision, "calibrate": data, "stripes": "none", **options}
    )
    return compile_model(model, BUILD / f"{name}-{precision}.bundle", options=given)[0]


def run_whole(bundle: Bundle, inputs: Sequence[Inputs]) -> list[Outputs]:
    """Return what a bundle gives, input by input."""
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        return [program.outputs(program.run(one, 0, program.last)) for one in inputs]


def compare(
    given: Iterable[Outputs], expected: Iterable[Outputs], score: Score
) -> tuple[float, float, float]:
    """Return the mean score, the mean cosine and the worst cosine."""
    pairs = list(zip(given, expected, strict=True))
    cosines = [1 - cosine_distance(a, b) for a, b in pairs]
    return (
        float(np.mean([score(a, b) for a, b in pairs])),
        float(np.mean(cosines)),
        min(cosines),
    )


def top1(given: Outputs, expected: Outputs) -> float:
    """Return 1 where both have one label."""
    return 1 - label_disagreement(given, expected)


def at_the_cuts(
    title: str,
    bundle: Bundle,
    inputs: Sequence[Inputs],
    expected: Sequence[Outputs],
    score: Score,
    method: str = "mse",
) -> tuple[float, float, float]:
    """Send what crosses as int8 with one scale for a tensor, and one for each channel.

    Returns:
        The lowest mean score of both over the cuts, and the mean gain in 1 - cosine, per tensor
        over per channel.
    """
    ranges = stored_ranges(bundle)
    assert ranges is not None, "compiled without data"
    manifest = bundle.manifest
    table = Table(
        f"{title}, int8 at the cut", "bytes", "by tensor", "cosine", "by channel", "cosine",
        box=SIMPLE,
    )  # fmt: skip
    usable = [
        cut for cut in manifest.cuts[1:-1] if all(name in ranges.tensors for name in cut.tensors)
    ]
    results: dict[tuple[str, bool], list[Outputs]] = {}
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        for one in inputs:
            for index, env in program.frontiers(one):
                cut = manifest.cuts[index]
                for channels in (False, True):
                    if cut not in usable:
                        continue
                    sent = {
                        name: through(env[name], ranges.tensors[name], method, channels=channels)
                        for name in cut.tensors
                    }
                    given = program.outputs(program.run({**env, **sent}, index))
                    results.setdefault((cut.id, channels), []).append(given)
    lowest = [1.0, 1.0]
    distances = [[], []]  # type: list[list[float]]
    for cut in usable:
        row = [cut.after, str(cut.bytes // 4)]
        for channels in (False, True):
            share, cosine, _ = compare(results[cut.id, channels], expected, score)
            lowest[channels] = min(lowest[channels], share)
            distances[channels].append(1 - cosine)
            row += [f"{share:.1%}", f"{cosine:.5f}"]
        table.add_row(*row)
    console.print(table)
    gain = float(np.mean(distances[0])) / max(float(np.mean(distances[1])), 1e-12)
    return lowest[0], lowest[1], gain


def through(values: NDArray[Any], found: Any, method: str, *, channels: bool) -> NDArray[Any]:
    """Return values as int8 codes with calibrated scales stand for them."""
    thresholds = found.channel_thresholds(method) if channels else None
    if thresholds is None:
        scale = scale_of(found.threshold(method))
        return dequantised(quantised(values, scale), scale)
    scale, axis = scale_of(thresholds), found.channels.axis
    return dequantised(quantised(values, scale, axis), scale, axis)


def by_method(
    title: str, bundle: Bundle, inputs: Sequence[Inputs], expected: Sequence[Outputs]
) -> dict[str, float]:
    """Send what crosses through codecs int8 and int8-channel, by every kind of range.

    Returns:
        The mean 1 - cosine of the outputs, of float32's, over all cuts but the input, by codec.
    """
    encoders, manifest = open_encoders(bundle), bundle.manifest
    bases, kinds = ("int8", "int8-channel"), ("", *(f":{method}" for method in METHODS))
    found: dict[tuple[int, str], list[float]] = {}
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        for one, right in zip(inputs, expected, strict=True):
            for index, env in program.frontiers(one):
                for way in itertools.product(bases, kinds) if index < program.last else ():
                    sent = {
                        spec.name: coded(encoders, "".join(way), spec, env[spec.name])
                        for spec in manifest.specs(manifest.cuts[index].tensors)
                    }
                    given = program.outputs(program.run({**env, **sent}, index))
                    distance = cosine_distance(given, right)
                    found.setdefault((index, "".join(way)), []).append(distance)
    table = Table(f"{title}, 1 - cosine by", "codec", "own range", *METHODS, box=SIMPLE)
    for index, base in itertools.product(range(len(manifest.cuts) - 1), bases):
        means = [np.mean(found[index, base + kind]) for kind in kinds]
        after = manifest.cuts[index].after or "the input"
        table.add_row(after, base, *(f"{mean:.1e}" for mean in means))
    console.print(table)
    inner = range(1, len(manifest.cuts) - 1)
    return {
        base + kind: float(np.mean([found[index, base + kind] for index in inner]))
        for base, kind in itertools.product(bases, kinds)
    }


def coded(encoders: Encoders, name: str, spec: TensorSpec, values: NDArray[Any]) -> NDArray[Any]:
    """Return values as they come out of a codec; as they are where it does not apply."""
    codec = encoders.open(name, spec.name)
    if codec is None or not codec.applies(spec):
        return values
    scratch = memoryview(bytearray(codec.max_encoded_bytes(spec)))
    out = np.empty(spec.shape, spec.dtype)
    codec.decode(codec.encode(np.ascontiguousarray(values), scratch), out)
    return out


def classifier(
    name: str, model: str, shape: str, data: str, prepare: Callable[[Any], Any]
) -> tuple[Bundle, dict[str, Any]]:
    """Measure one ImageNet classifier on the photographs that were held out."""
    from compiler.inputs import parse_input

    common = {"inputs": (parse_input(shape),)}
    exact = compiled(model, name, data, "fp32", **common)
    spec = exact.manifest.inputs[0]
    inputs = [{spec.name: prepare(pixels)} for pixels in photographs.held_out()]
    expected = run_whole(exact, inputs)
    by_tensor, by_channel, gain = at_the_cuts(name, exact, inputs, expected, top1)
    methods = by_method(name, exact, inputs, expected)
    for quantizer in quantizers():
        title = name if quantizer == DEFAULT_QUANTIZER else f"{name}-{quantizer}"
        other = compiled(model, title, data, "int8", quantizer=quantizer, **common)
        record = other.manifest.quantisation
        assert record is not None, "not quantised"
        scores = compare(run_whole(other, inputs), expected, top1)
        console.print(
            f"{name} in INT8 by {quantizer}: {precisions_text(record, most=4)}; over "
            f"{len(inputs)} crops that were held out: top-1 agreement {scores[0]:.1%}, cosine "
            f"{scores[1]:.4f}, worst {scores[2]:.4f}; weights {megabytes(exact)} -> "
            f"{megabytes(other)}; plan {plan_bytes(other)} bytes"
        )
        if quantizer == DEFAULT_QUANTIZER:
            whole, (share, cosine, _) = other, scores
    found = {
        "by_tensor": by_tensor,
        "by_channel": by_channel,
        "gain": gain,
        "cosine": cosine,
        "share": share,
        "methods": methods,
    }
    return whole, found


def quantizers() -> list[str]:
    """Return the quantizers that can be used here, the default first."""
    return [name for name in QUANTIZERS if name != "modelopt" or importable("modelopt")]


def importable(module: str) -> bool:
    """Whether a module is installed."""
    return importlib.util.find_spec(module) is not None


def megabytes(bundle: Bundle) -> str:
    """Say the size of a bundle's weights."""
    return f"{bundle.manifest.files[bundle.manifest.weights].bytes / 1e6:.2f} MB"


def plan_bytes(bundle: Bundle) -> int | str:
    """Build a plan of a bundle's whole graph for SM 8.6 and 8.9; no GPU is needed."""
    if not importable("tensorrt_rtx"):
        return "of unknown"
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(bundle.folder / bundle.manifest.graph)):
        return f"refused: {parser.get_error(0).desc()}"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 2
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.set_compute_capability(trt.ComputeCapability.SM89, 1)
    plan = builder.build_serialized_network(network, config)
    return "refused" if plan is None else int(plan.nbytes)


def lite0() -> None:
    """EfficientNet-lite0 with its ImageNet weights."""
    model = f"{SCRIPTS / 'demo_model.py'}:efficientnet_lite0"
    data = f"{SCRIPTS / 'photographs.py'}:calibration_lite"
    shape = "inputs=float32[1,3,224,224]"
    whole, found = classifier("lite0", model, shape, data, photographs.lite)
    agreed = min(found["by_tensor"], found["by_channel"])
    goal(f"lite0: int8 at every cut keeps 97% of the labels ({agreed:.1%})", met=agreed >= 0.97)
    goal(
        "lite0: a scale for each channel is nearer than one for the tensor "
        f"({found['gain']:.1f} times in 1 - cosine)",
        met=found["gain"] > 1,
    )
    by = found["methods"]
    goal(
        "lite0: whatever the range, codec int8-channel is nearer than int8",
        met=all(by[f"int8-channel{kind}"] < by[f"int8{kind}"]
                for kind in ("", *(f":{method}" for method in METHODS))),
    )  # fmt: skip
    goal(f"lite0: INT8 cosine at least 0.99 ({found['cosine']:.4f})", met=found["cosine"] >= 0.99)
    if not importable("tensorrt_rtx"):
        console.print("plans: tensorrt_rtx is not installed")
        return
    from compiler.inputs import parse_input

    half = compiled(model, "lite0", data, "fp16", inputs=(parse_input(shape),), cuts="2")
    sizes = {"fp16": plan_bytes(half), "int8": plan_bytes(whole)}
    goal(
        "lite0: TensorRT-RTX builds the whole graph for SM 8.6 and 8.9 (bytes: "
        f"{', '.join(f'{name} {size}' for name, size in sizes.items())})",
        met=all(isinstance(size, int) for size in sizes.values()),
    )


def mobilenet() -> None:
    """MobileNetV2 with its ImageNet weights: hard to quantise."""
    data = f"{SCRIPTS / 'photographs.py'}:calibration_imagenet"
    model = f"{SCRIPTS / 'mobilenet_v2.py'}:mobilenet_v2"
    shape = "x=float32[1,3,224,224]"
    _, found = classifier("mobilenet", model, shape, data, photographs.imagenet)
    goal(
        "mobilenet: a scale for each channel is nearer than one for the tensor "
        f"({found['gain']:.1f} times in 1 - cosine)",
        met=found["gain"] > 1,
    )


def text() -> None:
    """Text boxes of the PP-OCRv4 detector."""
    import text_boxes

    path = text_boxes.static_model(BUILD)
    data = f"{SCRIPTS / 'text_boxes.py'}:calibration"
    exact = compiled(str(path), "text", data, "fp32", cuts="8")
    name = exact.manifest.inputs[0].name
    inputs = [{name: image} for image in text_boxes.held_out()]
    expected = run_whole(exact, inputs)
    found = sum(len(text_boxes.boxes(next(iter(o.values())))) for o in expected)
    console.print(f"text: {found} boxes in float32 in {len(inputs)} pictures held out")

    def score(given: Outputs, wanted: Outputs) -> float:
        return text_boxes.agreement(next(iter(given.values())), next(iter(wanted.values())))

    _, by_channel, _ = at_the_cuts("text", exact, inputs, expected, score)
    goal(f"text: boxes agree with int8 at every cut ({by_channel:.1%})", met=by_channel >= 0.95)
    whole = compiled(str(path), "text", data, "int8", cuts="8")
    record = whole.manifest.quantisation
    assert record is not None, "not quantised"
    given = run_whole(whole, inputs)
    _, cosine, _ = compare(given, expected, score)
    pairs = [(next(iter(a.values())), next(iter(b.values()))) for a, b in zip(given, expected)]
    hmean, overlap = text_boxes.hmean(pairs)
    console.print(
        f"text in INT8: {precisions_text(record)}; over {len(inputs)} "
        f"pictures that were held out: hmean of the boxes {hmean:.1%}, mean IoU of those that "
        f"agree {overlap:.3f}, cosine {cosine:.4f}; weights {megabytes(exact)} -> "
        f"{megabytes(whole)}"
    )
    goal(f"text: INT8 boxes agree with float32's (hmean {hmean:.1%})", met=hmean >= 0.9)


def digits() -> None:
    """A small network trained here, against labels."""
    import digits_model

    model, images, labels, data = digits_model.trained(BUILD)
    exact = compiled(model, "digits", data, "fp32", cuts="all")
    name, output = exact.manifest.inputs[0].name, exact.manifest.outputs[0].name
    inputs = [{name: image} for image in images]
    expected = run_whole(exact, inputs)

    def accuracy(outputs: Sequence[Outputs]) -> float:
        guesses = [int(one[output].argmax()) for one in outputs]
        return float(np.mean(np.asarray(guesses) == labels))

    _, by_channel, _ = at_the_cuts("digits", exact, inputs, expected, top1)
    right = {"fp32": accuracy(expected)}
    for precision in ("fp16", "int8"):
        other = compiled(model, "digits", data, precision, cuts="all")
        right[precision] = accuracy(run_whole(other, inputs))
    shown = ", ".join(f"{precision} {share:.2%}" for precision, share in right.items())
    console.print(f"digits: accuracy over {len(labels)} labelled pictures held out: {shown}")
    goal("digits: INT8 costs at most 1% of accuracy", met=right["int8"] >= right["fp32"] - 0.01)
    goal(f"digits: int8 at every cut keeps 97% of the labels ({by_channel:.1%})",
         met=by_channel >= 0.97)  # fmt: skip


PARTS = {"lite0": lite0, "mobilenet": mobilenet, "text": text, "digits": digits}


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True)
def main(only: tuple[str, ...]) -> None:
    """Run the parts."""
    for name, part in PARTS.items():
        if not only or name in only:
            part()
    console.print(f"{len(missed)} goals missed" if missed else "all goals met")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
