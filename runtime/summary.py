"""Sums up the inferences of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List, Optional

import numpy as np

from runtime.robot import Result

__all__ = ["Summary"]


class Summary:
    """Counts results and failures; quantiles of their latency.

    Attributes:
        failures: Inferences without an answer.
        dropped: Frames of a live source that newer ones replaced before they were run.
        unreadable: Files of the source that could not be read.
    """

    def __init__(self) -> None:
        self._latency_ms: List[float] = []
        self._energy_j: List[float] = []
        self._energy_source: "Counter[str]" = Counter()
        self._age_ms: List[float] = []
        self._ratios: List[float] = []
        self._answered_by: "Counter[str]" = Counter()
        self._modes: "Counter[str]" = Counter()
        self._beyond_ms: List[float] = []
        self.hedged = 0
        self.promised = 0
        self.failures = 0
        self.lossy = 0
        self.dropped = 0
        self.unreadable = 0

    def add(self, result: Result) -> None:
        """Count an answered inference."""
        self._latency_ms.append(result.latency_s * 1e3)
        self._age_ms.append(result.age_s * 1e3)
        self._energy_j.append(result.energy_j)
        self._energy_source[result.energy_source] += 1
        self._answered_by[result.answered_by] += 1
        self.lossy += result.lossy
        self.hedged += result.hedge_s > 0
        if result.bound_s is not None:
            self.promised += 1
            if result.latency_s > result.bound_s:
                self._beyond_ms.append((result.latency_s - result.bound_s) * 1e3)
        self._modes[result.mode] += 1
        if result.prediction_error is not None:
            self._ratios.append(1 + result.prediction_error)

    def record(self, *, elapsed_s: Optional[float] = None) -> Dict[str, Any]:
        """Return count, failures, who answered, latency and age (ms), mean energy (J), rate.

        The energy's source is ``measured`` or ``modelled``, or ``mixed`` where a sensor failed on
        the way.
        ``modes`` counts the modes; ``hedged`` the inferences in which the robot began the server's
        part beside the waiting; ``promised`` those with a bound; ``beyond_bound`` those that took
        longer; ``ratio_p50`` is the median of measured over predicted latency.

        Args:
            elapsed_s: What all of it took, for the rate.
        """
        latency = np.asarray(self._latency_ms, np.float64)
        record: Dict[str, Any] = {
            "count": len(latency),
            "failures": self.failures,
            "lossy": self.lossy,
            "answered_by": dict(sorted(self._answered_by.items())),
            "modes": dict(sorted(self._modes.items())),
            "hedged": self.hedged,
            "promised": self.promised,
            "beyond_bound": len(self._beyond_ms),
            "most_beyond_ms": round(max(self._beyond_ms), 3) if self._beyond_ms else None,
        }
        for quantile in (50, 95, 99):
            value = float(np.percentile(latency, quantile)) if latency.size else None
            record[f"p{quantile}_ms"] = None if value is None else round(value, 3)
        mean_j = float(np.mean(self._energy_j)) if self._energy_j else None
        record["mean_energy_j"] = None if mean_j is None else round(mean_j, 6)
        sources = sorted(self._energy_source)
        record["energy_source"] = "mixed" if len(sources) > 1 else "".join(sources) or None
        age = round(float(np.median(self._age_ms)), 3) if self._age_ms else None
        record["age_p50_ms"] = age
        ratio = round(float(np.median(self._ratios)), 4) if self._ratios else None
        record["ratio_p50"] = ratio
        record["rate_hz"] = round(len(latency) / elapsed_s, 3) if elapsed_s else None
        record["dropped"] = self.dropped
        record["unreadable"] = self.unreadable
        return record
