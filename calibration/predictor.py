"""What an inference is expected to take, and what every serial cut costs. Pure.

With a serial plan the three parts follow each other, so

    latency = head on the robot + (bytes up + bytes down) / goodput + round trip + tail on server

The link is one resource: Wi-Fi is half duplex, so what goes up and what comes back add up. The
last cut runs on the robot alone and needs no link. ``calibration.schedule`` and
``calibration.prepared`` predict these and the striped plans, in which the parts overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence

import numpy as np

from calibration.codings import Coding, is_lossy_coding
from engines.codecs import default_codec
from engines.manifest import Manifest
from engines.stripe_plans import Plan, is_lossy
from engines.tensors import Array, TensorSpec

__all__ = ["MODES", "CutCosts", "Prediction", "cut_costs", "encoded_bytes"]

MODES = (
    *("local", "frame", "split", "streamed-head", "streamed-raw", "two-sided", "rows"),
    "bounded",
)
"""What an inference can be: all on the robot; the coded frame sent; a serial split; and the five
ways of ``engines.stripe_plans``, of which the last is lossy."""


@dataclass(frozen=True)
class CutCosts:
    """Costs of every cut that do not depend on the link, one element a cut.

    Attributes:
        head_s: Seconds on the robot before the cut.
        tail_s: Seconds on the server after it.
        local_tail_s: Seconds that the robot itself would take after it.
        bytes_up: Bytes of the frontier as its default codecs send it.
        bytes_down: Bytes of the results on the way back.
    """

    head_s: Array
    tail_s: Array
    local_tail_s: Array
    bytes_up: Array
    bytes_down: Array


@dataclass(frozen=True)
class Prediction:
    """What one inference is expected to take.

    Attributes:
        cut: Index of the cut.
        latency_s: From the input to the answer; with a serial cut the sum of the four parts
            below, with a striped plan less, as they overlap. Infinite where it is not possible.
        robot_s: Computing on the robot.
        link_s: Transmission both ways and a round trip.
        server_s: Computing on the server.
        queue_s: Waiting for the server.
        energy_j: Modelled energy of the robot.
        mode: One of :data:`MODES`.
        plan: How it is striped; none for a serial cut.
        bytes_up: Bytes that the robot sends.
        bytes_down: Bytes that the server returns.
        period_s: From one answer to the next where as many inferences are under way as are
            wanted: the longest that robot, link or server is busy with one.
        coding: Codecs by tensor; the default ones for what is not in it.
    """

    cut: int
    latency_s: float
    robot_s: float
    link_s: float
    server_s: float
    queue_s: float
    energy_j: float
    mode: str = "split"
    plan: Optional[Plan] = None
    bytes_up: int = 0
    bytes_down: int = 0
    period_s: float = math.inf
    coding: Coding = ()

    @property
    def rate_hz(self) -> float:
        """Inferences a second, where as many are under way as are wanted."""
        return 1.0 / self.period_s if self.period_s > 0 else math.inf

    @property
    def lossy(self) -> bool:
        """Whether the result may differ from what the model gives."""
        return is_lossy(self.plan) or is_lossy_coding(self.coding)


def encoded_bytes(specs: Sequence[TensorSpec]) -> int:
    """Return the largest size of these tensors as their default codecs send them, in bytes."""
    return sum(default_codec(spec).max_encoded_bytes(spec) for spec in specs)


def cut_costs(
    manifest: Manifest, robot_segments_s: Sequence[float], server_segments_s: Sequence[float]
) -> CutCosts:
    """Sum segment times into head and tail times and price the bytes of every cut.

    Args:
        manifest: The bundle's manifest.
        robot_segments_s: Seconds of each segment on the robot.
        server_segments_s: Seconds of each segment on the server.
    """
    robot = np.asarray(robot_segments_s, np.float64)
    server = np.asarray(server_segments_s, np.float64)
    before = np.zeros((len(manifest.cuts), len(manifest.segments)), bool)
    for cut in manifest.cuts:
        before[cut.index, list(cut.robot_segments)] = True
    up: List[int] = [encoded_bytes(manifest.specs(cut.tensors)) for cut in manifest.cuts]
    down: List[int] = [encoded_bytes(manifest.specs(cut.results)) for cut in manifest.cuts]
    up[-1] = down[-1] = 0
    return CutCosts(
        head_s=before @ robot,
        tail_s=~before @ server,
        local_tail_s=~before @ robot,
        bytes_up=np.asarray(up, np.int64),
        bytes_down=np.asarray(down, np.int64),
    )
