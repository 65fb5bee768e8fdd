"""Estimates how long an operator takes on a device that nothing was measured on.

    time = launch + max(operations / (share x peak), bytes / (share x memory rate))

A roofline is a guess: it ranks operators and devices, and decides which cuts are worth keeping in
a bundle. Which cut is run is decided by latency tables measured on the devices themselves.

Source:
    Williams, Waterman, Patterson, *Roofline: an insightful visual performance model for multicore
    architectures*, CACM 52(4), 2009. Devices: ``calibration/devices/*.json``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict, List, Optional

import msgspec

from calibration.energy import StatePower
from calibration.records import read_record
from engines.errors import SplitError

__all__ = ["DEVICES", "Device", "device_names", "operator_s", "preset"]

DEVICES = Path(__file__).parent / "devices"

_COMPUTE_SHARE = 0.45
_MEMORY_SHARE = 0.7
"""Shares of the peaks that convolutional networks of batch 1 reach. Assumed."""


_INT8_TIMES_FP16 = 2
"""Peak of int8 beside that of float16, as on tensor cores since Turing. Assumed."""


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device as its maker describes it.

    Attributes:
        title: Name for people.
        fp32_tflops: Peak of float32, 1e12 operations a second.
        fp16_tflops: Peak of float16, dense, with tensor cores where there are any.
        memory_gb_per_s: Memory rate, 1e9 bytes a second.
        launch_us: Time to start one operator, microseconds.
        memory_gib: Memory, GiB.
        source: Where the numbers are from.
        power_w: Power by state, where it was measured.
    """

    title: str
    fp32_tflops: float
    fp16_tflops: float
    memory_gb_per_s: float
    launch_us: float
    memory_gib: float
    source: str
    power_w: Optional[StatePower] = None

    def __post_init__(self) -> None:
        for name in ("fp32_tflops", "fp16_tflops", "memory_gb_per_s", "launch_us", "memory_gib"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a number above 0, given {value}")

    @property
    def power(self) -> StatePower:
        """Power by state; that of the Xavier NX robot where this device's is not known."""
        return self.power_w or StatePower()


def device_names() -> List[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in DEVICES.glob("*.json"))


def preset(name: str) -> Device:
    """Return a preset, or read a device file of one's own.

    Args:
        name: Name of a preset, or path of a JSON file with the fields of :class:`Device`.

    Raises:
        SplitError: No such preset, or not a device file.
    """
    path = Path(name) if name.endswith(".json") else DEVICES / f"{name}.json"
    if not name.endswith(".json") and name not in device_names():
        raise SplitError(
            f"device {name!r}: expected one of {', '.join(device_names())}, or a .json file"
        )
    return read_record(path, Device, "a device file")


def operator_s(device: Device, *, flops: int, moved_bytes: int, precision: str = "fp32") -> float:
    """Return the estimated seconds of one operator.

    Args:
        device: Where it runs.
        flops: Floating-point operations.
        moved_bytes: Inputs, weights and outputs, in bytes.
        precision: ``fp32``, ``fp16`` or ``int8``.
    """
    peaks: Dict[str, float] = {
        "fp32": device.fp32_tflops,
        "fp16": device.fp16_tflops,
        "int8": _INT8_TIMES_FP16 * device.fp16_tflops,
    }
    compute_s = flops / (peaks[precision] * 1e12 * _COMPUTE_SHARE)
    memory_s = moved_bytes / (device.memory_gb_per_s * 1e9 * _MEMORY_SHARE)
    return device.launch_us * 1e-6 + max(compute_s, memory_s)
