"""What each ONNX file of a bundle stands for, and which rows it is about, from the manifest alone.

Theory of operation:

1. An engine of dynamic height sees only how many rows it is given. For each form, the pairs of
   bounds (low, high) that a plan may have are known, and so are the rows that go in between them;
   looking them up the other way round gives the bounds.
2. Forms that begin at the top or end at the bottom are then placed. One in between is placed as
   the rows it is given lie among the stored ones, or else in the middle.
3. From the bounds follow the rows of each output, and which part of each segment is computed.
"""

from __future__ import annotations

import enum
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from engines.errors import EngineError
from engines.manifest import Manifest
from engines.stripes import BoundedCut, RowsOf, RowSplit, StripedCut, Striping

__all__ = ["Bands", "Form", "Kind", "forms_of"]

Bounds = Tuple[int, int]
"""First row of the base, and the row behind the last."""

Find = Callable[[str, int], Optional[int]]
"""Given a tensor and its axis of rows: where its rows lie, or none."""


class Kind(enum.Enum):
    """Kinds of forms; all but the first have dynamic height."""

    WHOLE = "whole"
    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"
    ENTRY = "entry"
    REST = "rest"
    TOP = "top"
    BELOW = "below"
    BOTTOM = "bottom"
    PLAIN = "plain"


_FROM_TOP = (Kind.FIRST, Kind.TOP)
_TO_BOTTOM = (Kind.LAST, Kind.REST, Kind.BELOW, Kind.BOTTOM)


class Form(NamedTuple):
    """What an ONNX file stands for.

    Attributes:
        kind: Which form.
        segments: Indices of the segments in it.
        cut: Index of the cut; none where it does not matter.
    """

    kind: Kind
    segments: Tuple[int, ...]
    cut: Optional[int] = None


def forms_of(manifest: Manifest) -> Dict[str, Form]:
    """Return the form of every ONNX file that the manifest names."""
    everything = tuple(range(len(manifest.segments)))
    forms: Dict[str, Form] = {}

    def behind(cut: int) -> Tuple[int, ...]:
        before = set(manifest.cuts[cut].robot_segments)
        return tuple(index for index in everything if index not in before)

    for segment in manifest.segments:
        forms[segment.file] = Form(Kind.WHOLE, (segment.index,))
    for cut in manifest.cuts:
        if cut.head is not None:
            forms[cut.head] = Form(Kind.WHOLE, cut.robot_segments, cut.index)
        if cut.tail is not None:
            forms[cut.tail] = Form(Kind.WHOLE, behind(cut.index), cut.index)
    forms[manifest.graph] = Form(Kind.WHOLE, everything)
    if manifest.striping is not None:
        forms.update(_striped_forms(manifest, manifest.striping, behind))
    return forms


def _striped_forms(
    manifest: Manifest, striping: Striping, behind: Callable[[int], Tuple[int, ...]]
) -> Dict[str, Form]:
    forms: Dict[str, Form] = {}
    for striped in striping.segments:
        forms[striped.first] = Form(Kind.FIRST, (striped.index,))
        forms[striped.middle] = Form(Kind.MIDDLE, (striped.index,))
        forms[striped.last] = Form(Kind.LAST, (striped.index,))
    for head in striping.cuts:
        for kind, file in ((Kind.ENTRY, head.entry), (Kind.REST, head.rest)):
            if file is not None:
                forms[file] = Form(kind, manifest.cuts[head.cut].robot_segments, head.cut)
    for split in striping.row_splits:
        for kind, file in (
            (Kind.TOP, split.top),
            (Kind.BELOW, split.last),
            (Kind.BOTTOM, split.bottom),
        ):
            forms[file] = Form(kind, behind(split.cut), split.cut)
    for bounded in striping.bounded:
        segments = manifest.cuts[bounded.cut].robot_segments
        forms[bounded.plain] = Form(Kind.PLAIN, segments, bounded.cut)
    return forms


class Bands:
    """The rows of one form of dynamic height.

    Args:
        manifest: The bundle's manifest.
        form: The form.
        inputs: Names of what goes in; those that are carried have no place of their own.
    """

    def __init__(self, manifest: Manifest, form: Form, inputs: Sequence[str]) -> None:
        striping = manifest.striping
        assert striping is not None, "a form of dynamic height without stripes"
        self._manifest = manifest
        self._form = form
        self._split: Optional[RowSplit] = None
        self._cut: Optional[StripedCut] = None
        self._base = striping.rows
        self.tensors: Mapping[str, RowsOf] = striping.tensors
        if form.kind in (Kind.TOP, Kind.BELOW, Kind.BOTTOM):
            self._split = striping.row_split(form.cut or 0)
            assert self._split is not None, "a form of a row split that is not there"
            self._base, self.tensors = self._split.rows, self._split.tensors
        elif form.kind in (Kind.ENTRY, Kind.REST):
            self._cut = striping.cut(form.cut or 0)
            assert self._cut is not None, "a form of a cut that is not striped"
        self._bounded: Tuple[BoundedCut, ...] = ()
        if form.kind is Kind.PLAIN:
            self._bounded = tuple(b for b in striping.bounded if b.cut == form.cut)
        self._placed = tuple(name for name in inputs if name in self.tensors)
        self._limits = (1, 1, 0) if self._bounded else self._limits_of(striping)
        self._bounds: Dict[Tuple[int, ...], Bounds] = {}
        for low, high in self._pairs():
            self._bounds.setdefault(self._given(low, high), (low, high))

    def ranges(self) -> "Dict[str, Tuple[int, int, int]]":
        """Return the fewest rows that each input may have, those of a quarter, and the most.

        Inputs go together: all have the fewest at once, and so on. Empty where no stripe fits.
        """
        pairs = sorted((self._given(low, high), high - low) for low, high in self._pairs())
        if not pairs:
            return {}
        quarter = min(pairs, key=lambda pair: abs(pair[1] - self._base / 4))
        points = (pairs[0][0], quarter[0], pairs[-1][0])
        found: Dict[str, Tuple[int, int, int]] = {}
        for place, name in enumerate(self._placed):
            least, typical, most = (point[place] for point in points)
            found[name] = (least, typical, most)
        return found

    def bounds(self, rows: Mapping[str, int], find: Find) -> Bounds:
        """Return the bounds of a stripe, from how many rows it is given.

        Args:
            rows: Rows of each input.
            find: Says where the rows of an input lie; asked in the middle of the picture only.

        Raises:
            EngineError: No stripe has so many rows.
        """
        given = tuple(rows[name] for name in self._placed)
        found = self._bounds.get(given)
        if found is None:
            raise EngineError(
                f"form {self._form.kind.value!r} of segments {list(self._form.segments)}: no "
                f"stripe takes {dict(zip(self._placed, given))} rows"
            )
        if self._bounded:  # as high from the top as from the bottom
            height = found[1] - found[0]
            places = [find(name, self.tensors[name].axis) for name in self._placed]
            return (self._base - height, self._base) if any(places) else (0, height)
        if self._form.kind not in (Kind.MIDDLE, Kind.ENTRY):
            return found
        height = found[1] - found[0]
        lows = [low for low in self._lows() if low + height <= self._limits[2]]
        for name in self._placed:
            place = find(name, self.tensors[name].axis)
            for low in lows:
                if place is not None and self._start(name, low) == place:
                    return low, low + height
        low = lows[len(lows) // 2]
        return low, low + height

    def span(self, name: str, bounds: Bounds) -> "Tuple[int, int]":
        """Return the rows of a tensor that come out between bounds: the first, and the end."""
        rows = self.tensors[name]
        if self._bounded:
            missing = (self._base - bounds[1]) * rows.num // rows.den
            return bounds[0] * rows.num // rows.den, rows.rows - missing
        return rows.upto(bounds[0], self._base), rows.upto(bounds[1], self._base)

    def shares(self, bounds: Bounds) -> "List[Tuple[int, Tuple[float, float]]]":
        """Return each segment's share of rows: of what goes in, and of what comes out."""
        low, high = bounds
        if self._bounded:
            share = (high - low) / self._base
            return [(index, (share, share)) for index in self._form.segments]
        if self._split is not None:
            beside = self._split.mean_extra
            if self._form.kind is not Kind.BOTTOM:
                beside = self._split.mean_lag * (-1 if self._form.kind is Kind.TOP else 1)
            share = (high - low + beside) / self._base
            return [(index, (share, share)) for index in self._form.segments]
        shares: List[Tuple[int, Tuple[float, float]]] = []
        for place, index in enumerate(self._form.segments):
            segment = self._manifest.segments[index]
            beside = 0.0
            if self._cut is not None and self._cut.extra:
                beside = self._cut.extra[place] / self._base
            first = self._mean_share(segment.inputs, bounds) + beside
            shares.append((index, (first, self._mean_share(segment.outputs, bounds) + beside)))
        return shares

    def _mean_share(self, names: Sequence[str], bounds: Bounds) -> float:
        parts: List[float] = []
        for name in names:
            if name in self.tensors:
                start, stop = self.span(name, bounds)
                parts.append((stop - start) / self.tensors[name].rows)
        return sum(parts) / len(parts) if parts else (bounds[1] - bounds[0]) / self._base

    def _limits_of(self, striping: Striping) -> "Tuple[int, int, int]":
        if self._split is not None:
            return self._split.band, self._split.least, self._split.most
        if self._cut is not None:
            return self._cut.band, self._cut.entry_least, self._cut.most
        return striping.limits(self._form.segments)

    def _lows(self) -> range:
        band, least, most = self._limits
        return range(-(-least // band) * band, most + 1, band)

    def _pairs(self) -> "List[Bounds]":
        """Return the pairs of bounds that differ in what goes in."""
        if self._bounded:
            heights: Dict[int, None] = {}
            for b in self._bounded:
                for bound in range(b.least, b.most + 1, b.band):
                    heights[b.top(bound, self._base)] = None
                    heights[self._base - b.bottom(bound)] = None
            return [(0, height) for height in heights]
        lows = self._lows()
        if self._form.kind in _FROM_TOP:
            return [(0, low) for low in lows]
        if self._form.kind in _TO_BOTTOM:
            return [(low, self._base) for low in lows]
        return [(lows[0], high) for high in lows[1:]]

    def _given(self, low: int, high: int) -> Tuple[int, ...]:
        return tuple(self._stop(name, high) - self._start(name, low) for name in self._placed)

    def _start(self, name: str, low: int) -> int:
        rows = self.tensors[name]
        if self._form.kind in _FROM_TOP or self._bounded:
            return 0
        if self._cut is not None:
            return (low - self._cut.halo) * rows.num // rows.den
        if self._split is not None:
            if self._form.kind is Kind.BOTTOM:
                return self._split.start(name, low)
            return low * rows.num // rows.den
        return rows.upto(low, self._base)

    def _stop(self, name: str, high: int) -> int:
        rows = self.tensors[name]
        if self._form.kind is Kind.TOP or self._bounded:
            return high * rows.num // rows.den
        return rows.upto(high, self._base)
