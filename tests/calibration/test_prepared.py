from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.energy import StatePower
from calibration.plan_tasks import CodecSpeed
from calibration.plans import candidate_plans
from calibration.predictor import MODES, Prediction, cut_costs, encoded_bytes
from calibration.prepared import PreparedPlans
from calibration.schedule import timeline
from calibration.segment_times import SegmentTimes
from engines.bundle import Bundle
from engines.manifest import Manifest
from engines.stripe_plans import BoundedPlan, RowPlan, StripePlan, sent
from engines.stripes import BoundedCut
from tests.striped import Layer, chain

ROBOT_S = (0.10, 0.01, 0.02, 0.03, 0.04, 0.0, 0.05)
SERVER_S = tuple(s / 10 for s in ROBOT_S)
POWER = StatePower(compute=10, communicate=4, idle=1)
STRIPED = chain([Layer(400, 1, 1), Layer(200, 2, 2), Layer(300, 4, 2)], whole=[100, 10])
ROWS = chain([Layer(200, 1, 2), Layer(60, 1, 4)], whole=[], row_split=True, input_row_bytes=500)


def _toy(toy: Bundle, power: StatePower = POWER) -> PreparedPlans:
    return PreparedPlans(toy.manifest, SegmentTimes(ROBOT_S), SegmentTimes(SERVER_S), power)


def _prepared(manifest: Manifest, power: StatePower = POWER) -> PreparedPlans:
    count = len(manifest.segments)
    return PreparedPlans(
        manifest,
        SegmentTimes(tuple(0.04 + 0.01 * place for place in range(count))),
        SegmentTimes(tuple(0.01 + 0.002 * place for place in range(count))),
        power,
    )


def _every(plans: PreparedPlans, bps: float | None, rtt_s: float, queue_s: float = 0.0
           ) -> list[Prediction]:  # fmt: skip
    return [
        plans.predict(c.cut, c.plan, goodput_bps=bps, rtt_s=rtt_s, queue_s=queue_s)
        for c in plans.choices
    ]


# -- serial cuts -------------------------------------------------------------------------------


def test_serial_predictions_by_hand(toy: Bundle) -> None:
    found = _every(_toy(toy), 1e6, 0.002, 0.005)
    assert [p.cut for p in found] == list(range(8))
    assert [p.mode for p in found] == ["frame", *["split"] * 6, "local"]
    offload = found[0]
    assert offload.robot_s == 0
    assert offload.link_s == pytest.approx(8 * (3072 + 52) / 1e6 + 0.002)
    assert offload.server_s == pytest.approx(0.025)
    assert offload.latency_s == pytest.approx(0.026992 + 0.005 + 0.025)
    assert offload.energy_j == pytest.approx(4 * 0.026992 + 1 * 0.030)
    assert (offload.bytes_up, offload.bytes_down) == (3072, 52)
    mixed = found[5]
    assert mixed.robot_s == pytest.approx(0.20)
    assert mixed.link_s == pytest.approx(8 * 52 / 1e6 + 0.002)
    assert mixed.server_s == pytest.approx(0.005)
    assert mixed.queue_s == 0.005
    local = found[7]
    assert (local.link_s, local.queue_s, local.server_s) == (0, 0, 0)
    assert local.latency_s == pytest.approx(0.25)
    assert local.energy_j == pytest.approx(2.5)


def test_serial_predictions_are_the_sums_of_the_costs(toy: Bundle) -> None:
    costs = cut_costs(toy.manifest, ROBOT_S, SERVER_S)
    bits = 8.0 * (costs.bytes_up + costs.bytes_down)
    linked = np.asarray([1.0] * 7 + [0.0])
    for bps in (1e5, 1e7):
        by_sum = costs.head_s + costs.tail_s + bits / bps + linked * (0.01 + 0.003)
        np.testing.assert_allclose(_toy(toy).latencies_s(bps, 0.01, 0.003), by_sum)


@pytest.mark.parametrize("goodput", [None, 0.0])
def test_without_a_link_only_the_robot_alone_is_possible(
    toy: Bundle, goodput: float | None
) -> None:
    plans = _toy(toy)
    assert plans.best(goodput, 0.0).mode == "local"
    assert plans.best(goodput, 0.0).latency_s == pytest.approx(0.25)
    for objective in ("latency", "energy"):
        costs = plans.costs(goodput, 0.0, objective=objective)
        assert np.isinf(costs[:-1]).all()
        assert np.isfinite(costs[-1])
    assert [math.isinf(p.latency_s) for p in _every(plans, goodput, 0.0)] == [True] * 7 + [False]


@pytest.mark.parametrize("power", [POWER, StatePower(compute=1, communicate=1, idle=0)])
def test_a_refused_cut_is_never_the_best(toy: Bundle, power: StatePower) -> None:
    cuts = list(toy.manifest.cuts)
    cuts[0] = msgspec.structs.replace(cuts[0], refused="--keep-local")
    cuts[7] = msgspec.structs.replace(cuts[7], refused="--robot-memory")
    manifest = msgspec.structs.replace(toy.manifest, cuts=tuple(cuts))
    plans = PreparedPlans(manifest, SegmentTimes(ROBOT_S), SegmentTimes(SERVER_S), power)
    for objective in ("latency", "energy"):
        for bps in (1e3, 1e6, 1e10):
            assert 0 < plans.best(bps, 0.0, objective=objective).cut < 7
    assert math.isinf(_every(plans, 1e6, 0.0)[0].energy_j)


# -- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", [STRIPED, ROWS])
@pytest.mark.parametrize("link", [(1e5, 0.0, 0.0), (2e6, 0.004, 0.0), (3e7, 0.05, 0.2)])
def test_arrays_say_what_each_schedule_says(
    manifest: Manifest, link: tuple[float, float, float]
) -> None:
    plans = _prepared(manifest)
    latencies = plans.costs(*link)
    energies = plans.costs(*link, objective="energy")
    assert len(plans.choices) == len(latencies) > 50
    for number, found in enumerate(_every(plans, *link)):
        bps, rtt_s, queue_s = link
        _, end_s = timeline(
            plans.choices[number].work.tasks, goodput_bps=bps, rtt_s=rtt_s, queue_s=queue_s
        )
        assert latencies[number] == pytest.approx(end_s)
        assert found.latency_s == pytest.approx(end_s)
        assert energies[number] == pytest.approx(found.energy_j)
        assert found.mode in MODES
        assert (found.plan is None) == (found.mode in MODES[:3])


@given(st.floats(1e4, 1e10), st.floats(0, 0.2), st.floats(0, 1))
def test_the_best_is_the_least(bps: float, rtt_s: float, queue_s: float) -> None:
    latencies = [p.latency_s for p in _every(PREPARED, bps, rtt_s, queue_s)]
    assert PREPARED.best(bps, rtt_s, queue_s).latency_s == pytest.approx(min(latencies))
    energies = [p.energy_j for p in _every(PREPARED, bps, rtt_s, queue_s)]
    best = PREPARED.best(bps, rtt_s, queue_s, "energy")
    assert best.energy_j == pytest.approx(min(energies))


PREPARED = _prepared(STRIPED)


def test_overlap_adds_what_computing_and_sending_draw() -> None:
    plan = StripePlan(cut=1, until=1, bounds=(32, 64), robot=2)
    found = PREPARED.predict(1, plan, goodput_bps=1e6, rtt_s=0.0)
    assert found.mode == "streamed-head"
    assert found.latency_s < found.robot_s + found.link_s + found.server_s
    by_hand = 1 * found.latency_s + 9 * found.robot_s + 3 * found.link_s
    assert found.energy_j == pytest.approx(by_hand)


def test_a_plan_that_is_no_choice_is_predicted_all_the_same() -> None:
    plan = StripePlan(cut=1, until=1, bounds=(17, 64), robot=1)
    assert plan not in [choice.plan for choice in PREPARED.choices]
    found = PREPARED.predict(1, plan, goodput_bps=1e6, rtt_s=0.01)
    assert (found.plan, found.mode) == (plan, "two-sided")
    assert PREPARED.choice(1, plan) is PREPARED.choice(1, plan)
    only = PreparedPlans(STRIPED, *[SegmentTimes((0.1,) * 5)] * 2, plans=[plan])
    assert [choice.plan for choice in only.choices] == [None] * 6 + [plan]


def test_stripes_win_where_robot_and_link_take_as_long() -> None:
    modes = {PREPARED.best(float(bps), 0.001).mode for bps in np.geomspace(1e5, 1e9, 30)}
    assert {"two-sided", "streamed-raw"} & modes
    assert PREPARED.best(1.0, 0.001).mode == "local"


def test_equal_costs_go_to_the_serial_cut() -> None:
    nothing = SegmentTimes((0.0,) * 5)
    free = PreparedPlans(STRIPED, nothing, nothing)
    assert free.best(1e6, 0.0).mode == "local"
    cuts = list(STRIPED.cuts)
    cuts[-1] = msgspec.structs.replace(cuts[-1], refused="--robot-memory")
    some = msgspec.structs.replace(STRIPED, cuts=tuple(cuts))
    assert PreparedPlans(some, nothing, nothing).best(1e6, 0.0).plan is None


@pytest.mark.parametrize("bps", [2e6, 4.6e6, 1e7, 3e7])
def test_rows_are_divided_so_that_both_ends_finish_together(bps: float) -> None:
    tall = chain(
        [Layer(200, 1, 2), Layer(60, 1, 4)], rows=480, whole=[], row_split=True, input_row_bytes=60
    )
    sides = SegmentTimes((0.04, 0.05)), SegmentTimes((0.01, 0.012))
    every = [RowPlan(cut=0, bound=bound) for bound in range(9, 480)]
    least = PreparedPlans(tall, *sides, plans=every).best(bps, 0.002)
    assert least.mode == "rows"
    assert least.plan is not None
    rows = [c for c in PreparedPlans(tall, *sides).choices if isinstance(c.plan, RowPlan)]
    assert len(rows) < 50
    assert min(c.latency_s(bps, 0.002, 0.0) for c in rows) <= least.latency_s * 1.04


def test_refined_plans_are_better_than_the_candidates() -> None:
    layers = [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(900, 4, 3), Layer(400, 8, 3)]
    manifest = chain(layers, rows=224, input_row_bytes=672, whole=[4000, 40], halo=20)
    sides = SegmentTimes((0.02,) * 6), SegmentTimes((0.002,) * 6)
    refined = PreparedPlans(manifest, *sides)
    plain = PreparedPlans(manifest, *sides, plans=candidate_plans(manifest))
    gained = [
        plain.best(bps, 0.002).latency_s - refined.best(bps, 0.002).latency_s
        for bps in (2e6, 6e6, 18e6, 55e6, 165e6)
    ]
    assert min(gained) >= 0
    assert max(gained) > 0


def test_coding_makes_everything_but_the_robot_alone_slower() -> None:
    count = len(STRIPED.segments)
    times = SegmentTimes((0.01,) * count)
    plans = candidate_plans(STRIPED)
    coded = PreparedPlans(STRIPED, times, times, plans=plans, codecs=CodecSpeed(1e-7, 1e-7))
    plain = PreparedPlans(STRIPED, times, times, plans=plans)
    slower = coded.latencies_s(1e6, 0.0) - plain.latencies_s(1e6, 0.0)
    assert slower[count] == 0
    assert (np.delete(slower, count) > 0).all()


# -- bounded divisions ---------------------------------------------------------------------------


def _bounded(manifest: Manifest, halo: int = 8, band: int = 4) -> Manifest:
    """Add a bounded division at the cut before the last segment."""
    striping = manifest.striping
    assert striping is not None
    cut = len(manifest.cuts) - 2
    bounded = BoundedCut(
        cut=cut,
        halo=halo,
        needed=40,
        plain=manifest.graph,
        band=band,
        least=halo,
        most=striping.rows - halo - band,
    )
    frontier = [name for name in manifest.cuts[cut].tensors if name not in striping.tensors]
    assert not frontier, frontier
    changed = msgspec.structs.replace(striping, bounded=(bounded,))
    return msgspec.structs.replace(manifest, striping=changed)


DEEP = _bounded(chain([Layer(400, 1, 1), Layer(200, 2, 2), Layer(300, 4, 2)], whole=[10]))


def test_a_bounded_plan_by_hand() -> None:
    plans = _prepared(DEEP)
    striping = DEEP.striping
    assert striping is not None
    [bounded] = striping.bounded
    plan = BoundedPlan(cut=bounded.cut, bound=32, halo=bounded.halo)
    work = plans.choice(plan.cut, plan).work
    raw = encoded_bytes(sent(plan, DEEP, 1))
    crossing = encoded_bytes(sent(plan, DEEP, 0))
    assert work.bytes_up == raw + crossing
    head = DEEP.cuts[plan.cut].robot_segments
    times = SegmentTimes(tuple(0.04 + 0.01 * place for place in range(len(DEEP.segments))))
    rows = striping.rows
    robot_s = sum(
        times.stripe_s(i, (32 + bounded.halo + rows % bounded.band) / rows) for i in head
    )
    assert work.busy_s("robot") == pytest.approx(robot_s)
    found = plans.predict(plan.cut, plan, goodput_bps=1e12, rtt_s=0.0)
    assert found.mode == "bounded"
    assert found.lossy
    tail = [i for i in range(len(DEEP.segments)) if i not in head]
    server = SegmentTimes(tuple(0.01 + 0.002 * place for place in range(len(DEEP.segments))))
    there = sum(server.stripe_s(i, (rows - 32 + bounded.halo) / rows) for i in head)
    rest = sum(server.segments_s[i] for i in tail)
    assert found.server_s == pytest.approx(there + rest)
    assert found.latency_s == pytest.approx(max(robot_s, there) + rest, rel=1e-6)


def test_lossy_plans_are_choices_only_where_allowed() -> None:
    count = len(DEEP.segments)
    times = SegmentTimes((0.05,) * count), SegmentTimes((0.05,) * count)
    for least, allowed in ((None, False), (0, True), (8, True), (9, False)):
        plans = PreparedPlans(DEEP, *times, POWER, least_halo=least)
        assert any(choice.mode == "bounded" for choice in plans.choices) == allowed, least


# -- rate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bps", [3e5, 2e6, 2e7, 1e9])
@pytest.mark.parametrize("in_flight", [None, 1, 2, 8])
def test_the_best_rate_is_that_of_the_least_busy(bps: float, in_flight: int | None) -> None:
    plans = _prepared(STRIPED)
    best = plans.best(bps, 0.004, objective="rate", in_flight=in_flight)
    periods, latencies = [], []
    for choice in plans.choices:
        latency_s = choice.latency_s(bps, 0.004, 0.0)
        link_s = 8 * (choice.work.bytes_up + choice.work.bytes_down) / bps
        busy = max(choice.work.busy_s("robot"), choice.work.busy_s("server"), link_s)
        if in_flight is not None:
            busy = max(busy, latency_s / in_flight)
        periods.append(busy if math.isfinite(latency_s) else math.inf)
        latencies.append(latency_s)
    assert best.period_s == pytest.approx(min(periods))
    assert best.rate_hz == pytest.approx(1 / min(periods))
    ties = [
        lat for lat, p in zip(latencies, periods, strict=True) if p <= min(periods) * (1 + 1e-9)
    ]
    assert best.latency_s == pytest.approx(min(ties))
    costs = plans.costs(bps, 0.004, objective="rate", in_flight=in_flight)
    assert costs.min() == pytest.approx(best.period_s)


def test_one_at_a_time_the_best_rate_is_the_least_latency() -> None:
    plans = _prepared(STRIPED)
    for bps in np.geomspace(1e5, 1e9, 20):
        rate = plans.best(float(bps), 0.002, objective="rate", in_flight=1)
        assert rate.latency_s == pytest.approx(plans.best(float(bps), 0.002).latency_s)


def test_without_a_link_the_rate_is_that_of_the_robot_alone() -> None:
    plans = _prepared(STRIPED)
    found = plans.best(None, 0.0, objective="rate")
    assert found.mode == "local"
    assert found.period_s == pytest.approx(found.latency_s)


def test_the_rate_prefers_what_keeps_all_three_busy(toy: Bundle) -> None:
    """Where sending takes as long as either side computes, a split beats both ends."""
    plans = PreparedPlans(
        toy.manifest, SegmentTimes((0.01,) * 7), SegmentTimes((0.01,) * 7), POWER, plans=()
    )
    found = plans.best(1e9, 0.05, objective="rate")
    assert found.mode == "split"
    assert found.period_s == pytest.approx(0.04)
    assert plans.best(1e9, 0.05).mode == "local"
