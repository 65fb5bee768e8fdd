"""RAPL: the energy counters of x86 processors, by powercap.

A counter wraps: it starts again from 0 after ``max_energy_range_uj``. It is read far more often
than that takes.

Source:
    Linux Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import List, NamedTuple, Optional

from engines.errors import SensorError
from runtime.power.sensor import read_number, read_text

__all__ = ["Rapl", "find_rapl"]

_READABLE = "its energy is for root to read: sudo chmod -R a+r /sys/class/powercap/intel-rapl"
"""Since CVE-2020-8694."""


class _Domain(NamedTuple):
    name: str
    energy: Path
    range_uj: float


class Rapl:
    """Joules of the processor's packages, and of their memory where that is counted.

    Args:
        domains: Counters to add up.
    """

    covers = "CPU"
    period_s = 0.05
    update_s = 0.001
    quick = True

    def __init__(self, domains: List[_Domain]) -> None:
        self._domains = domains
        self._lock = threading.Lock()
        self._last_uj = [read_number(domain.energy) for domain in domains]
        self._sum_uj = 0.0
        self.name = f"RAPL {'+'.join(domain.name for domain in domains)}"
        self.where = str(domains[0].energy.parent)

    def __repr__(self) -> str:
        return f"<{self.name} at {self.where}>"

    def joules(self) -> float:
        """Read every counter. Raises SensorError."""
        with self._lock:
            now_uj = [read_number(domain.energy) for domain in self._domains]
            for domain, last, now in zip(self._domains, self._last_uj, now_uj):
                step = now - last
                if step < 0:
                    step += domain.range_uj
                self._sum_uj += max(step, 0.0)
            self._last_uj = now_uj
            return self._sum_uj * 1e-6

    def close(self) -> None:
        """Nothing is kept open."""


def find_rapl(root: Path, troubles: List[str]) -> Optional[Rapl]:
    """Return the packages and their memory, or the whole platform where only that is counted.

    Args:
        root: Where sysfs is mounted.
        troubles: Why something cannot be read is added to this.
    """
    packages: List[_Domain] = []
    platform: List[_Domain] = []
    for folder in sorted((root / "class/powercap").glob("intel-rapl:*")):
        name_file = folder / "name"
        if not name_file.exists():
            continue
        try:
            name = read_text(name_file)
            kind = name.partition("-")[0]
            if kind in ("package", "dram", "psys"):
                domain = _open(folder, name)
                (platform if kind == "psys" else packages).append(domain)
        except SensorError as exc:
            denied = isinstance(exc.__cause__, PermissionError)
            troubles.append(f"{exc}; {_READABLE}" if denied else str(exc))
    found = packages or platform
    try:
        return Rapl(found) if found else None
    except SensorError as exc:
        troubles.append(str(exc))
        return None


def _open(folder: Path, name: str) -> _Domain:
    energy = folder / "energy_uj"
    read_number(energy)
    return _Domain(name, energy, read_number(folder / "max_energy_range_uj"))
