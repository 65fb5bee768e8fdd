"""Energy of an inference on the robot, modelled from the power it draws in each state."""

from __future__ import annotations

import math
from typing import Dict

import msgspec

from engines.errors import SplitError

__all__ = ["StatePower", "parse_power"]


class StatePower(msgspec.Struct, frozen=True, kw_only=True):
    """Board power in watts, by what the robot is doing.

    Attributes:
        compute: While its engines run, W.
        communicate: While it sends or receives, W.
        idle: While it waits for the server, W.

    Source:
        Defaults measured on a Jetson Xavier NX 8 GB robot (rail VDD_IN).
    """

    compute: float = 13.35
    communicate: float = 4.25
    idle: float = 4.04

    def __post_init__(self) -> None:
        for name in ("compute", "communicate", "idle"):
            watts = getattr(self, name)
            if not (math.isfinite(watts) and watts >= 0):
                raise ValueError(f"power {name}: expected watts of 0 or more, given {watts}")

    def energy_j(self, *, compute_s: float, communicate_s: float, idle_s: float) -> float:
        """Return the modelled energy in joules of the given times in seconds."""
        return self.compute * compute_s + self.communicate * communicate_s + self.idle * idle_s


def parse_power(text: str) -> StatePower:
    """Read ``compute=13.35,comm=4.25,idle=4.04``; what is left out keeps its default.

    Raises:
        SplitError: Not such a list.
    """
    names = {"compute": "compute", "comm": "communicate", "communicate": "communicate"}
    names["idle"] = "idle"
    given: Dict[str, float] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        try:
            given[names[key.strip()]] = float(value)
        except (KeyError, ValueError):
            raise SplitError(
                f"--power {text!r}: expected compute=W,comm=W,idle=W in watts, given {item!r}"
            ) from None
    try:
        return StatePower(**given)
    except ValueError as exc:
        raise SplitError(f"--power {text!r}: {exc}") from exc
