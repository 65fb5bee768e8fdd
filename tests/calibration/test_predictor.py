from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.energy import StatePower
from calibration.predictor import cut_costs, encoded_bytes, predict
from engines.bundle import Bundle
from tests.toy import SPECS

ROBOT_S = [0.10, 0.01, 0.02, 0.03, 0.04, 0.0, 0.05]
SERVER_S = [s / 10 for s in ROBOT_S]


def test_booleans_are_priced_as_bits() -> None:
    assert encoded_bytes([SPECS["b"]]) == 8192
    assert encoded_bytes([SPECS["m"]]) == 256
    assert encoded_bytes([SPECS["b"], SPECS["m"]]) == 8448
    assert encoded_bytes([]) == 0


def test_costs_by_hand(toy: Bundle) -> None:
    costs = cut_costs(toy.manifest, ROBOT_S, SERVER_S)
    head = [0, 0.10, 0.11, 0.13, 0.16, 0.20, 0.20, 0.25]
    np.testing.assert_allclose(costs.head_s, head, atol=1e-12)
    np.testing.assert_allclose(costs.local_tail_s, [0.25 - s for s in head], atol=1e-12)
    np.testing.assert_allclose(costs.tail_s, [0.025 - s / 10 for s in head], atol=1e-12)
    assert costs.bytes_up.tolist() == [3072, 8192, 8192, 8448, 8192, 32, 32, 0]
    assert costs.bytes_down.tolist() == [52, 52, 52, 52, 52, 20, 20, 0]


def test_predictions_by_hand(toy: Bundle) -> None:
    costs = cut_costs(toy.manifest, ROBOT_S, SERVER_S)
    power = StatePower(compute=10, communicate=4, idle=1)
    found = predict(costs, goodput_bps=1e6, rtt_s=0.002, queue_s=0.005, power=power)
    assert [p.cut for p in found] == list(range(8))
    offload = found[0]
    assert offload.robot_s == 0
    assert offload.link_s == pytest.approx(8 * (3072 + 52) / 1e6 + 0.002)
    assert offload.server_s == pytest.approx(0.025)
    assert offload.latency_s == pytest.approx(0.026992 + 0.005 + 0.025)
    assert offload.energy_j == pytest.approx(4 * 0.026992 + 1 * 0.030)
    mixed = found[5]
    assert mixed.robot_s == pytest.approx(0.20)
    assert mixed.link_s == pytest.approx(8 * 52 / 1e6 + 0.002)
    assert mixed.server_s == pytest.approx(0.005)
    assert mixed.queue_s == 0.005
    local = found[7]
    assert (local.link_s, local.queue_s) == (0, 0)
    assert local.server_s == pytest.approx(0)
    assert local.latency_s == pytest.approx(0.25)
    assert local.energy_j == pytest.approx(2.5)


@pytest.mark.parametrize("goodput", [None, 0.0])
def test_without_a_link_only_the_robot_alone_is_possible(
    toy: Bundle, goodput: float | None
) -> None:
    costs = cut_costs(toy.manifest, ROBOT_S, SERVER_S)
    found = predict(costs, goodput_bps=goodput, rtt_s=0.0)
    assert all(math.isinf(p.latency_s) for p in found[:-1])
    assert found[-1].latency_s == pytest.approx(0.25)


def test_more_goodput_is_never_slower(toy: Bundle) -> None:
    costs = cut_costs(toy.manifest, ROBOT_S, SERVER_S)
    slow = predict(costs, goodput_bps=1e5, rtt_s=0.01)
    fast = predict(costs, goodput_bps=1e7, rtt_s=0.01)
    assert all(f.latency_s <= s.latency_s for f, s in zip(fast, slow))
