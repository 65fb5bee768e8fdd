"""INT8: which nodes are quantised, by how much, and at what cost; measured over the user's data.

1. The float32 graph runs over all samples; the ranges of every value that is to be quantised are
   collected, which gives a threshold for each (``calibration.collect``), unless the quantizer has
   thresholds of its own.
2. Everything that the quantizer names (``compiler.quantizers``) is quantised, and compared with
   the float32 graph over a few samples: the mean error over the samples, 1 - cosine or a metric of
   the user's. If that is at most the limit, it is done.
3. If not, every node is quantised by itself, or every group of neighbours where there are many,
   and compared likewise: that is its sensitivity. Nodes are then left out of int8, the most
   sensitive first; how many is found by bisection, so that the error comes within the limit.
4. Those nodes compute in float16 if the error is within the limit then too. If not, each is tried
   in float16 by itself, and those that cost most stay in float32, found likewise. One that takes
   values beyond float16 stays there at once.
5. How many runs that takes is bounded by the model's operations, not by a clock: the same model
   and data give the same bundle on every machine.

Graphs are compared with their Q/DQ pairs computed as they are written (a processor's own 8-bit
kernels may saturate) and every float16 value rounded where it is given.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from calibration.collect import collect
from calibration.metrics import open_metric
from calibration.ranges import Ranges
from calibration.samples import Samples
from compiler.graph import build_graph, infer_values
from compiler.options import Int8Options
from compiler.passes.half import LARGEST, convert_nodes_to_half
from compiler.passes.islands import named_nodes
from compiler.passes.quantise import QuantisedNames, quantisable, quantise
from compiler.quantizers import Placement, open_quantizer
from compiler.rounding import rounded
from compiler.whole import WholeRun
from engines.errors import EmitError, TraceError
from engines.manifest import Quantisation
from engines.tensors import Array

__all__ = ["Quantised", "quantise_model"]

logger = logging.getLogger(__name__)

_SAMPLES = 16
_RANKED = 8
_GROUPS = 64
"""Most samples that graphs are compared on; those that groups are ranked by; and most groups of
nodes that are tried by themselves."""

_WORK = 1e13
"""Operations that trying groups may take; fewer samples, then fewer groups, keep within it."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What was done.

    Attributes:
        names: The values that are new.
        record: For the manifest.
        first: The inputs of the first sample.
    """

    names: QuantisedNames
    record: Quantisation
    first: dict[str, Array]


def quantise_model(
    model: ir.Model,
    paths: dict[str, str],
    exact: Path,
    samples: Samples,
    options: Int8Options,
    *,
    progress: Callable[[int, int], None],
) -> Quantised:
    """Quantise a model over the user's data, in place.

    Args:
        model: The final graph.
        paths: Module path of the node that gives a value; those of new values are added.
        exact: File of the same graph in float32, its weights beside it.
        samples: The data.
        options: How.
        progress: Called with (steps done, steps in all).

    Raises:
        TraceError: Nothing in the model can be quantised.
        SourceError: There are no samples, or one cannot be read.
        EmitError: ONNX Runtime cannot run the graph.
    """
    named = _Named.of(model, paths, options)
    placement = open_quantizer(options.quantizer).place(
        model, exact, samples, left_out=named.exact | named.halves, method=options.ranges
    )
    able = _values_of(model, placement)
    search = _Search(exact, placement, able, named.halves, options, progress)
    ranges = search.calibrate(samples)
    for warning in ranges.warnings:
        logger.warning("--calibrate: %s", warning)
    kept, error = search.keep()
    halves = named.halves
    if kept and options.sensitive == "fp16":
        halves, error = search.halve(list(kept), error)
    chosen = [node for node in able if node not in kept]
    left = {*able, *quantisable(model)}.difference(chosen)
    floats = {node.name or "": "fp32" for node in model.graph if node.name in left}
    names = quantise(model, paths, chosen, search.thresholds, placement.sites)
    if halves:
        aliases, done = convert_nodes_to_half(model, paths, halves)
        names.aliases.update({new: names.aliases.get(old, old) for new, old in aliases.items()})
        floats.update(dict.fromkeys(done, "fp16"))
    record = Quantisation(
        quantizer=options.quantizer,
        method=options.ranges,
        data=ranges.data,
        samples=ranges.samples,
        quantised=tuple(chosen),
        kept=kept,
        error=error,
        metric=options.metric,
        floats=floats,
    )
    return Quantised(names, record, search.inputs[0])


@dataclass(frozen=True, slots=True)
class _Named:
    """Names of the nodes that the user leaves in float32, and in float16."""

    exact: frozenset[str]
    halves: frozenset[str]

    @classmethod
    def of(cls, model: ir.Model, paths: Mapping[str, str], options: Int8Options) -> _Named:
        exact, halves = (
            frozenset(
                node.name or "" for node in named_nodes(model.graph, paths, names, option=option)
            )
            for names, option in ((options.islands, "--fp32"), (options.halves, "--fp16"))
        )
        return cls(exact, halves - exact)


class _Search:
    """Thresholds, then the choice of the nodes."""

    def __init__(
        self,
        exact: Path,
        placement: Placement,
        able: Mapping[str, Sequence[str]],
        halves: frozenset[str],
        options: Int8Options,
        progress: Callable[[int, int], None],
    ) -> None:
        self._exact = exact
        self._sites = placement.sites
        self._able = able
        self._own = placement.thresholds
        self._halves = halves
        self._options = options
        self._metric = open_metric(options.metric)
        self._progress = progress
        self._groups = _grouped(list(able), _GROUPS)
        self._model = ir.serde.serialize_model(ir.load(exact))
        most = int(_WORK / max(_operations(self._model), 1) / len(self._groups))
        self._most = min(max(most, 2), _SAMPLES)
        self.thresholds: dict[str, float] = {}
        self._too_large: set[str] = set()
        self.inputs: list[dict[str, Array]] = []
        self._expected: list[dict[str, Array]] = []

    def calibrate(self, samples: Samples) -> Ranges:
        """Run the float32 graph over all samples, and keep a few of them."""
        names = sorted({name for names in self._able.values() for name in names})
        run = WholeRun(self._model, self._exact.parent, names)
        outputs = [value.name for value in self._model.graph.output]
        # Spread over the data where its size is known: neighbours are often alike.
        stride = max(1, (samples.size or 0) // self._most)
        place = itertools.count()

        def observed(inputs: Mapping[str, Array]) -> list[tuple[str, Array]]:
            values = run(inputs)
            if next(place) % stride == 0 and len(self.inputs) < self._most:
                self.inputs.append(dict(inputs))
                self._expected.append({name: values[name] for name in outputs})
            return [(name, values[name]) for name in names]

        def advance(done: int, total: int | None) -> None:
            self._progress(done, total or done)

        ranges = collect(observed, samples, model="", progress=advance)
        if self._own is not None:
            self.thresholds = dict(self._own)
        else:
            method = self._options.ranges
            self.thresholds = {n: found.threshold(method) for n, found in ranges.tensors.items()}
        self._too_large = {
            name
            for name, found in ranges.tensors.items()
            if max(-found.minimum, found.maximum) > LARGEST or found.infinite
        }
        return ranges

    def keep(self) -> tuple[dict[str, float], float]:
        """Return the nodes that stay out of int8, with their sensitivities, and the error left."""
        limit = self._options.max_error
        error = self._error(self._able)
        if error <= limit:
            return {}, error
        logger.info("all of %d nodes in int8: error %.3g", len(self._able), error)
        sensitivity: list[float] = []
        for done, group in enumerate(self._groups):
            sensitivity.append(self._error(group, most=_RANKED))
            self._progress(done + 1, len(self._groups))
        worst = sorted(range(len(self._groups)), key=lambda place: -sensitivity[place])

        def error_without(count: int) -> float:
            rest = worst[count:]
            return self._error([node for place in rest for node in self._groups[place]])

        # With no group in int8 there is no error of int8: the bisection ends within the limit.
        high, found = _fewest(error_without, len(worst), limit, 0.0)
        kept = {node: sensitivity[place] for place in worst[:high] for node in self._groups[place]}
        if len(kept) == len(self._able):
            raise TraceError(
                f"--precision int8: every node would have to stay out of int8 for an error of "
                f"{limit:g}; allow more with --max-int8-error, judge by another --metric, or use "
                "--precision fp16"
            )
        return kept, found

    def halve(self, kept: Sequence[str], error: float) -> tuple[frozenset[str], float]:
        """Return the nodes that compute in float16, and the error with them.

        Args:
            kept: The nodes that stay out of int8.
            error: The error with those in float32.
        """
        chosen = [node for node in self._able if node not in kept]
        groups = [
            [
                node
                for node in group
                if node in kept and self._too_large.isdisjoint(self._able[node])
            ]
            for group in self._groups
        ]
        groups = [group for group in groups if group]

        def halves(rest: Sequence[Sequence[str]]) -> frozenset[str]:
            return self._halves.union(*rest)

        everything = self._error(chosen, halves(groups))
        if everything <= self._options.max_error or not groups:
            return halves(groups), everything
        logger.info("all of %d nodes in float16: error %.3g", len(kept), everything)
        costs: list[float] = []
        for done, group in enumerate(groups):
            costs.append(self._error((), halves([group]), most=_RANKED))
            self._progress(done + 1, len(groups))
        worst = [groups[place] for place in sorted(range(len(groups)), key=lambda p: -costs[p])]
        high, found = _fewest(
            lambda count: self._error(chosen, halves(worst[count:])),
            len(worst),
            self._options.max_error,
            error,
        )
        return halves(worst[high:]), found

    def _error(
        self,
        nodes: Collection[str],
        halves: Collection[str] | None = None,
        *,
        most: int = _SAMPLES,
    ) -> float:
        """Return the mean error over the first samples.

        Args:
            nodes: What is quantised.
            halves: What is in float16; by default what the user names.
            most: Most samples.
        """
        halves = self._halves if halves is None else halves
        model = ir.load(self._exact)
        quantise(model, {}, nodes, self.thresholds, self._sites)
        if halves:
            convert_nodes_to_half(model, {}, halves)
        made = ir.serde.serialize_model(model)
        narrow = {
            value.name or ""
            for node in model.graph
            for value in node.outputs
            if value.dtype == ir.DataType.FLOAT16
        }
        made = rounded(made, narrow) if narrow else made
        run = WholeRun(made, self._exact.parent, optimise=not narrow)
        distances = [
            self._metric(outputs, expected)
            for inputs, expected in zip(self.inputs[:most], self._expected[:most], strict=True)
            for outputs in [run(inputs)]
        ]
        return sum(distances) / len(distances)


def _values_of(model: ir.Model, placement: Placement) -> dict[str, list[str]]:
    """Return the values, but for constants, that take codes by node, in the file's order."""
    return {
        node.name or "": [
            value.name or ""
            for place in placement.sites[node.name or ""]
            for value in [node.inputs[place]]
            if value is not None and value.const_value is None
        ]
        for node in model.graph
        if node.name in placement.sites
    }


def _fewest(
    error_without: Callable[[int], float], most: int, limit: float, last: float
) -> tuple[int, float]:
    """Return the fewest of things in order to leave out, at least one, and the error then.

    Args:
        error_without: The error without the first so many; it falls with them.
        most: How many there are.
        limit: Largest error.
        last: The error without all of them, known to be within the limit.
    """
    low, high, found = 0, most, last
    while high - low > 1:
        middle = (low + high) // 2
        error = error_without(middle)
        if error <= limit:
            high, found = middle, error
        else:
            low = middle
    return high, found


def _operations(model: onnx.ModelProto) -> int:
    """Return the floating-point operations of one inference; 0 where shapes are not known yet."""
    try:
        return sum(node.flops for node in build_graph(model, {}, infer_values(model)).nodes)
    except EmitError:
        return 0


def _grouped(names: Sequence[str], most: int) -> list[list[str]]:
    """Part names into at most ``most`` groups of neighbours, as even as can be."""
    count = min(len(names), most)
    bounds = [place * len(names) // count for place in range(count + 1)]
    return [list(names[low:high]) for low, high in itertools.pairwise(bounds)]
