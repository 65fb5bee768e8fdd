"""NVML: the energy counter of an NVIDIA GPU, or its power where it does not count.

Source:
    NVML API reference: nvmlDeviceGetTotalEnergyConsumption in mJ since the driver was loaded
    (Volta and later); nvmlDeviceGetPowerUsage in mW.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any, Callable, List, Optional, Union

from engines.errors import SensorError

__all__ = ["NvmlEnergy", "NvmlPower", "find_nvml"]

_PERIOD_S = 0.02
_UPDATE_S = 0.1
"""Boards update both figures every 20 to 100 ms."""


class _Gpu:
    covers = "GPU"
    period_s = _PERIOD_S

    def __init__(self, pynvml: Any, handle: Any, name: str, index: int) -> None:
        self._pynvml = pynvml
        self._handle = handle
        self._open = True
        self.name = f"NVML {name}"
        self.where = f"GPU {index}"

    def __repr__(self) -> str:
        return f"<{self.name}, {self.where}>"

    def _ask(self, function: Callable[[Any], float]) -> float:
        try:
            return float(function(self._handle))
        except self._pynvml.NVMLError as exc:
            raise SensorError(f"{self.where}: NVML gives no energy or power: {exc}") from exc

    def close(self) -> None:
        """Let go of the library; safe to call again."""
        if self._open:
            self._open = False
            with suppress(self._pynvml.NVMLError):  # there may be nothing left to let go of
                self._pynvml.nvmlShutdown()


class NvmlEnergy(_Gpu):
    """Joules of a GPU."""

    update_s = _UPDATE_S
    quick = False
    """A call may wait for the driver."""

    def __init__(self, pynvml: Any, handle: Any, name: str, index: int) -> None:
        super().__init__(pynvml, handle, name, index)
        self._last_mj = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        self._sum_mj = 0.0

    def joules(self) -> float:
        """Read the counter; a driver that was loaded anew counts from 0. Raises SensorError."""
        now = self._ask(self._pynvml.nvmlDeviceGetTotalEnergyConsumption)
        self._sum_mj += now - self._last_mj if now >= self._last_mj else now
        self._last_mj = now
        return self._sum_mj * 1e-3


class NvmlPower(_Gpu):
    """Watts of a GPU."""

    def watts(self) -> float:
        """Read it. Raises SensorError."""
        return self._ask(self._pynvml.nvmlDeviceGetPowerUsage) * 1e-3


def find_nvml(
    troubles: List[str], *, index: int = 0, pynvml: Any = None
) -> "Optional[Union[NvmlEnergy, NvmlPower]]":
    """Return a GPU's energy counter, else its power; none without a GPU that gives either.

    Args:
        troubles: Why there is none is added to this.
        index: Which GPU.
        pynvml: NVIDIA's module; imported where it is not given.
    """
    if pynvml is None:
        try:
            pynvml = importlib.import_module("pynvml")
        except ImportError:
            return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        troubles.append(f"NVML cannot be used: {exc}")
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        try:
            return NvmlEnergy(pynvml, handle, name, index)
        except SensorError:  # before Volta
            power = NvmlPower(pynvml, handle, name, index)
            power.watts()
            return power
    except (pynvml.NVMLError, SensorError) as exc:
        troubles.append(str(exc) if isinstance(exc, SensorError) else f"NVML: {exc}")
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
        return None
