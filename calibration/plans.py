"""Which striped plans of a bundle are worth predicting. Pure.

Every plan given here is valid (``engines.stripe_plans.trouble``), and there are a few hundred at
most: plans of every kind and cut take turns until there are enough, the likelier ones first.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from msgspec.structs import replace

from engines.manifest import Manifest
from engines.stripe_plans import (
    BoundedPlan,
    Plan,
    RowPlan,
    StripePlan,
    bounded_of,
    mode_of,
    trouble,
)
from engines.stripes import BoundedCut, RowSplit, StripedCut, Striping, even_bounds

__all__ = [
    "COUNTS",
    "MOST_PLANS",
    "bounded_plans",
    "candidate_plans",
    "deeper_cuts",
    "even_plan",
    "neighbours",
]

COUNTS = (4, 2, 8, 3, 6, 12, 16)
"""Numbers of stripes, the likelier ones first: more overlap better and launch more."""

_TAPERED = (4, 6)
"""Numbers of stripes of which plans with ever smaller ones are tried too."""

MOST_PLANS = 400

_MOST_CUTS = 16
"""Cuts that are tried: of more, those of fewest bytes at every depth."""

_DEEP = 3
"""Cuts up to which the server's stripes may go, beside the plan's own: the deepest ones."""

_DEEP_RAW = 8
"""The same for raw stripes, for which it is all that matters."""

_SIDES = ((2, 1), (4, 2), (4, 3), (4, 1), (8, 4), (8, 6), (8, 2), (3, 1), (3, 2), (6, 5), (8, 7),
          (6, 1), (8, 5), (8, 3), (8, 1), (12, 11))  # fmt: skip
"""Two-sided: number of stripes, and how many of them the robot computes."""

_ROW_HALVINGS = 5
"""So 33 bounds: the best of them is at most 1.6% of the height off."""


def candidate_plans(
    manifest: Manifest, *, most: int = MOST_PLANS, least_halo: Optional[int] = None
) -> Tuple[Plan, ...]:
    """Return valid striped plans, none twice; nothing for a bundle without stripes.

    Args:
        manifest: The bundle's manifest.
        most: Most plans to return.
        least_halo: Fewest rows of halo with which lossy plans are among them; none for no lossy
            plans.
    """
    striping = manifest.striping
    if striping is None:
        return ()
    sources: List[Iterable[Plan]] = [_row_plans(split) for split in striping.row_splits]
    for striped in _few_cuts(manifest, striping):
        behind = deeper_cuts(manifest, striping, striped.cut)
        deeper = (*behind[: _DEEP if striped.cut else _DEEP_RAW], striped.cut)
        sources.append(_streamed(striping, manifest, striped.cut, deeper))
        if striped.entry is not None:
            sources.append(_two_sided(striping, manifest, striped.cut, deeper))
    if least_halo is not None:
        sources += [bounded_plans(bounded) for bounded in striping.bounded_from(least_halo)]
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


def neighbours(plan: Plan, manifest: Manifest, part: float) -> Iterator[Plan]:
    """Yield the valid plans that differ in one thing: a bound, or by one stripe between the sides.

    Args:
        plan: A valid plan.
        manifest: The bundle's manifest.
        part: How far bounds are moved, as a part of the height; at least by one band.
    """
    striping = manifest.striping
    assert striping is not None, "a plan for a bundle without stripes"
    others: List[Plan] = []
    if not isinstance(plan, StripePlan):
        if isinstance(plan, RowPlan):
            split = striping.row_split(plan.cut)
            assert split is not None, "a plan without a row split"
            band, rows = split.band, split.rows
        else:
            band, rows = bounded_of(plan, striping).band, striping.rows
        step = max(1, round(part * rows / band)) * band
        others += [replace(plan, bound=plan.bound + by) for by in (-step, step)]
    else:
        band, _, _ = striping.limits(manifest.cuts[plan.until].robot_segments)
        step = max(1, round(part * striping.rows / band)) * band
        for place in range(plan.stripes - 1):
            for by in (-step, step):
                bounds = list(plan.bounds)
                bounds[place] += by
                others.append(replace(plan, bounds=tuple(bounds)))
        if plan.two_sided:
            others += [replace(plan, robot=plan.robot + by) for by in (-1, 1)]
    for other in others:
        if mode_of(other) == mode_of(plan) and not trouble(other, manifest):
            yield other


def deeper_cuts(manifest: Manifest, striping: Striping, cut: int) -> Tuple[int, ...]:
    """Return the striped cuts behind this one, the deepest first: where stripes may end."""
    own = set(manifest.cuts[cut].robot_segments)
    behind = [
        other.cut for other in striping.cuts if own < set(manifest.cuts[other.cut].robot_segments)
    ]
    behind.sort(key=lambda index: -manifest.cuts[index].flops_robot)
    return tuple(behind)


def _few_cuts(manifest: Manifest, striping: Striping) -> Tuple[StripedCut, ...]:
    """Return the first cut and those of fewest bytes in equal parts of the way to the deepest."""
    if len(striping.cuts) <= _MOST_CUTS:
        return striping.cuts
    deepest = max(manifest.cuts[striped.cut].flops_robot for striped in striping.cuts) or 1
    best: Dict[int, StripedCut] = {}
    for striped in striping.cuts:
        cut = manifest.cuts[striped.cut]
        parts = _MOST_CUTS - 1
        part = min(cut.flops_robot * parts // deepest, parts - 1) if striped.cut else -1
        if part not in best or cut.bytes < manifest.cuts[best[part].cut].bytes:
            best[part] = striped
    return tuple(best[part] for part in sorted(best))


def _streamed(
    striping: Striping, manifest: Manifest, cut: int, untils: Sequence[int]
) -> Iterator[StripePlan]:
    for stripes in COUNTS:
        for until in untils:
            yield even_plan(manifest, striping, cut=cut, until=until, stripes=stripes)
            if cut and stripes in _TAPERED:
                yield _tapered(manifest, striping, cut=cut, until=until, stripes=stripes)


def _tapered(
    manifest: Manifest, striping: Striping, *, cut: int, until: int, stripes: int
) -> StripePlan:
    """Return a plan whose stripes get smaller: with lag, the last ones have more to compute."""
    band, least, most = striping.limits(manifest.cuts[until].robot_segments)
    bounds = {striping.rows}
    for stripe in range(1, stripes):
        left = (1 - stripe / stripes) ** 2
        bound = max(round(striping.rows * (1 - left) / band), -(-least // band)) * band
        if bound <= most:
            bounds.add(bound)
    return StripePlan(cut=cut, until=until, bounds=tuple(sorted(bounds)), robot=len(bounds))


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
    for bound in _spread(split.least, split.most, split.band):
        yield RowPlan(cut=split.cut, bound=bound)


def bounded_plans(bounded: BoundedCut) -> Iterator[BoundedPlan]:
    """Yield the plans of a bounded division; some of them perhaps twice."""
    for bound in _spread(bounded.least, bounded.most, bounded.band):
        yield BoundedPlan(cut=bounded.cut, bound=bound, halo=bounded.halo)


def _spread(least: int, most: int, band: int) -> Iterator[int]:
    """Yield bounds from one end to the other, then those half-way between, and so on."""
    parts = [0.0, 1.0]
    for halves in range(1, _ROW_HALVINGS + 1):
        parts += [step / 2**halves for step in range(1, 2**halves, 2)]
    for part in parts:
        yield round((least + (most - least) * part) / band) * band
