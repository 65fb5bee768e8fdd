"""What a benchmark prints: a value and what it was measured against in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Row", "medians"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was measured.
        workload: On what.
        value: Median.
        unit: Unit of ``value``.
        reference: What it was measured against in the same run, with its median.
        ratio: ``value`` over the reference's.
        target: What the ratio should be, in words; empty where there is no target.
        met: Whether it is; none where there is no target.
        more: What else was measured of it, by title.
    """

    name: str
    workload: str
    value: float
    unit: str
    reference: str
    ratio: float
    target: str = ""
    met: bool | None = None
    more: dict[str, float | str] = field(default_factory=dict)


def medians(*functions: Callable[[], object], runs: int, warmup: int = 3) -> list[float]:
    """Time functions in turns (A B A B ...), so that a drift of the machine hits all alike.

    Returns:
        The median of each, in seconds.
    """
    samples: list[list[float]] = [[] for _ in functions]
    for run in range(warmup + runs):
        for times, function in zip(samples, functions, strict=True):
            begin = time.perf_counter()
            function()
            if run >= warmup:
                times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in samples]
