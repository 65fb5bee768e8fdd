from __future__ import annotations

import statistics

import pytest
from estimator_sim import Trace
from foresight import foresight

from tests.hand_tables import PLANS

STARTS_S = [0.3 + 0.25 * number for number in range(40)]


def test_on_a_steady_link_the_future_is_worth_nothing() -> None:
    found = foresight(PLANS, Trace(0.1, (20.0,) * 200), STARTS_S)
    assert found["present"] == found["past"] == found["oracle"]
    assert found["oracle"][0] == pytest.approx(
        float(min(PLANS.latencies_s(20e6 * 1448 / 1514, 0.002)))
    )


def test_where_the_link_changes_within_an_inference_the_oracle_is_ahead() -> None:
    trace = Trace(0.1, (1.0, 1.0, 100.0, 100.0, 100.0) * 60)
    found = foresight(PLANS, trace, STARTS_S)
    oracle, present, past = (statistics.fmean(found[k]) for k in ("oracle", "present", "past"))
    assert oracle < present
    assert oracle <= past
