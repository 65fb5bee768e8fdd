from __future__ import annotations

import pytest
from msgspec.structs import replace

from calibration.plans import candidate_plans, deeper_cuts, even_plan, neighbours
from engines.bundle import Bundle
from engines.stripe_plans import Plan, RowPlan, StripePlan, mode_of, trouble
from tests.striped import Layer, chain

LAYERS = [Layer(400, 1, 1), Layer(200, 2, 2), Layer(300, 4, 2), Layer(100, 4, 4)]


def test_a_bundle_without_stripes_has_no_plans(toy: Bundle) -> None:
    assert candidate_plans(toy.manifest) == ()


def test_every_candidate_is_valid_and_there_once() -> None:
    for manifest in (
        chain(LAYERS),
        chain(LAYERS, whole=[], row_split=True),
        chain([Layer(9, 1, 60)]),
        chain([Layer(9)], rows=2),
        chain([Layer(9), Layer(9)], rows=1000),
    ):
        plans = candidate_plans(manifest)
        assert len(set(plans)) == len(plans) <= 400
        assert [trouble(plan, manifest) for plan in plans] == [""] * len(plans)
        assert all(len(set(plan.bounds)) > 1 for plan in plans if isinstance(plan, StripePlan))


def test_every_mode_cut_and_depth_is_among_them() -> None:
    manifest = chain(LAYERS, whole=[], row_split=True)
    plans = candidate_plans(manifest)
    assert {mode_of(plan) for plan in plans} == {
        "streamed-head",
        "streamed-raw",
        "two-sided",
        "rows",
    }
    pairs = {(p.cut, p.until) for p in plans if isinstance(p, StripePlan)}
    # Cut 4 is the whole model; what lies before it is striped, and it is no striped cut itself.
    assert pairs == {(cut, until) for until in range(4) for cut in range(until + 1)}
    shares = {(p.stripes, p.robot) for p in plans if isinstance(p, StripePlan) and p.two_sided}
    assert {(2, 1), (4, 1), (4, 2), (4, 3)} <= shares


def test_the_number_is_bounded_and_every_cut_gets_its_turn() -> None:
    manifest = chain([Layer(9)] * 12, rows=640)
    everything = candidate_plans(manifest, most=10_000)
    assert len(everything) > 400
    some = candidate_plans(manifest, most=100)
    assert some == everything[:100]
    assert {plan.cut for plan in some} == set(range(13))


def test_of_many_cuts_the_smallest_at_every_depth_are_tried() -> None:
    # Every fourth tensor is small, and of 15 parts of the way all but the first have one.
    manifest = chain([Layer(5 if place % 4 == 3 else 9) for place in range(60)], rows=640)
    cuts = {plan.cut for plan in candidate_plans(manifest)}
    assert cuts == {0, 1, *range(4, 60, 4)}


def test_row_bounds_span_what_is_allowed() -> None:
    manifest = chain([Layer(9, 2, 1)], rows=64, whole=[], row_split=True)
    bounds = [plan.bound for plan in candidate_plans(manifest) if isinstance(plan, RowPlan)]
    assert bounds[:3] == [8, 62, 36]
    assert sorted(bounds) == list(range(8, 63, 2)), "33 of 28 are all"
    assert all(bound % 2 == 0 for bound in bounds)


def test_neighbours_of_a_row_plan_lie_a_step_away() -> None:
    manifest = chain([Layer(9, 2, 1)], rows=64, whole=[], row_split=True)

    def around(bound: int, part: float) -> list[Plan]:
        return list(neighbours(RowPlan(cut=0, bound=bound), manifest, part))

    assert around(40, 1 / 8) == [RowPlan(cut=0, bound=32), RowPlan(cut=0, bound=48)]
    assert around(40, 1e-9) == [RowPlan(cut=0, bound=38), RowPlan(cut=0, bound=42)]
    assert around(8, 1 / 8) == [RowPlan(cut=0, bound=16)]


def test_neighbours_of_a_striped_plan_differ_in_one_thing() -> None:
    manifest = chain([Layer(9, 2, 1)], rows=64)
    plan = StripePlan(cut=1, until=1, bounds=(16, 20, 48, 64), robot=2)
    found = list(neighbours(plan, manifest, 1 / 16))
    assert [p.bounds for p in found if isinstance(p, StripePlan) and p.robot == 2] == [
        (12, 20, 48, 64),
        (16, 24, 48, 64),
        (16, 20, 44, 64),
        (16, 20, 52, 64),
    ]
    assert [p.robot for p in found if p.bounds == plan.bounds] == [1, 3]
    last = replace(plan, robot=3)
    assert all(mode_of(other) == "two-sided" for other in neighbours(last, manifest, 0.5))
    assert {mode_of(p) for p in neighbours(replace(plan, robot=4), manifest, 1 / 16)} == {
        "streamed-head"
    }


def test_deeper_cuts_are_the_deepest_first() -> None:
    manifest = chain(LAYERS)
    striping = manifest.striping
    assert striping is not None
    assert deeper_cuts(manifest, striping, 0) == (4, 3, 2, 1)
    assert deeper_cuts(manifest, striping, 3) == (4,)
    assert deeper_cuts(manifest, striping, 4) == ()


@pytest.mark.parametrize(
    ("cut", "until", "stripes", "bounds"),
    [
        (1, 1, 4, (16, 32, 48, 64)),
        (0, 4, 4, (20, 32, 48, 64)),
        (1, 4, 2, (32, 64)),
        (1, 1, 1, (64,)),
    ],
)
def test_even_plans_keep_to_the_limits_of_all_their_segments(
    cut: int, until: int, stripes: int, bounds: tuple[int, ...]
) -> None:
    manifest = chain(LAYERS)
    assert manifest.striping is not None
    plan = even_plan(manifest, manifest.striping, cut=cut, until=until, stripes=stripes)
    assert plan == StripePlan(cut=cut, until=until, bounds=bounds, robot=len(bounds))
