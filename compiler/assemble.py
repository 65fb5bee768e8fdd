"""Assemble: the prepared graph on disk, and the manifest over everything that was written."""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir

from calibration.collect import no_progress
from calibration.parity import QUANTISED, TOLERANCE, seeded_inputs
from calibration.ranges import RANGES_FILE, Ranges, write_ranges
from calibration.samples import Samples, open_samples
from compiler.cuts import Boundaries
from compiler.graph import ValueGraph, Values
from compiler.images import ImageSpec
from compiler.int8 import Quantised, quantise_model
from compiler.options import Int8Options
from compiler.passes import run_passes
from compiler.passes.half import convert_to_half
from compiler.passes.provenance import strip_provenance
from compiler.proof import PARITY_FILE, Exact, Expected
from compiler.quantised_proof import apart_from_float32
from compiler.reference import ImageReference, Reference
from compiler.segments import GRAPH_FILE, WEIGHTS_FILE, Emitted
from compiler.trace import Traced
from engines.bundle import Bundle, file_entries
from engines.errors import TraceError
from engines.manifest import (
    SPEC,
    Estimate,
    FileEntry,
    Manifest,
    Parity,
    Quantisation,
    Target,
)
from engines.stripes import Striping
from engines.tensors import DTYPES, Array, TensorSpec

__all__ = [
    "Prepared",
    "compared",
    "draft",
    "finish",
    "parity_inputs",
    "prepare",
    "proved",
    "with_ranges",
]

_EXACT_FOLDER = "exact"
"""Where the float32 graph lies until the proof has run it."""

_EMBEDDED_BYTES = 1024
"""Largest tensor kept in the ONNX files themselves: shapes and axes, which loaders want there."""

_WEIGHTS_ALIGNMENT_BYTES = 4096
"""Large weights begin on a page, so that they can be mapped.

Source:
    ONNX's external data: "offset ... multiples of 4096 bytes allow mmap".
"""

_MOST_QUANTISED = 0.45
"""Largest tolerance of a quantised graph: what 1 - cosine of 0.1, the most that an output may be
off by, is as a relative root mean square."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The final graph, written.

    Attributes:
        model: The graph, its weights in the weights file.
        folder: Where both lie.
        inputs: The inputs' specifications, in order.
        paths: Module path of the node that gives a value.
        images: Inputs that take raw pixels.
        floats: Name and dtype of the normalised value of each of them.
        example: The user's arrays by input, where given; raw pixels for images.
        exact: The graph in float32, where ``model`` is its conversion.
        quantised: How it was quantised; none where it was not.
        data: The user's calibration data; none where there is none.
    """

    model: onnx.ModelProto
    folder: Path
    inputs: tuple[TensorSpec, ...]
    paths: Mapping[str, str]
    images: tuple[ImageSpec, ...]
    floats: Mapping[str, tuple[str, str]]
    example: Mapping[str, Array] | None
    exact: Exact | None = None
    quantised: Quantised | None = None
    data: Samples | None = None

    @property
    def precision(self) -> str:
        """What the model computes in."""
        if self.exact is None:
            return _precision(self.model)
        return "fp16" if self.quantised is None else "int8"

    def drop_exact(self) -> None:
        """Remove the float32 graph and its weights, which are no part of the bundle."""
        if self.exact is not None:
            shutil.rmtree(self.exact.folder.parent)

    def in_front_of(self, reference: Reference) -> Reference:
        """Return the reference as it takes these inputs: images as raw pixels."""
        return ImageReference(reference, self.images, self.floats) if self.images else reference


def prepare(
    traced: Traced,
    folder: Path,
    images: Sequence[ImageSpec],
    pixels: Mapping[str, Array] | None = None,
    *,
    opset: int = 18,
    half: bool = False,
    islands: Sequence[str] = (),
    calibrate: str | None = None,
    samples: int | None = None,
    int8: Int8Options | None = None,
    progress: Callable[[int, int], None] = no_progress,
) -> Prepared:
    """Run the passes, and write graph and weights into ``folder``.

    Args:
        traced: The model.
        folder: The bundle's folder.
        images: Inputs that are to take raw pixels.
        pixels: Raw pixels of the user's example, by input.
        opset: The opset asked for; 17 is lowered from 18.
        half: Whether to convert the graph to float16.
        islands: Nodes and modules that stay in float32 then.
        calibrate: DATA as ``calibration.samples`` takes it.
        samples: Most samples of it to use.
        int8: How to quantise; none to leave it.
        progress: Called with (steps done, steps in all) while quantising.

    Raises:
        TraceError: The graph or ``images`` cannot be used.
        SourceError: The data cannot be used.
        EmitError: The graph cannot be lowered.
    """
    passed = run_passes(
        traced.model,
        input_names=traced.input_names,
        input_shapes=traced.shapes,
        output_names=traced.output_names,
        images=images,
        fold=traced.fold,
        opset=opset,
    )
    inputs = tuple(_input_spec(value) for value in traced.model.graph.inputs)
    data = None
    if calibrate is not None:
        data = open_samples(calibrate, inputs, {i.name: i.image_layout for i in images})
        data = data if samples is None else data.first(samples)
    exact, quantised = None, None
    if half or int8 is not None:
        before = _save(traced.model, folder / _EXACT_FOLDER)
        file = folder / _EXACT_FOLDER / GRAPH_FILE
        if int8 is not None:
            assert data is not None, "quantising takes data"
            quantised = quantise_model(
                traced.model, passed.paths, file, data, int8, progress=progress
            )
            aliases = quantised.names.aliases
        else:
            aliases = convert_to_half(traced.model, passed.paths, islands)
        exact = Exact(before, file.parent, aliases)
    model = _save(traced.model, folder)
    # The exporter's rewrite rules remember the last graph they matched: let the weights go.
    for value in traced.model.graph.initializers.values():
        value.const_value = None
    gc.collect()  # graph and values refer to each other: what the passes dropped goes now
    example = None if traced.example is None else {**traced.example, **(pixels or {})}
    return Prepared(
        model=model,
        folder=(folder / GRAPH_FILE).parent,
        inputs=inputs,
        paths=passed.paths,
        images=tuple(images),
        floats=passed.floats,
        example=example,
        exact=exact,
        quantised=quantised,
        data=data,
    )


def _save(model: ir.Model, folder: Path) -> onnx.ModelProto:
    """Write graph and weights into a bundle's folder; return the graph, its weights not loaded."""
    path = folder / GRAPH_FILE
    path.parent.mkdir(parents=True)
    ir.save(
        model,
        path,
        external_data=Path(WEIGHTS_FILE).name,
        size_threshold_bytes=_EMBEDDED_BYTES,
        alignment=_WEIGHTS_ALIGNMENT_BYTES,
        align_threshold=_WEIGHTS_ALIGNMENT_BYTES,
    )
    weights = folder / WEIGHTS_FILE
    if weights.exists() and not weights.stat().st_size:
        weights.unlink()
    proto = onnx.load(path, load_external_data=False)
    strip_provenance(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return proto


def _input_spec(value: ir.Value) -> TensorSpec:
    dtype = "unknown" if value.dtype is None else value.dtype.numpy().name
    shape = tuple(int(str(extent)) for extent in value.shape or ())
    if dtype not in DTYPES:
        raise TraceError(
            f"input {value.name!r}: expected one of {', '.join(DTYPES)}, given {dtype}; "
            "convert inside of forward(), and give an input that the robot can send"
        )
    return TensorSpec(value.name or "", dtype, shape)


def parity_inputs(prepared: Prepared, seed: int, *, fresh: bool = False) -> dict[str, Array]:
    """Return the user's example, or seeded inputs; seeded ones in any case where ``fresh``.

    Without an example a quantised model gets the first sample of its data: it is made for such.
    An image input of which the example has no raw pixels is seeded too.

    Raises:
        TraceError: The example does not fit the inputs.
    """
    drawn = seeded_inputs(prepared.inputs, seed)
    if prepared.example is None and prepared.quantised is not None and not fresh:
        return dict(prepared.quantised.first)
    if prepared.example is None or fresh:
        return drawn
    images = {image.name for image in prepared.images}
    given = dict(prepared.example)
    given.update({n: drawn[n] for n in images if given[n].dtype != drawn[n].dtype})
    wrong = [spec.mismatch(given[spec.name]) for spec in prepared.inputs]
    if any(wrong):
        raise TraceError(f"--example: {'; '.join(filter(None, wrong))}")
    return {spec.name: given[spec.name] for spec in prepared.inputs}


def compared(graph: ValueGraph, boundaries: Boundaries) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every tensor that some cut has cross, and of the outputs."""
    names = dict.fromkeys(n for cut in boundaries.cuts for n in (*cut.frontier, *cut.results))
    specs = graph.values.specs
    return {n: (specs[n].dtype, specs[n].shape) for n in names if n not in graph.inputs}


def draft(
    name: str,
    folder: Path,
    prepared: Prepared,
    emitted: Emitted,
    boundaries: Boundaries,
    estimates: Mapping[str, Estimate],
    values: Values,
    expected: Expected,
    seed: int,
    striping: Striping | None,
    quantisation: Quantisation | None,
) -> Manifest:
    """Return the manifest without digests and without the largest error."""
    weights = WEIGHTS_FILE if (folder / WEIGHTS_FILE).exists() else ""
    named = {n for cut in emitted.cuts for n in (*cut.tensors, *cut.results)}
    named |= {n for segment in emitted.segments for n in (*segment.inputs, *segment.outputs)}
    domains = {o.domain: o.version for o in prepared.model.opset_import}
    eight_bits = any(node.op_type == "QuantizeLinear" for node in prepared.model.graph.node)
    opset = domains.get("", domains.get("ai.onnx", 0))
    files = {
        path.relative_to(folder).as_posix(): FileEntry(bytes=path.stat().st_size, sha256="")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Manifest(
        spec=SPEC,
        name=name,
        model_digest=_model_digest(folder, weights),
        producer=_producer(quantisation),
        opset=int(opset),
        precision=prepared.precision,
        graph=GRAPH_FILE,
        weights=weights,
        inputs=prepared.inputs,
        outputs=tuple(values.specs[value.name] for value in prepared.model.graph.output),
        images={image.name: image.image_layout for image in prepared.images},
        tensors={n: values.specs[n] for n in sorted(named)},
        cuts=emitted.cuts,
        segments=emitted.segments,
        refused=boundaries.refused,
        estimates=dict(estimates),
        targets={},
        parity=Parity(
            file=PARITY_FILE,
            seed=seed,
            tolerance=_tolerance(
                values,
                labels=prepared.exact is not None,
                quantised=eight_bits,
                apart=0.0 if quantisation is None else apart_from_float32(quantisation),
            ),
            max_error=0.0,
            compared_with=expected.reference,
            measure="rms" if eight_bits else "max",
        ),
        files=files,
        striping=striping,
        quantisation=quantisation,
    )


def with_ranges(folder: Path, draft: Manifest, ranges: Ranges) -> Manifest:
    """Write the ranges of what crosses, and add their file to a draft."""
    path = folder / RANGES_FILE
    write_ranges(path, ranges)
    files = {**draft.files, RANGES_FILE: FileEntry(bytes=path.stat().st_size, sha256="")}
    return msgspec.structs.replace(draft, files=files, ranges=RANGES_FILE)


def proved(draft: Manifest, max_error: float, targets: Mapping[str, Target]) -> Manifest:
    """Add the largest error and the targets to a draft."""
    parity = msgspec.structs.replace(draft.parity, max_error=max_error)
    return msgspec.structs.replace(draft, parity=parity, targets=dict(targets))


def finish(folder: Path, manifest: Manifest, write: Callable[[Manifest], Bundle]) -> Bundle:
    """Add the digests of all files, and put the bundle in its place."""
    return write(msgspec.structs.replace(manifest, files=file_entries(folder)))


def _model_digest(folder: Path, weights: str) -> str:
    """Return the SHA-256 over the whole graph's file and the weights file."""
    hasher = hashlib.sha256()
    for name in (GRAPH_FILE, weights):
        if not name:
            continue
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
    return hasher.hexdigest()


def _precision(model: onnx.ModelProto) -> str:
    """Return the type that most weights have: the one the model computes in."""
    sizes: dict[str, int] = {}
    for tensor in model.graph.initializer:
        count = 1
        for extent in tensor.dims:
            count *= extent
        kind = str(onnx.TensorProto.DataType.Name(tensor.data_type)).lower()
        if "float" in kind or kind == "double":
            sizes[kind] = sizes.get(kind, 0) + count
    most = max(sorted(sizes), key=lambda kind: sizes[kind], default="float")
    return {"float": "float32", "double": "float64"}.get(most, most)


def _tolerance(
    values: Values, *, labels: bool, quantised: bool = False, apart: float = 0.0
) -> dict[str, float]:
    """Return the tolerance by dtype, no finer than that of the coarsest type in the graph.

    What was computed in float16 on the way is as coarse as float16, whatever its own dtype, and
    a backend may compute more precisely there than the reference does.

    Args:
        values: What the graph computes.
        labels: Whether integers are as coarse: the reference computed them in float32.
        quantised: Whether codes of 8 bits were computed on the way.
        apart: How far they led from the float32 model, as a relative root mean square: another
            order of summation leads as far away from the graph as it is written.
    """
    floats = {s.dtype for s in values.specs.values() if s.dtype.startswith("float")}
    coarsest = max((TOLERANCE[dtype] for dtype in floats), default=0.0)
    if quantised:
        coarsest = max(coarsest, QUANTISED, min(2 * apart, _MOST_QUANTISED))
    table = {
        k: v if k == "integer" and not labels else max(v, coarsest) for k, v in TOLERANCE.items()
    }
    return {**table, "int8": coarsest} if quantised else table


def _producer(quantisation: Quantisation | None) -> dict[str, str]:
    """Return the versions of what compiles here."""
    versions = {}
    packages = ["splitrt", "torch", "onnx", "onnxruntime"]
    if quantisation is not None and quantisation.quantizer == "modelopt":
        packages.append("nvidia-modelopt")
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions
