"""What an inference is to be best at, and what it may not do: objectives and constraints. Pure.

As text, which is what a user types and what a record keeps:

    latency                the least expected latency
    latency:p95            the least latency that all but 5% of inferences keep
    energy                 the least energy on the robot
    deadline=80ms          the least energy among what keeps the deadline 99 times of 100
    energy-budget=1.2J     the least latency among what takes no more energy
    rate                   the most frames a second
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Optional

from engines.errors import SplitError
from engines.manifest import Manifest

__all__ = [
    "DEADLINE_KEPT",
    "LATENCY",
    "OBJECTIVE_FORMS",
    "UNCONSTRAINED",
    "Constraints",
    "Objective",
    "check_constraints",
    "parse_objective",
]

OBJECTIVE_FORMS = "latency, latency:p95, energy, deadline=80ms, energy-budget=1.2J, rate"

DEADLINE_KEPT = 0.99
"""Part of the inferences that has to keep a deadline."""

_KINDS = ("latency", "energy", "deadline", "energy-budget", "rate")
_QUANTILE = re.compile(r"latency:p(?P<percent>\d{1,2}(\.\d+)?)")
_DEADLINE = re.compile(r"deadline=(?P<value>\d+(\.\d*)?|\.\d+)(?P<unit>us|ms|s)")
_BUDGET = re.compile(r"energy-budget=(?P<value>\d+(\.\d*)?|\.\d+)(?P<unit>mJ|J)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "mJ": 1e-3, "J": 1.0}


@dataclass(frozen=True)
class Objective:
    """What an inference is to be best at.

    Attributes:
        kind: ``latency``, ``energy``, ``deadline``, ``energy-budget`` or ``rate``.
        quantile: Of ``latency``: the part of the inferences that has to be as quick; none for
            the mean.
        limit: Seconds of a ``deadline``, joules of an ``energy-budget``; 0 for the others.
    """

    kind: str = "latency"
    quantile: Optional[float] = None
    limit: float = 0.0

    def __post_init__(self) -> None:
        limited = self.kind in ("deadline", "energy-budget")
        if self.kind not in _KINDS:
            raise SplitError(f"objective {self.kind!r}: expected one of {', '.join(_KINDS)}")
        if limited != (self.limit > 0) or not math.isfinite(self.limit):
            what = "seconds" if self.kind == "deadline" else "joules"
            wanted = f"{what} above 0" if limited else "no limit"
            raise SplitError(f"objective {self.kind}: expected {wanted}, given {self.limit}")
        if self.quantile is not None and (
            self.kind != "latency" or not 0.5 <= self.quantile < 1.0
        ):
            raise SplitError(
                f"objective {self.kind}: expected a quantile from p50 to p99.99 of latency only, "
                f"given p{self.quantile * 100:g}"
            )

    def __str__(self) -> str:
        if self.kind == "deadline":
            return f"deadline={self.limit * 1e3:.10g}ms"
        if self.kind == "energy-budget":
            return f"energy-budget={self.limit:.10g}J"
        return self.kind if self.quantile is None else f"latency:p{self.quantile * 100:.10g}"

    @property
    def unit(self) -> str:
        """Unit of what is made small: ``s`` or ``J``."""
        return "J" if self.kind in ("energy", "deadline") else "s"


LATENCY = Objective()


@dataclass(frozen=True)
class Constraints:
    """What an inference may not do, beside what the bundle itself refuses.

    A bundle compiled with ``--keep-local`` or ``--robot-memory`` refuses cuts; those are never
    used, whatever stands here.

    Attributes:
        keep_local: Id of a cut: nothing of what comes before it may leave the robot; none for no
            such bound. The cut's own tensors may.
        lossless: Nothing that is lossy, though it was allowed when the choices were prepared.
    """

    keep_local: Optional[str] = None
    lossless: bool = False


UNCONSTRAINED = Constraints()


def parse_objective(text: str) -> Objective:
    """Read an objective.

    Raises:
        SplitError: Not one.
    """
    if text in ("latency", "energy", "rate"):
        return Objective(text)
    quantile, deadline, budget = (form.fullmatch(text) for form in (_QUANTILE, _DEADLINE, _BUDGET))
    if quantile is not None:
        return Objective("latency", quantile=float(quantile["percent"]) / 100)
    if deadline is not None:
        return Objective("deadline", limit=float(deadline["value"]) * _UNITS[deadline["unit"]])
    if budget is not None:
        return Objective("energy-budget", limit=float(budget["value"]) * _UNITS[budget["unit"]])
    raise SplitError(f"objective {text!r}: expected one of the forms {OBJECTIVE_FORMS}")


def check_constraints(constraints: Constraints, manifest: Manifest) -> None:
    """Refuse constraints that name what a bundle has not.

    Raises:
        ManifestError: No such cut.
    """
    if constraints.keep_local is not None:
        manifest.cut(constraints.keep_local)
