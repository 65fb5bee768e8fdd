from __future__ import annotations

from pathlib import Path

import pytest

from runtime.power.ina238 import find_ina238
from tests.runtime.power.fakes import write_tree

HWMON = "bus/i2c/devices/2-0044/hwmon/hwmon5"
THOR = {
    "bus/i2c/devices/2-0044/name": "ina238",
    f"{HWMON}/in1_input": 19500,
    f"{HWMON}/curr1_input": 2000,
    f"{HWMON}/power1_input": 39_100_000,
}


def test_power_is_read_in_microwatts(tmp_path: Path) -> None:
    write_tree(tmp_path, THOR)
    sensor = find_ina238(tmp_path, [])
    assert sensor is not None
    assert sensor.name == "INA238 VIN"
    assert sensor.watts() == pytest.approx(39.1)


def test_without_it_volts_times_amperes(tmp_path: Path) -> None:
    write_tree(tmp_path, THOR)
    (tmp_path / HWMON / "power1_input").unlink()
    sensor = find_ina238(tmp_path, [])
    assert sensor is not None
    assert sensor.watts() == pytest.approx(39.0)


def test_garbage_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, {**THOR, f"{HWMON}/power1_input": "?"})
    troubles: list[str] = []
    assert find_ina238(tmp_path, troubles) is None
    assert "power1_input: expected a number, given '?'" in troubles[0]


def test_an_unwired_one_is_none(tmp_path: Path) -> None:
    write_tree(tmp_path, {**THOR, f"{HWMON}/in1_label": "NC"})
    assert find_ina238(tmp_path, []) is None
