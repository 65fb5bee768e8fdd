"""The manifest: the index of a bundle, as written in ``manifest.json``.

Every record here is a frozen struct, checked when it is decoded. ``docs/bundle.md`` explains
the fields to someone who reads a bundle without this code.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Dict, List, Literal, Optional, Tuple

import msgspec

from engines.errors import ManifestError
from engines.stripes import Striping
from engines.tensors import TensorSpec

__all__ = [
    "SPEC",
    "Cut",
    "Estimate",
    "FileEntry",
    "ImageLayout",
    "Manifest",
    "Parity",
    "OutputError",
    "Quantisation",
    "Rejection",
    "Segment",
    "Target",
    "decode_manifest",
    "encode_manifest",
]

SPEC = 1
"""Version of the manifest's schema; a manifest of another version is refused."""


class ImageLayout(msgspec.Struct, frozen=True, kw_only=True):
    """How a photograph is laid into an input that takes raw pixels.

    Attributes:
        layout: ``NHWC`` or ``NCHW``; N is 1.
        color: ``rgb`` or ``bgr``.
    """

    layout: str
    color: str = "rgb"


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """The set of tensors that cross one boundary of the graph.

    Attributes:
        id: First eight hex digits of the SHA-256 of the sorted frontier names, joined by
            newlines; where another cut has the same frontier, an empty line and the sorted
            names of the results follow.
        index: Place of the cut in this bundle, from 0 (raw input crosses) on.
        tensors: Frontier names, sorted. The last cut's are the model's outputs.
        bytes: Size of the frontier in bytes, uncoded.
        results: Outputs that the server sends back.
        result_bytes: Their size in bytes, uncoded.
        flops_robot: Floating-point operations before the cut.
        flops_server: Floating-point operations after it.
        after: Module path of the last operator before the cut; empty for the first cut.
        why: What put the cut into the bundle.
        head: ONNX file of everything before the cut; none for the first cut.
        tail: ONNX file of everything after the cut; none for the last cut.
        robot_segments: Indices of the segments before the cut, ascending: those the robot runs.
        refused: Why the cut may not be used, though the bundle needs it as an end of the chain;
            empty where it may.
    """

    id: str
    index: int
    tensors: Tuple[str, ...]
    bytes: int
    results: Tuple[str, ...]
    result_bytes: int
    flops_robot: int
    flops_server: int
    after: str
    why: Tuple[str, ...]
    head: Optional[str]
    tail: Optional[str]
    robot_segments: Tuple[int, ...]
    refused: str = ""


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the program that no cut divides: an atom of the cuts' common refinement.

    Where the cuts are nested, segment ``i`` is the program between cuts ``i`` and ``i + 1``.

    Attributes:
        index: Its place in an order in which every segment follows those that it depends on.
        file: ONNX file.
        inputs: Tensors it takes.
        outputs: Tensors it gives.
        operators: ONNX operators in it, in order.
        flops: Floating-point operations.
    """

    index: int
    file: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    operators: Tuple[str, ...]
    flops: int


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A boundary that did not become a cut.

    Attributes:
        after: Name of the last ONNX node before the boundary.
        reason: Why it was refused.
        nodes: Tensors or nodes to blame.
    """

    after: str
    reason: str
    nodes: Tuple[str, ...]


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """Seeded inputs and the whole model's outputs for them.

    Attributes:
        file: ``.npz`` with ``input:NAME`` and ``output:NAME`` arrays.
        seed: Seed that the inputs were drawn with.
        tolerance: Largest error allowed, by dtype (see ``calibration.parity``).
        max_error: Largest error over every frontier when the bundle was compiled.
        compared_with: What the reference was: ``pytorch`` or ``onnx``.
        measure: What an error is: ``max``, the largest difference, or ``rms``, the relative root
            mean square of all (see ``calibration.parity``).
    """

    file: str
    seed: int
    tolerance: Dict[str, float]
    max_error: float
    compared_with: str
    measure: Literal["max", "rms"] = "max"


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated times of the segments on a device, from when the bundle was compiled.

    Attributes:
        device: Which device.
        source: How they were estimated: ``roofline`` or ``measured``.
        segments_s: Seconds of each segment.
    """

    device: str
    source: str
    segments_s: Tuple[float, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What engines a bundle is for, and how their plans are built: here, or on the device.

    Attributes:
        backend: Name of the backend.
        opset: ONNX opset of the graphs.
        precision: What the graphs compute in.
        compute_capabilities: GPUs to build for, as ``sm86``; empty for the one that builds.
        workspace_bytes: Most scratch memory that a layer may use; none for the library's bound.
        plans: Folder of the plans built when the bundle was compiled; none where the device builds
            them (``runtime build BUNDLE``).
        halves: ONNX files of the fused halves that get plans beside those of the segments.
    """

    backend: str
    opset: int
    precision: str
    compute_capabilities: Tuple[str, ...] = ()
    workspace_bytes: Optional[int] = None
    plans: Optional[str] = None
    halves: Tuple[str, ...] = ()


class OutputError(msgspec.Struct, frozen=True, kw_only=True):
    """How far an output of a quantised graph is from the float32 model's, on the parity inputs.

    Attributes:
        distance: 1 - cosine.
        rms: Root mean square of the differences, relative to that of the float32 model's.
        largest: Largest difference, in units of the larger of 1 and the largest value.
    """

    distance: float
    rms: float
    largest: float


class Quantisation(msgspec.Struct, frozen=True, kw_only=True):
    """How a graph of 8-bit operators came about.

    Attributes:
        method: How thresholds were chosen: ``minmax``, ``percentile``, ``mse`` or ``entropy``.
        data: SHA-256 of the calibration data (see ``calibration.samples``).
        samples: How many samples it has.
        quantised: Nodes that take codes of 8 bits.
        kept: Nodes that do not, though they could, each with what quantising it alone costs: the
            mean of ``metric`` over the samples.
        error: The same of the graph as it is, against the float32 model.
        metric: What an error is (see ``calibration.metrics``).
        outputs: How far each output is from the float32 model's.
        floats: ``fp16`` or ``fp32`` by node: of those that could compute in 8 bits and do not, for
            what it costs or since the user or the quantizer says so, and of those between two in
            float16.
        quantizer: What decided which nodes could take codes (see ``compiler.quantizers``).
    """

    method: str
    data: str
    samples: int
    quantised: Tuple[str, ...]
    kept: Dict[str, float]
    error: float
    metric: str = "cosine"
    outputs: Dict[str, OutputError] = {}
    floats: Dict[str, str] = {}
    quantizer: str = "measured"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file's size in bytes and its SHA-256 in hex."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Index of a bundle.

    Attributes:
        spec: Version of this schema.
        name: The model's name, for people.
        model_digest: SHA-256 over the whole graph's file and the weights file.
        producer: Versions of what compiled the bundle.
        opset: ONNX opset of every graph.
        precision: Type that the model computes in; ``fp16`` where it was converted to float16,
            ``int8`` where it was quantised.
        graph: ONNX file of the whole model.
        weights: The one weights file, empty where the model has none to share.
        inputs: The model's inputs.
        outputs: The model's outputs.
        images: Inputs that take raw pixels, and how.
        tensors: Every tensor that some cut or segment names.
        cuts: By index.
        segments: By index.
        refused: Boundaries that did not become cuts.
        estimates: Times that the cuts were chosen by, for ``robot`` and ``server``.
        targets: Engines that the bundle is for, beside ONNX Runtime, by name.
        parity: Parity vectors.
        striping: The striped forms of the segments; none where nothing can be striped.
        files: Every file of the bundle but the manifest itself, by path.
        ranges: File with the ranges of what crosses (``calibration.ranges``); empty where the
            bundle was compiled without ``--calibrate``.
        quantisation: How the graph was quantised; none where it was not.
    """

    spec: int
    name: str
    model_digest: str
    producer: Dict[str, str]
    opset: int
    precision: str
    graph: str
    weights: str
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    images: Dict[str, ImageLayout]
    tensors: Dict[str, TensorSpec]
    cuts: Tuple[Cut, ...]
    segments: Tuple[Segment, ...]
    refused: Tuple[Rejection, ...]
    estimates: Dict[str, Estimate]
    targets: Dict[str, Target]
    parity: Parity
    files: Dict[str, FileEntry]
    striping: Optional[Striping] = None
    ranges: str = ""
    quantisation: Optional[Quantisation] = None

    def __post_init__(self) -> None:
        for complaint in _complaints(self):
            raise ValueError(complaint)

    def cut(self, cut_id: str) -> Cut:
        """Return the cut called ``cut_id``.

        Raises:
            ManifestError: This bundle has no such cut.
        """
        for cut in self.cuts:
            if cut.id == cut_id:
                return cut
        raise ManifestError(
            f"cut {cut_id!r}: not in bundle {self.name!r}; "
            "`split-bundle inspect BUNDLE` lists its cuts"
        )

    def specs(self, names: Tuple[str, ...]) -> Tuple[TensorSpec, ...]:
        """Return the specifications of tensors that this bundle names."""
        return tuple(self.tensors[name] for name in names)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the text of ``manifest.json``: indented, in the order of the fields."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(text: bytes, *, where: str) -> Manifest:
    """Read ``manifest.json``.

    Args:
        text: The file's bytes.
        where: The file's path, for messages.

    Raises:
        ManifestError: Not a manifest, of another schema, or contradicting itself.
    """
    try:
        version = msgspec.json.decode(text, type=_OnlySpec).spec
        if version != SPEC:
            raise ManifestError(
                f"{where}: expected manifest schema {SPEC}, given {version}; "
                "compile the model again with this version of SplitRT"
            )
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ManifestError(f"{where}: not a manifest: {exc}; compile the model again") from exc


class _OnlySpec(msgspec.Struct):
    spec: int


def _complaints(manifest: Manifest) -> List[str]:
    """List what in a manifest contradicts itself; paths that leave the bundle included."""
    wrong: List[str] = []
    for path in manifest.files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path:
            wrong.append(f"path {path!r} leaves the bundle")
    wrong += _cut_complaints(manifest)
    for place, segment in enumerate(manifest.segments):
        if segment.index != place:
            wrong.append(f"segment {segment.index} lies at {place}")
    named = [manifest.graph, manifest.parity.file]
    named += [name for name in (manifest.weights, manifest.ranges) if name]
    named += [s.file for s in manifest.segments]
    named += [f for c in manifest.cuts for f in (c.head, c.tail) if f is not None]
    named += [] if manifest.striping is None else manifest.striping.files()
    named += [f for target in manifest.targets.values() for f in target.halves]
    wrong += [f"file {path!r} has no digest" for path in named if path not in manifest.files]
    for side, estimate in manifest.estimates.items():
        if len(estimate.segments_s) != len(manifest.segments):
            wrong.append(f"estimate of the {side} has {len(estimate.segments_s)} segments")
    used = [t for c in manifest.cuts for t in c.tensors + c.results]
    used += [t for s in manifest.segments for t in s.inputs + s.outputs]
    wrong += [f"tensor {t!r} has no specification" for t in used if t not in manifest.tensors]
    return wrong


def _cut_complaints(manifest: Manifest) -> List[str]:
    """List what is wrong with the cuts."""
    wrong: List[str] = []
    everything = tuple(range(len(manifest.segments)))
    ends = [cut.robot_segments for cut in manifest.cuts[:1] + manifest.cuts[-1:]]
    if ends != [(), everything] or not everything:
        wrong.append("the first cut must have no segment on the robot, the last cut every one")
    if len({cut.id for cut in manifest.cuts}) != len(manifest.cuts):
        wrong.append("two cuts have one id")
    for place, cut in enumerate(manifest.cuts):
        if cut.index != place:
            wrong.append(f"cut {cut.id} says index {cut.index}, lies at {place}")
        if len(cut.id) != 8 or any(digit not in "0123456789abcdef" for digit in cut.id):
            wrong.append(f"cut id {cut.id!r} is not 8 hex digits")
        if cut.robot_segments != tuple(sorted(set(cut.robot_segments) & set(everything))):
            wrong.append(f"cut {cut.id} names segments that are not there, or not in order")
    return wrong
