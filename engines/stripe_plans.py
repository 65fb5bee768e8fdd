"""How one inference is striped: plans, what makes them valid, and what crosses the link for them.

Pure, and shared: the predictor scores plans, the robot sends what :func:`sent` says, the server
checks a plan that it is sent with :func:`trouble` before it trusts it.
"""

from __future__ import annotations

from typing import Tuple, Union

import msgspec

from engines.manifest import Manifest
from engines.stripes import MAX_STRIPES, StripedCut, Striping
from engines.tensors import TensorSpec

__all__ = ["Plan", "RowPlan", "StripePlan", "mode_of", "raw_span", "returned", "sent", "trouble"]


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


Plan = Union[StripePlan, RowPlan]


def mode_of(plan: Plan) -> str:
    """Return the mode's name: ``streamed-head``, ``streamed-raw``, ``two-sided``, ``rows``."""
    if isinstance(plan, RowPlan):
        return "rows"
    if plan.two_sided:
        return "two-sided"
    return "streamed-head" if plan.cut else "streamed-raw"


def trouble(plan: Plan, manifest: Manifest) -> str:
    """Say what is wrong with a plan for a bundle; an empty string if nothing is."""
    striping = manifest.striping
    if striping is None:
        return f"bundle {manifest.name!r} has no striped forms"
    if isinstance(plan, RowPlan):
        return _row_trouble(plan, manifest, striping)
    return _stripe_trouble(plan, manifest, striping)


def sent(plan: Plan, manifest: Manifest, stripe: int = 0) -> Tuple[TensorSpec, ...]:
    """Return what the robot sends as one stripe of a valid plan, in the order of the wire.

    For a stripe of the robot's: the frontier's new rows. For a raw stripe: the inputs' rows, the
    first of them with the halo above it. For a row plan, which sends one message: the inputs, or
    what is needed of them where the split begins at the inputs.
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
    if isinstance(plan, StripePlan):
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
