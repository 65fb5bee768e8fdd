"""Stripes: bands of rows that flow through a model while the rest is still on its way.

The compiler derives, for the part of a model in which every operator needs only some rows of its
input for some rows of its output, forms of each segment that take a band of rows and give the
rows that are then determined. This module holds what the compiler says about them, and the
arithmetic that both ends and the predictor share. Nothing here runs; ``engines.stripe_plans`` says
how an inference uses them.

Theory of operation:

1. The *base* is the model's streamed input, ``Striping.rows`` rows high. A *bound* is a number of
   its rows, counted from the top. Where the base's rows [0, b) are known, so are the rows
   [0, b * num / den - lag) of a tensor, ``RowsOf.upto(b)``; at the last bound, all of them.
2. A segment's stripe takes the new rows of its inputs, those between two neighbouring bounds, and
   the rows that it *carries* from the stripe before. It gives the new rows of its outputs and what
   the next stripe will need. So no row is computed twice, and the stripes put together are what
   the segment gives as a whole.
3. There are three forms of a segment: ``first`` (padding at the top, nothing carried in),
   ``middle``, and ``last`` (padding at the bottom, nothing carried out). Each is one ONNX file of
   dynamic height. Bounds are multiples of ``band``, from ``least`` to ``most``, so that the rows
   carried are the same number at each.
4. The server may compute the bottom of the head itself: ``entry`` (more stripes follow) and
   ``rest`` (none does) take raw rows from ``halo`` rows above the bound on, so that they need no
   state of the robot's, and give the frontier's rows from the bound on.
5. A *row split* divides what follows a cut by rows of its outputs: the robot computes the rows
   above a bound and keeps them, the server the others and sends them back. What comes before the
   cut, both compute.
6. A *bounded* division (lossy) is for heads whose halo is as high as the picture. ``plain``, the
   head with its own padding at both ends, computes the frontier of any height as if the picture
   ended there. The robot gives it ``halo`` rows more than it keeps, the server as many rows above
   those that it keeps. What lies further away than ``halo`` rows is left out of account.

Names in the ONNX files: a stripe's rows of tensor ``x`` are called ``x``; what segment 3 takes of
the stripe before is ``carry:x@3``, what it hands on ``kept:x@3``;
those of a row split end in ``@rows``.
"""

from __future__ import annotations

import math
from typing import Dict, Iterable, List, Optional, Tuple

import msgspec

from engines.tensors import TensorSpec

__all__ = [
    "MAX_STRIPES",
    "BoundedCut",
    "Carry",
    "RowSplit",
    "RowsOf",
    "StripeEnd",
    "StripedCut",
    "StripedSegment",
    "Striping",
    "carry_name",
    "even_bounds",
    "kept_name",
]

MAX_STRIPES = 64
"""Most stripes of an inference: more only adds launches."""


class RowsOf(msgspec.Struct, frozen=True, kw_only=True):
    """How the rows of a tensor follow those of the base.

    Attributes:
        axis: Dimension that the rows run along.
        rows: Extent of that dimension.
        num: With ``den``: rows of the tensor for each row of the base, in lowest terms.
        den: See ``num``.
        lag: Rows that it is behind: those that wait for rows further down.
    """

    axis: int
    rows: int
    num: int
    den: int
    lag: int

    def __post_init__(self) -> None:
        if self.axis < 0 or self.rows < 1 or self.num < 1 or self.den < 1:
            raise ValueError(f"rows of a tensor: expected positive numbers, given {self}")

    def upto(self, bound: int, base_rows: int) -> int:
        """Return how many rows are known once the base's rows [0, bound) are."""
        if bound >= base_rows:
            return self.rows
        return max(0, min(self.rows, bound * self.num // self.den - self.lag))

    def part(self, spec: TensorSpec, rows: int) -> TensorSpec:
        """Return the specification of so many rows of a tensor."""
        shape = list(spec.shape)
        shape[self.axis] = rows
        return TensorSpec(spec.name, spec.dtype, tuple(shape))


class Carry(msgspec.Struct, frozen=True):
    """Rows of a tensor that a segment keeps from one stripe to the next."""

    tensor: str
    rows: int


class StripedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """The striped forms of a segment.

    Attributes:
        index: Of the segment.
        first: ONNX file of the form for the first stripe.
        middle: For stripes between two others.
        last: For the last stripe.
        band: Bounds must be multiples of this.
        least: Smallest bound.
        most: Largest bound but the end.
        carries: What is kept from one stripe to the next.
    """

    index: int
    first: str
    middle: str
    last: str
    band: int
    least: int
    most: int
    carries: Tuple[Carry, ...]


class StripedCut(msgspec.Struct, frozen=True, kw_only=True):
    """A cut before which every segment is striped.

    Attributes:
        cut: Index of the cut.
        band: Bounds of its head must be multiples of this; 1 for the first cut.
        least: Smallest bound of its head.
        most: Largest bound of its head but the end.
        lag: Rows of the base that its frontier is behind, the most of any tensor of it.
        halo: Rows of the base above a bound that the server needs to compute the frontier from
            the bound on.
        entry: ONNX file that does so for a stripe that others follow; none for the first cut, and
            where the halo leaves nothing to divide.
        rest: For a stripe that is the last.
        entry_least: Smallest bound of these two.
        extra: For each segment of the head, ascending, the rows that ``entry`` and ``rest``
            compute beyond those of a stripe between the same bounds: the mean of its operators,
            weighted by their operations, in rows of the base.
    """

    cut: int
    band: int
    least: int
    most: int
    lag: int
    halo: int
    entry: Optional[str] = None
    rest: Optional[str] = None
    entry_least: int = 0
    extra: Tuple[float, ...] = ()


class RowSplit(msgspec.Struct, frozen=True, kw_only=True):
    """A cut after which the model can be divided by rows of its outputs.

    Here the base is the cut's frontier: bounds count rows of ``rows``.

    Attributes:
        cut: Index of the cut; what comes before it both sides compute. The first cut: nothing.
        rows: Rows of the base.
        band: Bounds must be multiples of this.
        least: Smallest bound.
        most: Largest bound.
        lag: Rows of the base that the outputs are behind, the most of any.
        halo: Rows of the base above the bound that the server needs.
        top: ONNX file for the rows above the bound; keeps what ``last`` carries on with.
        last: ONNX file for the rows below it, carrying on: what the robot does by itself.
        bottom: ONNX file for the rows below it, from the frontier's rows from ``halo`` above on.
        tensors: The frontier's and the outputs' rows.
        starts: Rows of each tensor of the frontier, in its own rows, above its place at the bound
            (bound * num / den) from which ``bottom`` takes it.
        carries: What ``top`` hands to ``last``.
        mean_lag: Rows of the base that ``top`` leaves to compute above the bound: the mean of the
            operators, weighted by their operations.
        mean_extra: Rows of the base that ``bottom`` computes above the bound, likewise.
    """

    cut: int
    rows: int
    band: int
    least: int
    most: int
    lag: int
    halo: int
    top: str
    last: str
    bottom: str
    tensors: Dict[str, RowsOf]
    starts: Dict[str, int]
    carries: Tuple[Carry, ...]
    mean_lag: float
    mean_extra: float

    def start(self, tensor: str, bound: int) -> int:
        """Return the first row of a frontier's tensor that ``bottom`` takes."""
        rows = self.tensors[tensor]
        return bound * rows.num // rows.den - self.starts[tensor]


class BoundedCut(msgspec.Struct, frozen=True, kw_only=True):
    """A cut whose head can be divided in two by leaving far rows out of account: lossy.

    Attributes:
        cut: Index of the cut.
        halo: Rows of the base that each side takes beyond the bound: as many as were asked for,
            or the next multiple of ``band``; no more than are needed.
        needed: Rows that it would take for the result to be exact.
        plain: ONNX file of the head with its own padding at both ends.
        band: Bounds are multiples of it.
        least: Smallest bound.
        most: Largest bound.
        error: Largest error of the model's outputs on the inputs that the bundle is proved with,
            over a few bounds; as ``Parity.max_error``.
    """

    cut: int
    halo: int
    needed: int
    plain: str
    band: int
    least: int
    most: int
    error: float = 0.0

    def enough(self, least_halo: int) -> bool:
        """Whether it has so many rows of halo, or all that are needed."""
        return self.halo >= min(least_halo, self.needed)

    def top(self, bound: int, base_rows: int) -> int:
        """Return how many rows of the base the robot takes, from the top.

        They end where whole bands from the picture's bottom do, so that every operator meets the
        end as it does in the whole picture.
        """
        return bound + self.halo + base_rows % self.band

    def bottom(self, bound: int) -> int:
        """Return the first row of the base that the server takes."""
        return bound - self.halo


class StripeEnd(msgspec.Struct, frozen=True):
    """An operator at which the striped part of the model ends, and why."""

    node: str
    operator: str
    reason: str


class Striping(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle says of its stripes.

    Attributes:
        rows: Rows of the base.
        tensors: Rows of every tensor between striped segments, the streamed inputs among them.
        segments: Striped segments, ascending.
        cuts: Cuts before which all is striped, ascending; the first cut among them where the
            input can be streamed.
        row_splits: Cuts after which the outputs can be divided by rows.
        ended_by: Operators at which the striped part ends.
        bounded: Bounded divisions, by cut and halo; none unless they were asked for.
    """

    rows: int
    tensors: Dict[str, RowsOf]
    segments: Tuple[StripedSegment, ...]
    cuts: Tuple[StripedCut, ...]
    row_splits: Tuple[RowSplit, ...]
    ended_by: Tuple[StripeEnd, ...]
    bounded: Tuple[BoundedCut, ...] = ()

    def files(self) -> "List[str]":
        """Return the ONNX files of all forms."""
        files = [f for s in self.segments for f in (s.first, s.middle, s.last)]
        files += [f for c in self.cuts for f in (c.entry, c.rest) if f is not None]
        files += [f for s in self.row_splits for f in (s.top, s.last, s.bottom)]
        return files + list(dict.fromkeys(b.plain for b in self.bounded))

    def segment(self, index: int) -> Optional[StripedSegment]:
        """Return the striped forms of a segment, if it has any."""
        return next((s for s in self.segments if s.index == index), None)

    def cut(self, index: int) -> Optional[StripedCut]:
        """Return what is known of a cut's striped head, if it has one."""
        return next((c for c in self.cuts if c.cut == index), None)

    def row_split(self, cut: int) -> Optional[RowSplit]:
        """Return the row split after a cut, if there is one."""
        return next((s for s in self.row_splits if s.cut == cut), None)

    def bounded_from(self, least_halo: int) -> "Tuple[BoundedCut, ...]":
        """Return, for each cut, the bounded division of fewest rows of halo, but so many.

        One that has as many as are needed will do, too.
        """
        found: Dict[int, BoundedCut] = {}
        for bounded in self.bounded:
            best = found.get(bounded.cut)
            if bounded.enough(least_halo) and (best is None or bounded.halo < best.halo):
                found[bounded.cut] = bounded
        return tuple(found[cut] for cut in sorted(found))

    def bounded_cut(self, cut: int, halo: int) -> Optional[BoundedCut]:
        """Return the bounded division at a cut with so many rows of halo, if there is one."""
        return next((b for b in self.bounded if (b.cut, b.halo) == (cut, halo)), None)

    def limits(self, segments: Iterable[int]) -> "Tuple[int, int, int]":
        """Return band, least and most bound that suit all of some striped segments."""
        band, least, most = 1, 1, self.rows - 1
        for index in segments:
            striped = self.segment(index)
            assert striped is not None, f"segment {index} is not striped"
            band = band * striped.band // math.gcd(band, striped.band)  # no math.lcm on 3.8
            least, most = max(least, striped.least), min(most, striped.most)
        return band, least, most


def carry_name(tensor: str, segment: Optional[int]) -> str:
    """Return the name of the input that takes carried rows; of a row split where no segment."""
    return f"carry:{tensor}@{'rows' if segment is None else segment}"


def kept_name(tensor: str, segment: Optional[int]) -> str:
    """Return the name of the output that gives the rows to carry."""
    return f"kept:{tensor}@{'rows' if segment is None else segment}"


def even_bounds(rows: int, stripes: int, *, band: int, least: int, most: int) -> Tuple[int, ...]:
    """Divide ``rows`` into bands as even as the limits allow.

    Args:
        rows: Rows of the base.
        stripes: Wanted number of stripes; fewer come back where fewer fit.
        band: Every bound but the last is a multiple of it.
        least: Smallest bound.
        most: Largest bound but the last.

    Returns:
        The bounds, the last being ``rows``; that alone where nothing can be divided.
    """
    low, high = -(-least // band), min(most, rows - 1) // band
    bounds: List[int] = []
    for stripe in range(1, stripes):
        wanted = round(rows * stripe / stripes / band)
        if stripe == 1:
            wanted = max(wanted, low)
        bound = wanted
        if low <= bound <= high and (not bounds or bound > bounds[-1]):
            bounds.append(bound)
    return (*(bound * band for bound in bounds), rows)
