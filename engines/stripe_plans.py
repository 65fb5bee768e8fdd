"""How one inference is striped: plans, what makes them valid, and what crosses the link for them.

Every plan is exact but for one kind: a ``BoundedPlan`` is lossy.

Pure, and shared: the predictor scores plans, the robot sends what :func:`sent` says, the server
checks a plan that it is sent with :func:`trouble` before it trusts it.
"""

from __future__ import annotations

from typing import Optional, Tuple, Union

import msgspec

from engines.manifest import Manifest
from engines.stripes import MAX_STRIPES, BoundedCut, StripedCut, Striping
from engines.tensors import TensorSpec

__all__ = [
    "BoundedPlan",
    "Plan",
    "RowPlan",
    "StripePlan",
    "bounded_of",
    "is_lossy",
    "messages",
    "mode_of",
    "raw_span",
    "returned",
    "sent",
    "trouble",
    "wire_order",
]


class StripePlan(msgspec.Struct, frozen=True, kw_only=True, tag="stripes"):
    """How one inference is streamed.

    The robot runs the head of ``cut`` stripe by stripe and sends each stripe of the frontier; the
    server runs the segments from ``cut`` to ``until`` stripe by stripe too, then the rest whole.
    With ``robot`` below the number of stripes the plan is *two-sided*: the stripes from ``robot``
    on go out raw, before all others, and the server computes the head for them. With the first cut
    it is *streamed raw*: every stripe is sent as it is.

    Attributes:
        cut: Index of the cut.
        until: Index of the cut up to which the server works stripe by stripe; ``cut`` for not.
        bounds: Where the stripes end, in rows of the base, ascending; the last is its height.
        robot: Stripes that the robot computes.
    """

    cut: int
    until: int
    bounds: Tuple[int, ...]
    robot: int

    @property
    def stripes(self) -> int:
        """Number of stripes."""
        return len(self.bounds)

    @property
    def two_sided(self) -> bool:
        """Whether the server computes a part of the head."""
        return self.robot < len(self.bounds)

    def span(self, stripe: int) -> "Tuple[int, int]":
        """Return the bounds of a stripe."""
        return (self.bounds[stripe - 1] if stripe else 0, self.bounds[stripe])

    def wire_order(self) -> "Tuple[int, ...]":
        """Return the stripes in the order in which they are sent: raw ones first."""
        return (*range(self.robot, self.stripes), *range(self.robot))


class RowPlan(msgspec.Struct, frozen=True, kw_only=True, tag="rows"):
    """How one inference is divided by rows of its outputs.

    Attributes:
        cut: Index of the cut of the row split.
        bound: Row of the split's base at which it is divided.
    """

    cut: int
    bound: int


class BoundedPlan(msgspec.Struct, frozen=True, kw_only=True, tag="bounded"):
    """How one inference is divided in two, far rows left out of account: lossy.

    The robot computes the head of ``cut`` on the rows above ``bound`` and ``halo`` more, as if the
    picture ended there; the server on the rows below and ``halo`` above them. Each keeps of the
    frontier what lies on its own side of the bound. Raw rows go out first, as stripe 1; then the
    robot's part of the frontier, as stripe 0.

    Attributes:
        cut: Index of the cut.
        bound: Row of the base at which the head is divided.
        halo: Rows of the base that each side takes beyond the bound.
    """

    cut: int
    bound: int
    halo: int


Plan = Union[StripePlan, RowPlan, BoundedPlan]


def mode_of(plan: Plan) -> str:
    """Return the mode's name, one of ``calibration.predictor.MODES``."""
    if isinstance(plan, RowPlan):
        return "rows"
    if isinstance(plan, BoundedPlan):
        return "bounded"
    if plan.two_sided:
        return "two-sided"
    return "streamed-head" if plan.cut else "streamed-raw"


def is_lossy(plan: Optional[Plan]) -> bool:
    """Whether what a plan gives may differ from what the model gives."""
    return isinstance(plan, BoundedPlan)


def messages(plan: Plan) -> int:
    """Return how many messages the request of a plan has."""
    if isinstance(plan, StripePlan):
        return plan.stripes
    return 1 if isinstance(plan, RowPlan) else 2


def wire_order(plan: Plan) -> "Tuple[int, ...]":
    """Return the stripes of a plan in the order in which they are sent."""
    if isinstance(plan, StripePlan):
        return plan.wire_order()
    return (0,) if isinstance(plan, RowPlan) else (1, 0)


def bounded_of(plan: BoundedPlan, striping: Striping) -> BoundedCut:
    """Return what the bundle says of a valid bounded plan's division."""
    found = striping.bounded_cut(plan.cut, plan.halo)
    assert found is not None, "a plan without a bounded division"
    return found


def trouble(plan: Plan, manifest: Manifest) -> str:
    """Say what is wrong with a plan for a bundle; an empty string if nothing is."""
    striping = manifest.striping
    if striping is None:
        return f"bundle {manifest.name!r} has no striped forms"
    if isinstance(plan, RowPlan):
        return _row_trouble(plan, manifest, striping)
    if isinstance(plan, BoundedPlan):
        return _bounded_trouble(plan, manifest, striping)
    return _stripe_trouble(plan, manifest, striping)


def sent(plan: Plan, manifest: Manifest, stripe: int = 0) -> Tuple[TensorSpec, ...]:
    """Return what the robot sends as one stripe of a valid plan, in the order of the wire.

    For a stripe of the robot's: the frontier's new rows. For a raw stripe: the inputs' rows, the
    first of them with the halo above it. For a row plan, which sends one message: the inputs, or
    what is needed of them where the split begins at the inputs. For a bounded plan: the robot's
    part of the frontier as stripe 0, the server's part of the inputs with its halo as stripe 1.
    """
    striping = manifest.striping
    assert striping is not None, "a plan without stripes"
    if isinstance(plan, RowPlan):
        specs = manifest.specs(manifest.cuts[0].tensors)
        split = striping.row_split(plan.cut)
        assert split is not None, "a plan without a row split"
        if plan.cut:
            return specs
        tensors = split.tensors
        return tuple(
            tensors[s.name].part(s, tensors[s.name].rows - split.start(s.name, plan.bound))
            for s in specs
        )
    if isinstance(plan, BoundedPlan):
        return _bounded_sent(plan, manifest, striping, stripe)
    low, high = raw_span(plan, striping, stripe)
    cut = plan.cut if stripe < plan.robot else 0
    return tuple(
        striping.tensors[spec.name].part(spec, _rows(striping, spec.name, low, high, cut))
        for spec in manifest.specs(manifest.cuts[cut].tensors)
    )


def raw_span(plan: StripePlan, striping: Striping, stripe: int) -> Tuple[int, int]:
    """Return the bounds between which a stripe is sent: with its halo, where it has one."""
    low, high = plan.span(stripe)
    if stripe == plan.robot:
        cut = striping.cut(plan.cut)
        assert cut is not None, "a plan at a cut that is not striped"
        low -= cut.halo
    return low, high


def returned(plan: Plan, manifest: Manifest) -> Tuple[TensorSpec, ...]:
    """Return what the server sends back: the results, for a row plan only its own rows."""
    results = manifest.specs(manifest.cuts[plan.cut].results)
    if not isinstance(plan, RowPlan):
        return results
    striping = manifest.striping
    split = None if striping is None else striping.row_split(plan.cut)
    assert split is not None, "a plan without a row split"
    parts = []
    for spec in results:
        rows = split.tensors[spec.name]
        parts.append(rows.part(spec, rows.rows - rows.upto(plan.bound, split.rows)))
    return tuple(parts)


def _rows(striping: Striping, name: str, low: int, high: int, cut: int) -> int:
    tensor = striping.tensors[name]
    if cut:
        return tensor.upto(high, striping.rows) - tensor.upto(low, striping.rows)
    # Inputs have no lag, and no rows above the first.
    return tensor.upto(high, striping.rows) - low * tensor.num // tensor.den


def _bounded_sent(
    plan: BoundedPlan, manifest: Manifest, striping: Striping, stripe: int
) -> Tuple[TensorSpec, ...]:
    begin = bounded_of(plan, striping).bottom(plan.bound)
    specs = manifest.specs(manifest.cuts[0 if stripe else plan.cut].tensors)
    parts = []
    for spec in specs:
        rows = striping.tensors[spec.name]
        if stripe:
            parts.append(rows.part(spec, rows.rows - begin * rows.num // rows.den))
        else:
            parts.append(rows.part(spec, plan.bound * rows.num // rows.den))
    return tuple(parts)


def _bounded_trouble(plan: BoundedPlan, manifest: Manifest, striping: Striping) -> str:
    bounded = striping.bounded_cut(plan.cut, plan.halo)
    if bounded is None:
        halos = sorted({b.halo for b in striping.bounded if b.cut == plan.cut})
        known = f"there are {halos}" if halos else "compile with --halo to have one"
        return f"no bounded division of {plan.halo} rows at cut {plan.cut}; {known}"
    for index in (0, plan.cut):
        if manifest.cuts[index].refused:
            return f"cut {index} may not be used: {manifest.cuts[index].refused}"
    if plan.bound % bounded.band or not bounded.least <= plan.bound <= bounded.most:
        return (
            f"bound {plan.bound}: expected a multiple of {bounded.band} from {bounded.least} to "
            f"{bounded.most}"
        )
    return ""


def _stripe_trouble(plan: StripePlan, manifest: Manifest, striping: Striping) -> str:
    cuts = manifest.cuts
    cut, until = striping.cut(plan.cut), striping.cut(plan.until)
    if cut is None or until is None:
        return f"no striped forms up to cut {plan.cut if cut is None else plan.until}"
    before, behind = cuts[plan.cut].robot_segments, cuts[plan.until].robot_segments
    if not set(before) <= set(behind):
        return f"cut {plan.until} does not follow cut {plan.cut}"
    if cuts[plan.cut].refused:
        return f"cut {plan.cut} may not be used: {cuts[plan.cut].refused}"
    wrong = _bounds_trouble(plan, striping, behind)
    return wrong or (_raw_trouble(plan, manifest, cut) if plan.two_sided else "")


def _raw_trouble(plan: StripePlan, manifest: Manifest, cut: StripedCut) -> str:
    cuts = manifest.cuts
    if cuts[0].refused:
        return f"raw rows may not be sent: {cuts[0].refused}"
    kept = {spec.name for spec in manifest.outputs}.difference(cuts[plan.cut].results)
    if kept:
        return f"cut {plan.cut} keeps rows of {sorted(kept)} on the robot, which needs them all"
    if cut.entry is None or cut.rest is None:
        return f"the head of cut {plan.cut} cannot be divided"
    if plan.bounds[plan.robot - 1] < cut.entry_least:
        return f"the server's rows must begin at {cut.entry_least} or below"
    return ""


def _bounds_trouble(plan: StripePlan, striping: Striping, segments: Tuple[int, ...]) -> str:
    bounds = plan.bounds
    if not 2 <= len(bounds) <= MAX_STRIPES:
        return f"expected 2 to {MAX_STRIPES} stripes, given {len(bounds)}"
    if any(a >= b for a, b in zip((0, *bounds), bounds)) or bounds[-1] != striping.rows:
        return f"bounds must ascend to {striping.rows}, given {list(bounds)}"
    band, least, most = striping.limits(segments)
    wrong = [b for b in bounds[:-1] if b % band or not least <= b <= most]
    if wrong:
        return f"bounds {wrong}: expected multiples of {band} from {least} to {most}"
    if not 0 < plan.robot <= len(bounds):
        return f"expected 1 to {len(bounds)} stripes on the robot, given {plan.robot}"
    return ""


def _row_trouble(plan: RowPlan, manifest: Manifest, striping: Striping) -> str:
    split = striping.row_split(plan.cut)
    if split is None:
        return f"no row split after cut {plan.cut}"
    if manifest.cuts[0].refused:
        return f"raw rows may not be sent: {manifest.cuts[0].refused}"
    if plan.bound % split.band or not split.least <= plan.bound <= split.most:
        return (
            f"bound {plan.bound}: expected a multiple of {split.band} from {split.least} to "
            f"{split.most}"
        )
    return ""
