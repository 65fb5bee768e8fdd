from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import SensorError
from runtime.power.ina3221 import find_ina3221
from tests.runtime.power.fakes import ina3221, write_tree

ORIN_NX = {
    1: ("VDD_IN", 4976, 1176),
    2: ("VDD_CPU_GPU_CV", 4976, 240),
    3: ("VDD_SOC", 4976, 288),
    7: ("sum of shunt voltages", 100, 100),
}


def test_the_total_rail_is_taken_alone(tmp_path: Path) -> None:
    ina3221(tmp_path, ORIN_NX)
    sensor = find_ina3221(tmp_path, [])
    assert sensor is not None
    assert sensor.name == "INA3221 VDD_IN"
    assert sensor.covers == "board"
    assert sensor.watts() == pytest.approx(4.976 * 1.176)


def test_the_nano_calls_it_otherwise(tmp_path: Path) -> None:
    ina3221(tmp_path, {1: ("POM_5V_GPU", 5000, 100), 3: ("POM_5V_IN", 5000, 900)})
    sensor = find_ina3221(tmp_path, [])
    assert sensor is not None
    assert sensor.watts() == pytest.approx(4.5)


def test_without_a_total_rail_all_are_added_over_every_chip(tmp_path: Path) -> None:
    ina3221(tmp_path, {1: ("VDD_GPU_SOC", 12000, 500), 2: ("VDD_CPU_CV", 12000, 250)})
    ina3221(
        tmp_path,
        {1: ("NC", 99, 99), 2: ("VDDQ_VDD2_1V8AO", 5000, 200), 7: ("sum of shunt voltages", 9, 9)},
        device="1-0041",
    )
    sensor = find_ina3221(tmp_path, [])
    assert sensor is not None
    assert sensor.name == "INA3221 VDD_GPU_SOC+VDD_CPU_CV+VDDQ_VDD2_1V8AO"
    assert sensor.watts() == pytest.approx(6 + 3 + 1)


def test_a_label_of_channel_3_may_be_the_sum_of_shunts(tmp_path: Path) -> None:
    ina3221(tmp_path, {1: ("VDD", 1000, 1000), 3: ("sum of shunt voltages", 1000, 1000)})
    sensor = find_ina3221(tmp_path, [])
    assert sensor is not None
    assert sensor.watts() == pytest.approx(1.0)


def test_jetpack_4_has_iio(tmp_path: Path) -> None:
    folder = "bus/i2c/devices/6-0040"
    write_tree(
        tmp_path,
        {
            f"{folder}/name": "ina3221x",
            f"{folder}/iio:device0/rail_name_0": "POM_5V_IN",
            f"{folder}/iio:device0/in_power0_input": 3050,
            f"{folder}/iio:device0/rail_name_1": "POM_5V_GPU",
            f"{folder}/iio:device0/in_power1_input": 500,
            f"{folder}/iio:device0/rail_name_2": "NC",
            f"{folder}/iio:device0/in_power2_input": 0,
        },
    )
    sensor = find_ina3221(tmp_path, [])
    assert sensor is not None
    assert sensor.watts() == pytest.approx(3.05)


@pytest.mark.parametrize("content", ["", "garbage", "nan", "inf", "0x10"])
def test_a_rail_that_gives_garbage_is_left_out_and_told(tmp_path: Path, content: str) -> None:
    folder = ina3221(tmp_path, ORIN_NX)
    (folder / "curr1_input").write_text(content)
    troubles: list[str] = []
    sensor = find_ina3221(tmp_path, troubles)
    assert sensor is not None
    assert sensor.name == "INA3221 VDD_CPU_GPU_CV+VDD_SOC"
    assert len(troubles) == 1
    assert "curr1_input: expected a number" in troubles[0]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    folder = ina3221(tmp_path, {1: ("VDD_IN", 5000, 1000)})
    (folder / "curr1_input").unlink()
    troubles: list[str] = []
    assert find_ina3221(tmp_path, troubles) is None
    assert "curr1_input: sensor cannot be read: No such file" in troubles[0]


def test_permission_denied_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ina3221(tmp_path, {1: ("VDD_IN", 5000, 1000)})
    right = Path.read_text

    def read_text(self: Path, *args: object, **more: object) -> str:
        if self.name == "in1_input":
            raise PermissionError(13, "Permission denied")
        return right(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    troubles: list[str] = []
    assert find_ina3221(tmp_path, troubles) is None
    assert "Permission denied" in troubles[0]


def test_one_that_fails_later_is_an_error_of_one_line(tmp_path: Path) -> None:
    folder = ina3221(tmp_path, {1: ("VDD_IN", 5000, 1000)})
    sensor = find_ina3221(tmp_path, [])
    assert sensor is not None
    (folder / "in1_input").unlink()
    with pytest.raises(SensorError, match="in1_input") as caught:
        sensor.watts()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ina219", "tmp451", ""])
def test_other_chips_are_none_of_these(tmp_path: Path, name: str) -> None:
    ina3221(tmp_path, {1: ("VDD_IN", 5000, 1000)})
    (tmp_path / "bus/i2c/devices/1-0040/name").write_text(name)
    assert find_ina3221(tmp_path, []) is None


def test_nothing_is_found_in_nothing(tmp_path: Path) -> None:
    assert find_ina3221(tmp_path / "gone", []) is None
