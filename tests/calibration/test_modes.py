from __future__ import annotations

import msgspec
import numpy as np
import pytest

from calibration.choices import goodput_range
from calibration.modes import choice_text, mode_choices, verdict
from calibration.plan_text import parse_plan
from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes
from engines.manifest import Manifest
from tests.striped import Layer, chain

LAYERS = [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(300, 4, 2)]
MANIFEST = chain(LAYERS, whole=[1000, 10], input_row_bytes=600)


def _plans(manifest: Manifest, robot_s: float = 0.1, server_s: float = 0.03) -> PreparedPlans:
    count = len(manifest.segments)
    return PreparedPlans(
        manifest, SegmentTimes((robot_s,) * count), SegmentTimes((server_s,) * count)
    )


PLANS = _plans(MANIFEST)


@pytest.mark.parametrize("objective", ["latency", "energy"])
def test_stretches_name_the_best_mode_everywhere(objective: str) -> None:
    found = mode_choices(PLANS, rtt_s=0.002, objective=objective)
    goodputs = goodput_range()
    assert found.stretches[0].low_bps == goodputs[0]
    assert found.stretches[-1].high_bps == goodputs[-1]
    for before, after in zip(found.stretches, found.stretches[1:]):
        assert before.high_bps == after.low_bps
        assert before.mode != after.mode
    for column in range(0, len(goodputs), 17):
        costs = PLANS.costs(float(goodputs[column]), 0.002, objective=objective)
        best = PLANS.choices[int(np.argmin(costs))].mode
        stretch = next(s for s in reversed(found.stretches) if s.low_bps <= goodputs[column])
        assert stretch.mode == best
        assert found.costs[best][column] == costs.min()


def test_gains_are_over_the_better_of_robot_alone_and_coded_frame() -> None:
    plans = _plans(MANIFEST, robot_s=0.004, server_s=0.0012)
    found = mode_choices(plans, rtt_s=0.002)
    modes = {stretch.mode for stretch in found.stretches}
    assert "local" in modes
    assert {"two-sided", "streamed-raw", "streamed-head"} & modes
    for stretch in found.stretches:
        costs = plans.costs(stretch.at_bps, 0.002)
        ends = min(costs[0], costs[5])
        serial = costs[:6].min()
        assert stretch.gain == pytest.approx(1 - costs.min() / ends)
        assert stretch.serial_gain == pytest.approx(1 - costs.min() / serial)
        if stretch.mode in ("local", "frame"):
            assert stretch.gain == 0
    assert found.striped
    assert all(stretch.serial_gain > 0.005 for stretch in found.striped)


def test_modes_that_the_bundle_lacks_cost_infinitely_much() -> None:
    found = mode_choices(PLANS, rtt_s=0.002)
    assert np.isinf(found.costs["rows"]).all()
    assert not np.isinf(found.costs["two-sided"]).any()


def test_the_verdict_names_a_plan_that_can_be_typed() -> None:
    found = mode_choices(PLANS, rtt_s=0.002)
    text = verdict(MANIFEST, found)
    assert text.startswith("For latency, stripes pay between")
    assert "below the better of robot alone and coded frame" in text
    top = max(found.striped, key=lambda stretch: stretch.gain)
    assert choice_text(MANIFEST, top.choice) in text
    typed = choice_text(MANIFEST, top.choice).rsplit(" ", 1)[1]
    assert parse_plan(typed, MANIFEST) == top.choice.plan


def test_where_stripes_lose_the_verdict_says_so() -> None:
    # The robot alone is quicker than anything that needs the server.
    found = mode_choices(_plans(MANIFEST, robot_s=1e-6, server_s=1.0), rtt_s=0.002)
    assert [stretch.mode for stretch in found.stretches] == ["local"]
    assert verdict(MANIFEST, found) == (
        "For latency, stripes add nothing to this model on these devices, their lag, halo and "
        "launches charged: best is robot alone at every goodput."
    )


def test_rows_are_a_mode() -> None:
    manifest = chain([Layer(60, 1, 4)], whole=[], row_split=True, input_row_bytes=60)
    plans = _plans(manifest, robot_s=0.1, server_s=0.05)
    found = mode_choices(plans, rtt_s=0.002)
    assert "rows" in {stretch.mode for stretch in found.stretches}
    assert "row-parallel rows:" in verdict(manifest, found)


def test_without_rivals_there_is_nothing_to_gain_over() -> None:
    cuts = list(MANIFEST.cuts)
    for place, why in ((0, "--keep-local"), (5, "--robot-memory")):
        cuts[place] = msgspec.structs.replace(cuts[place], refused=why)
    plans = _plans(msgspec.structs.replace(MANIFEST, cuts=tuple(cuts)))
    found = mode_choices(plans, rtt_s=0.002)
    assert all(stretch.gain == 0 for stretch in found.stretches)
    assert {"streamed-head", "split"} >= {stretch.mode for stretch in found.stretches}
