"""Which striped plans of a bundle are worth predicting. Pure.

Every plan given here is valid (``engines.stripe_plans.trouble``), and there are a few hundred at
most: plans of every kind and cut take turns until there are enough, the likelier ones first.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Dict, Iterable, Iterator, List, Sequence, Tuple

from engines.manifest import Manifest
from engines.stripe_plans import Plan, RowPlan, StripePlan, trouble
from engines.stripes import RowSplit, Striping, even_bounds

__all__ = ["COUNTS", "MOST_PLANS", "candidate_plans", "deeper_cuts", "even_plan", "refined_rows"]

COUNTS = (4, 2, 8, 3, 6, 12, 16)
"""Numbers of stripes, the likelier ones first: more overlap better and launch more."""

MOST_PLANS = 400

_DEEP = 3
"""Cuts up to which the server's stripes may go, beside the plan's own: the deepest ones."""

_DEEP_RAW = 8
"""The same for raw stripes, for which it is all that matters."""

_SIDES = ((2, 1), (4, 2), (4, 3), (4, 1), (8, 4), (8, 6), (8, 2), (3, 1), (3, 2), (6, 5), (8, 7),
          (6, 1), (8, 5), (8, 3), (8, 1), (12, 11))  # fmt: skip
"""Two-sided: number of stripes, and how many of them the robot computes."""

_ROW_BOUNDS = 9


def candidate_plans(manifest: Manifest, *, most: int = MOST_PLANS) -> Tuple[Plan, ...]:
    """Return valid striped plans, none twice; nothing for a bundle without stripes."""
    striping = manifest.striping
    if striping is None:
        return ()
    sources: List[Iterable[Plan]] = [_row_plans(split) for split in striping.row_splits]
    for striped in striping.cuts:
        behind = deeper_cuts(manifest, striping, striped.cut)
        deeper = (*behind[: _DEEP if striped.cut else _DEEP_RAW], striped.cut)
        sources.append(_streamed(striping, manifest, striped.cut, deeper))
        if striped.entry is not None:
            sources.append(_two_sided(striping, manifest, striped.cut, deeper))
    found: Dict[Plan, None] = {}
    for turn in zip_longest(*sources):
        for plan in turn:
            if len(found) >= most:
                return tuple(found)
            if plan is not None and plan not in found and not trouble(plan, manifest):
                found[plan] = None
    return tuple(found)


def even_plan(
    manifest: Manifest, striping: Striping, *, cut: int, until: int, stripes: int, robot: int = 0
) -> StripePlan:
    """Return the plan of stripes as even as the limits of its segments allow.

    Args:
        manifest: The bundle's manifest.
        striping: Its striping.
        cut: Index of the cut.
        until: Index of the cut up to which the server works stripe by stripe; both are striped.
        stripes: Wanted number of stripes; fewer come back where fewer fit.
        robot: Stripes that the robot computes; 0 for all.
    """
    segments = set(manifest.cuts[cut].robot_segments) | set(manifest.cuts[until].robot_segments)
    band, least, most = striping.limits(sorted(segments))
    bounds = even_bounds(striping.rows, stripes, band=band, least=least, most=most)
    return StripePlan(cut=cut, until=until, bounds=bounds, robot=robot or len(bounds))


def refined_rows(
    manifest: Manifest, plans: Sequence[RowPlan], best: Iterable[RowPlan]
) -> Tuple[RowPlan, ...]:
    """Return new row plans: half-way between each of the best ones and its neighbours.

    Args:
        manifest: The bundle's manifest.
        plans: Row plans known so far.
        best: Those to look around.
    """
    striping = manifest.striping
    assert striping is not None, "row plans of a bundle without stripes"
    found: Dict[RowPlan, None] = {}
    for plan in best:
        split = striping.row_split(plan.cut)
        assert split is not None, "a plan without a row split"
        known = sorted(other.bound for other in plans if other.cut == plan.cut)
        place = known.index(plan.bound)
        for neighbour in known[max(place - 1, 0) : place + 2]:
            middle = round((neighbour + plan.bound) / 2 / split.band) * split.band
            between = RowPlan(cut=plan.cut, bound=middle)
            if middle not in known and not trouble(between, manifest):
                found[between] = None
    return tuple(found)


def deeper_cuts(manifest: Manifest, striping: Striping, cut: int) -> Tuple[int, ...]:
    """Return the striped cuts behind this one, the deepest first: where stripes may end."""
    own = set(manifest.cuts[cut].robot_segments)
    behind = [
        other.cut for other in striping.cuts if own < set(manifest.cuts[other.cut].robot_segments)
    ]
    behind.sort(key=lambda index: -manifest.cuts[index].flops_robot)
    return tuple(behind)


def _streamed(
    striping: Striping, manifest: Manifest, cut: int, untils: Sequence[int]
) -> Iterator[StripePlan]:
    for stripes in COUNTS:
        for until in untils:
            yield even_plan(manifest, striping, cut=cut, until=until, stripes=stripes)


def _two_sided(
    striping: Striping, manifest: Manifest, cut: int, untils: Sequence[int]
) -> Iterator[StripePlan]:
    for stripes, robot in _SIDES:
        for until in (untils[0], untils[-1]):
            plan = even_plan(
                manifest, striping, cut=cut, until=until, stripes=stripes, robot=robot
            )
            # Where fewer fit, other entries of the table say the same.
            if plan.stripes == stripes:
                yield plan


def _row_plans(split: RowSplit) -> Iterator[RowPlan]:
    span = split.most - split.least
    for step in range(_ROW_BOUNDS):
        wanted = split.least + span * step / (_ROW_BOUNDS - 1)
        yield RowPlan(cut=split.cut, bound=round(wanted / split.band) * split.band)
