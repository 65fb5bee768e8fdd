"""What the robot's energy is measured with, where it has a sensor.

1. A reader a file (``ina3221``, ``ina238``, ``rapl``, ``nvml``) knows one kind of sensor. It gives
   watts, or joules counted from when it was opened.
2. ``find`` picks the one that sees most of the board.
3. ``curve`` turns readings into energy between two moments, with its uncertainty.
4. ``meter`` reads at a steady rate in a thread of its own, and shares the energy over the frames
   that are under way.

from runtime.power import EnergyMeter, find_sensor
"""

from __future__ import annotations

from runtime.power.find import find_sensor
from runtime.power.meter import EnergyMeter
from runtime.power.sensor import Energy

__all__ = ["Energy", "EnergyMeter", "find_sensor"]
