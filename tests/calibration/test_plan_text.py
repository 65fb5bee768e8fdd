from __future__ import annotations

import pytest
from msgspec.structs import replace

from calibration.plan_text import is_plan_text, parse_plan, plan_text
from calibration.plans import candidate_plans
from engines.bundle import Bundle
from engines.errors import ManifestError
from engines.stripe_plans import BoundedPlan, RowPlan, StripePlan
from engines.stripes import BoundedCut
from tests.striped import Layer, chain

MANIFEST = chain([Layer(400, 1, 1), Layer(200, 2, 2), Layer(300, 4, 8)])
FIRST, A, B, C, END = (cut.id for cut in MANIFEST.cuts)
ROWS = chain([Layer(9, 2, 1)], rows=64, whole=[], row_split=True)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        # Cut C lags 32 rows behind, so 4 stripes fit up to B only; 2 fit all the way.
        (f"{A}/4", StripePlan(cut=1, until=2, bounds=(16, 32, 48, 64), robot=4)),
        (f"{A}/2", StripePlan(cut=1, until=3, bounds=(36, 64), robot=2)),
        (f"{A}/4,until={A}", StripePlan(cut=1, until=1, bounds=(16, 32, 48, 64), robot=4)),
        (f"{A}/4:2", StripePlan(cut=1, until=2, bounds=(16, 32, 48, 64), robot=2)),
        (f"{A}/10-20-64", StripePlan(cut=1, until=2, bounds=(10, 20, 64), robot=3)),
        (f"{A}/11-64", StripePlan(cut=1, until=1, bounds=(11, 64), robot=2)),
        (f"{A}/11-64:1,until={A}", StripePlan(cut=1, until=1, bounds=(11, 64), robot=1)),
        ("offload/4", StripePlan(cut=0, until=2, bounds=(16, 32, 48, 64), robot=4)),
        (f"{FIRST}/4", StripePlan(cut=0, until=2, bounds=(16, 32, 48, 64), robot=4)),
    ],
)
def test_plans_are_read(text: str, plan: StripePlan) -> None:
    assert parse_plan(text, MANIFEST) == plan
    assert is_plan_text(text)


def test_row_plans_are_read() -> None:
    cut = ROWS.cuts[0].id
    assert parse_plan(f"rows:{cut}@20", ROWS) == RowPlan(cut=0, bound=20)
    assert parse_plan("rows:offload@20", ROWS) == RowPlan(cut=0, bound=20)


def test_bounded_plans_are_read() -> None:
    striping = MANIFEST.striping
    assert striping is not None
    bounded = BoundedCut(cut=2, halo=8, needed=30, plain=MANIFEST.graph, band=4, least=8, most=52)
    manifest = replace(MANIFEST, striping=replace(striping, bounded=(bounded,)))
    plan = BoundedPlan(cut=2, bound=32, halo=8)
    assert is_plan_text(f"halo:{B}@32~8")
    assert parse_plan(f"halo:{B}@32~8", manifest) == plan
    assert plan_text(plan, manifest) == f"halo:{B}@32~8"
    for text, says in (
        (f"halo:{B}@32", "expected CUT/STRIPES"),
        (f"halo:{B}@32~", "expected CUT/STRIPES"),
        (f"halo:{B}@32~7", "there are [8]"),
        (f"halo:{A}@32~8", "compile with --halo to have one"),
        (f"halo:{B}@34~8", "expected a multiple of 4 from 8 to 52"),
        ("halo:nope@32~8", "nope"),
    ):
        with pytest.raises(ManifestError) as caught:
            parse_plan(text, manifest)
        assert says in str(caught.value)


def test_every_candidate_is_printed_as_it_is_read() -> None:
    for manifest in (MANIFEST, ROWS):
        plans = candidate_plans(manifest)
        texts = [plan_text(plan, manifest) for plan in plans]
        assert [parse_plan(text, manifest) for text in texts] == list(plans)
        assert len(set(texts)) == len(plans)
    odd = StripePlan(cut=1, until=1, bounds=(11, 23, 64), robot=2)
    assert plan_text(odd, MANIFEST) == f"{A}/11-23-64:2,until={A}"
    assert plan_text(parse_plan(f"{A}/4:3", MANIFEST), MANIFEST) == f"{A}/4:3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{A}/", "expected CUT/STRIPES"),
        (f"{A}/x", "expected CUT/STRIPES"),
        (f"{A}/4,until=", "expected CUT/STRIPES"),
        (f"rows:{A}", "expected CUT/STRIPES"),
        (f"{A}/-4", "expected CUT/STRIPES"),
        ("ffffffff/4", "not in bundle"),
        (f"{A}/4,until=ffffffff", "not in bundle"),
        (f"{END}/4", f"striped cuts: {FIRST}, {A}, {B}, {C}"),
        (f"{A}/4,until={END}", "nothing is striped up to there"),
        (f"{A}/4,until={FIRST}", "does not follow"),
        (f"{A}/1000000", "only 63 stripes fit"),
        (f"{C}/16", "only 8 stripes fit"),
        (f"{A}/1", "expected 2 to 64 stripes, given 1"),
        (f"{A}/4:0", "expected 1 to 4 stripes on the robot, given 0"),
        (f"{A}/4:5", "expected 1 to 4 stripes on the robot, given 5"),
        (f"{A}/20-10-64", "bounds must ascend"),
        (f"{A}/20-60", "bounds must ascend to 64"),
        ("offload/4:2", "cannot be divided"),
        (f"{A}/2-64:1", "must begin at 6 or below"),
        (f"rows:{A}@20", "no row split after cut 1"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_plan(text, MANIFEST)


def test_a_bundle_without_stripes_says_so(toy: Bundle) -> None:
    with pytest.raises(ManifestError, match="no striped forms"):
        parse_plan(f"{toy.manifest.cuts[1].id}/4", toy.manifest)


def test_names_are_no_plans() -> None:
    assert not any(is_plan_text(text) for text in ("auto", "local", "offload", A, ""))
