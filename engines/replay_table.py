"""Replay tables: how long each operator of a bundle takes on a device that is not here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Optional, Tuple

import msgspec
import numpy as np

from engines.errors import IncompatibleError

__all__ = ["ReplayTable", "read_replay_table"]


class ReplayTable(msgspec.Struct, frozen=True, kw_only=True):
    """Operator times of a bundle's segments on one device.

    Attributes:
        bundle: Digest of the bundle.
        device: Which device, for people.
        floor_ms: Time of a launch: no operator takes less for a part of its rows, unless all of
            them take less.
        segments_ms: For each segment the time of each of its operators, in order of execution.
            What a row split divides are the segments behind its cut.
        values: File with the tensors to give, a ``.npz`` by tensor name, beside the table; empty
            for zeros.
        jitter: Standard deviation of the logarithm of each run's time; 0 for none.
        seed: Of the jitter.
    """

    bundle: str
    device: str
    floor_ms: float
    segments_ms: Tuple[Tuple[float, ...], ...]
    values: str = ""
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        times = [ms for segment in self.segments_ms for ms in segment]
        for number in (self.floor_ms, self.jitter, *times):
            if not 0 <= number < math.inf:
                raise ValueError(f"expected times and jitter of 0 or more, given {number}")

    def segment_s(self, segment: int, shares: Optional[Tuple[float, float]] = None) -> float:
        """Return the seconds of a segment, or of a stripe of it.

        Args:
            segment: Index of the segment.
            shares: Of a stripe: which part of their rows the tensors have that go in, and those
                that come out; the operators in between lie between the two. None for all rows.
        """
        times = np.asarray(self.segments_ms[segment], np.float64)
        if shares is None or not times.size:
            return float(times.sum()) * 1e-3
        first, last = shares
        share = first + (last - first) * np.arange(1, times.size + 1) / times.size
        least = np.minimum(times, self.floor_ms)
        return float(np.maximum(least, share * times).sum()) * 1e-3


def read_replay_table(path: Path) -> ReplayTable:
    """Read a table.

    Raises:
        IncompatibleError: It cannot be read, or is not one.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReplayTable)
    except OSError as exc:
        raise IncompatibleError(f"{path}: {exc.strerror}; expected a replay table") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise IncompatibleError(f"{path}: not a replay table: {exc}") from exc
