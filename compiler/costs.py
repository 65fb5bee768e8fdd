"""What every operator costs on either side: measured where it can be, else estimated.

A side is given as one of

- the name of a preset, or a device file: a roofline (``calibration.roofline``)
- a latency table that ``runtime profile`` wrote for an earlier bundle of the same model: the time
  of each of its segments, spread over the segment's operators by their roofline
- operator times (``operators-*.json``, :class:`OperatorTimes`): what a profiler of the device saw
- ``this``: every operator is run and timed here, by itself, on ONNX Runtime
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.energy import StatePower
from calibration.latency_table import read_table
from calibration.records import read_record
from calibration.roofline import Device, operator_s, preset
from compiler.graph import Node, ValueGraph
from compiler.options import THIS
from compiler.segments import Extractor
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import CompileError
from engines.tensors import Array

__all__ = ["OperatorTimes", "SideCosts", "measure_here", "side_costs"]

_SPREAD_BY = "cpu"
"""Device whose roofline spreads a measured segment over its operators."""

_RUNS = 7
_WARMUP = 2


class OperatorTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a profiler of a device measured of a model's operators.

    Attributes:
        device: Which device, for people.
        seconds: By a tensor that the operator gives, as the exported graph names it. Operators
            that are not listed take no time.
    """

    device: str
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        for name, value in self.seconds.items():
            if not 0 <= value < np.inf:
                raise ValueError(f"{name}: expected seconds of 0 or more, given {value}")


@dataclass(frozen=True, slots=True)
class SideCosts:
    """Seconds of every operator on one side.

    Attributes:
        seconds: By place in the order.
        device: Which device, for people.
        source: ``roofline`` or ``measured``.
        power: The device's power by state.
    """

    seconds: NDArray[np.float64]
    device: str
    source: str
    power: StatePower


def side_costs(
    side: str,
    graph: ValueGraph,
    order: Sequence[Node],
    here: Callable[[], NDArray[np.float64]],
    *,
    precision: str = "fp32",
) -> SideCosts:
    """Return the costs of one side.

    Args:
        side: Preset, device file, latency table, operator times, or ``this``.
        graph: The value graph.
        order: Its nodes that are not free.
        here: Measures every operator on this machine; called for ``this`` only.
        precision: ``fp32``, ``fp16`` or ``int8``: which peak of a device a roofline takes.

    Raises:
        SplitError: No such device, or a table of another model.
    """
    if side == THIS:
        return SideCosts(here(), "this machine", "measured", StatePower())
    if side.endswith(".json") and Path(side).name.startswith("latency-"):
        return _table_costs(Path(side), graph, order)
    if side.endswith(".json") and Path(side).name.startswith("operators-"):
        return _operator_costs(Path(side), order)
    device = preset(side)
    seconds = _roofline(device, graph, order, precision)
    return SideCosts(seconds, device.title, "roofline", device.power)


def measure_here(
    model: onnx.ModelProto,
    folder: Path,
    graph: ValueGraph,
    order: Sequence[Node],
    inputs: Mapping[str, Array],
    *,
    progress: Callable[[int, int], None],
) -> NDArray[np.float64]:
    """Run every operator by itself on ONNX Runtime, one thread, and return its median seconds.

    Operators between which a value without a static shape goes cannot be run by themselves. They
    are run in one piece with those that lie among them, and share its time by their roofline.

    Args:
        model: The whole graph, its weights not loaded.
        folder: Where its weights file lies; the operators' files go there and are removed.
        graph: Its value graph.
        order: Its nodes that are not free.
        inputs: The parity inputs.
        progress: Called with (operators done, operators in all).
    """
    extractor = Extractor(model, graph, order)
    backend = open_backend("ort", BackendOptions(threads=1))
    env: dict[str, Array] = dict(inputs)
    last_use = {name: place for place, node in enumerate(order) for name in node.inputs}
    last_use.update(dict.fromkeys(graph.outputs, len(order)))
    share = _roofline(preset(_SPREAD_BY), graph, order)
    seconds = np.zeros(len(order))
    with tempfile.NamedTemporaryFile(suffix=".onnx", dir=folder) as file:
        path = Path(file.name)
        for piece in _pieces(graph, order):
            places = list(piece)
            touched = [n for p in places for n in (*order[p].inputs, *order[p].outputs)]
            given = {name for place in places for name in order[place].outputs}
            # Nothing of what goes on from here lacks a static shape: see _pieces.
            wanted = [name for name in given if last_use.get(name, -1) > piece[-1]]
            path.write_bytes(extractor.extract(places, wanted).SerializeToString())
            engine = backend.load(backend.build(path), folder=folder)
            taken = {spec.name: env[spec.name] for spec in engine.inputs}
            samples: list[float] = []
            for run in range(_WARMUP + _RUNS):
                begin = time.perf_counter()
                results = engine.run(taken)
                if run >= _WARMUP:
                    samples.append(time.perf_counter() - begin)
            seconds[places] = statistics.median(samples) * share[places] / share[places].sum()
            env.update(results)
            for name in touched:
                if last_use.get(name, -1) <= piece[-1]:
                    env.pop(name, None)
            engine.close()
            progress(piece[-1] + 1, len(order))
    return seconds


def _pieces(graph: ValueGraph, order: Sequence[Node]) -> list[range]:
    """Part the order where only values with a static shape go on: mostly after every node."""
    ends = list(range(len(order)))
    where = {name: place for place, node in enumerate(order) for name in node.outputs}
    for place, node in enumerate(order):
        for name in node.inputs:
            if name in where and name not in graph.values.specs:
                ends[where[name]] = max(ends[where[name]], place)
    pieces: list[range] = []
    begin = end = 0
    for place in range(len(order)):
        end = max(end, ends[place])
        if place == end:
            pieces.append(range(begin, place + 1))
            begin = end = place + 1
    return pieces


def _roofline(
    device: Device, graph: ValueGraph, order: Sequence[Node], precision: str = "fp32"
) -> NDArray[np.float64]:
    specs = graph.values.specs
    seconds = np.zeros(len(order))
    decoded = {n for node in graph.nodes if node.op == "DequantizeLinear" for n in node.outputs}
    for place, node in enumerate(order):
        if precision == "int8" and node.op in ("QuantizeLinear", "DequantizeLinear"):
            continue  # fused into what it stands beside
        around = [specs.get(name) for name in (*node.inputs, *node.outputs) if name not in decoded]
        moved = sum(spec.nbytes for spec in around if spec is not None)
        codes = [specs.get(name) for name in (*node.inputs, *node.outputs) if name in decoded]
        moved += sum(spec.size for spec in codes if spec is not None)
        moved += sum(graph.weight_bytes.get(name, 0) for name in node.initialisers)
        seconds[place] = operator_s(
            device, flops=node.flops, moved_bytes=moved, precision=precision
        )
    return seconds


def _operator_costs(path: Path, order: Sequence[Node]) -> SideCosts:
    times = read_record(path, OperatorTimes, "operator times")
    given = {name for node in order for name in node.outputs}
    unknown = sorted(set(times.seconds).difference(given))
    if unknown:
        raise CompileError(
            f"{path}: {len(unknown)} of {len(times.seconds)} operators are not in the model, that "
            f"of {unknown[0]!r} the first; were they measured on another one?"
        )
    seconds = [sum(times.seconds.get(name, 0.0) for name in node.outputs) for node in order]
    return SideCosts(np.asarray(seconds, np.float64), times.device, "measured", StatePower())


def _table_costs(path: Path, graph: ValueGraph, order: Sequence[Node]) -> SideCosts:
    """Spread the measured segments of an earlier bundle over the operators of this graph."""
    table = read_table(path)
    folder = path.absolute().parent
    bundle = Bundle.open(folder.with_name(folder.name.removesuffix(".device")))
    if bundle.digest != table.bundle:
        raise CompileError(
            f"{path}: measured on bundle {table.bundle[:12]}, beside it lies "
            f"{bundle.digest[:12]}; run `runtime profile` on that bundle again"
        )
    if len(table.segments) != len(bundle.manifest.segments):
        raise CompileError(
            f"{path}: expected {len(bundle.manifest.segments)} segments, given "
            f"{len(table.segments)}; run `runtime profile` on that bundle again"
        )
    where = {name: place for place, node in enumerate(order) for name in node.outputs}
    specs = graph.values.specs
    other = [n for n, s in bundle.manifest.tensors.items() if n in specs and specs[n] != s]
    if other:
        raise CompileError(
            f"{path}: measured on another model: {specs[other[0]]} was "
            f"{bundle.manifest.tensors[other[0]]}; profile a bundle of this one"
        )
    weights = _roofline(preset(_SPREAD_BY), graph, order)
    seconds = np.full(len(order), np.nan)
    unloaded: list[int] = []
    for segment, timing in zip(bundle.manifest.segments, table.segments, strict=True):
        piece = onnx.load(bundle.path(segment.file), load_external_data=False)
        names = [name for node in piece.graph.node for name in node.output]
        places = sorted({where[name] for name in names if name in where})
        if not timing.p50_s:  # not loaded where it was measured, for want of memory
            unloaded += places
        if places:
            share = weights[places] / weights[places].sum()
            seconds[places] = timing.p50_s * table.fused_ratio * share
    missing = [order[int(place)].name for place in np.flatnonzero(np.isnan(seconds))]
    if missing:
        raise CompileError(
            f"{path}: {len(missing)} of {len(order)} operators are not in the bundle that it was "
            f"measured on, {missing[0]} the first; was it compiled from another model?"
        )
    if unloaded:
        rest = np.setdiff1d(np.arange(len(order)), unloaded)
        pace = seconds[rest].sum() / weights[rest].sum() if rest.size else 1.0
        seconds[unloaded] = pace * weights[unloaded]
    return SideCosts(seconds, str(table.fingerprint), "measured", StatePower())
