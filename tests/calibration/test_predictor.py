from __future__ import annotations

import numpy as np

from calibration.predictor import cut_costs, encoded_bytes
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
