"""Tables by hand, whose best choice can be worked out on paper.

Robot alone takes 1 s, the server a tenth of the robot's time; the frontier shrinks with depth.

    cut             0      1      2      3      4      5      6      7
    robot s         0     .1     .2     .3     .4     .6     .8      1
    server s       .1    .09    .08    .07    .06    .04    .02      0
    megabits        8    7.2    6.4    3.2     .4    .32    .24      0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes
from tests.striped import serial

LAST = 7
BYTES_UP = [1_000_000, 900_000, 800_000, 400_000, 50_000, 40_000, 30_000]
HEAD_S = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])
TAIL_S = (1.0 - HEAD_S) / 10
BITS = 8.0 * np.array([*BYTES_UP, 0])
ROBOT = SegmentTimes(tuple(float(s) for s in np.diff(HEAD_S)))
SERVER = SegmentTimes(tuple(float(s) for s in np.diff(HEAD_S) / 10))
MODEL = serial(BYTES_UP)
PLANS = PreparedPlans(MODEL, ROBOT, SERVER)


@dataclass(frozen=True)
class Steps:
    """A link that has one goodput with a probability, and else another."""

    low_bps: float
    high_bps: float
    low_part: float
    rtt_s: float = 0.0

    @property
    def goodput_bps(self) -> float:
        return self.low_part * self.low_bps + (1 - self.low_part) * self.high_bps

    def quantile(self, part: float) -> float:
        return self.low_bps if part < self.low_part else self.high_bps
