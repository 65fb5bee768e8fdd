"""Predicts latency and energy of every serial cut from two latency tables and the link.

Theory: with a serial plan the three parts follow each other, so

    latency = head on the robot + (bytes up + bytes down) / goodput + round trip + tail on server

The link is one resource: Wi-Fi is half duplex, so what goes up and what comes back add up. The
last cut runs on the robot alone and needs no link. Everything here is pure: no clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence

import numpy as np

from calibration.energy import StatePower
from engines.codecs import default_codec
from engines.manifest import Manifest
from engines.tensors import Array, TensorSpec

__all__ = ["CutCosts", "Prediction", "cut_costs", "encoded_bytes", "predict"]


@dataclass(frozen=True)
class CutCosts:
    """Costs of every cut that do not depend on the link, one element a cut.

    Attributes:
        head_s: Seconds on the robot before the cut.
        tail_s: Seconds on the server after it.
        local_tail_s: Seconds that the robot itself would take after it.
        bytes_up: Bytes of the frontier as its default codecs send it.
        bytes_down: Bytes of the results on the way back.
        allowed: Whether the cut may be used.
    """

    head_s: Array
    tail_s: Array
    local_tail_s: Array
    bytes_up: Array
    bytes_down: Array
    allowed: Array


@dataclass(frozen=True)
class Prediction:
    """What one inference at one cut is expected to take.

    Attributes:
        cut: Index of the cut.
        latency_s: Sum of the four parts below.
        robot_s: On the robot.
        link_s: Transmission both ways and the round trip.
        server_s: On the server.
        queue_s: Waiting for the server.
        energy_j: Modelled energy of the robot.
    """

    cut: int
    latency_s: float
    robot_s: float
    link_s: float
    server_s: float
    queue_s: float
    energy_j: float


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
        allowed=np.asarray([not cut.refused for cut in manifest.cuts], bool),
        bytes_up=np.asarray(up, np.int64),
        bytes_down=np.asarray(down, np.int64),
    )


def predict(
    costs: CutCosts,
    *,
    goodput_bps: Optional[float],
    rtt_s: float,
    queue_s: float = 0.0,
    power: StatePower = StatePower(),
) -> List[Prediction]:
    """Predict every cut.

    Args:
        costs: From :func:`cut_costs`.
        goodput_bps: Payload bits per second; none where there is no link, which leaves only the
            last cut possible. The others get an infinite latency, as do cuts that may not be
            used.
        rtt_s: Round trip in seconds.
        queue_s: Expected wait at the server in seconds.
        power: The robot's power by state.
    """
    last = len(costs.head_s) - 1
    bits = 8.0 * (costs.bytes_up + costs.bytes_down)
    link = bits / goodput_bps + rtt_s if goodput_bps else np.full(last + 1, np.inf)
    predictions: List[Prediction] = []
    for cut in range(last + 1):
        local = cut == last
        link_s = 0.0 if local else float(link[cut])
        wait_s = 0.0 if local else queue_s
        robot_s, server_s = float(costs.head_s[cut]), float(costs.tail_s[cut])
        predictions.append(
            Prediction(
                cut=cut,
                latency_s=robot_s + link_s + wait_s + server_s if costs.allowed[cut] else np.inf,
                robot_s=robot_s,
                link_s=link_s,
                server_s=server_s,
                queue_s=wait_s,
                energy_j=power.energy_j(
                    compute_s=robot_s, communicate_s=link_s, idle_s=wait_s + server_s
                ),
            )
        )
    return predictions
