"""The INA238 of Jetson Thor boards: what goes into the board.

Source:
    Linux Documentation/hwmon/ina238.rst: ``power1_input`` in uW, ``in1_input`` in mV,
    ``curr1_input`` in mA.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

from engines.errors import SensorError
from runtime.power.ina3221 import Ina3221, Rail
from runtime.power.sensor import read_text

__all__ = ["find_ina238"]


def find_ina238(root: Path, troubles: List[str]) -> Optional[Ina3221]:
    """Return the input of the board as an INA238 sees it; of several of them, their sum.

    Args:
        root: Where sysfs is mounted.
        troubles: Why something cannot be read is added to this.
    """
    rails: List[Rail] = []
    for name_file in sorted((root / "bus/i2c/devices").glob("*/name")):
        try:
            if "ina238" not in read_text(name_file):
                continue
            for folder in sorted(name_file.parent.glob("hwmon/hwmon*")):
                rails += _rail(folder)
        except SensorError as exc:
            troubles.append(str(exc))
    return Ina3221(rails, chip="INA238") if rails else None


def _rail(folder: Path) -> List[Rail]:
    label_file = folder / "in1_label"
    label = read_text(label_file) if label_file.exists() else "VIN"
    if label.upper() == "NC":
        return []
    power = folder / "power1_input"
    if power.exists():
        rail = Rail(label, (power,), 1e-6)  # uW
    else:
        rail = Rail(label, (folder / "in1_input", folder / "curr1_input"), 1e-6)  # mV x mA
    rail.watts()
    return [rail]
