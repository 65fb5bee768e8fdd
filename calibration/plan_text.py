"""Striped plans as text: what a user types, and what is printed of them.

    CUT/4                  4 stripes, as even as they can be; the server works in stripes as far
                           down the model as 4 of them fit
    CUT/4,until=CUT        down to that cut; CUT itself: the server waits for all stripes
    CUT/4:2                two-sided: the robot computes the first 2, the server the other 2
    CUT/32-96-224          stripes that end at these rows of the input
    offload/4              the input in 4 stripes
    rows:CUT@96            the robot computes the outputs above row 96, the server the others
    halo:CUT@96~16         lossy: the robot computes the head above row 96, the server below it,
                           each with 16 rows more of the input and nothing of the rest

CUT is the id of a cut, or ``offload`` for the first one.
"""

from __future__ import annotations

import re
from typing import Optional, Tuple

from calibration.plans import deeper_cuts, even_plan
from engines.errors import ManifestError
from engines.manifest import Manifest
from engines.stripe_plans import BoundedPlan, Plan, RowPlan, StripePlan, trouble
from engines.stripes import Striping

__all__ = ["PLAN_FORMS", "is_plan_text", "parse_plan", "plan_text"]

PLAN_FORMS = (
    "CUT/STRIPES, CUT/STRIPES:ROBOT, CUT/ROW-ROW-..., each with ,until=CUT; rows:CUT@ROW; "
    "halo:CUT@ROW~ROWS"
)

_STRIPES = re.compile(
    r"(?P<cut>[^/@:,]+)/(?P<bounds>\d+(-\d+)*)(:(?P<robot>\d+))?(,until=(?P<until>[^/@:,]+))?"
)
_ROWS = re.compile(r"rows:(?P<cut>[^/@:,]+)@(?P<bound>\d+)")
_HALO = re.compile(r"halo:(?P<cut>[^/@:,]+)@(?P<bound>\d+)~(?P<halo>\d+)")


def is_plan_text(text: str) -> bool:
    """Whether a text is meant as a striped plan rather than as the name of a cut."""
    return "/" in text or text.startswith(("rows:", "halo:"))


def parse_plan(text: str, manifest: Manifest) -> Plan:
    """Read a striped plan.

    Raises:
        ManifestError: Not one, or not one for this bundle.
    """
    stripes, rows = _STRIPES.fullmatch(text), _ROWS.fullmatch(text)
    halo = _HALO.fullmatch(text)
    if stripes is None and rows is None and halo is None:
        raise ManifestError(f"plan {text!r}: expected {PLAN_FORMS}")
    striping = manifest.striping
    if striping is None:
        raise ManifestError(
            f"plan {text!r}: bundle {manifest.name!r} has no striped forms; compile it again, or "
            "name a cut"
        )
    plan: Plan
    if rows is not None:
        plan = RowPlan(cut=_cut(rows["cut"], manifest), bound=int(rows["bound"]))
    elif halo is not None:
        bound, beyond = int(halo["bound"]), int(halo["halo"])
        plan = BoundedPlan(cut=_cut(halo["cut"], manifest), bound=bound, halo=beyond)
    else:
        assert stripes is not None
        plan = _stripe_plan(stripes, manifest, striping, text)
    wrong = trouble(plan, manifest)
    if wrong:
        raise ManifestError(f"plan {text!r}: {wrong}")
    return plan


def plan_text(plan: Plan, manifest: Manifest) -> str:
    """Return the shortest text that :func:`parse_plan` reads as this plan."""
    cut = manifest.cuts[plan.cut].id
    if isinstance(plan, RowPlan):
        return f"rows:{cut}@{plan.bound}"
    if isinstance(plan, BoundedPlan):
        return f"halo:{cut}@{plan.bound}~{plan.halo}"
    robot = f":{plan.robot}" if plan.two_sided else ""
    until = f",until={manifest.cuts[plan.until].id}"
    explicit = "-".join(str(bound) for bound in plan.bounds)
    short = (f"{cut}/{plan.stripes}{robot}", f"{cut}/{plan.stripes}{robot}{until}")
    for text in short:
        try:
            if parse_plan(text, manifest) == plan:
                return text
        except ManifestError:
            continue
    return f"{cut}/{explicit}{robot}{until}"


def _cut(name: str, manifest: Manifest) -> int:
    return 0 if name == "offload" else manifest.cut(name).index


def _stripe_plan(
    match: "re.Match[str]", manifest: Manifest, striping: Striping, text: str
) -> StripePlan:
    cut = _cut(match["cut"], manifest)
    numbers = tuple(int(number) for number in match["bounds"].split("-"))
    robot = None if match["robot"] is None else int(match["robot"])
    untils = [cut]
    if match["until"] is not None:
        untils = [_cut(match["until"], manifest)]
    elif striping.cut(cut) is not None:
        untils = [*deeper_cuts(manifest, striping, cut), cut]
    plans = [_plan(manifest, striping, cut, until, numbers, robot) for until in untils]
    if plans[-1] is None:
        names = ", ".join(manifest.cuts[other.cut].id for other in striping.cuts)
        raise ManifestError(
            f"plan {text!r}: nothing is striped up to there; striped cuts: {names or 'none'}"
        )
    fitting = [plan for plan in plans if plan is not None and not trouble(plan, manifest)]
    if len(numbers) == 1:
        most = plans[-1].stripes
        fitting = [plan for plan in fitting if plan.stripes == numbers[0]]
        if not fitting and most != numbers[0]:
            raise ManifestError(f"plan {text!r}: only {most} stripes fit")
    return fitting[0] if fitting else plans[-1]


def _plan(
    manifest: Manifest,
    striping: Striping,
    cut: int,
    until: int,
    numbers: Tuple[int, ...],
    robot: Optional[int],
) -> Optional[StripePlan]:
    if striping.cut(cut) is None or striping.cut(until) is None:
        return None
    if len(numbers) > 1:
        count = len(numbers) if robot is None else robot
        return StripePlan(cut=cut, until=until, bounds=numbers, robot=count)
    plan = even_plan(manifest, striping, cut=cut, until=until, stripes=min(numbers[0], 1 << 16))
    count = plan.stripes if robot is None else robot
    return StripePlan(cut=cut, until=until, bounds=plan.bounds, robot=count)
