"""``split-compile``: compile one model into one bundle."""

from __future__ import annotations

from pathlib import Path

import click

from compiler.images import parse_image
from compiler.inputs import parse_input
from compiler.options import MAX_ERROR, SENSITIVE, THIS, parse_halos, parse_size
from compiler.pipeline import PRECISIONS, STRIPES, CompileOptions, compile_model
from compiler.quantizers import DEFAULT_QUANTIZER, QUANTIZERS
from compiler.target_specs import BUILDERS
from engines.console import command_options, print_json, progress_bar
from engines.halves import HALVES

__all__ = ["main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@command_options
@click.argument("model")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Bundle; default NAME.bundle here."
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=DTYPE[DIMS]",
    help="An input as the model takes it, before --preprocess, as in 'x=float32[1,3,224,224]'; "
    "NAME.key reaches into a dict. Repeatable.",
)
@click.option(
    "--example",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Arrays by input name: give the shapes, and the inputs that the bundle is proved with.",
)
@click.option(
    "--preprocess",
    "images",
    multiple=True,
    metavar="NAME=SPEC",
    help="Take raw pixels: NAME=imagenet, or NAME=uint8[hwc],color=rgb,mean=R:G:B,std=R:G:B "
    "with mean and std in 0 to 255. color is the order that the model wants. Repeatable.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A state_dict for the module of a factory.",
)
@click.option("--trust-pickle", is_flag=True, help="Load a pickled module, which runs its code.")
@click.option(
    "--cuts", default="auto", show_default=True, help="auto, all, or the N most useful ones."
)
@click.option(
    "--keep-local",
    multiple=True,
    metavar="N|MODULE",
    help="The robot runs the first N operators, or this module and all it needs, itself; what "
    "goes into them never leaves it. Repeatable.",
)
@click.option(
    "--robot-memory", metavar="SIZE", help="Weights and activations on the robot, as in 512MB."
)
@click.option(
    "--robot",
    default="xavier-nx",
    show_default=True,
    metavar="DEVICE",
    help="What the cuts are chosen for: a preset, a device .json, a latency-*.json of an earlier "
    "bundle of this model, or `this` to measure here.",
)
@click.option("--server", default="rtx3080", show_default=True, metavar="DEVICE", help="Likewise.")
@click.option("--measure", is_flag=True, help="The same as --robot this --server this.")
@click.option("--max-frontier", default=4, show_default=True, help="Most tensors across a cut.")
@click.option(
    "--opset", type=int, help="ONNX opset; default 18, or 17 where a target has TensorRT 8."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the inputs for the proof.")
@click.option("--name", help="The model's name; default that of its file or factory.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("cpu",),
    metavar="TARGET",
    help="What to make engines for: cpu, tensorrt-rtx[:sm86,sm89,...] (built here, with no GPU), "
    "tensorrt (this machine's GPU), jetson[-xavier-nx|-orin-nano|-orin-nx|-agx-orin|-thor] (built "
    "on the robot by `runtime build`). Repeatable.",
)
@click.option("--workspace", metavar="SIZE", help="Most scratch memory of a layer, as in 512MB.")
@click.option(
    "--stripes",
    type=click.Choice(STRIPES),
    default="auto",
    show_default=True,
    help="Striped forms of the segments, so that sending and computing overlap in an inference.",
)
@click.option(
    "--halo",
    "halos",
    multiple=True,
    metavar="N",
    help="Lossy: also divide heads in two where each side takes only N rows of the input beyond "
    "its own, as if the picture ended there. Used only with `runtime infer --allow-lossy-halo`. "
    "Repeatable, or a list: 16,32.",
)
@click.option(
    "--halves",
    type=click.Choice(HALVES),
    default=HALVES[0],
    show_default=True,
    help="Fused halves that get plans beside the segments: those of the cuts that are best "
    "somewhere and the whole graph, none, or those of every cut. Each holds its own weights.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=PRECISIONS[0],
    show_default=True,
    help="fp16: convert to float16; int8: quantise convolutions and matrix products by "
    "--calibrate. Inputs and outputs keep their dtypes.",
)
@click.option(
    "--fp32",
    multiple=True,
    metavar="NODE|MODULE",
    help="With fp16 or int8: this node, or all of this module, stays in float32. Repeatable.",
)
@click.option(
    "--fp16",
    multiple=True,
    metavar="NODE|MODULE",
    help="With int8: this node, or all of this module, computes in float16. Repeatable.",
)
@click.option(
    "--sensitive",
    type=click.Choice(SENSITIVE),
    default=SENSITIVE[0],
    show_default=True,
    help="With int8: what nodes compute in that 8 bits cost too much: float16 where that keeps "
    "--max-int8-error and else float32, or always float32.",
)
@click.option(
    "--calibrate",
    metavar="DATA",
    help="Measure what values cross the cuts: a folder of images, an .npz file of arrays with a "
    "dimension of samples in front, or module:name of an iterable.",
)
@click.option("--samples", type=click.IntRange(1), metavar="N", help="The first N of the data.")
@click.option(
    "--quantizer",
    type=click.Choice(list(QUANTIZERS)),
    default=DEFAULT_QUANTIZER,
    show_default=True,
    help="With int8: what decides which nodes take codes and how far those reach. measured: "
    "all that can, by ranges measured in ONNX Runtime; modelopt: those that NVIDIA ModelOpt "
    "quantises, where TensorRT fuses them.",
)
@click.option(
    "--ranges",
    type=click.Choice(
        list(dict.fromkeys(name for spec in QUANTIZERS.values() for name in spec.methods))
    ),
    help="With int8: how far a tensor's codes reach: to its largest value (minmax), to all but "
    "0.01% of its values (percentile), as far as has the least squared error (mse, the default "
    "of measured), or by least entropy (of modelopt, which has minmax beside it).",
)
@click.option(
    "--max-int8-error",
    type=click.FloatRange(0, 1),
    default=MAX_ERROR,
    show_default=True,
    help="With int8: largest mean error against float32 over the data, by --metric; sensitive "
    "nodes are left out of int8 to keep it.",
)
@click.option(
    "--metric",
    default="cosine",
    show_default=True,
    metavar="METRIC",
    help="With int8: what an error is: cosine (1 - cosine), rms, max, top1, or module:function of "
    "the outputs given and expected, by name.",
)
@click.option(
    "--builder",
    type=click.Choice(BUILDERS),
    default=BUILDERS[0],
    show_default=True,
    help="What builds the plans of --target tensorrt: TensorRT's ONNX parser, or Torch-TensorRT "
    "from the fx program, for segments that map to it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    model: str,
    *,
    out: Path | None,
    inputs: tuple[str, ...],
    example: Path | None,
    images: tuple[str, ...],
    weights: Path | None,
    trust_pickle: bool,
    cuts: str,
    keep_local: tuple[str, ...],
    robot_memory: str | None,
    robot: str,
    server: str,
    measure: bool,
    max_frontier: int,
    opset: int | None,
    seed: int,
    name: str | None,
    targets: tuple[str, ...],
    workspace: str | None,
    stripes: str,
    halos: tuple[str, ...],
    halves: str,
    precision: str,
    fp32: tuple[str, ...],
    fp16: tuple[str, ...],
    sensitive: str,
    calibrate: str | None,
    samples: int | None,
    quantizer: str,
    ranges: str | None,
    max_int8_error: float,
    metric: str,
    builder: str,
    as_json: bool,
) -> None:
    """Compile MODEL into a bundle that robot and server run together.

    MODEL is a .pt2 program, a .pt or .pth file (TorchScript, or a pickled module with
    --trust-pickle), an .onnx file, or a factory: package.module:function or
    path/file.py:function, which returns an nn.Module, (module, example_inputs) or an
    ExportedProgram.
    """
    options = CompileOptions(
        inputs=tuple(parse_input(text) for text in inputs),
        example=example,
        images=tuple(parse_image(text) for text in images),
        weights=weights,
        trust_pickle=trust_pickle,
        cuts=cuts,
        max_frontier=max_frontier,
        keep_local=keep_local,
        robot_memory=None if robot_memory is None else parse_size(robot_memory),
        robot=THIS if measure else robot,
        server=THIS if measure else server,
        opset=opset,
        seed=seed,
        name=name,
        targets=targets,
        workspace=None if workspace is None else parse_size(workspace),
        stripes=stripes,
        halo=parse_halos(halos),
        halves=halves,
        precision=precision,
        fp32=fp32,
        fp16=fp16,
        sensitive=sensitive,
        calibrate=calibrate,
        samples=samples,
        quantizer=quantizer,
        ranges=ranges,
        max_int8_error=max_int8_error,
        metric=metric,
        builder=builder,
    )
    _, report = compile_model(model, out, options=options, progress=progress_bar)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(report.to_text())


if __name__ == "__main__":
    main()
