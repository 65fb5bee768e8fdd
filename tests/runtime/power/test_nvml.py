from __future__ import annotations

import sys

import pytest

from engines.errors import SensorError
from runtime.power.nvml import NvmlEnergy, NvmlPower, find_nvml
from tests.runtime.power.fakes import FakeNvml, NVMLError


@pytest.mark.parametrize("name", ["NVIDIA A2", b"NVIDIA A2"])
def test_energy_is_counted_from_when_it_was_opened(name: object) -> None:
    nvml = FakeNvml(energy_mj=5000, name=name)
    sensor = find_nvml([], pynvml=nvml)
    assert isinstance(sensor, NvmlEnergy)
    assert sensor.name == "NVML NVIDIA A2"
    assert sensor.joules() == 0
    nvml.energy_mj = 7500
    assert sensor.joules() == 2.5
    nvml.energy_mj = 500  # the driver was loaded anew
    assert sensor.joules() == 3.0
    sensor.close()
    sensor.close()
    assert nvml.opened == 0


def test_an_older_gpu_gives_power_only() -> None:
    nvml = FakeNvml(energy_mj=NVMLError("Not Supported"), power_mw=31_500)
    sensor = find_nvml([], pynvml=nvml)
    assert isinstance(sensor, NvmlPower)
    assert sensor.watts() == 31.5
    nvml.power_mw = NVMLError("GPU is lost")
    with pytest.raises(SensorError, match="GPU 0: NVML gives no energy or power: GPU is lost"):
        sensor.watts()


@pytest.mark.parametrize(
    "nvml",
    [
        FakeNvml(init=NVMLError("Driver Not Loaded")),
        FakeNvml(gpus=0),
        FakeNvml(energy_mj=NVMLError("Not Supported"), power_mw=NVMLError("Not Supported")),
    ],
)
def test_why_there_is_none_is_told(nvml: FakeNvml) -> None:
    troubles: list[str] = []
    assert find_nvml(troubles, pynvml=nvml) is None
    assert len(troubles) == 1
    assert nvml.opened == 0


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    troubles: list[str] = []
    assert find_nvml(troubles) is None
    assert troubles == []
