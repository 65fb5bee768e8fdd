# ruff: noqa: N802 (names as NVIDIA gives them)
"""Fake sensors: trees of sysfs, NVIDIA's module, a clock that stands still until it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.errors import SensorError


def write_tree(root: Path, files: Mapping[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def ina3221(
    root: Path, rails: Mapping[int, tuple[str, object, object]], *, device: str = "1-0040"
) -> Path:
    """Write an INA3221 as hwmon shows it: channel -> (label, mV, mA). Returns its folder."""
    folder = f"bus/i2c/devices/{device}"
    write_tree(root, {f"{folder}/name": "ina3221"})
    for channel, (label, volts, amps) in rails.items():
        hwmon = f"{folder}/hwmon/hwmon3"
        write_tree(
            root,
            {
                f"{hwmon}/in{channel}_label": label,
                f"{hwmon}/in{channel}_input": volts,
                f"{hwmon}/curr{channel}_input": amps,
            },
        )
    return root / folder / "hwmon/hwmon3"


def rapl(
    root: Path, domains: Mapping[str, tuple[str, int]], *, range_uj: int = 262_143_328_850
) -> Path:
    """Write powercap: domain -> (name, energy in uJ). Returns its folder."""
    for domain, (name, energy) in domains.items():
        folder = f"class/powercap/{domain}"
        write_tree(
            root,
            {
                f"{folder}/name": name,
                f"{folder}/energy_uj": energy,
                f"{folder}/max_energy_range_uj": range_uj,
            },
        )
    return root / "class/powercap"


class NVMLError(Exception):
    pass


class FakeNvml:
    """NVIDIA's module with one GPU."""

    NVMLError = NVMLError

    def __init__(
        self,
        *,
        energy_mj: object = 1000,
        power_mw: object = 50_000,
        init: object = None,
        gpus: int = 1,
        name: object = "NVIDIA A2",
    ) -> None:
        self.energy_mj, self.power_mw, self.init, self.gpus = energy_mj, power_mw, init, gpus
        self.name = name
        self.opened = 0

    def nvmlInit(self) -> None:
        self._give(self.init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= self.gpus:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetName(self, handle: int) -> object:
        return self.name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> object:
        return self._give(self.energy_mj)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> object:
        return self._give(self.power_mw)

    def _give(self, value: object) -> object:
        if isinstance(value, Exception):
            raise value
        return value


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakePower:
    """Draws the watts that it is told."""

    name, where, covers, period_s = "fake", "nowhere", "board", 0.02

    def __init__(self, watts: float = 10.0) -> None:
        self.now_w = watts
        self.trouble = ""
        self.reads = self.closed = 0

    def watts(self) -> float:
        self.reads += 1
        if self.trouble:
            raise SensorError(self.trouble)
        return self.now_w

    def close(self) -> None:
        self.closed += 1


class FakeCounter:
    """Counts the joules of a constant power."""

    name, where, covers, period_s, update_s, quick = "fake", "nowhere", "CPU", 0.05, 0.001, True

    def __init__(self, clock: Clock, watts: float = 20.0) -> None:
        self._clock = clock
        self._watts = watts
        self.closed = 0

    def joules(self) -> float:
        return (self._clock() - 100.0) * self._watts

    def close(self) -> None:
        self.closed += 1
