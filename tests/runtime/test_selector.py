from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.objectives import Constraints, parse_objective
from calibration.plan_text import plan_text
from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes
from engines.errors import ManifestError
from runtime.decision import KnownLink, goodput_quantiles
from runtime.estimator import LinkEstimate
from runtime.selector import (
    SELECTORS,
    Decision,
    Situation,
    SplitRT,
    open_selector,
    plan_named,
    selector_names,
    wants_server,
)
from tests.hand_tables import BYTES_UP, HEAD_S, LAST, MODEL, PLANS, TAIL_S, Steps
from tests.striped import Layer, chain


def _situation(
    goodput_bps: float | None, *, rtt_s: float = 0.0, queue_s: float = 0.0
) -> Situation:
    return Situation(PLANS, LinkEstimate(goodput_bps, rtt_s, 1), queue_s)


def _auto(situation: Situation) -> Decision:
    return open_selector("auto", MODEL).decide(situation)


# offload: 0.1 + 8e6/g.  cut 4: 0.46 + 4e5/g.  local: 1.  They cross where
# 0.1 + 8e6/g = 0.46 + 4e5/g, so at 21.1 Mbps, and 0.46 + 4e5/g = 1, at 0.74 Mbps.
@pytest.mark.parametrize(
    ("goodput_bps", "cut"),
    [(1e9, 0), (25e6, 0), (21.2e6, 0), (21.0e6, 4), (1e6, 4), (0.75e6, 4), (0.73e6, LAST),
     (0.1e6, LAST), (1.0, LAST)],
)  # fmt: skip
def test_the_cut_moves_to_the_robot_as_goodput_falls(goodput_bps: float, cut: int) -> None:
    decision = _auto(_situation(goodput_bps))
    by_hand = HEAD_S + TAIL_S + 8.0 * np.array([*BYTES_UP, 0]) / goodput_bps
    assert int(np.argmin(by_hand)) == cut, "the expectation itself"
    assert decision.cut == cut
    assert decision.prediction is not None
    assert decision.prediction.latency_s == pytest.approx(float(by_hand[cut]))
    assert decision.reason == "least predicted latency"


def test_a_long_round_trip_or_queue_keeps_it_on_the_robot() -> None:
    assert _auto(_situation(1e9, rtt_s=0.5)).cut == 0
    assert _auto(_situation(1e9, rtt_s=0.95)).cut == LAST
    assert _auto(_situation(1e9, queue_s=0.95)).cut == LAST


def test_no_connection_is_local() -> None:
    situation = Situation(PLANS, None, 0.0)
    for name in ("auto", "offload", MODEL.cuts[3].id):
        decision = open_selector(name, MODEL).decide(situation)
        assert (decision.cut, decision.reason) == (LAST, "no connection")


def test_no_table_of_the_server_is_local() -> None:
    situation = Situation(None, LinkEstimate(1e9, 0.0, 1), 0.0)
    decision = _auto(situation)
    assert (decision.cut, decision.prediction) == (LAST, None)
    assert "no latency table" in decision.reason


def test_unknown_goodput_is_local_and_says_so() -> None:
    decision = _auto(_situation(None))
    assert (decision.cut, decision.reason) == (LAST, "goodput unknown")


def test_a_named_cut_is_taken_whatever_it_costs() -> None:
    for index, cut in enumerate(MODEL.cuts):
        for goodput in (1.0, 1e9):
            decision = open_selector(cut.id, MODEL).decide(_situation(goodput))
            assert decision.cut == index
            assert decision.prediction is not None
            assert decision.prediction.cut == index
    without = open_selector(MODEL.cuts[3].id, MODEL).decide(_situation(None))
    assert (without.cut, without.prediction) == (3, None)


def test_offload_and_local_are_the_first_and_the_last_cut() -> None:
    assert open_selector("offload", MODEL).decide(_situation(1.0)).cut == 0
    assert open_selector("local", MODEL).decide(_situation(1e9)).cut == LAST


def test_deciding_is_pure() -> None:
    selector = open_selector("auto", MODEL)
    first = selector.decide(_situation(5e6))
    selector.decide(_situation(1e9))
    assert selector.decide(_situation(5e6)) == first


def test_what_came_before_changes_nothing() -> None:
    other_plans = PreparedPlans(MODEL, PLANS.robot, PLANS.robot)
    first = replace(_situation(100e6), constraints=Constraints(keep_local=MODEL.cuts[1].id))
    others = [
        first,
        replace(first, constraints=Constraints()),
        replace(first, constraints=Constraints(lossless=True)),
        replace(first, objective=parse_objective("energy")),
        replace(first, objective=parse_objective("deadline=2s")),
        replace(first, plans=other_plans),
        replace(first, in_flight=3),
        replace(first, promised=False),
        replace(first, serial=True),
        replace(first, link=KnownLink(0.1e6)),
    ]
    selector = open_selector("splitrt", MODEL)
    assert isinstance(selector, SplitRT)
    for situation in (*others, *reversed(others)):
        fresh = open_selector("splitrt", MODEL).decide(situation)
        assert selector.decide(situation) == fresh
        assert selector._last is not None
        plans, table = selector._last
        assert plans is situation.plans
        assert (table.rules, table.several) == (situation.rules, situation.in_flight == 3)
    assert len({selector.decide(situation).cut for situation in others}) > 2


@pytest.mark.parametrize("name", ["", "fastest", "ffffffff", "AUTO"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ManifestError, match="split-bundle inspect"):
        open_selector(name, MODEL)


# -- striped plans -----------------------------------------------------------------------------

STRIPED = chain(
    [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(300, 4, 2)], whole=[1000, 10], input_row_bytes=600
)
SIDES = (SegmentTimes((0.1,) * 5), SegmentTimes((0.03,) * 5))
ALL = PreparedPlans(STRIPED, *SIDES)


def _striped(goodput_bps: float | None, name: str = "auto") -> Decision:
    situation = Situation(ALL, LinkEstimate(goodput_bps, 0.002, 1), 0.0)
    return open_selector(name, STRIPED).decide(situation)


def test_auto_takes_a_striped_plan_where_it_is_quicker() -> None:
    decision = _striped(2e6)
    assert decision.plan is not None
    assert decision.cut == decision.plan.cut
    assert decision.prediction == ALL.best(2e6, 0.002)
    assert decision.prediction.plan == decision.plan
    serial_s = ALL.latencies_s(2e6, 0.002)[: len(STRIPED.cuts)].min()
    assert decision.prediction.latency_s < serial_s * 0.95


def test_auto_takes_no_plan_where_there_is_no_goodput() -> None:
    assert (_striped(1.0).cut, _striped(1.0).plan) == (5, None)
    assert (_striped(None).cut, _striped(None).plan) == (5, None)


def test_a_named_plan_is_taken_whatever_it_costs() -> None:
    cut = STRIPED.cuts[1].id
    for name in (f"{cut}/4", f"{cut}/4:1", "offload/2", f"{cut}/13-64,until={cut}"):
        for goodput in (1.0, 1e9):
            decision = _striped(goodput, name)
            assert decision.plan is not None
            assert plan_text(decision.plan, STRIPED) == name.replace("offload", STRIPED.cuts[0].id)
            assert decision.cut == decision.plan.cut
            assert decision.prediction is not None
            assert decision.prediction.plan == decision.plan
            assert decision.reason == "named by the user"
    unknown = _striped(None, f"{cut}/4")
    assert (unknown.cut, unknown.prediction) == (1, None)
    assert unknown.plan is not None


def test_a_named_plan_is_local_without_a_connection() -> None:
    selector = open_selector("offload/2", STRIPED)
    decision = selector.decide(Situation(ALL, None, 0.0))
    assert (decision.cut, decision.plan, decision.reason) == (5, None, "no connection")


@pytest.mark.parametrize("name", ["offload/4", "rows:offload@8", "offload/"])
def test_a_plan_for_a_bundle_without_stripes_is_refused(name: str) -> None:
    with pytest.raises(ManifestError):
        open_selector(name, MODEL)


def test_names_that_leave_a_part_to_the_server() -> None:
    cut = STRIPED.cuts[1].id
    for name in ("offload", cut, f"{cut}/4", "offload/4"):
        assert wants_server(name, STRIPED)
    for name in ("auto", "local", STRIPED.cuts[-1].id):
        assert not wants_server(name, STRIPED)


@pytest.mark.parametrize("objective", ["latency", "energy", "rate"])
def test_what_is_best_on_a_certain_link_is_the_predictors_best(objective: str) -> None:
    for goodput_bps in (1e5, 1e6, 1e7, 1e9):
        situation = Situation(PLANS, KnownLink(goodput_bps, 0.01), 0.0, parse_objective(objective))
        decision = _auto(situation)
        best = PLANS.best(goodput_bps, 0.01, objective=objective)
        assert (decision.cut, decision.prediction) == (best.cut, best)
        assert decision.reason.endswith(f"predicted {objective}")


def test_the_rate_counts_what_may_be_under_way() -> None:
    rate, link = parse_objective("rate"), KnownLink(2e7, 0.001)
    one = _auto(Situation(PLANS, link, 0.0, rate, in_flight=1)).prediction
    many = _auto(Situation(PLANS, link, 0.0, rate, in_flight=8)).prediction
    assert one is not None
    assert many is not None
    assert one.rate_hz == pytest.approx(1 / one.latency_s)
    assert many.rate_hz > 1.1 * one.rate_hz
    assert many.rate_hz == pytest.approx(1 / max(many.robot_s, many.link_s - 0.001, many.server_s))


# -- names, objectives, the oracle -------------------------------------------------------------


def test_auto_is_splitrt() -> None:
    assert SELECTORS["auto"] is SELECTORS["splitrt"]
    assert "auto" not in selector_names()


def test_what_is_fixed_may_say_so() -> None:
    cut = STRIPED.cuts[1].id
    for name in (cut, f"{cut}/4", "offload/2"):
        assert _striped(1e7, f"fixed:{name}") == _striped(1e7, name)
        assert wants_server(f"fixed:{name}", STRIPED)
    assert plan_named(f"fixed:{cut}/4") == plan_named(f"{cut}/4") == f"{cut}/4"
    assert plan_named("fixed:" + cut) is None
    assert plan_named("splitrt") is None
    with pytest.raises(ManifestError):
        open_selector("fixed:splitrt", STRIPED)


def test_the_objective_and_the_quantiles_of_the_link_are_heeded() -> None:
    # One in five inferences has 1 Mbps, the others 100: see tests/calibration/test_ranking.py.
    unsteady = Steps(1e6, 100e6, 0.2)
    cuts = {
        text: open_selector("splitrt", MODEL)
        .decide(Situation(PLANS, unsteady, 0.0, parse_objective(text)))
        .cut
        for text in ("latency", "latency:p75", "energy", "deadline=9s", "deadline=300ms")
    }
    assert cuts == {
        "latency": 0, "latency:p75": 0, "energy": 4, "deadline=9s": 4, "deadline=300ms": 0
    }  # fmt: skip
    # Without the promise nobody ends what goes over the bad link.
    waiting = Situation(PLANS, unsteady, 0.0, parse_objective("latency"), promised=False)
    assert open_selector("splitrt", MODEL).decide(waiting).cut == 4


def test_a_link_without_quantiles_is_certain() -> None:
    assert {goodput_quantiles(KnownLink(7e6))(part) for part in (0.01, 0.99)} == {7e6}


def test_splitrt_leaves_plans_alone_where_none_can_be_carried_out() -> None:
    situation = Situation(ALL, KnownLink(2e6, 0.002), 0.0, serial=True)
    decision = open_selector("splitrt", STRIPED).decide(situation)
    assert decision.plan is None
    best = ALL.latencies_s(2e6, 0.002)[: len(STRIPED.cuts)]
    assert decision.cut == int(np.argmin(best))


def test_the_oracle_knows_the_goodput_and_is_for_replays_only() -> None:
    with pytest.raises(ManifestError, match="runtime replay"):
        open_selector("oracle", MODEL)
    oracle = open_selector("oracle", MODEL, replay=True)
    unsteady = Steps(1e6, 100e6, 0.2)
    energy = parse_objective("energy")
    assert oracle.decide(Situation(PLANS, unsteady, 0.0, energy)).cut == 4
    assert oracle.decide(Situation(PLANS, unsteady, 0.0, energy, true_bps=100e6)).cut == 0
    assert oracle.decide(Situation(PLANS, unsteady, 0.0, energy, true_bps=1e6)).cut == 4
    assert oracle.decide(Situation(PLANS, None, 0.0, true_bps=1e9)).cut == LAST
