"""The pipeline: from a model to a bundle, stage by stage.

load (open the source) -> trace (``torch.export``) -> export (ONNX) -> passes (and the weights
file) -> cuts -> emit (segments and halves) -> proof -> report -> write (digests, rename).
Everything is written into a temporary folder beside the target; leaving early leaves nothing.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from calibration.collect import calibrate_cuts
from calibration.energy import StatePower
from calibration.report import render_report
from compiler.images import ImageSpec, split_pixels
from compiler.inputs import InputSpec, load_example
from compiler.options import MAX_ERROR, CutOptions, Int8Options
from compiler.quantizers import DEFAULT_QUANTIZER, open_quantizer
from compiler.report import Report, make_report
from compiler.sources import Source, open_source, source_from_object
from compiler.target_specs import (
    BUILDERS,
    TENSORRT,
    TORCH_TENSORRT,
    TargetSpec,
    parse_target,
)
from engines.backend import open_backend
from engines.bundle import Bundle, new_bundle
from engines.errors import TraceError
from engines.halves import HALVES
from engines.manifest import Estimate
from engines.program import Program
from engines.tensors import Array

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from calibration.ranges import Ranges
    from compiler.assemble import Prepared
    from compiler.cuts import Boundaries
    from compiler.graph import ValueGraph
    from compiler.proof import Expected
    from compiler.stripes.emit import Streams
    from compiler.trace import Traced
    from engines.manifest import Manifest, Quantisation
    from engines.stripes import Striping

__all__ = ["PRECISIONS", "CompileOptions", "Progress", "compile_model"]

logger = logging.getLogger(__name__)


STRIPES = ("auto", "none")
"""Whether a bundle gets striped forms: wherever they can be had, or nowhere."""

PRECISIONS = ("fp32", "fp16", "int8")
"""What a model can be converted to; ``fp32`` is the model as it is given."""

REPORT_FILE = "report.html"
"""The page for people; nothing else reads it."""

STAGES = (
    *("load", "trace", "export", "passes", "cuts", "emit", "proof", "calibrate", "plans"),
    *("report", "write"),
)
"""Stages in the order of a report."""

DEFAULT_OPSET = 18
"""The exporter's own: nothing is converted."""

MAX_SEED = 2**63 - 1
"""Largest seed that the manifest's JSON keeps exactly in every reader of 64-bit integers."""

Progress = Callable[[str], "contextlib.AbstractContextManager[Callable[[int, int], None]]"]
"""Gives, for the title of a stage, a context with a function of (done, total)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """How to compile.

    Attributes:
        inputs: Name, dtype and shape of the inputs, where the model does not say.
        example: ``.npz`` of arrays by input name: gives the shapes, and the parity inputs.
        images: Inputs that are to take raw pixels.
        weights: A state_dict for the module of a factory.
        trust_pickle: Whether a pickled module may be loaded, which runs code of its author.
        cuts: ``auto``, ``all``, or how many of the most useful cuts to keep.
        max_frontier: Most tensors across a boundary that nothing but its place speaks for.
        keep_local: Numbers of operators, or module paths, that the robot must run itself.
        robot_memory: Bytes that weights and activations may take on the robot.
        robot: The robot's device: preset, device file, latency table, operator times, or
            ``this``.
        server: The server's device, likewise.
        opset: ONNX opset; by default the highest that all targets take. 17 is lowered from 18, an
            ``.onnx`` file's own too. At any other an ``.onnx`` file keeps its own.
        seed: Of the parity inputs.
        name: The model's name; by default that of its file or factory.
        targets: What engines are for, such as ``cpu`` and ``tensorrt-rtx:sm86,sm89``; see
            ``compiler.target_specs``.
        workspace: Most scratch bytes that a layer of a plan may use.
        halves: Fused halves that get plans beside the segments: ``auto`` for the likely ones,
            ``none`` or ``all``.
        precision: One of :data:`PRECISIONS`: ``fp32`` leaves the model as it is, ``fp16``
            converts it to float16 between its inputs and outputs, ``int8`` quantises
            convolutions and matrix products.
        fp32: Nodes, tensors or module paths that stay in float32 nevertheless.
        fp16: Those that ``int8`` leaves in float16, but for what ``fp32`` names.
        sensitive: What ``int8`` leaves sensitive nodes in: ``fp16`` where that stays within the
            error allowed and else float32, or ``fp32``.
        calibrate: DATA (see ``calibration.samples``): the ranges of what crosses are measured
            over it, and ``int8`` quantises by it.
        samples: Most samples of it to use.
        quantizer: What decides which nodes ``int8`` quantises, and how far codes reach, one of
            :data:`compiler.quantizers.QUANTIZERS`.
        ranges: How it chooses thresholds, as its methods there say; by default its own default.
        max_int8_error: Mean error that ``int8`` may cost; sensitive nodes stay in float32 to
            keep it.
        metric: What that error is: ``cosine`` (1 - cosine) or another one of
            ``calibration.metrics``.
        stripes: One of :data:`STRIPES`.
        halo: Rows of halo for which heads are also divided in two by leaving rows further away
            out of account. Lossy: used only where the runtime is told to. Empty for none.
        builder: One of :data:`BUILDERS`: what the plans of the target ``tensorrt`` are built
            from, ONNX files or, with Torch-TensorRT, the fx program.
    """

    inputs: tuple[InputSpec, ...] = ()
    example: Path | None = None
    images: tuple[ImageSpec, ...] = ()
    weights: Path | None = None
    trust_pickle: bool = False
    cuts: str = "auto"
    max_frontier: int = 4
    keep_local: tuple[str, ...] = ()
    robot_memory: int | None = None
    robot: str = "xavier-nx"
    server: str = "rtx3080"
    opset: int | None = None
    seed: int = 0
    name: str | None = None
    targets: tuple[str, ...] = ("cpu",)
    workspace: int | None = None
    halves: str = "auto"
    precision: str = "fp32"
    fp32: tuple[str, ...] = ()
    fp16: tuple[str, ...] = ()
    sensitive: str = "fp16"
    calibrate: str | None = None
    samples: int | None = None
    quantizer: str = DEFAULT_QUANTIZER
    ranges: str | None = None
    max_int8_error: float = MAX_ERROR
    metric: str = "cosine"
    stripes: str = "auto"
    halo: tuple[int, ...] = ()
    builder: str = BUILDERS[0]

    def __post_init__(self) -> None:
        _ = self.cut_options  # checks them
        if not 0 <= self.seed <= MAX_SEED:
            raise TraceError(f"--seed: expected 0 to 2^63 - 1, given {self.seed}")
        for spec in self.target_specs:
            if self.graph_opset > spec.opset:
                raise TraceError(
                    f"--opset {self.opset}: target {spec.name} takes at most {spec.opset}; "
                    "leave --opset out to have the highest that all targets take"
                )
        if self.halves not in HALVES:
            raise TraceError(
                f"--halves: expected one of {', '.join(HALVES)}, given {self.halves!r}"
            )
        if self.precision not in PRECISIONS:
            raise TraceError(
                f"--precision: expected one of {', '.join(PRECISIONS)}, given {self.precision!r}"
            )
        if self.stripes not in STRIPES:
            raise TraceError(
                f"--stripes: expected one of {', '.join(STRIPES)}, given {self.stripes!r}"
            )
        if any(rows < 0 for rows in self.halo):
            raise TraceError(f"--halo: expected rows from 0, given {min(self.halo)}")
        if self.halo and self.stripes == "none":
            raise TraceError("--halo: expected with --stripes auto, given with --stripes none")
        if self.fp32 and self.precision == "fp32":
            raise TraceError("--fp32: expected with --precision fp16 or int8, given without it")
        if self.fp16 and self.precision != "int8":
            raise TraceError(
                f"--fp16: expected with --precision int8, given {self.precision}; to convert "
                "everything but for what --fp32 names, use --precision fp16"
            )
        self._check_calibration()
        self._check_builder()
        if self.name is not None and (not self.name or "/" in self.name or self.name[0] == "."):
            raise TraceError(f"--name: expected a plain name, given {self.name!r}")

    def _check_calibration(self) -> None:
        _ = self.int8_options  # checks them
        if self.precision == "int8" and self.calibrate is None:
            raise TraceError(
                "--precision int8: expected --calibrate DATA (a folder of images, an .npz file or "
                "module:name), given none; some 30 to 500 inputs like those to come"
            )
        if self.quantizer != DEFAULT_QUANTIZER and self.precision != "int8":
            raise TraceError(
                f"--quantizer {self.quantizer}: expected with --precision int8, given "
                f"{self.precision}"
            )
        if self.samples is not None and self.samples < 1:
            raise TraceError(f"--samples: expected 1 or more, given {self.samples}")
        if self.samples is not None and self.calibrate is None:
            raise TraceError("--samples: expected with --calibrate, given without it")

    def _check_builder(self) -> None:
        if self.builder not in BUILDERS:
            raise TraceError(
                f"--builder: expected one of {', '.join(BUILDERS)}, given {self.builder!r}"
            )
        if not self.from_fx:
            return
        if TENSORRT not in [spec.name for spec in self.target_specs]:
            raise TraceError(
                f"--builder {self.builder}: expected with --target {TENSORRT}, given --target "
                f"{', '.join(self.targets)}; it builds plans for this machine's GPU"
            )
        if self.precision != "fp32":
            raise TraceError(
                f"--builder {self.builder}: expected --precision fp32, given {self.precision}: it "
                "is the ONNX graph that is converted; leave --builder out"
            )

    @property
    def from_fx(self) -> bool:
        """Whether plans are built from the fx program, which must be kept until then."""
        return self.builder == TORCH_TENSORRT

    @property
    def exported_opset(self) -> int:
        """The opset to export to: what the exporter does not have is lowered from 18."""
        return DEFAULT_OPSET if self.graph_opset == 17 else self.graph_opset

    @property
    def graph_opset(self) -> int:
        """The opset of the bundle's graphs: one for all targets, the lowest of theirs."""
        if self.opset is not None:
            return self.opset
        return min(DEFAULT_OPSET, *(spec.opset for spec in self.target_specs))

    @property
    def target_specs(self) -> tuple[TargetSpec, ...]:
        """The targets, read."""
        return tuple(parse_target(text) for text in self.targets)

    @property
    def int8_options(self) -> Int8Options:
        """How to quantise."""
        return Int8Options(
            quantizer=self.quantizer,
            method=self.ranges,
            max_error=self.max_int8_error,
            metric=self.metric,
            islands=self.fp32,
            halves=self.fp16,
            sensitive=self.sensitive,
        )

    @property
    def cut_options(self) -> CutOptions:
        """What the choice of the cuts takes of these options."""
        return CutOptions(
            cuts=self.cuts,
            max_frontier=self.max_frontier,
            keep_local=self.keep_local,
            robot_memory=self.robot_memory,
        )


@dataclass(slots=True)
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        logger.info("%s: %.2f s", stage, self.seconds[stage])


@contextlib.contextmanager
def _silent(title: str) -> Iterator[Callable[[int, int], None]]:
    del title

    def advance(done: int, total: int) -> None:
        """Ignore how far the stage is."""

    yield advance


def compile_model(
    model: Any,
    out: Path | None = None,
    *,
    options: CompileOptions = CompileOptions(),
    progress: Progress = _silent,
) -> tuple[Bundle, Report]:
    """Compile a model into a bundle.

    Args:
        model: What ``split-compile`` takes as MODEL, or an ``nn.Module``, a pair of one and its
            example inputs, a ScriptModule or an ExportedProgram.
        out: Where the bundle goes; ``NAME.bundle`` in the current folder by default.
        options: How to compile.
        progress: Called with the title of every long stage.

    Returns:
        The bundle, and what was done.

    Raises:
        TraceError: The model cannot be read, traced or exported.
        EmitError: A segment cannot be written, or does not compute what the model does.
        BundleError: Something else lies at ``out``, or it cannot be written.
    """
    clock = _Clock()
    with clock("load"), progress("loading the model"):
        source = _source(model, options)
        del model  # so that a caller who keeps no reference to it does not pay for it
        given = None if options.example is None else load_example(options.example)
        example, pixels = split_pixels(given, options.images)
        if options.from_fx:
            from compiler.torch_tensorrt import find_torch_tensorrt

            find_torch_tensorrt()  # before anything that takes long
        if options.precision == "int8":
            open_quantizer(options.quantizer)  # likewise
    name = options.name or source.name
    out = Path(f"{name}.bundle") if out is None else out
    with _no_folders_left(out), new_bundle(out) as (folder, finish):
        from compiler import assemble, proof  # torch takes seconds to import
        from compiler.trace import TraceOptions, trace

        trace_options = TraceOptions(options.inputs, example, options.exported_opset, options.seed)
        with progress("tracing and exporting"):
            traced = trace(source, trace_options)
            del source  # with the next two `del`: the weights are in memory once at a time
        clock.seconds.update(traced.seconds)
        title = "quantising" if options.precision == "int8" else "writing the weights"
        with clock("passes"), progress(title) as advance:
            reference = traced.reference
            fx = _fx_program(traced, options)
            prepared = assemble.prepare(
                traced,
                folder,
                options.images,
                pixels,
                opset=options.graph_opset,
                half=options.precision == "fp16",
                islands=options.fp32,
                calibrate=options.calibrate,
                samples=options.samples,
                int8=options.int8_options if options.precision == "int8" else None,
                progress=advance,
            )
            del traced
        with clock("cuts"), progress("finding cuts") as advance:
            found = _find(prepared, options, advance)
        with clock("proof"), progress("running the reference"):
            reference = prepared.in_front_of(reference)
            specs = assemble.compared(found.graph, found.boundaries)
            expected = proof.expect(
                reference,
                prepared.model,
                prepared.folder,
                found.inputs,
                specs,
                exact=prepared.exact,
            )
            prepared.drop_exact()
            del reference
            gc.collect()  # programs refer to themselves: the model's weights go now
        bundle = _write(
            name, folder, prepared, found, expected, fx, options, clock, progress, finish
        )
    return bundle, make_report(bundle, out, {s: clock.seconds.get(s, 0.0) for s in STAGES})


@dataclass(frozen=True, slots=True)
class _Found:
    """The graph, its cuts, what they were chosen by, and the inputs that they are proved with."""

    graph: ValueGraph
    boundaries: Boundaries
    estimates: dict[str, Estimate]
    power: StatePower
    inputs: dict[str, Array]
    streams: Streams | None


def _find(
    prepared: Prepared, options: CompileOptions, advance: Callable[[int, int], None]
) -> _Found:
    from compiler import assemble, costs, cuts, graph, selection, whole
    from compiler.stripes.emit import find_streams
    from compiler.stripes.proposals import striped_proposers

    inputs = assemble.parity_inputs(prepared, options.seed)
    other = assemble.parity_inputs(prepared, options.seed + 1, fresh=True)
    values = graph.infer_values(prepared.model)
    values = whole.measure_values(prepared.model, prepared.folder, values, [inputs, other])
    value_graph = graph.build_graph(prepared.model, prepared.paths, values)
    order = [node for node in value_graph.nodes if not node.free]

    @functools.cache
    def here() -> NDArray[np.float64]:
        return costs.measure_here(
            prepared.model, prepared.folder, value_graph, order, inputs, progress=advance
        )

    robot, server = (
        costs.side_costs(side, value_graph, order, here, precision=options.precision)
        for side in (options.robot, options.server)
    )
    setting = selection.Setting(value_graph, robot, server, options.cut_options)
    streams: Streams | None = None
    proposers = selection.PROPOSERS
    if options.stripes != "none":
        images = {image.name: image.image_layout for image in prepared.images}
        streams = find_streams(prepared.model, value_graph, images)
        proposers = (*proposers, *striped_proposers(streams, prepared.model, options.halo))
    candidates = selection.choose(setting, proposers)
    boundaries = cuts.find_cuts(
        value_graph,
        candidates,
        max_frontier=options.max_frontier,
        most=options.cut_options.most,
    )
    estimates = {
        name: Estimate(
            device=side.device,
            source=side.source,
            segments_s=tuple(float(side.seconds[list(s)].sum()) for s in boundaries.segments),
        )
        for name, side in (("robot", robot), ("server", server))
    }
    return _Found(value_graph, boundaries, estimates, robot.power, inputs, streams)


def _write(
    name: str,
    folder: Path,
    prepared: Prepared,
    found: _Found,
    expected: Expected,
    fx: torch.export.ExportedProgram | None,
    options: CompileOptions,
    clock: _Clock,
    progress: Progress,
    finish: Callable[[Manifest], Bundle],
) -> Bundle:
    from compiler import assemble, proof, rounding, segments
    from compiler.stripes.bounded import measure_bounded
    from compiler.stripes.emit import write_stripes

    with clock("emit"), progress("writing segments") as advance:
        emitted = segments.emit(
            folder, prepared.model, found.graph, found.boundaries, progress=advance
        )
    striping: Striping | None = None
    record: Quantisation | None = None
    if found.streams is not None:
        with clock("emit"), progress("writing stripes") as advance:
            striping = write_stripes(
                folder,
                prepared.model,
                found.graph,
                found.boundaries,
                found.streams,
                halos=options.halo,
                progress=advance,
            )
    with clock("proof"), progress("proving segments") as advance:
        if prepared.quantised is not None:
            from compiler.quantised_proof import prove_quantised

            # What engines must give from here on is what the quantised graph says.
            expected, outputs = prove_quantised(
                prepared.model, prepared.folder, found.graph, expected, prepared.quantised
            )
            record = msgspec.structs.replace(prepared.quantised.record, outputs=outputs)
        proof.write_parity(folder, expected)
        draft = assemble.draft(
            name,
            folder,
            prepared,
            emitted,
            found.boundaries,
            found.estimates,
            found.graph.values,
            expected,
            options.seed,
            striping,
            record,
        )
        error = 0.0
        if prepared.exact is not None and prepared.quantised is None:
            error = rounding.prove_rounded(
                prepared.model, prepared.folder, found.graph, expected, draft.parity.tolerance
            )
        error = max(error, proof.prove(Bundle(folder, draft, ""), expected, progress=advance))
        striping = measure_bounded(Bundle(folder, draft, ""), found.inputs)
        draft = msgspec.structs.replace(draft, striping=striping)
    if prepared.data is not None:
        with clock("calibrate"), progress("calibrating") as advance:
            draft = assemble.with_ranges(
                folder, draft, _cut_ranges(folder, draft, prepared, advance)
            )
    with clock("plans"), progress("building plans") as advance:
        from compiler.targets import build_targets

        targets = build_targets(
            folder,
            draft,
            options.target_specs,
            workspace_bytes=options.workspace,
            halves=options.halves,
            progress=advance,
            fx=fx,
        )
    with clock("report"):
        manifest = assemble.proved(draft, error, targets)
        page = render_report(manifest, power=found.power)
        (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    with clock("write"):
        return assemble.finish(folder, manifest, finish)


def _cut_ranges(
    folder: Path, draft: Manifest, prepared: Prepared, advance: Callable[[int, int], None]
) -> Ranges:
    """Run the segments over the user's data."""
    assert prepared.data is not None, "no data"
    with Program(Bundle(folder, draft, ""), open_backend("ort"), fuse=False) as program:
        ranges = calibrate_cuts(
            program, prepared.data, progress=lambda done, total: advance(done, total or done)
        )
    if prepared.quantised is None:  # which has said so of the same data already
        for warning in ranges.warnings:
            logger.warning("--calibrate: %s", warning)
    return ranges


def _fx_program(traced: Traced, options: CompileOptions) -> torch.export.ExportedProgram | None:
    """Return the program to build plans from; none, so that it can go, where they need none."""
    if not options.from_fx:
        return None
    if traced.program is None:
        raise TraceError(
            f"--builder {options.builder}: expected a model that torch.export traces, given one "
            "without an fx program (an .onnx file, or TorchScript that converts to none); "
            "leave --builder out"
        )
    return traced.program


def _source(model: Any, options: CompileOptions) -> Source:
    if isinstance(model, str | Path):
        return open_source(str(model), weights=options.weights, trust_pickle=options.trust_pickle)
    module = model[0] if isinstance(model, tuple) and model else model
    name = options.name or type(module).__name__.lower()
    return source_from_object(model, name, where="compile_model")


@contextlib.contextmanager
def _no_folders_left(out: Path) -> Iterator[None]:
    """Remove the folders that were made on the way to ``out`` if it does not get there."""
    made = [parent for parent in out.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
