"""Latency tables: how long each segment takes on one device, kept beside the bundle."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Optional, Tuple

import msgspec

from calibration.records import read_record
from calibration.segment_times import SHARES, SegmentTimes
from engines.bundle import Bundle
from engines.errors import SplitError
from engines.files import write_at_once
from engines.fingerprint import Fingerprint

__all__ = ["LatencyTable", "Timing", "load_table", "read_table", "store_table", "table_path"]

logger = logging.getLogger(__name__)


class Timing(msgspec.Struct, frozen=True):
    """Quantiles of a measured time, in seconds."""

    p50_s: float
    p95_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.p50_s < math.inf and 0 <= self.p95_s < math.inf):
            raise ValueError(f"expected seconds of 0 or more, given {self.p50_s}, {self.p95_s}")


class LatencyTable(msgspec.Struct, frozen=True, kw_only=True):
    """Measured times of a bundle's segments on one device.

    Attributes:
        bundle: Digest of the bundle.
        fingerprint: What the times are valid for.
        runs: Timed runs of each segment.
        segments: One timing a segment, in order, each run within its chain.
        whole: The whole model in one fused engine.
        striped: For each segment, one stripe of it at each of ``SHARES``; empty where it has no
            striped form or was not timed as stripes, and as a whole where nothing was.
        row_splits: Likewise for each row split of the bundle.
    """

    bundle: str
    fingerprint: Fingerprint
    runs: int
    segments: Tuple[Timing, ...]
    whole: Timing
    striped: Tuple[Tuple[Timing, ...], ...] = ()
    row_splits: Tuple[Tuple[Timing, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.striped and len(self.striped) != len(self.segments):
            raise ValueError(
                f"expected stripes of {len(self.segments)} segments, given {len(self.striped)}"
            )
        if any(points and len(points) != len(SHARES) for points in self.striped + self.row_splits):
            raise ValueError(f"expected {len(SHARES)} timings of stripes, or none")

    @property
    def fused_ratio(self) -> float:
        """Time of the fused whole over the time of the chain, at most 1.

        The runtime runs fused halves where it has them; their time is estimated as this ratio of
        their segments' time.
        """
        chain = sum(segment.p50_s for segment in self.segments)
        return min(1.0, self.whole.p50_s / chain) if chain > 0 else 1.0

    def times(self) -> SegmentTimes:
        """Return the expected times: medians, those of whole segments as if fused.

        Stripes run segment by segment, so theirs are as measured.
        """
        ratio = self.fused_ratio
        return SegmentTimes(
            segments_s=tuple(segment.p50_s * ratio for segment in self.segments),
            striped_s=tuple(tuple(t.p50_s for t in points) for points in self.striped),
            row_splits_s=tuple(tuple(t.p50_s for t in points) for points in self.row_splits),
        )


def table_path(bundle: Bundle, fingerprint: Fingerprint) -> Path:
    """Return where this device keeps its table for a bundle."""
    return bundle.device_folder / f"latency-{fingerprint.key}.json"


def store_table(bundle: Bundle, table: LatencyTable) -> Path:
    """Write ``table`` beside the bundle, whole or not at all, and return its path.

    Raises:
        SplitError: The device folder cannot be written.
    """
    path = table_path(bundle, table.fingerprint)
    try:
        write_at_once(path, msgspec.json.format(msgspec.json.encode(table), indent=1))
    except OSError as exc:
        raise SplitError(f"{path}: latency table cannot be written: {exc.strerror}") from exc
    return path


def read_table(path: Path) -> LatencyTable:
    """Read a latency table from a file.

    Raises:
        SplitError: It cannot be read, or is not one.
    """
    return read_record(path, LatencyTable, "a latency table")


def load_table(bundle: Bundle, fingerprint: Fingerprint) -> Optional[LatencyTable]:
    """Return this device's table for this very bundle, or none. A damaged table is no table."""
    path = table_path(bundle, fingerprint)
    if not path.exists():
        return None
    try:
        table = read_table(path)
    except SplitError as exc:
        logger.warning("ignored: %s", exc)
        return None
    fits = len(table.segments) == len(bundle.manifest.segments)
    if table.bundle != bundle.digest or table.fingerprint != fingerprint or not fits:
        return None
    return table
