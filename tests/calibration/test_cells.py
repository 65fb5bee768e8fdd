from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calibration.cells import Cell, as_good_in
from calibration.energy import StatePower
from calibration.prepared import PreparedPlans
from calibration.schedule import NO_HANDLING, Handling
from calibration.segment_times import SegmentTimes
from tests.hand_tables import LAST, MODEL, PLANS, ROBOT, SERVER
from tests.striped import Layer, chain

STRIPED = chain(
    [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(300, 4, 2)], whole=[1000, 10], input_row_bytes=600
)
BPS = st.floats(1e3, 1e10)
SECONDS = st.floats(0.0, 10.0)


@given(BPS, BPS, SECONDS, SECONDS)
def test_a_link_is_in_its_cell(one: float, other: float, rtt_s: float, queue_s: float) -> None:
    least, most = sorted((one, other))
    best, worst = Cell.of(least, most, rtt_s, queue_s).corners()
    for bps in (least, most):
        link = np.array([1.0, 1.0 / bps, rtt_s, queue_s])
        assert (best <= link * (1 + 1e-9)).all()
        assert (link <= worst * (1 + 1e-9)).all()
    assert worst[1] < best[1] * (most / least) * 2.001


def test_cells_by_hand() -> None:
    # Half octaves: 2^26 is 67.1 Mbps. Beyond 0.2 ms two octaves: 0.2 to 0.8 ms, 0.8 to 3.2 ms.
    cell = Cell.of(70e6, 90e6, 1e-3, 0.0)
    assert cell == (52, 52, 2, 0)
    best, worst = cell.corners()
    np.testing.assert_allclose(1 / best[1], 2**26.5)
    np.testing.assert_allclose(1 / worst[1], 2**26)
    assert list(best[2:]) == pytest.approx([0.8e-3, 0.0])
    assert list(worst[2:]) == pytest.approx([3.2e-3, 0.2e-3])


def _good(bps: float, to_bps: float, **more: object) -> int | None:
    cell = Cell.of(bps, to_bps, 0.0, 0.0)
    weights = more.pop("weights", np.ones(len(PLANS.choices)))
    allowed = more.pop("allowed", np.ones(len(PLANS.choices), bool))
    return as_good_in(cell, PLANS, weights, allowed, slack=0.005, **more)  # type: ignore[arg-type]


def test_what_is_the_best_throughout_is_as_good_as_any() -> None:
    # Offloading is the quickest from 21 Mbps on, the robot alone below 0.74, else cut 4.
    assert _good(100e6, 1e9) == 0
    assert _good(2e6, 12e6) == 4
    assert _good(1e4, 2e5) == LAST
    # By energy offloading is the best from 6.3 Mbps on, and the robot alone below .22.
    assert _good(12e6, 1e9, by_energy=True) == 0
    assert _good(1e4, 1e5, by_energy=True) == LAST


def test_where_two_change_places_neither_is() -> None:
    assert _good(12e6, 40e6) is None
    assert _good(1e5, 1e8) is None
    assert _good(3e6, 12e6, by_energy=True) is None


def test_what_may_not_be_taken_is_not() -> None:
    allowed = np.ones(len(PLANS.choices), bool)
    allowed[0] = False
    assert _good(2e9, 8e9, allowed=allowed) == 1
    assert _good(2e9, 8e9, allowed=np.arange(len(allowed)) == 3) == 3, "it has no rival"
    assert _good(2e9, 8e9, allowed=np.zeros(len(allowed), bool)) is None


def test_where_nothing_costs_anything_nothing_is_said() -> None:
    free = PreparedPlans(MODEL, ROBOT, SERVER, StatePower(compute=0, communicate=0, idle=0))
    cell = Cell.of(1e8, 1e8, 0.0, 0.0)
    ones = np.ones(len(free.choices))
    for allowed in (ones > 0, np.arange(len(ones)) > 3):
        assert as_good_in(cell, free, ones, allowed, slack=0.005, by_energy=True) is None
        found = as_good_in(cell, free, ones, allowed, slack=0.005)
        assert found == (0 if allowed[0] else 4)


def test_what_counts_less_may_cost_more() -> None:
    weights = np.ones(len(PLANS.choices))
    weights[4] = 0.1
    assert _good(100e6, 1e9, weights=weights) == 4  # .464 s x .1 against .18


def test_no_rival_may_be_ended_sooner_by_the_robot_itself() -> None:
    ends_s = np.full(len(PLANS.choices), np.inf)
    assert _good(2e6, 12e6, ends_s=ends_s) == 4
    ends_s[0] = 0.3  # offloading is over by then
    assert _good(2e6, 12e6, ends_s=ends_s) == 0
    # Cut 4 takes from .49 to .73 s in this cell, of which most is less.
    ends_s[0] = 0.7
    assert _good(2e6, 12e6, ends_s=ends_s) is None
    ends_s[0] = 0.75
    assert _good(2e6, 12e6, ends_s=ends_s) == 4


@settings(max_examples=60, deadline=None)
@given(
    robot=st.lists(st.floats(1e-3, 0.5), min_size=5, max_size=5),
    server=st.lists(st.floats(1e-4, 0.2), min_size=5, max_size=5),
    bps=st.floats(1e5, 1e9),
    wide=st.floats(1.0, 4.0),
    rtt_s=st.floats(0.0, 0.05),
    queue_s=st.floats(0.0, 0.05),
    by_energy=st.booleans(),
    ended=st.booleans(),
    weight=st.sampled_from([0.9, 0.98, 1.0]),
    power=st.sampled_from(
        [StatePower(), StatePower(compute=9, communicate=2, idle=5), StatePower(idle=0)]
    ),
    handling=st.sampled_from([NO_HANDLING, Handling(1e-3, 5e-4)]),
    forbidden=st.integers(0, 7),
    slack=st.sampled_from([0.0, 0.005, 0.05]),
    at=st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=20, max_size=20),
)
def test_it_is_nowhere_worse_than_it_says(
    robot: list[float],
    server: list[float],
    bps: float,
    wide: float,
    rtt_s: float,
    queue_s: float,
    by_energy: bool,
    ended: bool,
    weight: float,
    power: StatePower,
    handling: Handling,
    forbidden: int,
    slack: float,
    at: list[tuple[float, float, float]],
) -> None:
    times = SegmentTimes(tuple(robot)), SegmentTimes(tuple(server))
    plans = PreparedPlans(STRIPED, *times, power).with_handling(handling)
    weights = np.where(plans.striped, 1.0, weight)
    allowed = np.arange(len(plans.choices)) != forbidden
    ends_s = None
    if ended and not by_energy:
        ends_s = 1.1 * plans.local_s + 0.01 * np.arange(len(plans.choices)) / 100
        ends_s[len(STRIPED.cuts) - 1] = np.inf
    cell = Cell.of(bps, bps * wide, rtt_s, queue_s)
    place = as_good_in(
        cell, plans, weights, allowed, slack=slack, by_energy=by_energy, ends_s=ends_s
    )
    assume(place is not None)
    assert place != forbidden
    best, worst = cell.corners()
    for parts in at:
        _, per_bit_s, rtt_s, queue_s = best + np.array([0.0, *parts]) * (worst - best)
        objective = "energy" if by_energy else "latency"
        costs = plans.costs(1 / per_bit_s, rtt_s, queue_s, objective)
        costs = (costs if ends_s is None else np.minimum(costs, ends_s)) * weights
        costs = np.where(allowed, costs, np.inf)
        assert costs[place] <= costs.min() * (1 + slack) * (1 + 1e-9)
