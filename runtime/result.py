"""What an inference gave, and what happened."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Mapping, Optional

from calibration.predictor import Prediction
from engines.tensors import Array
from runtime.decision import Decision
from runtime.power.sensor import Energy

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """One answered inference. Times in seconds, sizes in bytes.

    Attributes:
        outputs: The model's outputs by name.
        seq: Number of the inference, from 0.
        cut: Id of the cut.
        answered_by: ``remote``; ``local`` if the selector chose the robot alone; ``fallback`` if
            the robot did what was the server's part.
        reason: Why this cut, and what went wrong, in a few words.
        latency_s: From when the robot began on it to the answer.
        robot_s: Computing on the robot (and coding, where nothing is striped).
        link_s: Sending, receiving and waiting, less the server's time. Where stripes were sent
            while the robot computed: the larger of what the sender and the server's reader took,
            and reading the answer.
        server_s: Computing and coding on the server.
        queue_s: Waiting for its turn at the server.
        bytes_up: Sent for this inference.
        bytes_down: Received for it.
        goodput_bps: The link's estimated goodput afterwards; none while unknown.
        energy_j: Energy on the robot: measured, where a sensor is there; else modelled.
        predicted: What the selector expected; none where it could not tell.
        mode: One of ``calibration.predictor.MODES``.
        plan: How it was striped, as ``calibration.plan_text`` writes it; empty where it was not.
        stripes: Messages that the request had by its plan; 0 without a server.
        sending_s: Coding and writing stripes, beside the computing.
        age_s: From when the frame was taken to the answer.
        decision: What was decided, in which situation, and why.
        lossy: Whether the outputs may differ from the model's: by a bounded division or a lossy
            codec.
        energy_source: ``measured`` or ``modelled``.
        energy_modelled_j: The modelled energy in any case; none where nobody modelled it.
        energy_uncertainty_j: Bound on what sampling hides of a measured energy.
        codecs: Names of the codecs by tensor, of those that had not their default one.
        hedge_s: Part of ``robot_s``: the robot's work on the server's part while the answer might
            still have come. Its energy is in ``energy_j`` whoever was first.
        bound_s: What was promised: the longest that it might take under any fault; none where
            nothing was.
    """

    outputs: Dict[str, Array]
    seq: int
    cut: str
    answered_by: str
    reason: str
    latency_s: float
    robot_s: float
    link_s: float
    server_s: float
    queue_s: float
    bytes_up: int
    bytes_down: int
    goodput_bps: Optional[float]
    energy_j: float
    predicted: Optional[Prediction]
    mode: str = "split"
    plan: str = ""
    stripes: int = 1
    sending_s: float = 0.0
    age_s: float = 0.0
    decision: Optional[Decision] = None
    lossy: bool = False
    energy_source: str = "modelled"
    energy_modelled_j: Optional[float] = None
    energy_uncertainty_j: Optional[float] = None
    codecs: Mapping[str, str] = field(default_factory=dict)
    hedge_s: float = 0.0
    bound_s: Optional[float] = None

    def measured(self, energy: Optional[Energy]) -> Result:
        """Return it with what a sensor measured; as it is where nothing was measured."""
        if energy is None:
            return self
        return replace(
            self,
            energy_j=energy.joules,
            energy_source="measured",
            energy_modelled_j=self.energy_j,
            energy_uncertainty_j=energy.uncertainty_j,
        )

    @property
    def modelled_j(self) -> float:
        """The modelled energy, whether or not there is a measured one."""
        return self.energy_j if self.energy_modelled_j is None else self.energy_modelled_j

    @property
    def prediction_error(self) -> Optional[float]:
        """Measured over predicted latency, less 1; none where it was not predicted."""
        if self.predicted is None or not self.predicted.latency_s > 0:
            return None
        return self.latency_s / self.predicted.latency_s - 1

    def record(self) -> Dict[str, Any]:
        """Return the result without its outputs, as one JSON line: ms, Mbps and joules."""
        goodput = None if self.goodput_bps is None else round(self.goodput_bps / 1e6, 3)
        predicted = None if self.predicted is None else _ms(self.predicted.latency_s)
        rate_hz = None if self.predicted is None else self.predicted.rate_hz
        error = self.prediction_error
        bound = self.energy_uncertainty_j
        situation = None if self.decision is None else self.decision.situation
        return {
            "seq": self.seq,
            "latency_ms": _ms(self.latency_s),
            "cut": self.cut,
            "answered_by": self.answered_by,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "robot_ms": _ms(self.robot_s),
            "link_ms": _ms(self.link_s),
            "server_ms": _ms(self.server_s),
            "queue_ms": _ms(self.queue_s),
            "goodput_mbps": goodput,
            "energy_j": round(self.energy_j, 6),
            "predicted_ms": predicted,
            "reason": self.reason,
            "mode": self.mode,
            "plan": self.plan,
            "stripes": self.stripes,
            "sending_ms": _ms(self.sending_s),
            "age_ms": _ms(self.age_s),
            "prediction_error": None if error is None else round(error, 4),
            "objective": None if situation is None else str(situation.objective),
            "predicted_hz": None if not rate_hz or math.isinf(rate_hz) else round(rate_hz, 3),
            "lossy": self.lossy,
            "energy_source": self.energy_source,
            "energy_modelled_j": round(self.modelled_j, 6),
            "energy_uncertainty_j": None if bound is None else round(bound, 6),
            "codecs": dict(self.codecs),
            "hedge_ms": _ms(self.hedge_s),
            "bound_ms": None if self.bound_s is None else _ms(self.bound_s),
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
