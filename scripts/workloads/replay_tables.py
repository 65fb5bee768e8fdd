"""Replay tables of a compiled workload, from its published profile.

    python -m scripts.workloads.replay_tables BUNDLE WORKLOAD -o FOLDER [--testbed TESTBED]

A profile lists the operators that PyTorch called, with their times; a bundle has the ONNX nodes
that the exporter made of them. The two are brought together in three steps:

1. Both are read as sequences of (kind of operator, shape of its output), in order of execution,
   and matched by their longest common subsequence. Nodes that the exporter split or named anew
   have the kind of the operator that they finish: the last of the nodes of a GELU is the GELU.
2. An operator without a node of its own goes where the operator is whose output it takes, through
   others like it: a batch norm that was folded into a convolution goes to that convolution.
3. Selecting objects, which depends on the data, is not part of a graph: from there on operators
   have no place. Nodes that no operator is for (the preprocessing of raw pixels) take no time.

So a segment has the operators of its nodes, each a launch of its own, as they were profiled.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from calibration.latency_table import HalfTiming, LatencyTable, Timing, store_table
from calibration.segment_times import SHARES
from compiler.costs import OperatorTimes
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.errors import SplitError
from engines.halves import halves_of
from engines.replay_table import ReplayTable, read_replay_table

from . import WORKLOADS
from .check import DATA_DEPENDENT, Shape
from .profiles import Operator, Profile, ProfileError, profiles_folder, read_profile

__all__ = [
    "FLOORS",
    "SIDES",
    "Assignment",
    "assign",
    "floor_ms",
    "latency_table",
    "operator_times",
    "profile_of",
    "replay_table",
    "write_tables",
]

SIDES = ("robot", "server")

FLOORS = (0.0, 1.0, 2.0)
"""Launch floors that tables are written for, as multiples of the device's own."""

ELEMENTWISE = frozenset(
    {"add", "add_", "batch_norm", "gelu", "mul", "mul_", "relu", "silu", "sub"}
)
"""Operators that do little but touch every element once."""

SMALLEST = 0.25
"""Part of the elementwise operators, by the size of their outputs, that speak for a launch."""

_KINDS = {
    "ArgMax": "argmax",
    "AveragePool": "avg_pool",
    "BatchNormalization": "batch_norm",
    "Cast": "type",
    "Concat": "cat",
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "Div": "div",
    "Gemm": "linear",
    "GlobalAveragePool": "avg_pool",
    "LayerNormalization": "layer_norm",
    "MatMul": "linear",
    "MaxPool": "max_pool",
    "Pow": "pow",
    "ReduceMean": "avg_pool",
    "Relu": "relu",
    "Reshape": "view",
    "Resize": "interpolate",
    "Sigmoid": "sigmoid",
    "Slice": "__getitem__",
    "Squeeze": "squeeze",
    "Sub": "sub",
    "Transpose": "permute",
}
"""ONNX operator -> kind; Add and Mul go by the name of the node, which is that of its operator."""

_SAME = {
    "adaptive_avg_pool2d": "avg_pool",
    "avg_pool2d": "avg_pool",
    "conv2d": "conv",
    "conv3d": "conv",
    "conv_transpose2d": "conv_transpose",
    "max_pool2d": "max_pool",
    "unflatten": "view",
}
"""Operator of a profile -> kind, where it is not its name without the underscore at its end."""

Step = tuple[str, Shape]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where the operators of a profile went.

    Attributes:
        segments: For each segment of the bundle, the indices of the operators in it, ascending.
        tensors: For each operator that has a place, the tensor that its node gives.
        matched: Operators that have a node of their own.
        joined: Operators that went to the node of their producer.
        lost: Operators without a place.
    """

    segments: tuple[tuple[int, ...], ...]
    tensors: Mapping[int, str]
    matched: tuple[int, ...]
    joined: tuple[int, ...]
    lost: tuple[int, ...]

    def share(self, which: Sequence[int], operators: Sequence[Operator]) -> float:
        """Return which part of the time of all operators some of them take."""
        total = sum(operator.ms for operator in operators)
        return sum(operators[index].ms for index in which) / total if total else 0.0


def profile_of(workload: str, testbed: str | Path | None = None) -> Profile:
    """Return the profile of the workload called so.

    Raises:
        ProfileError: There is no such workload, it has no profile, or that cannot be read.
    """
    known = WORKLOADS.get(workload)
    if known is None or known.profile is None:
        profiled = ", ".join(n for n, w in WORKLOADS.items() if w.profile is not None)
        raise ProfileError(f"{workload}: expected a workload with a profile: {profiled}")
    return read_profile(profiles_folder(testbed) / f"{known.profile}.json")


def assign(bundle: Bundle, operators: Sequence[Operator]) -> Assignment:
    """Assign the operators of a profile to the segments of a bundle of the same model.

    Raises:
        ProfileError: Hardly any operator has a node: it is another model.
    """
    manifest = bundle.manifest
    nodes, segment_of = _nodes(bundle)
    end = next((o.index for o in operators if o.op in DATA_DEPENDENT), len(operators))
    listed = [o for o in operators[:end] if o.shapes and o.op not in ("_start", "_end")]
    pairs = _common([_operator_step(o) for o in listed], [step for step, _ in nodes])
    place: dict[int, str] = {listed[i].index: nodes[j][1] for i, j in pairs}
    matched = tuple(place)
    if len(matched) < len(listed) / 4:
        raise ProfileError(
            f"bundle {manifest.name!r}: only {len(matched)} of {len(listed)} operators of the "
            "profile are in it; is it a bundle of another model?"
        )
    joined: list[int] = []
    for operator in operators[:end]:
        if operator.index in place or operator.op in ("_start", "_end"):
            continue
        # What takes the input itself goes where its own taker is.
        takers = (o.index for o in operators[:end] if operator.index in o.inputs)
        beside = (*reversed(operator.inputs), *takers)
        found = next((place[index] for index in beside if index in place), None)
        if found is not None:
            place[operator.index] = found
            joined.append(operator.index)
    segments: list[list[int]] = [[] for _ in manifest.segments]
    for index in sorted(place):
        segments[segment_of[place[index]]].append(index)
    lost = [o.index for o in operators if o.index not in place and o.op not in ("_start", "_end")]
    return Assignment(
        tuple(map(tuple, segments)),
        dict(sorted(place.items())),
        matched,
        tuple(joined),
        tuple(lost),
    )


def floor_ms(operators: Sequence[Operator]) -> float:
    """Return what a launch takes: the median of the smallest elementwise operators."""
    some = [o for o in operators if o.op in ELEMENTWISE and o.shapes and o.ms > 0]
    some.sort(key=lambda operator: _size(operator.shapes[0]))
    count = max(1, round(SMALLEST * len(some)))
    return statistics.median([o.ms for o in some[:count]]) if some else 0.0


def replay_table(
    bundle: Bundle,
    profile: Profile,
    side: str,
    assignment: Assignment,
    *,
    floor: float = 1.0,
    values: str = "",
) -> ReplayTable:
    """Return the table of one side.

    Args:
        bundle: The workload's bundle.
        profile: Its profile.
        side: ``robot`` or ``server``.
        assignment: From :func:`assign`.
        floor: Launch floor, as a multiple of the device's own.
        values: File with tensors, beside the table.
    """
    operators = profile.robot_ops if side == "robot" else profile.server_ops
    return ReplayTable(
        bundle=bundle.digest,
        device=profile.robot if side == "robot" else profile.server,
        floor_ms=floor * floor_ms(operators),
        segments_ms=tuple(
            tuple(operators[index].ms for index in indices) for indices in assignment.segments
        ),
        values=values,
    )


def operator_times(profile: Profile, side: str, assignment: Assignment) -> OperatorTimes:
    """Return the times of one side for the compiler, which is to choose cuts by them."""
    operators = profile.robot_ops if side == "robot" else profile.server_ops
    seconds: dict[str, float] = {}
    for index, name in assignment.tensors.items():
        seconds[name] = seconds.get(name, 0.0) + operators[index].ms * 1e-3
    device = profile.robot if side == "robot" else profile.server
    return OperatorTimes(device=device, seconds=seconds)


def latency_table(bundle: Bundle, path: Path) -> LatencyTable:
    """Return what measuring the replay of a table would give, without the noise.

    Args:
        bundle: The bundle of the table.
        path: The replay table.

    Raises:
        SplitError: It cannot be read.
    """
    table = read_replay_table(path)
    everything = range(len(bundle.manifest.segments))

    def timing(segments: Iterable[int], share: float | None = None) -> Timing:
        shares = None if share is None else (share, share)
        seconds = sum(table.segment_s(index, shares) for index in segments)
        return Timing(seconds, seconds)

    # A fused half takes as long as its chain, so no half is worth loading.
    spans = halves_of(bundle.manifest, "all")
    striping = bundle.manifest.striping
    striped: tuple[tuple[Timing, ...], ...] = ()
    row_splits: tuple[tuple[Timing, ...], ...] = ()
    if striping is not None:
        forms = {segment.index for segment in striping.segments}
        for bounded in striping.bounded:
            forms.update(bundle.manifest.cuts[bounded.cut].robot_segments)
        striped = tuple(
            tuple(timing([index], share) for share in SHARES) if index in forms else ()
            for index in everything
        )
        row_splits = tuple(
            tuple(timing(_between(bundle, split.cut), share) for share in SHARES)
            for split in striping.row_splits
        )
    return LatencyTable(
        bundle=bundle.digest,
        fingerprint=open_backend(f"replay:{path}").fingerprint(),
        runs=1,
        segments=tuple(timing([index]) for index in everything),
        whole=timing(everything),
        striped=striped,
        row_splits=row_splits,
        halves=tuple(HalfTiming(*span, *[timing(_between(bundle, *span))] * 2) for span in spans),
    )


def write_tables(
    bundle: Bundle,
    profile: Profile,
    folder: Path,
    *,
    floors: Sequence[float] = FLOORS,
    values: str = "",
) -> Mapping[tuple[str, float], Path]:
    """Write the tables of both sides for each floor, as ``SIDE-x1.json``; returns their paths.

    What each amounts to as a latency table is stored beside the bundle, where the runtime looks.
    """
    assignment = assign(bundle, profile.robot_ops)
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[tuple[str, float], Path] = {}
    for side in SIDES:
        for floor in floors:
            table = replay_table(bundle, profile, side, assignment, floor=floor, values=values)
            paths[side, floor] = folder / f"{side}-x{floor:g}.json"
            paths[side, floor].write_bytes(msgspec.json.encode(table))
            store_table(bundle, latency_table(bundle, paths[side, floor]))
    return paths


def _between(bundle: Bundle, start: int, stop: int = -1) -> list[int]:
    """Return the segments between two cuts."""
    cuts = bundle.manifest.cuts
    before = set(cuts[start].robot_segments)
    return [index for index in cuts[stop].robot_segments if index not in before]


def _nodes(bundle: Bundle) -> tuple[list[tuple[Step, str]], dict[str, int]]:
    """Return the nodes that a profile may know, with what they give; and the segment of each.

    Nodes have the order of the graph's file, which is that of execution in PyTorch.
    """
    manifest = bundle.manifest
    model = onnx.load(str(bundle.path(manifest.graph)), load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }
    segment_of: dict[str, int] = {}
    for segment in manifest.segments:
        piece = onnx.load(str(bundle.path(segment.file)), load_external_data=False)
        for node in piece.graph.node:
            for name in node.output:
                segment_of.setdefault(name, segment.index)
    nodes: list[tuple[Step, str]] = []
    for node in graph.node:
        name = node.output[0]
        kind = _node_kind(node)
        if kind and name in segment_of and name in shapes:
            nodes.append(((kind, shapes[name]), name))
    return nodes, segment_of


def _node_kind(node: onnx.NodeProto) -> str:
    """Return the kind of a node; an empty string where it is none that a profile has."""
    name = node.name.removeprefix("node_").rstrip("0123456789").rstrip("_")
    if node.op_type in ("Add", "Mul"):
        return name if name in ("add", "mul", "silu", "gelu") else ""
    if node.op_type == "Sigmoid" and name != "sigmoid":
        return ""  # a part of a SiLU
    return _KINDS.get(node.op_type, "")


def _operator_step(operator: Operator) -> Step:
    return _SAME.get(operator.op, operator.op.rstrip("_") or operator.op), operator.shapes[0]


def _common(first: Sequence[Step], second: Sequence[Step]) -> list[tuple[int, int]]:
    """Return the pairs of places of a longest common subsequence."""
    codes = {step: code for code, step in enumerate(dict.fromkeys((*first, *second)))}
    a, b = (np.asarray([codes[step] for step in steps]) for steps in (first, second))
    # length[i, j]: of the longest one of first[i:] and second[j:].
    length = np.zeros((len(a) + 1, len(b) + 1), np.int32)
    for i in range(len(a) - 1, -1, -1):
        same = np.where(b == a[i], length[i + 1, 1:] + 1, length[i + 1, :-1])
        # Leaving out ends of the second: the running maximum from its end.
        length[i, :-1] = np.maximum.accumulate(same[::-1])[::-1]
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j] and length[i, j] == length[i + 1, j + 1] + 1:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif length[i + 1, j] >= length[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _size(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("workload", type=click.Choice([n for n, w in WORKLOADS.items() if w.profile]))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to write tables to.")
@click.option("--testbed", help="Folder with profiles; default $SPLITRT_TESTBED.")
def main(path: Path, workload: str, out: Path | None, testbed: str | None) -> None:
    """Map the profile of WORKLOAD to BUNDLE, say how well it maps, and write tables."""
    try:
        bundle, profile = Bundle.open(path), profile_of(workload, testbed)
        assignment = assign(bundle, profile.robot_ops)
        if out is not None:
            write_tables(bundle, profile, out)
    except SplitError as exc:
        print(f"error: {exc}", file=sys.stderr)
        raise SystemExit(1) from exc
    table = Table("side", "total, ms", "own node", "with producer", "no place", "floor, ms")
    for side in SIDES:
        operators = profile.robot_ops if side == "robot" else profile.server_ops
        parts = (assignment.matched, assignment.joined, assignment.lost)
        shares = (f"{100 * assignment.share(part, operators):.1f}%" for part in parts)
        total = f"{sum(o.ms for o in operators):.2f}"
        table.add_row(side, total, *shares, f"{floor_ms(operators):.3f}")
    Console().print(table)
    for part, what in ((assignment.joined, "with producer"), (assignment.lost, "no place")):
        ops = [profile.robot_ops[index] for index in part]
        names: dict[str, list[float]] = {}
        for operator in ops:
            names.setdefault(operator.op, []).append(operator.ms)
        listed = sorted(names.items(), key=lambda item: -sum(item[1]))
        text = ", ".join(f"{len(ms)} {op} ({sum(ms):.2f} ms)" for op, ms in listed)
        print(f"{what}: {text or 'none'}")


if __name__ == "__main__":
    main()
