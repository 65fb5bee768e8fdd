"""Which cuts to keep and how to quantise: checked before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from calibration.metrics import METRICS
from compiler.quantizers import DEFAULT_QUANTIZER, QUANTIZERS
from engines.errors import CutError, TraceError

__all__ = [
    "MAX_ERROR",
    "SENSITIVE",
    "THIS",
    "CutOptions",
    "Int8Options",
    "parse_halos",
    "parse_size",
]

THIS = "this"
"""Device that stands for the machine that compiles."""

MAX_ERROR = 0.005
"""Largest mean of 1 - cosine, or of another metric, with which no node is left in float32."""

SENSITIVE = ("fp16", "fp32")
"""What nodes compute in that 8 bits cost too much: float16 where that stays within the error
allowed and else float32, or always float32."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOptions:
    """Which cuts to keep.

    Attributes:
        cuts: ``auto`` for what the proposers bring, ``all`` for every boundary, or a number: that
            many of the most useful.
        max_frontier: Most tensors across a boundary, for ``all`` and ``spread``.
        keep_local: Numbers of operators, or module paths, that the robot must run itself; what
            goes into them, and between them, must not leave it.
        robot_memory: Bytes that weights and activations may take on the robot.
    """

    cuts: str = "auto"
    max_frontier: int = 4
    keep_local: tuple[str, ...] = ()
    robot_memory: int | None = None

    def __post_init__(self) -> None:
        number = self.cuts.isdecimal() and int(self.cuts) >= 1
        if self.cuts not in ("auto", "all") and not number:
            raise CutError(f"--cuts: expected auto, all or a number from 1, given {self.cuts!r}")
        if self.max_frontier < 1:
            raise CutError(f"--max-frontier: expected 1 or more, given {self.max_frontier}")
        if self.robot_memory is not None and self.robot_memory < 1:
            raise CutError(f"--robot-memory: expected bytes above 0, given {self.robot_memory}")

    @property
    def most(self) -> int | None:
        """Most cuts to keep, the ends among them; none for no limit."""
        return int(self.cuts) if self.cuts.isdecimal() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """How to quantise.

    Attributes:
        quantizer: What decides which nodes take codes, one of
            :data:`compiler.quantizers.QUANTIZERS`.
        method: How it chooses thresholds; by default its own default.
        max_error: Mean error above which sensitive nodes stay in float32.
        metric: What an error is: a name that :func:`calibration.metrics.open_metric` takes.
        islands: Nodes, tensors or module paths that stay in float32 in any case.
        halves: The same that compute in float16 in any case, but for what ``islands`` names.
        sensitive: What sensitive nodes compute in, one of :data:`SENSITIVE`.
    """

    quantizer: str = DEFAULT_QUANTIZER
    method: str | None = None
    max_error: float = MAX_ERROR
    metric: str = "cosine"
    islands: tuple[str, ...] = ()
    halves: tuple[str, ...] = ()
    sensitive: str = "fp16"

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise TraceError(
                f"--quantizer: expected one of {', '.join(QUANTIZERS)}, given {self.quantizer!r}"
            )
        methods = QUANTIZERS[self.quantizer].methods
        if self.ranges not in methods:
            raise TraceError(
                f"--ranges: expected one of {', '.join(methods)} with --quantizer "
                f"{self.quantizer}, given {self.ranges!r}"
            )
        if self.sensitive not in SENSITIVE:
            raise TraceError(
                f"--sensitive: expected one of {', '.join(SENSITIVE)}, given {self.sensitive!r}"
            )
        if not 0 <= self.max_error <= 1:
            raise TraceError(f"--max-int8-error: expected 0 to 1, given {self.max_error}")
        if self.metric not in METRICS and ":" not in self.metric:
            raise TraceError(
                f"--metric: expected one of {', '.join(METRICS)}, or module:function or "
                f"file.py:function, given {self.metric!r}"
            )

    @property
    def ranges(self) -> str:
        """How thresholds are chosen."""
        return self.method or QUANTIZERS[self.quantizer].default


def parse_size(text: str) -> int:
    """Read a size: bytes, or with kB, MB, GB, KiB, MiB or GiB.

    Raises:
        CutError: Not such a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if found is None:
        raise CutError(f"size {text!r}: expected bytes, or as in 512MB or 2GiB")
    return int(float(found.group(1)) * _UNITS[found.group(2) or ""])


def parse_halos(texts: Iterable[str]) -> tuple[int, ...]:
    """Read numbers of rows, each alone or in a list with commas; returns them ascending, once.

    Raises:
        CutError: Not such numbers.
    """
    found: set[int] = set()
    for text in texts:
        for part in text.split(","):
            if not part.strip().isdecimal():
                raise CutError(f"--halo {text!r}: expected rows from 0, as in 16 or 16,32")
            found.add(int(part))
    return tuple(sorted(found))
