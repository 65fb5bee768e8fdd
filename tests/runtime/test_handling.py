"""What messages take beside the computing is learned from striped requests, and forgotten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.plan_text import plan_text
from calibration.plans import even_plan
from calibration.prepared import PreparedPlans
from calibration.schedule import NO_HANDLING, ROBOT, SERVER, Handling
from calibration.segment_times import SegmentTimes, estimated_times
from engines.bundle import Bundle
from runtime.decision import Decision, Situation
from runtime.handling import HandlingEstimator
from runtime.result import Result

BPS, RTT_S = 20e6, 0.002


@pytest.fixture
def plans(dense: Bundle) -> PreparedPlans:
    manifest = dense.manifest
    times = estimated_times(manifest, SegmentTimes((0.02,) * len(manifest.segments)))
    return PreparedPlans(manifest, times, times)


def _result(plans: PreparedPlans, robot_s: float, server_s: float, **changes: object) -> Result:
    """Give a striped result that took so long beyond its prediction, for each message."""
    manifest = plans.manifest
    assert manifest.striping is not None
    cut = manifest.striping.cuts[-1].cut
    plan = even_plan(manifest, manifest.striping, cut=cut, until=cut, stripes=3, robot=2)
    predicted = plans.predict(cut, plan, goodput_bps=BPS, rtt_s=RTT_S)
    work = plans.choice(cut, plan).work
    bare = plans.with_handling(NO_HANDLING).predict(cut, plan, goodput_bps=BPS, rtt_s=RTT_S)
    robot, server = work.messages(ROBOT), work.messages(SERVER)
    assert robot > 0, plan_text(plan, manifest)
    assert server > 0
    result = Result(
        outputs={}, seq=0, cut="", answered_by="remote", reason="", latency_s=1.0,
        robot_s=bare.robot_s + robot * robot_s, link_s=0.0,
        server_s=bare.server_s + server * server_s, queue_s=0.0, bytes_up=0, bytes_down=0,
        goodput_bps=None, energy_j=0.0, predicted=predicted, stripes=plan.stripes,
        decision=Decision(cut, "", predicted, plan, Situation(plans, None, 0.0)),
    )  # fmt: skip
    return replace(result, **changes)  # type: ignore[arg-type]


def test_what_messages_take_is_learned_and_then_predicted(plans: PreparedPlans) -> None:
    estimator = HandlingEstimator()
    for number in range(60):
        now_s = 0.1 * number
        estimator.take(now_s, _result(plans.with_handling(estimator.at(now_s)), 3e-4, 1e-4))
    known = estimator.at(6.0)
    assert known.robot_s == pytest.approx(3e-4, rel=0.1)
    assert known.server_s == pytest.approx(1e-4, rel=0.2)
    slower = plans.with_handling(known)
    for choice in plans.choices:
        wanted = (choice.cut, choice.plan)
        before = plans.predict(*wanted, goodput_bps=BPS, rtt_s=RTT_S)
        after = slower.predict(*wanted, goodput_bps=BPS, rtt_s=RTT_S)
        robot, server = (choice.work.messages(side) for side in (ROBOT, SERVER))
        most_s = robot * known.robot_s + server * known.server_s
        assert before.latency_s <= after.latency_s <= before.latency_s + most_s + 1e-12
        assert after.robot_s == pytest.approx(before.robot_s + robot * known.robot_s)
        assert after.energy_j >= before.energy_j or robot == server == 0
    assert np.all(slower.latencies_s(BPS, RTT_S) >= plans.latencies_s(BPS, RTT_S))
    assert np.any(slower.latencies_s(BPS, RTT_S) > plans.latencies_s(BPS, RTT_S))
    assert np.array_equal(slower.spread_s([BPS], RTT_S)[0], slower.latencies_s(BPS, RTT_S))


def test_it_is_bounded_and_fades(plans: PreparedPlans) -> None:
    estimator = HandlingEstimator()
    for number in range(60):
        estimator.take(number * 0.01, _result(plans, 1.0, -1.0))
    most = estimator.at(0.6)
    assert 0.9e-3 < most.robot_s <= 1e-3
    assert most.server_s == 0.0
    assert estimator.at(20.6).robot_s == pytest.approx(most.robot_s / 2, rel=0.05)
    assert estimator.at(1000.0) == NO_HANDLING


@pytest.mark.parametrize(
    "changes",
    [{"answered_by": "fallback"}, {"hedge_s": 0.1}, {"predicted": None}, {"decision": None}],
)
def test_what_tells_nothing_is_left_out(plans: PreparedPlans, changes: dict[str, object]) -> None:
    estimator = HandlingEstimator()
    estimator.take(0.0, _result(plans, 5e-4, 5e-4, **changes))
    assert estimator.at(0.0) == NO_HANDLING


def test_plans_with_nothing_new_are_the_same(plans: PreparedPlans) -> None:
    assert plans.with_handling(NO_HANDLING) is plans
    other = plans.with_handling(Handling(1e-4, 0.0))
    assert plans.with_handling(Handling(1e-4, 0.0)) is other
    assert other.key is plans.key
    assert other.with_handling(NO_HANDLING) is not other
    assert np.array_equal(
        other.with_handling(NO_HANDLING).latencies_s(BPS, RTT_S), plans.latencies_s(BPS, RTT_S)
    )
