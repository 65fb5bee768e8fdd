"""Proves the striped forms of a bundle: each against what its segment computes as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from calibration.parity import error_of, tolerance_for
from engines.backend import open_backend
from engines.errors import EmitError, EngineError
from engines.manifest import Manifest
from engines.program import Program
from engines.rows import rows_backend
from engines.stripes import (
    Carry,
    RowsOf,
    RowSplit,
    StripedCut,
    Striping,
    carry_name,
    even_bounds,
    kept_name,
)
from engines.tensors import Array

__all__ = ["prove_stripes"]

_STRIPES = 4
"""Stripes that every segment is proved with: the first, two in the middle, and the last."""


def prove_stripes(
    program: Program, inputs: Mapping[str, Array], *, progress: Callable[[int, int], None]
) -> float:
    """Run every striped form of a bundle and compare it with the whole.

    Args:
        program: The bundle's chain of segments.
        inputs: The model's inputs.
        progress: Called with (segments done, segments in all).

    Returns:
        The largest error.

    Raises:
        EmitError: An error is above the tolerance of its dtype, or a form cannot be run.
    """
    striping = program.bundle.manifest.striping
    if striping is None:
        return 0.0
    try:
        return _Proof(program, striping).all(inputs, progress)
    except EngineError as exc:
        raise EmitError(f"{exc}; compile with --stripes none to do without stripes") from exc


class _Proof:
    """Holds what the parts of the proof share."""

    def __init__(self, program: Program, striping: Striping) -> None:
        self._program = program
        self._manifest: Manifest = program.bundle.manifest
        self._striping = striping
        backend = rows_backend(open_backend("ort"))
        assert backend is not None, "ONNX Runtime takes dynamic heights"
        self.backend = backend

    def all(self, inputs: Mapping[str, Array], progress: Callable[[int, int], None]) -> float:
        """Go through the segments with the values of one inference, then through the cuts."""
        manifest, striping = self._manifest, self._striping
        values = dict(inputs)
        largest = 0.0
        for segment in manifest.segments:
            values.update(self._program.run_segment(segment.index, values))
            if striping.segment(segment.index) is not None:
                largest = max(largest, self._segment(segment.index, values))
            progress(segment.index + 1, len(manifest.segments))
        for cut in striping.cuts:
            if cut.rest is not None:
                largest = max(largest, self._entry(cut, values))
        for split in striping.row_splits:
            largest = max(largest, self._split(split, values))
        return largest

    def _segment(self, index: int, values: Mapping[str, Array]) -> float:
        striping = self._striping
        forms = striping.segment(index)
        assert forms is not None, f"segment {index} is not striped"
        segment = self._manifest.segments[index]
        bounds = even_bounds(
            striping.rows, _STRIPES, band=forms.band, least=forms.least, most=forms.most
        )
        if len(bounds) == 1:
            bounds = (forms.least, striping.rows)
        parts: dict[str, list[Array]] = {name: [] for name in segment.outputs}
        low, kept = 0, dict[str, Array]()
        for stripe, high in enumerate(bounds):
            last = stripe == len(bounds) - 1
            file = forms.last if last else forms.middle if stripe else forms.first
            given = {
                name: self._rows(values[name], striping.tensors[name], low, high)
                for name in segment.inputs
            }
            if stripe:
                given.update(_carried(forms.carries, kept, index))
            kept = self._run(file, given)
            for name, rows in parts.items():
                rows.append(kept[name])
            low = high
        whole = {
            n: (np.concatenate(p, striping.tensors[n].axis), values[n]) for n, p in parts.items()
        }
        return self._compare(f"segment {index} in stripes", whole)

    def _entry(self, cut: StripedCut, values: Mapping[str, Array]) -> float:
        """Compute the bottom of a head from raw rows, in one stripe and in two."""
        striping, manifest = self._striping, self._manifest
        frontier = manifest.cuts[cut.cut].tensors
        tensors = striping.tensors
        middle = (cut.entry_least + cut.most) // 2 // cut.band * cut.band
        bound = max(cut.entry_least, middle)
        assert cut.rest is not None
        raw = {
            spec.name: self._rows(
                values[spec.name], tensors[spec.name], bound - cut.halo, striping.rows
            )
            for spec in manifest.inputs
            if spec.name in tensors
        }
        given = self._run(cut.rest, raw)
        pairs = {
            name: (
                given[name],
                _part(values[name], tensors[name], tensors[name].upto(bound, striping.rows), None),
            )
            for name in frontier
            if name in given  # inputs that cross are there as they are
        }
        return self._compare(f"the bottom of cut {manifest.cuts[cut.cut].id}", pairs)

    def _split(self, split: RowSplit, values: Mapping[str, Array]) -> float:
        """Compute the rows above a bound, and those below it both ways."""
        cut = self._manifest.cuts[split.cut]
        tensors = split.tensors
        bound = max(split.least, (split.least + split.most) // 2 // split.band * split.band)
        above, below, from_start = {}, {}, {}
        for name in cut.tensors:
            rows = tensors[name].upto(bound, split.rows)
            above[name] = _part(values[name], tensors[name], 0, rows)
            below[name] = _part(values[name], tensors[name], rows, None)
            from_start[name] = _part(values[name], tensors[name], split.start(name, bound), None)
        top = self._run(split.top, above)
        last = self._run(split.last, {**below, **_carried(split.carries, top, None)})
        bottom = self._run(split.bottom, from_start)
        largest = 0.0
        for rest in (last, bottom):
            pairs = {
                name: (np.concatenate([top[name], rest[name]], tensors[name].axis), values[name])
                for name in cut.results
            }
            what = f"the rows after cut {cut.id}"
            largest = max(largest, self._compare(what, pairs))
        return largest

    def _run(self, file: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the form in a file on those of the inputs that it takes.

        It is loaded for this run only: each engine holds a copy of its weights.
        """
        engine = self.backend.load_rows(self._program.bundle.path(file))
        try:
            return engine.run({spec.name: inputs[spec.name] for spec in engine.inputs})
        finally:
            engine.close()

    def _rows(self, array: Array, rows: RowsOf, low: int, high: int) -> Array:
        begin = low * rows.num // rows.den - rows.lag if low else 0
        return _part(array, rows, max(begin, 0), rows.upto(high, self._striping.rows))

    def _compare(self, what: str, pairs: Mapping[str, tuple[Array, Array]]) -> float:
        largest = 0.0
        for name, (given, wanted) in pairs.items():
            error = error_of(given, wanted)
            tolerance = tolerance_for(wanted.dtype.name, self._manifest.parity.tolerance)
            if error > tolerance:
                raise EmitError(
                    f"{what}: tensor {name!r} differs from the whole: error {error:.3g}, "
                    f"tolerance {tolerance:g}; compile with --stripes none to do without stripes"
                )
            largest = max(largest, error)
        return largest


def _carried(
    carries: Iterable[Carry], kept: Mapping[str, Array], owner: int | None
) -> dict[str, Array]:
    names = [carry.tensor for carry in carries]
    return {carry_name(name, owner): kept[kept_name(name, owner)] for name in names}


def _part(array: Array, rows: RowsOf, begin: int, end: int | None) -> Array:
    where = [slice(None)] * array.ndim
    where[rows.axis] = slice(begin, end)
    return np.ascontiguousarray(array[tuple(where)])
