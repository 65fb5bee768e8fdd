"""Bytes, time and error of every codec at every cut of the demo model and the KAPAO-like network.

``python scripts/codec_table.py [BUNDLE ...] [--out FILE.json]``

What crosses each cut comes from a real photograph. The KAPAO-like network has random weights, so
that the sizes of its activations (not of its picture) say little of a trained one; its lines are
marked so. Times are medians on one core. The error of a lossy codec is twofold: of what crosses,
the root mean square over that of the values; and of the model's outputs, the largest change over
the largest value, the tail being run on what was decoded. A bundle that was calibrated has its
codecs by calibrated ranges too.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import click
import numpy as np
from record_activations import sample_inputs
from rich.console import Console
from rich.table import Table

from calibration.codec_ranges import open_encoders
from calibration.codings import CodecCost
from calibration.measure_codecs import measure_codecs
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.codecs import CALIBRATED, codec_by_id, codec_names_here, default_codec, open_codec
from engines.codecs.encoders import Encoders
from engines.errors import BundleError, CodecError
from engines.program import Program
from engines.tensors import Array, TensorSpec

BUILD = Path(__file__).resolve().parent.parent / "build"
RANDOM = ("kapao", "agrnav", "vgg19", "vgg19_bn", "resnet152", "densenet121", "convnext_large")
"""Names of bundles whose weights are random."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One codec at one cut: everything that crosses it, by this codec where it applies.

    Attributes:
        model: Name of the bundle.
        random: Whether the sizes come of random weights.
        cut: The cut's id.
        codec: The codec's name.
        lossless: Whether it is.
        raw: Bytes as they are.
        bytes: Bytes as coded; tensors to which it does not apply have their default codec.
        encode_ms: Coding.
        decode_ms: Decoding.
        error: Of what crosses; 0 for lossless codecs.
        output_error: Of the outputs.
    """

    model: str
    random: bool
    cut: str
    codec: str
    lossless: bool
    raw: int
    bytes: int
    encode_ms: float
    decode_ms: float
    error: float
    output_error: float


def lines(program: Program, inputs: dict[str, Array], *, random: bool) -> list[Line]:
    """Return the lines of a loaded bundle."""
    manifest = program.bundle.manifest
    costs = {
        (cost.tensor, cost.codec): cost
        for cost in measure_codecs(program, [inputs], budget_s=40.0)
    }
    encoders = open_encoders(program.bundle)
    found: list[Line] = []
    env: dict[str, Array] = dict(inputs)
    for cut in manifest.cuts[:-1]:
        if cut.refused:
            continue
        env = program.run(inputs, 0, cut.index)
        right = program.run(env, cut.index, program.last)
        specs = manifest.specs(cut.tensors)
        for name in (*codec_names_here(), *CALIBRATED):
            if name != "identity" and not any((s.name, name) in costs for s in specs):
                continue
            arrays = {s.name: env[s.name] for s in specs}
            size, encode_s, decode_s = _total(specs, name, costs)
            codec = open_codec(name)
            error = output_error = 0.0
            if not codec.lossless:
                coded = {s.name: _again(s, arrays[s.name], name, encoders) for s in specs}
                error = _relative(arrays, coded)
                outputs = program.run({**env, **coded}, cut.index, program.last)
                output_error = _largest(right, outputs, [s.name for s in manifest.outputs])
            found.append(
                Line(
                    manifest.name,
                    random and bool(cut.robot_segments),
                    cut.id,
                    name,
                    codec.lossless,
                    sum(s.nbytes for s in specs),
                    size,
                    encode_s * 1e3,
                    decode_s * 1e3,
                    error,
                    output_error,
                )
            )
    return found


def _total(
    specs: tuple[TensorSpec, ...], name: str, costs: dict[tuple[str, str], CodecCost]
) -> tuple[int, float, float]:
    size, encode_s, decode_s = 0, 0.0, 0.0
    for spec in specs:
        cost = costs.get((spec.name, name))
        if cost is None:
            size += default_codec(spec).max_encoded_bytes(spec)
            continue
        size += round(cost.ratio * spec.nbytes)
        encode_s += cost.encode_s * spec.nbytes
        decode_s += cost.decode_s * spec.nbytes
    return size, encode_s, decode_s


def _again(spec: TensorSpec, array: Array, name: str, encoders: Encoders) -> Array:
    """Return an array as it comes out of a codec."""
    codec = encoders.open(name, spec.name)
    if codec is None or not codec.applies(spec):
        return array
    try:
        scratch = np.empty(codec.max_encoded_bytes(spec), np.uint8).data
        coded = codec.encode(np.asarray(array, order="C"), scratch)
    except CodecError:
        return array
    out = np.empty(spec.shape, spec.dtype)
    codec_by_id(codec.wire_id).decode(coded, out)
    return out


def _relative(right: dict[str, Array], given: dict[str, Array]) -> float:
    """Return the root mean square of the difference over that of the values."""
    wrong = sum(float(np.square(right[n].astype("f8") - given[n]).sum()) for n in right)
    whole = sum(float(np.square(right[n].astype("f8")).sum()) for n in right)
    return float(np.sqrt(wrong / whole)) if whole else 0.0


def _largest(right: dict[str, Array], given: dict[str, Array], names: list[str]) -> float:
    """Return the largest change of an output over the largest value of that output."""
    return max(
        float(np.abs(right[n].astype("f8") - given[n]).max() / max(np.abs(right[n]).max(), 1e-30))
        for n in names
        if n in given and right[n].size
    )


def _bundles(paths: tuple[str, ...]) -> list[Bundle]:
    if paths:
        return [Bundle.open(path) for path in paths]
    from benches.workloads import demo_bundle
    from workloads import WORKLOADS

    from compiler import CompileOptions, compile_model

    found = [demo_bundle()]
    try:
        found.append(Bundle.open(BUILD / "kapao.bundle"))
    except BundleError:
        model, example = WORKLOADS["kapao"].build()
        options = CompileOptions(name="kapao", stripes="none")
        bundle, _ = compile_model((model, example), BUILD / "kapao.bundle", options=options)
        found.append(bundle)
    return found


@click.command()
@click.argument("bundles", nargs=-1)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON too.")
def main(bundles: tuple[str, ...], out: Path | None) -> None:
    """Print a table for each bundle."""
    logging.basicConfig(level=logging.ERROR)
    every: list[Line] = []
    for bundle in _bundles(bundles):
        random = bundle.manifest.name in RANDOM
        with Program(bundle, open_backend("ort", BackendOptions())) as program:
            some = lines(program, sample_inputs(bundle.manifest), random=random)
        every += some
        title = f"{bundle.manifest.name}, a photograph" + (
            "; * sizes of random weights" if random else ""
        )
        shown = Table("cut", "codec", "bytes", "of raw", "encode ms", "decode ms", "error",
                      "of outputs", title=title)  # fmt: skip
        for line in some:
            shown.add_row(
                line.cut,
                line.codec,
                f"{line.bytes}{'*' if line.random else ''}",
                f"{line.bytes / line.raw:.3f}",
                f"{line.encode_ms:.2f}",
                f"{line.decode_ms:.2f}",
                "" if line.lossless else f"{line.error:.1e}",
                "" if line.lossless else f"{line.output_error:.1e}",
            )
        Console(width=max(110, Console().width)).print(shown)
    if out is not None:
        out.write_text(json.dumps([dataclasses.asdict(line) for line in every], indent=1) + "\n")


if __name__ == "__main__":
    main()
