from __future__ import annotations

import pytest

from calibration.energy import StatePower, parse_power
from engines.errors import SplitError


def test_energy_is_power_times_time_summed_over_the_states() -> None:
    power = StatePower(compute=10, communicate=4, idle=1)
    assert power.energy_j(compute_s=2, communicate_s=0.5, idle_s=3) == 25.0


def test_defaults_are_the_measured_ones() -> None:
    power = StatePower()
    assert (power.compute, power.communicate, power.idle) == (13.35, 4.25, 4.04)


@pytest.mark.parametrize(
    ("text", "power"),
    [
        ("compute=1,comm=2,idle=3", StatePower(compute=1, communicate=2, idle=3)),
        ("communicate=2.5", StatePower(communicate=2.5)),
        (" idle = 0 , compute=1e1 ", StatePower(idle=0, compute=10)),
    ],
)
def test_what_is_left_out_keeps_its_default(text: str, power: StatePower) -> None:
    assert parse_power(text) == power


@pytest.mark.parametrize(
    "text",
    ["", "compute", "compute=", "compute=x", "cpu=1", "compute=1;idle=2", "compute=1,",
     "compute=-1", "idle=nan", "comm=inf", "=1"],
)  # fmt: skip
def test_what_is_no_power_is_an_error_of_one_line(text: str) -> None:
    with pytest.raises(SplitError, match="--power") as caught:
        parse_power(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("watts", [-0.1, float("nan"), float("inf")])
def test_impossible_watts_are_refused(watts: float) -> None:
    with pytest.raises(ValueError, match="power idle"):
        StatePower(idle=watts)
