from __future__ import annotations

import pytest

from calibration.plans import candidate_plans, deeper_cuts, even_plan, refined_rows
from engines.bundle import Bundle
from engines.stripe_plans import RowPlan, StripePlan, mode_of, trouble
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
    manifest = chain([Layer(9)] * 40, rows=640)
    everything = candidate_plans(manifest, most=10_000)
    assert len(everything) > 1000
    some = candidate_plans(manifest, most=100)
    assert len(some) == 100
    assert {plan.cut for plan in some} == set(range(41))


def test_row_bounds_span_what_is_allowed() -> None:
    manifest = chain([Layer(9, 2, 1)], rows=64, whole=[], row_split=True)
    bounds = [plan.bound for plan in candidate_plans(manifest) if isinstance(plan, RowPlan)]
    assert (bounds[0], bounds[-1]) == (8, 62)
    assert len(bounds) == 9
    assert all(bound % 2 == 0 for bound in bounds)


def test_refining_halves_the_distance_to_both_neighbours() -> None:
    manifest = chain([Layer(9, 2, 1)], rows=64, whole=[], row_split=True)
    plans = [RowPlan(cut=0, bound=bound) for bound in (8, 24, 40, 62)]

    def around(plan: RowPlan) -> list[int]:
        return [fresh.bound for fresh in refined_rows(manifest, plans, [plan])]

    assert around(plans[1]) == [16, 32]
    assert around(plans[0]) == [16]
    assert around(plans[3]) == [52]
    assert refined_rows(manifest, [plans[0]], [plans[0]]) == ()


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
