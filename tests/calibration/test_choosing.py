from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import choosing
from calibration.cells import as_good_in
from calibration.choosing import AS_GOOD, Chosen, best_table
from calibration.energy import StatePower
from calibration.objectives import UNCONSTRAINED, Constraints, Objective, parse_objective
from calibration.prepared import PreparedPlans
from calibration.ranking import WORTHWHILE, GoodputAt, Rules, rank
from calibration.schedule import Handling
from calibration.segment_times import SegmentTimes
from runtime.explain import SpreadLink
from tests.hand_tables import MODEL, PLANS, ROBOT, SERVER, Steps
from tests.striped import Layer, chain

STRIPED = chain(
    [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(300, 4, 2)], whole=[1000, 10], input_row_bytes=600
)


@pytest.fixture(autouse=True)
def _no_tables() -> Iterator[None]:
    with mock.patch.object(choosing, "_tables", type(choosing._tables)()):
        yield


def choose(
    plans: PreparedPlans,
    objective: Objective,
    goodput_at: GoodputAt,
    *,
    rtt_s: float,
    queue_s: float = 0.0,
    constraints: Constraints = UNCONSTRAINED,
    serial: bool = False,
    in_flight: int | None = None,
    promised: bool = True,
) -> Chosen:
    table = best_table(plans, Rules(objective, constraints, serial, promised), in_flight)
    return table.choose(plans, goodput_at, rtt_s=rtt_s, queue_s=queue_s, in_flight=in_flight)


def _steady(bps: float) -> SpreadLink:
    return SpreadLink(bps, bps * 1.1)


def test_what_is_settled_for_a_cell_is_not_ranked_again() -> None:
    latency = parse_objective("latency")
    with mock.patch.object(choosing, "rank", wraps=rank) as ranked:
        for bps in (100e6, 110e6, 105e6):
            assert choose(PLANS, latency, _steady(bps).quantile, rtt_s=0.0).place == 0
        assert not ranked.called
        # At 21 Mbps offloading and cut 4 change places.
        for bps in (20e6, 21e6):
            choose(PLANS, latency, _steady(bps).quantile, rtt_s=0.0)
        assert ranked.call_count == 2


@pytest.mark.parametrize("text", ["deadline=900ms", "deadline=50ms", "energy-budget=6J", "rate"])
def test_objectives_with_bounds_are_always_ranked(text: str) -> None:
    objective, link = parse_objective(text), _steady(100e6)
    with mock.patch.object(choosing, "rank", wraps=rank) as ranked:
        chosen = choose(PLANS, objective, link.quantile, rtt_s=0.0)
        assert ranked.called
    found = rank(PLANS, objective, link.quantile, rtt_s=0.0)
    assert chosen == (found.best, found.rule)


def test_other_rules_are_another_matter() -> None:
    latency, at = parse_objective("latency"), _steady(1e9).quantile
    bound = Constraints(keep_local=MODEL.cuts[3].id)
    assert choose(PLANS, latency, at, rtt_s=0.0).place == 0
    assert choose(PLANS, latency, at, rtt_s=0.0, constraints=bound).place == 3
    assert choose(PLANS, latency, at, rtt_s=0.0).place == 0
    # The robot's own answer ends what would be late, but for several at a time.
    with mock.patch.object(choosing, "as_good_in", wraps=as_good_in) as worked_out:
        for in_flight, ended in ((None, True), (2, False), (1, True), (3, False)):
            worked_out.reset_mock()
            choose(PLANS, latency, _steady(1e7).quantile, rtt_s=0.0, in_flight=in_flight)
            for call in worked_out.call_args_list:
                assert (call.kwargs["ends_s"] is not None) == ended
    assert len(choosing._tables[PLANS]) == 3, "one and none are the same, two and three too"
    unsteady = Steps(1e6, 100e6, 0.2).quantile
    assert choose(PLANS, latency, unsteady, rtt_s=0.0).place == 0
    assert choose(PLANS, latency, unsteady, rtt_s=0.0, in_flight=2).place == 4


def test_plans_with_other_times_are_another_matter() -> None:
    quick = PreparedPlans(MODEL, SegmentTimes(tuple(s / 100 for s in ROBOT.segments_s)), SERVER)
    latency, at = parse_objective("latency"), _steady(100e6).quantile
    assert choose(PLANS, latency, at, rtt_s=0.0).place == 0
    assert choose(quick, latency, at, rtt_s=0.0).place == len(MODEL.cuts) - 1


def test_what_messages_take_is_no_matter_of_tables() -> None:
    plans = PreparedPlans(STRIPED, SegmentTimes((0.1,) * 5), SegmentTimes((0.03,) * 5))
    latency, at = parse_objective("latency"), _steady(20e6).quantile
    with mock.patch.object(choosing, "rank", wraps=rank) as ranked:
        plain = choose(plans, latency, at, rtt_s=0.002)
        assert not ranked.called
        dear = plans.with_handling(Handling(0.1, 0.1))
        assert choose(dear, latency, at, rtt_s=0.002) != plain
        assert ranked.called
    assert list(choosing._tables) == [plans]
    assert (dear.cost_lines() != plans.cost_lines()).any()


def test_nothing_where_nothing_may_be_used() -> None:
    bound = Constraints(keep_local=MODEL.cuts[3].id)
    refusing = PreparedPlans(MODEL, ROBOT, SERVER)
    with mock.patch.object(refusing, "local_s", 1e-9):  # no promise can be kept
        at = _steady(1e9).quantile
        found = rank(refusing, parse_objective("latency"), at, rtt_s=0.0, constraints=bound)
        chosen = choose(refusing, parse_objective("latency"), at, rtt_s=0.0, constraints=bound)
    assert found.best is None
    assert chosen == (found.best, found.rule)


def test_tables_do_not_grow_without_end() -> None:
    energy = parse_objective("energy")
    with (
        mock.patch.object(choosing, "_MOST_CELLS", 3),
        mock.patch.object(choosing, "_MOST_TABLES", 2),
    ):
        for percent in range(50, 60):
            objective = parse_objective(f"latency:p{percent}")
            choose(PLANS, objective, _steady(1e8).quantile, rtt_s=0.0)
        for bps in np.geomspace(1e5, 1e9, 20):
            choose(PLANS, energy, _steady(bps).quantile, rtt_s=0.0)
        tables = choosing._tables[PLANS]
        assert len(tables) <= 2
        assert all(len(table._cells) <= 3 for table in tables.values())


@pytest.mark.parametrize("text", ["latency", "latency:p95", "energy"])
def test_what_is_prepared_is_not_worked_out_again(text: str) -> None:
    rules = Rules(parse_objective(text), UNCONSTRAINED, False, True)
    table = best_table(PLANS, rules)
    table.prepare(PLANS)
    assert table is best_table(PLANS, rules)
    with mock.patch.object(choosing, "as_good_in", wraps=as_good_in) as worked_out:
        for bps in np.geomspace(3e6, 200e6, 30):
            table.choose(PLANS, _steady(bps).quantile, rtt_s=0.002)
        assert not worked_out.called
        table.choose(PLANS, _steady(1e4).quantile, rtt_s=0.002)
        assert worked_out.called


@pytest.mark.parametrize(
    ("bps", "rtt_s", "queue_s"),
    [(1e-300, 0.0, 0.0), (1e300, 0.0, 0.0), (1e8, 1e300, 0.0), (1e8, 0.0, 1e300)],
)
def test_links_that_are_none_are_ranked(bps: float, rtt_s: float, queue_s: float) -> None:
    energy = parse_objective("energy")
    with mock.patch.object(choosing, "rank", wraps=rank) as ranked:
        chosen = choose(PLANS, energy, lambda _: bps, rtt_s=rtt_s, queue_s=queue_s)
        assert ranked.called
    found = rank(PLANS, energy, lambda _: bps, rtt_s=rtt_s, queue_s=queue_s)
    assert chosen == (found.best, found.rule)


def test_plans_that_nobody_uses_are_let_go() -> None:
    plans = PreparedPlans(MODEL, ROBOT, SERVER)
    best_table(plans, Rules(parse_objective("energy"), UNCONSTRAINED, False, True)).prepare(plans)
    kept = weakref.ref(plans)
    del plans
    gc.collect()
    assert kept() is None


LINKS = st.builds(
    lambda bps, wide, rtt_s: SpreadLink(bps, bps * wide, rtt_s),
    st.floats(1e5, 1e9),
    st.floats(1.0, 5.0),
    st.floats(0.0, 0.05),
)


@settings(max_examples=30, deadline=None)
@given(
    robot=st.lists(st.floats(1e-3, 0.5), min_size=5, max_size=5),
    server=st.lists(st.floats(1e-4, 0.2), min_size=5, max_size=5),
    links=st.lists(LINKS, min_size=1, max_size=8),
    queue_s=st.floats(0.0, 0.05),
    text=st.sampled_from(["latency", "latency:p95", "latency:p50", "energy"]),
    serial=st.booleans(),
    in_flight=st.sampled_from([None, 1, 3]),
    promised=st.booleans(),
    constraints=st.sampled_from(
        [UNCONSTRAINED, Constraints(lossless=True), Constraints(keep_local=STRIPED.cuts[1].id)]
    ),
    power=st.sampled_from([StatePower(), StatePower(compute=9, communicate=2, idle=5)]),
    degraded=st.booleans(),
)
def test_it_is_the_best_or_as_good_and_the_same_whatever_came_before(
    robot: list[float],
    server: list[float],
    links: list[SpreadLink],
    queue_s: float,
    text: str,
    serial: bool,
    in_flight: int | None,
    promised: bool,
    constraints: Constraints,
    power: StatePower,
    degraded: bool,
) -> None:
    plans = PreparedPlans(STRIPED, SegmentTimes(tuple(robot)), SegmentTimes(tuple(server)), power)
    objective = parse_objective(text)
    more = {"queue_s": queue_s, "constraints": constraints, "serial": serial,
            "in_flight": in_flight, "promised": promised}  # fmt: skip
    worse = 0.5 if degraded else 1.0  # ``runtime.decision.goodput_quantiles``
    ats = [lambda part, link=link: link.quantile(part * worse) for link in links]
    first = []
    for link, at in zip(links, ats, strict=True):
        found = rank(plans, objective, at, rtt_s=link.rtt_s, **more)  # type: ignore[arg-type]
        chosen = choose(plans, objective, at, rtt_s=link.rtt_s, **more)  # type: ignore[arg-type]
        first.append(chosen)
        assert chosen.rule == found.rule
        weighted = found.costs * np.where(plans.striped, 1.0, WORTHWHILE)
        if chosen.place is None:
            assert found.best is None
        else:
            assert weighted[chosen.place] <= weighted.min() * (1 + AS_GOOD) * (1 + 1e-9)
    choosing._tables.clear()
    again = [
        choose(plans, objective, at, rtt_s=link.rtt_s, **more)  # type: ignore[arg-type]
        for link, at in reversed([*zip(links, ats, strict=True)])
    ]
    assert again[::-1] == first
