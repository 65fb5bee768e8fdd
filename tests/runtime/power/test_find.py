from __future__ import annotations

from pathlib import Path

import pytest

from runtime.power.find import find_sensor, look_for_sensor, sensor_for
from runtime.power.sensor import EnergyCounter
from tests.runtime.power.fakes import FakeNvml, NVMLError, ina3221, rapl, write_tree
from tests.runtime.power.test_ina238 import THOR


def test_the_total_rail_comes_first(tmp_path: Path) -> None:
    write_tree(tmp_path, THOR)
    ina3221(tmp_path, {1: ("VDD_IN", 5000, 1000), 2: ("VDD_SOC", 5000, 1)})
    rapl(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    sensor = find_sensor(tmp_path, pynvml=FakeNvml())
    assert sensor is not None
    assert sensor.name == "INA3221 VDD_IN"


def test_the_input_of_a_thor_comes_before_the_sum_of_its_rails(tmp_path: Path) -> None:
    write_tree(tmp_path, THOR)
    ina3221(tmp_path, {1: ("VDD_GPU", 5000, 1000), 2: ("VDD_CPU_SOC_MSS", 5000, 1)})
    sensor = find_sensor(tmp_path, pynvml=FakeNvml())
    assert sensor is not None
    assert sensor.name == "INA238 VIN"


def test_processor_and_gpu_are_added_where_the_gpu_works(tmp_path: Path) -> None:
    folder = rapl(tmp_path, {"intel-rapl:0": ("package-0", 0)})
    nvml = FakeNvml(energy_mj=0)
    sensor = find_sensor(tmp_path, pynvml=nvml)
    assert isinstance(sensor, EnergyCounter)
    assert sensor.covers == "CPU and GPU"
    assert not sensor.quick
    nvml.energy_mj = 4000
    (folder / "intel-rapl:0/energy_uj").write_text("1500000")
    assert sensor.joules() == pytest.approx(5.5)
    sensor.close()
    assert nvml.opened == 0
    alone = find_sensor(tmp_path, gpu=False, pynvml=nvml)
    assert alone is not None
    assert alone.name == "RAPL package-0"
    assert nvml.opened == 0


def test_a_gpu_that_only_gives_power_is_not_added_to_a_counter(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:0": ("package-0", 0)})
    nvml = FakeNvml(energy_mj=NVMLError("Not Supported"))
    found = look_for_sensor(tmp_path, pynvml=nvml)
    assert found.sensor is not None
    assert found.sensor.name == "RAPL package-0"
    assert "left out" in found.troubles[0]
    assert nvml.opened == 0


def test_the_gpu_alone(tmp_path: Path) -> None:
    sensor = find_sensor(tmp_path, pynvml=FakeNvml())
    assert sensor is not None
    assert sensor.covers == "GPU"


def test_nothing(tmp_path: Path) -> None:
    assert look_for_sensor(tmp_path, gpu=False) == (None, ())


def test_what_is_replayed_is_not_here() -> None:
    assert sensor_for("replay:table.json") is None
