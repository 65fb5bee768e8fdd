"""Striped inference over loopback: every mode right, and right again when the link fails."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from calibration.plan_text import plan_text
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.program import Program
from engines.stripe_plans import Plan, RowPlan, StripePlan, mode_of, sent
from runtime import Result, Robot, Server
from runtime.wire import Part
from tests.runtime.helpers import address
from tests.striped_toy import ROWS, striped_inputs, whole_outputs

Tensors = dict[str, np.ndarray]

BOUNDS = (16, 24, 32, 40, ROWS)
PLANS: dict[str, Plan] = {
    "streamed-head": StripePlan(cut=3, until=3, bounds=BOUNDS, robot=5),
    "streamed-head, striped tail": StripePlan(cut=1, until=4, bounds=BOUNDS, robot=5),
    "streamed-raw": StripePlan(cut=0, until=2, bounds=BOUNDS, robot=5),
    "two-sided": StripePlan(cut=2, until=4, bounds=BOUNDS, robot=3),
    "two-sided, one raw": StripePlan(cut=2, until=2, bounds=BOUNDS, robot=4),
    "rows": RowPlan(cut=0, bound=24),
    "rows, a common part": RowPlan(cut=3, bound=10),
}


def _same(result: Result, expected: Tensors) -> None:
    assert set(result.outputs) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(result.outputs[name], array, err_msg=name)


@pytest.fixture
def server(dense: Bundle) -> Iterator[Server]:
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(dense, backend) as program, Server([program]) as running:
        yield running


@pytest.mark.parametrize("name", PLANS)
def test_every_mode_answers_as_the_whole_model_does(
    dense: Bundle, server: Server, name: str
) -> None:
    plan = PLANS[name]
    with Robot(dense, server=address(server), threads=1) as robot:
        text = plan_text(plan, dense.manifest)
        assert robot.prepare(text)
        for seed in range(5):
            inputs = striped_inputs(seed)
            result = robot.infer(inputs, cut=text)
            _same(result, whole_outputs(dense, inputs))
            assert result.answered_by == "remote", result.reason
            assert result.mode == mode_of(plan)
            assert result.stripes == (1 if isinstance(plan, RowPlan) else 5)
            assert result.bytes_up == _bytes_up(plan, dense)
            assert result.plan == text
            assert result.predicted is None or result.predicted.plan == plan
            assert result.age_s >= result.latency_s >= result.robot_s


def _bytes_up(plan: Plan, bundle: Bundle) -> int:
    """Add up the messages: headers, metadata and rows."""
    from runtime.wire import Infer, message_bytes

    order = (0,) if isinstance(plan, RowPlan) else plan.wire_order()
    total = 0
    for place, stripe in enumerate(order):
        sizes = [spec.nbytes for spec in sent(plan, bundle.manifest, stripe)]
        meta = Infer(tuple(Part(0, size) for size in sizes), None if place else plan)
        total += message_bytes(meta, sum(sizes))
    return total
