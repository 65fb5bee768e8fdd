"""Bounded divisions: heads divided in two with fewer rows of halo than they need. Lossy.

The robot's part and the server's are computed by one form, the head with its own padding at both
ends, on heights that leave the same remainder by the bands of the head as the picture's does. So
every operator meets both ends as it does in the whole picture, and each value has as many rows as
there are base rows missing, by its scale, fewer than in the whole: nothing is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from calibration.parity import error_of, tolerance_for
from compiler.cuts import Boundaries, Boundary
from compiler.graph import ValueGraph
from compiler.segments import write_graph
from compiler.stripes.extents import Extents
from compiler.stripes.forms import Former
from engines.backend import open_backend
from engines.bounded_runs import BoundedHeadRun, BoundedTailRun
from engines.bundle import Bundle
from engines.errors import EmitError, EngineError
from engines.ondemand import OnDemandBackend
from engines.program import Program
from engines.rows import RowsEngine, rows_backend
from engines.stripe_plans import BoundedPlan
from engines.striped import StripedProgram
from engines.stripes import BoundedCut, Striping
from engines.tensors import Array

_MOST_CUTS = 16
"""Cuts that are divided: each has its error measured, by whole inferences."""

__all__ = ["divisions", "measure_bounded", "write_bounded"]


def write_bounded(
    folder: Path,
    former: Former,
    graph: ValueGraph,
    boundaries: Boundaries,
    extents: Extents,
    halos: Sequence[int],
) -> tuple[tuple[BoundedCut, ...], set[str]]:
    """Write the forms of every bounded division.

    Args:
        folder: The bundle's folder.
        former: Makes the forms.
        graph: The value graph.
        boundaries: Its cuts.
        extents: How rows flow.
        halos: Rows of the base that each side may take beyond a bound.

    Returns:
        What there is, and the tensors of which the manifest must say the rows.
    """
    found: list[BoundedCut] = []
    tensors: set[str] = set()
    for index in _few(boundaries, graph, extents):
        cut = boundaries.cuts[index]
        made = divisions(former, cut, index, extents, halos)
        if not made:
            continue
        places = sorted(cut.nodes)
        piece = former.form(
            places,
            list(cut.frontier),
            top="first",
            bottom="last",
            owners=dict.fromkeys(places, None),
            kept={},
        )
        write_graph(folder / made[0].plain, piece)
        found += made
        tensors.update(cut.frontier, graph.inputs)
    return tuple(found), tensors


def _few(boundaries: Boundaries, graph: ValueGraph, extents: Extents) -> list[int]:
    """Return the cuts to divide: of many, those of fewest bytes in equal parts of the way down."""
    cuts = {i: c for i, c in enumerate(boundaries.cuts[:-1]) if _divisible(c, graph, extents)}
    if len(cuts) <= _MOST_CUTS:
        return list(cuts)
    deepest = max(cut.flops_robot for cut in cuts.values()) or 1
    best: dict[int, tuple[int, int]] = {}
    for index, cut in cuts.items():
        part = min(cut.flops_robot * _MOST_CUTS // deepest, _MOST_CUTS - 1)
        nbytes = sum(graph.values.specs[name].nbytes for name in cut.frontier)
        # Of as few bytes the deeper one: it leaves the server no less to overlap with.
        best[part] = min(best.get(part, (nbytes, -index)), (nbytes, -index))
    return sorted(-index for _, index in best.values())


def _divisible(cut: Boundary, graph: ValueGraph, extents: Extents) -> bool:
    """Say whether a head is striped, and all that it gives leaves it by the frontier."""
    return (
        bool(cut.nodes)
        and all(place in extents.rules for place in cut.nodes)
        and all(name in extents.flows for name in cut.frontier)
        and not set(cut.frontier).intersection(graph.inputs)
        and not set(graph.outputs).difference(cut.results)
    )


def divisions(
    former: Former,
    cut: Boundary,
    index: int,
    extents: Extents,
    halos: Sequence[int],
) -> list[BoundedCut]:
    """Return the divisions of a cut's head by ascending halo; none of the same halo twice.

    Args:
        former: Knows the nodes.
        cut: The cut.
        index: Its place.
        extents: How rows flow through the head.
        halos: Rows of halo asked for.
    """
    flows, height = extents.flows, extents.rows
    places = sorted(cut.nodes)
    values = former.values(places)
    step = math.lcm(1, *(flows[name].align for name in values))
    rest = height % step
    fewest = _fewest_rows(former, places, extents, step)
    starts = former.starts(places, cut.frontier, exactly=True)
    lag = max(-int(-flows[n].lag / flows[n].scale // 1) for n in cut.frontier)
    above = max(-int(-rows / flows[name].scale // 1) for name, rows in starts.items())
    # Where operators without padding give fewer rows, the robot needs some more for its own.
    missing = max((height - rest) - flows[n].rows / flows[n].scale for n in cut.frontier)
    needed = max(lag, above, 0)
    found: dict[int, BoundedCut] = {}
    for asked in halos:
        halo = -(-max(min(asked, needed), math.ceil(missing), 0) // step) * step
        least = max(step, halo, fewest - halo - rest)
        most = min(height - halo - rest, height + halo - fewest, height - 1)
        most = min(most, *(int((flows[n].rows - 1) / flows[n].scale) for n in cut.frontier))
        least, most = -(-least // step) * step, most // step * step
        if least <= most:
            found[halo] = BoundedCut(
                cut=index,
                halo=halo,
                needed=needed,
                plain=f"graph/plain_{cut.id}.onnx",
                band=step,
                least=least,
                most=most,
            )
    return [found[halo] for halo in sorted(found)]


def _fewest_rows(former: Former, places: Sequence[int], extents: Extents, step: int) -> int:
    """Return the smallest height, of the picture's remainder, at which every value has rows."""
    flows, height = extents.flows, extents.rows
    needed = dict.fromkeys(former.values(places), 1)
    for place in places:
        for name in former.rowed(place):
            needed[name] = max(needed[name], extents.rules[place].least_rows)
    spare = min(int((flows[n].rows - rows) / flows[n].scale // step) for n, rows in needed.items())
    return height - max(spare, 0) * step


class _Backend(OnDemandBackend):
    """Segments are in memory only while they run; forms, one at a time, until the next."""

    def load_rows(self, onnx_path: Path) -> RowsEngine:
        """Load a form."""
        backend = rows_backend(self._backend)
        assert backend is not None, "ONNX Runtime takes dynamic heights"
        return backend.load_rows(onnx_path)


def measure_bounded(bundle: Bundle, inputs: Mapping[str, Array]) -> Striping | None:
    """Return the striping with the error of every bounded division on some inputs.

    Raises:
        EmitError: A division with halo enough is not exact, or cannot be run.
    """
    striping = bundle.manifest.striping
    if striping is None or not striping.bounded:
        return striping
    try:
        with Program(bundle, _Backend(open_backend("ort")), fuse=False) as program:
            wanted = program.outputs(program.run(inputs, 0, program.last))
            forms = StripedProgram(program, max_forms=1)
            try:
                measured = tuple(
                    msgspec.structs.replace(bounded, error=_error(forms, bounded, inputs, wanted))
                    for bounded in striping.bounded
                )
            finally:
                forms.close()
    except EngineError as exc:
        raise EmitError(f"{exc}; compile without --halo to do without bounded divisions") from exc
    return msgspec.structs.replace(striping, bounded=measured)


def _error(
    forms: StripedProgram,
    bounded: BoundedCut,
    inputs: Mapping[str, Array],
    wanted: Mapping[str, Array],
) -> float:
    manifest = forms.manifest
    middle = (bounded.least + bounded.most) // 2 // bounded.band * bounded.band
    largest = 0.0
    for bound in sorted({bounded.least, max(middle, bounded.least), bounded.most}):
        plan = BoundedPlan(cut=bounded.cut, bound=bound, halo=bounded.halo)
        head, tail = BoundedHeadRun(forms, plan, inputs), BoundedTailRun(forms, plan)
        tail.take(1, {n: np.ascontiguousarray(a) for n, a in head.raw().items()})
        outputs = tail.take(0, head.run())
        assert outputs is not None, "both messages were taken"
        for name, array in wanted.items():
            error = error_of(outputs[name], array)
            tolerance = tolerance_for(array.dtype.name, manifest.parity.tolerance)
            if bounded.halo >= bounded.needed and error > tolerance:
                raise EmitError(
                    f"bounded division of cut {manifest.cuts[bounded.cut].id}: output {name!r} "
                    f"differs from the whole with {bounded.halo} rows of halo, of which "
                    f"{bounded.needed} are enough: error {error:.3g}, tolerance {tolerance:g}; "
                    "compile without --halo"
                )
            largest = max(largest, error)
    return float(largest)
