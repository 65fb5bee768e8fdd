"""The INA3221 of Jetson boards: three rails a chip, by hwmon, or by iio on JetPack 4.

Source:
    Linux Documentation/hwmon/ina3221.rst: ``in{1..3}_input`` in mV, ``curr{1..3}_input`` in mA,
    ``in{n}_label`` from the device tree; ``in7`` is the sum of shunt voltages. JetPack 4's own
    driver: ``rail_name_{n}``, ``in_power{n}_input`` in mW. An unwired channel is labelled ``NC``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from engines.errors import SensorError
from runtime.power.sensor import read_number, read_text

__all__ = ["TOTALS", "Ina3221", "Rail", "find_ina3221", "rails_of"]

TOTALS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module: Xavier NX and Orin NX/Nano; Nano and TX1."""

_CHANNELS = (1, 2, 3)
_PERIOD_S = 0.02
"""The chip averages for about as long by the settings of Jetson kernels."""


class Rail(NamedTuple):
    """One measured rail.

    Attributes:
        label: Its name.
        files: Files whose product is its power: volts and amperes, or the power itself.
        watts_per_unit: What that product is in watts.
    """

    label: str
    files: Tuple[Path, ...]
    watts_per_unit: float

    def watts(self) -> float:
        """Read it. Raises SensorError."""
        product = self.watts_per_unit
        for path in self.files:
            product *= read_number(path)
        return product


class Ina3221:
    """The board's power: its total rail, or else the sum of its rails.

    Args:
        rails: Rails to add up.
        chip: Name of the chip.
    """

    covers = "board"
    period_s = _PERIOD_S

    def __init__(self, rails: List[Rail], *, chip: str = "INA3221") -> None:
        self._rails = rails
        self.name = f"{chip} {'+'.join(rail.label for rail in rails)}"
        self.where = str(rails[0].files[0].parent)

    def __repr__(self) -> str:
        return f"<{self.name} at {self.where}>"

    def watts(self) -> float:
        """Read every rail. Raises SensorError."""
        return sum(rail.watts() for rail in self._rails)

    def close(self) -> None:
        """Nothing is kept open."""


def rails_of(root: Path, troubles: List[str]) -> List[Rail]:
    """Return the rails of every INA3221 that can be read now.

    Args:
        root: Where sysfs is mounted.
        troubles: Why the others cannot is added to this.
    """
    rails: Dict[str, Rail] = {}
    for name_file in sorted((root / "bus/i2c/devices").glob("*/name")):
        try:
            if "ina3221" not in read_text(name_file):
                continue
            found = _hwmon_rails(name_file.parent) or _iio_rails(name_file.parent)
        except SensorError as exc:
            troubles.append(str(exc))
            continue
        for rail in found:
            try:
                rail.watts()
            except SensorError as exc:  # a channel that is switched off, say
                troubles.append(str(exc))
                continue
            label = rail.label
            rails[f"{name_file.parent.name}/{label}"] = rail
    return list(rails.values())


def find_ina3221(
    root: Path, troubles: List[str], *, rails: Optional[List[Rail]] = None
) -> Optional[Ina3221]:
    """Return the board's total rail, or else the sum of its rails; none where there is none.

    Args:
        root: Where sysfs is mounted.
        troubles: Why something cannot be read is added to this.
        rails: What ``rails_of`` gave, where it was asked before.
    """
    rails = rails_of(root, troubles) if rails is None else rails
    for total in TOTALS:
        for rail in rails:
            if rail.label.upper() == total:
                return Ina3221([rail])
    return Ina3221(rails) if rails else None


def _hwmon_rails(device: Path) -> List[Rail]:
    rails: List[Rail] = []
    for folder in sorted(device.glob("hwmon/hwmon*")):
        for channel in _CHANNELS:  # never 7, the sum of shunt voltages
            label_file = folder / f"in{channel}_label"
            if not label_file.exists():
                continue
            label = read_text(label_file)
            if _wired(label):
                files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
                rails.append(Rail(label, files, 1e-6))  # mV x mA
    return rails


def _iio_rails(device: Path) -> List[Rail]:
    rails: List[Rail] = []
    for folder in sorted(device.glob("iio:device*")):
        for name_file in sorted(folder.glob("rail_name_[0-2]")):
            label = read_text(name_file)
            channel = name_file.name[-1]
            if _wired(label):
                rails.append(Rail(label, (folder / f"in_power{channel}_input",), 1e-3))  # mW
    return rails


def _wired(label: str) -> bool:
    return label.upper() not in ("", "NC") and "sum of shunt" not in label.lower()
