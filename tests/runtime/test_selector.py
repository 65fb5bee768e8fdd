from __future__ import annotations

import numpy as np
import pytest

from calibration.energy import StatePower
from calibration.predictor import CutCosts
from engines.bundle import Bundle
from engines.errors import ManifestError
from runtime.estimator import LinkEstimate
from runtime.selector import Decision, Situation, open_selector

LAST = 7
# Seconds by hand. Robot alone takes 1 s, the server 0.1 s; the frontier shrinks with depth.
COSTS = CutCosts(
    head_s=np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]),
    tail_s=np.array([0.10, 0.09, 0.08, 0.07, 0.06, 0.04, 0.02, 0.0]),
    local_tail_s=np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.0]),
    bytes_up=np.array([1_000_000, 900_000, 800_000, 400_000, 50_000, 40_000, 30_000, 0]),
    bytes_down=np.zeros(8, np.int64),
    allowed=np.ones(8, bool),
)


def _situation(
    goodput_bps: float | None, *, rtt_s: float = 0.0, queue_s: float = 0.0
) -> Situation:
    return Situation(COSTS, LinkEstimate(goodput_bps, rtt_s, 1), queue_s, StatePower())


def _auto(toy: Bundle, situation: Situation) -> Decision:
    return open_selector("auto", toy.manifest).decide(situation)


# offload: 0.1 + 8e6/g.  cut 4: 0.46 + 4e5/g.  local: 1.  They cross where
# 0.1 + 8e6/g = 0.46 + 4e5/g, so at 21.1 Mbps, and 0.46 + 4e5/g = 1, at 0.74 Mbps.
@pytest.mark.parametrize(
    ("goodput_bps", "cut"),
    [(1e9, 0), (25e6, 0), (21.2e6, 0), (21.0e6, 4), (1e6, 4), (0.75e6, 4), (0.73e6, LAST),
     (0.1e6, LAST), (1.0, LAST)],
)  # fmt: skip
def test_the_cut_moves_to_the_robot_as_goodput_falls(
    toy: Bundle, goodput_bps: float, cut: int
) -> None:
    decision = _auto(toy, _situation(goodput_bps))
    by_hand = COSTS.head_s + COSTS.tail_s + 8.0 * COSTS.bytes_up / goodput_bps
    assert int(np.argmin(by_hand)) == cut, "the expectation itself"
    assert decision.cut == cut
    assert decision.prediction is not None
    assert decision.prediction.latency_s == pytest.approx(float(by_hand[cut]))
    assert decision.reason == "least predicted latency"


def test_a_long_round_trip_or_queue_keeps_it_on_the_robot(toy: Bundle) -> None:
    assert _auto(toy, _situation(1e9, rtt_s=0.5)).cut == 0
    assert _auto(toy, _situation(1e9, rtt_s=0.95)).cut == LAST
    assert _auto(toy, _situation(1e9, queue_s=0.95)).cut == LAST


def test_no_connection_is_local(toy: Bundle) -> None:
    situation = Situation(COSTS, None, 0.0, StatePower())
    for name in ("auto", "offload", toy.manifest.cuts[3].id):
        decision = open_selector(name, toy.manifest).decide(situation)
        assert (decision.cut, decision.reason) == (LAST, "no connection")


def test_no_table_of_the_server_is_local(toy: Bundle) -> None:
    situation = Situation(None, LinkEstimate(1e9, 0.0, 1), 0.0, StatePower())
    decision = _auto(toy, situation)
    assert (decision.cut, decision.prediction) == (LAST, None)
    assert "no latency table" in decision.reason


def test_unknown_goodput_is_local_and_says_so(toy: Bundle) -> None:
    decision = _auto(toy, _situation(None))
    assert (decision.cut, decision.reason) == (LAST, "goodput unknown")


def test_a_named_cut_is_taken_whatever_it_costs(toy: Bundle) -> None:
    for index, cut in enumerate(toy.manifest.cuts):
        for goodput in (1.0, 1e9):
            decision = open_selector(cut.id, toy.manifest).decide(_situation(goodput))
            assert decision.cut == index
            assert decision.prediction is not None
            assert decision.prediction.cut == index
    without = open_selector(toy.manifest.cuts[3].id, toy.manifest).decide(_situation(None))
    assert (without.cut, without.prediction) == (3, None)


def test_offload_and_local_are_the_first_and_the_last_cut(toy: Bundle) -> None:
    assert open_selector("offload", toy.manifest).decide(_situation(1.0)).cut == 0
    assert open_selector("local", toy.manifest).decide(_situation(1e9)).cut == LAST


def test_deciding_is_pure(toy: Bundle) -> None:
    selector = open_selector("auto", toy.manifest)
    first = selector.decide(_situation(5e6))
    selector.decide(_situation(1e9))
    assert selector.decide(_situation(5e6)) == first


@pytest.mark.parametrize("name", ["", "fastest", "ffffffff", "AUTO"])
def test_an_unknown_name_is_refused(toy: Bundle, name: str) -> None:
    with pytest.raises(ManifestError, match="split-bundle inspect"):
        open_selector(name, toy.manifest)
