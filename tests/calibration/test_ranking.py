from __future__ import annotations

import msgspec
import numpy as np
import pytest

from calibration.objectives import UNCONSTRAINED, Constraints, parse_objective
from calibration.prepared import PreparedPlans
from calibration.ranking import WORTHWHILE, Ranking, barred, rank
from calibration.segment_times import SegmentTimes
from tests.hand_tables import BITS, HEAD_S, LAST, MODEL, PLANS, ROBOT, SERVER, TAIL_S, Steps
from tests.striped import Layer, chain, serial

# One in five inferences has 1 Mbps, the others 100 Mbps.
#   cut   latency at 1 / 100 Mbps    expected    energy expected
#   0     8.1    / 0.18              1.764       4.25 x 1.664 + .404                  = 7.476
#   4     0.86   / 0.464             0.5432      5.34 + 4.25 x .0832 + .2424          = 5.936
#   5     0.96   / 0.6432            0.70656     8.01 + 4.25 x .06656 + .1616         = 8.454
#   7     1      / 1                 1           13.35
UNSTEADY = Steps(1e6, 100e6, 0.2)


def _rank(text: str, link: Steps, **more: object) -> Ranking:
    return rank(PLANS, parse_objective(text), link.quantile, rtt_s=link.rtt_s, **more)  # type: ignore[arg-type]


def _steady(bps: float) -> Steps:
    return Steps(bps, bps, 0.5)


def test_latency_is_the_mean_over_the_goodputs_not_the_latency_at_their_mean() -> None:
    found = _rank("latency", UNSTEADY, promised=False)
    by_hand = HEAD_S + TAIL_S + BITS * (0.2 / 1e6 + 0.8 / 100e6)
    np.testing.assert_allclose(found.latencies_s, by_hand)
    assert (found.best, found.rule, found.unit) == (4, "least predicted latency", "s")
    assert _rank("latency", _steady(UNSTEADY.goodput_bps)).best == 0, "at the mean: offloading"


def test_latency_ends_with_the_robots_own_answer_where_it_hedges() -> None:
    # The robot begins at .1 s, so that offloading takes 1.1 s where the goodput is 1 Mbps.
    found = _rank("latency", UNSTEADY)
    assert found.costs[0] == found.latencies_s[0] == pytest.approx((1.1 + 4 * 0.18) / 5)
    assert found.costs[4] == pytest.approx(0.5432), "in time by itself"
    assert found.costs[LAST] == pytest.approx(1.0)
    assert found.best == 0
    # A bad goodput that is ten times worse still is no reason to do without the others.
    worse = _rank("latency", Steps(1e5, 100e6, 0.2))
    assert worse.costs[0] == found.costs[0]
    assert worse.best == 0
    # But where most are bad the robot works alone.
    assert _rank("latency", Steps(1e5, 100e6, 0.95)).best == LAST
    # With several under way it cannot see to all of them.
    assert _rank("latency", UNSTEADY, in_flight=2).best == 4
    assert _rank("latency", UNSTEADY, in_flight=1).best == 0
    assert _rank("latency:p95", UNSTEADY).costs[0] == pytest.approx(1.1)


def test_a_quantile_of_latency_is_the_latency_at_the_other_quantile_of_goodput() -> None:
    assert _rank("latency:p95", UNSTEADY).best == 4
    assert _rank("latency:p95", UNSTEADY, promised=False).costs[0] == pytest.approx(8.1)
    # Three in four inferences have 100 Mbps at least.
    assert _rank("latency:p75", UNSTEADY).best == 0
    assert _rank("latency:p75", UNSTEADY).costs[0] == pytest.approx(0.18)
    assert "p75" in _rank("latency:p75", UNSTEADY).rule


def test_energy_counts_waiting_and_sending() -> None:
    found = _rank("energy", UNSTEADY)
    assert found.best == 4
    assert found.energies_j[[0, 4, 5, 7]] == pytest.approx(
        [
            4.25 * 1.664 + 0.404,
            5.34 + 4.25 * 0.0832 + 0.2424,
            8.01 + 4.25 * 0.06656 + 0.1616,
            13.35,
        ]
    )
    # At 20 Mbps cut 4 is the quickest (.48 s against .5), and offloading takes 2.1 J against 5.7.
    assert _rank("latency", _steady(20e6)).best == 4
    assert _rank("energy", _steady(20e6)).best == 0
    assert _rank("energy", _steady(0.1e6)).best == LAST


def test_a_deadline_takes_the_least_energy_of_what_keeps_it_at_the_low_goodput() -> None:
    # At 1 Mbps: cut 4 .86 s, cut 5 .96, cut 7 1, cut 6 1.06, all others above 3.
    tight = _rank("deadline=900ms", UNSTEADY)
    assert tight.within is not None
    assert list(np.flatnonzero(tight.within)) == [4]
    assert tight.best == 4
    loose = _rank("deadline=1100ms", UNSTEADY)
    assert loose.within is not None
    assert list(np.flatnonzero(loose.within)) == [4, 5, 6, 7]
    assert (loose.best, loose.unit) == (4, "J")
    # In 9 s offloading is kept too, but expected to take more than cut 4.
    assert _rank("deadline=9s", UNSTEADY).best == 4
    # Where there are always 100 Mbps, .744 J.
    assert _rank("deadline=9s", _steady(100e6)).best == 0


def test_a_deadline_that_one_in_a_hundred_misses_is_kept() -> None:
    assert _rank("deadline=200ms", Steps(1e6, 100e6, 0.0099)).best == 0
    assert "most likely" in _rank("deadline=200ms", Steps(1e6, 100e6, 0.011)).rule


def test_where_nothing_keeps_a_deadline_it_is_what_needs_the_least_goodput() -> None:
    # In .5 s: cut 0 needs 8e6/.4 = 20 Mbps, cut 1 7.2e6/.31 = 23, cut 4 .4e6/.04 = 10.
    found = _rank("deadline=500ms", UNSTEADY)
    assert (found.best, found.rule) == (4, "most likely to keep the deadline")
    assert found.costs[[0, 1, 4]] == pytest.approx([20e6, 7.2e6 / 0.31, 10e6])
    assert found.costs[LAST] == np.inf
    # In .3 s: 8e6/.2 = 40 Mbps offloading, 7.2e6/.11 = 65 with cut 1; cut 4 never.
    assert _rank("deadline=300ms", UNSTEADY).best == 0


@pytest.mark.parametrize("text", ["deadline=50ms", "deadline=110ms"])
def test_where_nothing_can_keep_a_deadline_it_is_the_quickest(text: str) -> None:
    # In .05 s nothing at any goodput; in .11 s offloading with 800 Mbps, which there never are.
    found = _rank(text, UNSTEADY)
    assert found.best == 4
    assert found.rule == "least predicted latency: nothing keeps the deadline"


def test_a_deadline_counts_round_trip_and_queue() -> None:
    # Offloading at 100 Mbps takes .18 s; .25 s with these two.
    link = Steps(100e6, 100e6, 0.5, rtt_s=0.04)
    assert _rank("deadline=260ms", link, queue_s=0.03).best == 0
    late = _rank("deadline=240ms", link, queue_s=0.03)
    assert late.rule != "least predicted energy within the deadline"
    needed = PLANS.needed_bps(0.26, 0.04, 0.03)
    assert needed[0] == pytest.approx(8e6 / (0.26 - 0.1 - 0.07))


def test_an_energy_budget_takes_the_quickest_within_it() -> None:
    link = _steady(20e6)
    # cut 0: .5 s, 4.25 x .4 + 4.04 x .1 = 2.104 J.  cut 1: .55 s, 3.2 J.  cut 4: .48 s, 5.667 J.
    assert _rank("energy-budget=6J", link).best == 4
    assert _rank("energy-budget=5J", link).best == 0
    over = _rank("energy-budget=2J", link)
    assert (over.best, over.rule) == (0, "least predicted energy: nothing is within the budget")
    assert over.within is not None
    assert not over.within.any()


def test_of_equals_the_first_is_taken() -> None:
    twins = serial([100, 100, 100])
    last = msgspec.structs.replace(twins.cuts[-1], refused="no")
    twins = msgspec.structs.replace(twins, cuts=(*twins.cuts[:-1], last))
    plans = PreparedPlans(twins, SegmentTimes((0.1,) * 3), SegmentTimes((0.1,) * 3))
    found = rank(plans, parse_objective("latency"), lambda _: 1e6, rtt_s=0.0)
    assert (found.best, len(set(found.costs[:3].round(12)))) == (0, 1)


# -- constraints -------------------------------------------------------------------------------


def test_what_the_bundle_refuses_is_never_taken() -> None:
    cuts = list(MODEL.cuts)
    cuts[0] = msgspec.structs.replace(cuts[0], refused="the input stays")
    refusing = PreparedPlans(msgspec.structs.replace(MODEL, cuts=tuple(cuts)), ROBOT, SERVER)
    for text in ("latency", "energy", "deadline=9s", "energy-budget=99J", "deadline=1ms"):
        found = rank(refusing, parse_objective(text), lambda _: 1e9, rtt_s=0.0)
        assert found.best not in (0, None), text
    assert barred(refusing, UNCONSTRAINED)[0] == "refused: the input stays"
    assert set(barred(refusing, UNCONSTRAINED)[1:]) == {""}


def test_keep_local_keeps_what_comes_before_a_cut() -> None:
    bound = Constraints(keep_local=MODEL.cuts[3].id)
    assert _rank("latency", _steady(1e9)).best == 0
    assert _rank("latency", _steady(1e9), constraints=bound).best == 3
    why = barred(PLANS, bound)
    assert [bool(reason) for reason in why] == [True] * 3 + [False] * 5
    assert MODEL.cuts[3].id in why[0]


def test_keep_local_forbids_raw_rows() -> None:
    manifest = chain([Layer(4000, 1, 2), Layer(2000, 2, 2)], whole=[10], input_row_bytes=600)
    plans = PreparedPlans(manifest, SegmentTimes((0.1,) * 3), SegmentTimes((0.03,) * 3))
    why = barred(plans, Constraints(keep_local=manifest.cuts[1].id))
    allowed = {c.mode for c, reason in zip(plans.choices, why, strict=True) if not reason}
    assert allowed == {"local", "split", "streamed-head"}
    free = barred(plans, Constraints(keep_local=manifest.cuts[0].id))
    assert not any(free)


def test_only_serial_cuts_where_no_plan_can_be_carried_out() -> None:
    manifest = chain(
        [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(300, 4, 2)], whole=[1000, 10],
        input_row_bytes=600,
    )  # fmt: skip
    plans = PreparedPlans(manifest, SegmentTimes((0.1,) * 5), SegmentTimes((0.03,) * 5))
    latency = parse_objective("latency")
    free = rank(plans, latency, lambda _: 2e6, rtt_s=0.002)
    serial = rank(plans, latency, lambda _: 2e6, rtt_s=0.002, serial=True)
    assert free.best is not None
    assert plans.choices[free.best].plan is not None
    assert serial.best == int(np.argmin(plans.latencies_s(2e6, 0.002)[: len(manifest.cuts)]))


def test_where_nothing_may_be_used_there_is_no_best() -> None:
    cuts = [msgspec.structs.replace(cut, refused="no") for cut in MODEL.cuts]
    refusing = PreparedPlans(msgspec.structs.replace(MODEL, cuts=tuple(cuts)), ROBOT, SERVER)
    for text in ("latency", "deadline=1s", "energy-budget=1J"):
        assert rank(refusing, parse_objective(text), lambda _: 1e9, rtt_s=0.0).best is None


def test_the_needed_goodput_is_the_one_at_which_the_limit_is_met() -> None:
    manifest = chain([Layer(4000, 1, 2), Layer(300, 2, 2)], whole=[10], input_row_bytes=600)
    plans = PreparedPlans(manifest, SegmentTimes((0.1,) * 3), SegmentTimes((0.03,) * 3))
    needed = plans.needed_bps(0.35, 0.004, 0.01)
    for place, bps in enumerate(needed):
        choice = plans.choices[place]
        if np.isinf(bps):
            assert choice.latency_s(1e15, 0.004, 0.01) > 0.35 - 1e-9
        elif bps > 0:
            assert choice.latency_s(bps, 0.004, 0.01) == pytest.approx(0.35)
        else:
            assert choice.latency_s(None, 0.004, 0.01) <= 0.35


def test_a_striped_plan_is_taken_only_where_its_gain_is_more_than_the_prediction_can_tell() -> (
    None
):
    manifest = chain([Layer(2000, lag=2), Layer(500, 2, 3)], whole=[10])
    robot = SegmentTimes((0.2, 0.2, 0.02))
    taken = {False: 0, True: 0}
    for server_s in np.geomspace(1e-4, 0.2, 40):
        plans = PreparedPlans(manifest, robot, SegmentTimes((server_s, server_s, 1e-3)))
        for bps in np.geomspace(1e5, 1e9, 40):
            found = rank(plans, parse_objective("latency"), lambda _, b=bps: b, rtt_s=0.002)
            least = float(found.costs.min())
            serial = float(found.costs[~plans.striped].min())
            assert found.best is not None
            striped = bool(plans.striped[found.best])
            assert striped == (least < serial * WORTHWHILE)
            assert found.costs[found.best] == pytest.approx(least if striped else serial)
            if least < serial:
                taken[striped] += 1
    assert min(taken.values()) > 0, "both happen"


def test_a_hedged_inference_waits_no_longer_than_the_robot_takes_itself() -> None:
    # One in five has 0.1 Mbps: offloading would take 80 s. Within 1.3 s the robot begins itself at
    # .2 s and has the answer at 1.2 s; the radio is busy until then.
    found = _rank("deadline=1300ms", Steps(0.1e6, 100e6, 0.2))
    late_j = 4.04 * 1.2 + 0.21 * 1.2 + (13.35 - 4.04) * 1.0
    in_time_j = 4.25 * 0.08 + 4.04 * 0.1
    assert found.energies_j[0] == pytest.approx((late_j + 4 * in_time_j) / 5)
    assert found.energies_j[LAST] == pytest.approx(13.35)
    assert (found.best, found.unit) == (0, "J")
    # Without the promise nobody comes to its help.
    waiting = _rank("deadline=1300ms", Steps(0.1e6, 100e6, 0.2), promised=False)
    assert waiting.energies_j[0] > 60
    assert waiting.best != 0
