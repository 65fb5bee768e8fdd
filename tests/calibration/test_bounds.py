"""By hand: the robot alone takes 1 s (``tests.hand_tables``)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.bounds import Bound, alone_bound, bound_of, keeps
from calibration.objectives import Objective, parse_objective
from calibration.plan_tasks import Pricer
from calibration.predictor import Prediction
from calibration.prepared import PreparedPlans
from calibration.ranking import rank
from calibration.segment_times import SegmentTimes
from engines.stripe_plans import StripePlan
from tests.hand_tables import HEAD_S, LAST, MODEL, PLANS, ROBOT, SERVER, Steps
from tests.striped import Layer, chain

LATENCY = Objective()


def _at(cut: int, goodput_bps: float | None = 8e6) -> Prediction:
    return PLANS.predict(cut, goodput_bps=goodput_bps, rtt_s=0.0)


def test_what_is_left_for_the_robot_is_its_own_tail() -> None:
    assert PLANS.rest_s == pytest.approx(1.0 - HEAD_S)
    assert PLANS.robot_s == pytest.approx(HEAD_S)
    assert PLANS.local_s == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["latency", "latency:p95"])
@pytest.mark.parametrize("cut", range(LAST))
def test_latency_is_kept_by_the_robot_beginning_in_time(text: str, cut: int) -> None:
    bound = bound_of(PLANS, _at(cut), parse_objective(text))
    assert bound is not None
    assert bound.latency_s == pytest.approx(1.2)
    assert bound.hedge_s == pytest.approx(1.2 - 1.1 * (1 - HEAD_S[cut]))
    assert bound.hedge_s >= HEAD_S[cut], "not before its own part is done"


def test_who_waits_for_a_late_answer_waits_no_longer_than_the_rest_takes() -> None:
    at = {"prediction": _at(6), "objective": LATENCY}
    assert PLANS.rest_s[6] == pytest.approx(0.2)
    assert bound_of(PLANS, **at, late_s=0.7) == Bound(pytest.approx(1.2), pytest.approx(0.9))
    assert bound_of(PLANS, **at, late_s=5.0) == Bound(pytest.approx(1.2), pytest.approx(0.98))


@pytest.mark.parametrize("text", ["energy", "energy-budget=3J", "rate"])
def test_for_energy_nothing_is_begun_on_schedule(text: str) -> None:
    # cut 4 at 8 Mbps: 0.4 + 0.05 + 0.06
    bound = bound_of(PLANS, _at(4), parse_objective(text), late_s=0.1)
    assert bound == Bound(pytest.approx(1.5 * 0.51 + 1.1), pytest.approx(1.5 * 0.51))


def test_a_deadline_that_the_robot_could_keep_is_kept() -> None:
    bound = bound_of(PLANS, _at(0), parse_objective("deadline=1250ms"))
    assert bound == Bound(pytest.approx(1.25), pytest.approx(0.15))
    bound = bound_of(PLANS, _at(4), parse_objective("deadline=4s"))
    assert bound == Bound(pytest.approx(4.0), pytest.approx(4.0 - 0.66))


def test_one_that_it_could_not_is_no_worse_than_latency() -> None:
    assert bound_of(PLANS, _at(0), parse_objective("deadline=500ms")) == Bound(
        pytest.approx(1.2), pytest.approx(0.1)
    )


def test_alone_there_is_nothing_to_begin() -> None:
    for text, limit in (("latency", 1.2), ("energy", 1.2), ("deadline=2s", 2.0)):
        objective = parse_objective(text)
        assert bound_of(PLANS, _at(LAST, None), objective) == alone_bound(objective, 1.0)
        assert alone_bound(objective, 1.0) == Bound(pytest.approx(limit))


def test_each_inference_under_way_may_hold_up_the_others() -> None:
    one = bound_of(PLANS, _at(4), LATENCY)
    three = bound_of(PLANS, _at(4), LATENCY, in_flight=3)
    assert one is not None
    assert one.hedge_s is not None
    assert three == Bound(pytest.approx(3 * one.latency_s), pytest.approx(3 * one.hedge_s))


def test_nothing_is_promised_where_the_robot_may_not_do_it_alone() -> None:
    cuts = MODEL.cuts
    refused = type(MODEL)(
        **{
            **{name: getattr(MODEL, name) for name in MODEL.__struct_fields__},
            "cuts": (*cuts[:-1], _refused(cuts[-1])),
        }
    )
    plans = PreparedPlans(refused, ROBOT, SERVER)
    assert math.isinf(plans.local_s)
    assert bound_of(plans, _at(0), LATENCY) is None
    assert keeps(plans, LATENCY) is None


def _refused(cut: object) -> object:
    fields = {name: getattr(cut, name) for name in cut.__struct_fields__}  # type: ignore[attr-defined]
    return type(cut)(**{**fields, "refused": "no memory"})


def test_every_serial_cut_keeps_what_it_promises_and_energy_promises_by_itself() -> None:
    kept = keeps(PLANS, LATENCY)
    assert kept is not None
    assert kept.all()
    assert keeps(PLANS, parse_objective("energy")) is None


def test_a_plan_whose_stripes_cost_too_much_breaks_its_promise() -> None:
    manifest = chain([Layer(100), Layer(100), Layer(50, den=2)], rows=64)
    times = len(manifest.segments)
    slow_stripes = SegmentTimes((1.0,) * times, ((1.0,) * 5,) * times)
    assert manifest.striping is not None
    cut = manifest.striping.cuts[-1].cut
    plan = StripePlan(cut=cut, until=cut, robot=4, bounds=(16, 32, 48, 64))
    server = SegmentTimes((1e-3,) * times)
    plans = PreparedPlans(manifest, slow_stripes, server, plans=[plan])
    kept = keeps(plans, LATENCY)
    assert kept is not None
    assert kept[: len(manifest.cuts)].all()
    assert not kept[len(manifest.cuts)]


def test_the_rest_of_a_plan_is_what_the_server_had_of_it() -> None:
    manifest = chain([Layer(100), Layer(100), Layer(50, den=2)], rows=64)
    count = len(manifest.segments)
    pricer = Pricer(manifest, SegmentTimes((1.0,) * count), SegmentTimes((1.0,) * count))
    assert manifest.striping is not None
    cut = manifest.striping.cuts[-1].cut
    head = len(manifest.cuts[cut].robot_segments)

    def rest_s(robot: int) -> float:
        plan = StripePlan(cut=cut, until=cut, robot=robot, bounds=(16, 32, 48, 64))
        return pricer.plan(plan).rest_s

    assert rest_s(4) == pytest.approx(count - head)
    assert rest_s(0) == pytest.approx(count)
    shares = [rest_s(robot) for robot in range(5)]
    assert shares == sorted(shares, reverse=True)
    assert np.all(np.isfinite(shares))


def test_a_deadline_that_the_hedge_keeps_leaves_every_choice() -> None:
    """At 1 Mbps in bad times the frame would be late; the robot begins itself, and in time."""
    link = Steps(0.5e6, 100e6, 0.05)
    at = {"goodput_at": link.quantile, "rtt_s": 0.0}
    hedged = rank(PLANS, parse_objective("deadline=1250ms"), **at)
    assert hedged.within is not None
    assert hedged.within.all()
    assert hedged.best == 0
    alone = rank(PLANS, parse_objective("deadline=1250ms"), **at, promised=False)
    assert alone.best != 0
