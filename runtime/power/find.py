"""Finds the sensor that sees most of this board.

1. A rail that feeds the whole module: INA3221 ``VDD_IN`` or ``POM_5V_IN``.
2. What goes into the board: INA238.
3. The sum of the INA3221's rails.
4. The processor's counters (RAPL), and the GPU's (NVML) added to them where engines run on it.
5. The GPU alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Tuple, Union

from engines.bundle_plans import PLANNED
from runtime.power.ina238 import find_ina238
from runtime.power.ina3221 import TOTALS, find_ina3221, rails_of
from runtime.power.nvml import NvmlEnergy, find_nvml
from runtime.power.rapl import Rapl, find_rapl
from runtime.power.sensor import Sensor

__all__ = ["Findings", "find_sensor", "look_for_sensor", "sensor_for"]


class Findings(NamedTuple):
    """What was found.

    Attributes:
        sensor: The sensor; none where there is none.
        troubles: What is there and cannot be used, a line each.
    """

    sensor: Optional[Sensor]
    troubles: Tuple[str, ...]


class _Both:
    """Processor and GPU together: both count."""

    covers = "CPU and GPU"
    quick = False

    def __init__(self, cpu: Rapl, gpu: NvmlEnergy) -> None:
        self._parts: Tuple[Rapl, NvmlEnergy] = (cpu, gpu)
        self.name = f"{cpu.name} and {gpu.name}"
        self.where = f"{cpu.where}, {gpu.where}"
        self.period_s = min(cpu.period_s, gpu.period_s)
        self.update_s = max(cpu.update_s, gpu.update_s)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def joules(self) -> float:
        """Read both. Raises SensorError."""
        return sum(part.joules() for part in self._parts)

    def close(self) -> None:
        """Let go of both."""
        for part in self._parts:
            part.close()


def find_sensor(
    root: Union[str, Path] = "/sys", *, gpu: bool = True, pynvml: Any = None
) -> Optional[Sensor]:
    """Return the sensor that sees most of this board; none where there is none.

    Args:
        root: Where sysfs is mounted.
        gpu: Whether an NVIDIA GPU does part of the work, so that its energy counts.
        pynvml: NVIDIA's module; imported where it is not given.
    """
    return look_for_sensor(root, gpu=gpu, pynvml=pynvml).sensor


def sensor_for(backend: str) -> Optional[Sensor]:
    """Return the sensor that sees what a backend does here.

    The GPU counts where the backend runs on it. A replayed device is not here, so nothing sees it.
    """
    return None if backend.startswith("replay") else find_sensor(gpu=backend in PLANNED)


def look_for_sensor(
    root: Union[str, Path] = "/sys", *, gpu: bool = True, pynvml: Any = None
) -> Findings:
    """Do as :func:`find_sensor`, and say what is there and cannot be used."""
    sysfs = Path(root)
    troubles: List[str] = []
    sensor: Optional[Sensor] = None
    rails = rails_of(sysfs, troubles)
    if not any(rail.label.upper() in TOTALS for rail in rails):
        sensor = find_ina238(sysfs, troubles)
    sensor = sensor or find_ina3221(sysfs, troubles, rails=rails)
    if sensor is None:
        cpu = find_rapl(sysfs, troubles)
        card = find_nvml(troubles, pynvml=pynvml) if gpu else None
        if cpu is not None and isinstance(card, NvmlEnergy):
            sensor = _Both(cpu, card)
        elif cpu is not None:
            sensor = cpu
            if card is not None:
                troubles.append(f"{card.name}: gives power but counts no energy; left out")
                card.close()
        else:
            sensor = card
    return Findings(sensor, tuple(troubles))
