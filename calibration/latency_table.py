"""Latency tables: how long each segment takes on one device, kept beside the bundle."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Optional, Tuple

import msgspec

from calibration.codings import CodecCost
from calibration.records import read_record, write_record
from calibration.segment_times import SHARES, SegmentTimes
from engines.bundle import Bundle
from engines.errors import SplitError
from engines.fingerprint import Fingerprint
from engines.halves import Span

__all__ = [
    "PAYS",
    "HalfTiming",
    "LatencyTable",
    "Timing",
    "load_table",
    "read_table",
    "store_table",
    "table_path",
]

logger = logging.getLogger(__name__)


PAYS = 1.03
"""Time of a chain over that of its fused half from which on the half is worth its memory."""


class Timing(msgspec.Struct, frozen=True):
    """Quantiles of a measured time, in seconds."""

    p50_s: float
    p95_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.p50_s < math.inf and 0 <= self.p95_s < math.inf):
            raise ValueError(f"expected seconds of 0 or more, given {self.p50_s}, {self.p95_s}")


class HalfTiming(msgspec.Struct, frozen=True):
    """The two ways through one half, measured in turns.

    Attributes:
        start: Index of the first cut.
        stop: Index of the last cut.
        chain: Segment by segment.
        fused: In one engine.
    """

    start: int
    stop: int
    chain: Timing
    fused: Timing

    @property
    def ratio(self) -> float:
        """Median of the chain over that of the fused half."""
        if self.fused.p50_s > 0:
            return self.chain.p50_s / self.fused.p50_s
        return math.inf if self.chain.p50_s > 0 else 1.0

    @property
    def pays(self) -> bool:
        """Whether the fused half is to be used."""
        return self.ratio > PAYS


class LatencyTable(msgspec.Struct, frozen=True, kw_only=True):
    """Measured times of a bundle's segments on one device.

    Attributes:
        bundle: Digest of the bundle.
        fingerprint: What the times are valid for.
        runs: Timed runs of each segment.
        segments: One timing a segment, in order, each run within its chain.
        striped: For each segment, one stripe of it at each of ``SHARES``; empty where it has no
            striped form or was not timed as stripes, and as a whole where nothing was.
        row_splits: Likewise for each row split of the bundle.
        whole: The whole model as it is run: in one fused engine, or as a chain where that has no
            plan or does not pay.
        halves: Likely halves, both ways; empty where they were not measured.
        codecs: What codecs make of what may cross the link; empty where they were not measured.
    """

    bundle: str
    fingerprint: Fingerprint
    runs: int
    segments: Tuple[Timing, ...]
    whole: Timing
    striped: Tuple[Tuple[Timing, ...], ...] = ()
    row_splits: Tuple[Tuple[Timing, ...], ...] = ()
    halves: Tuple[HalfTiming, ...] = ()
    codecs: Tuple[CodecCost, ...] = ()

    def __post_init__(self) -> None:
        if self.striped and len(self.striped) != len(self.segments):
            raise ValueError(
                f"expected stripes of {len(self.segments)} segments, given {len(self.striped)}"
            )
        if any(points and len(points) != len(SHARES) for points in self.striped + self.row_splits):
            raise ValueError(f"expected {len(SHARES)} timings of stripes, or none")

    @property
    def chained(self) -> Tuple[Span, ...]:
        """Halves that were measured not to pay."""
        return tuple((half.start, half.stop) for half in self.halves if not half.pays)

    @property
    def fused_ratio(self) -> float:
        """Time of the whole as it is run over the sum of its segments' times, at most 1.

        The runtime runs fused halves where they pay; the time of a head or a tail is estimated as
        this ratio of its segments' time.
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
    write_record(path, table, "latency table")
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
    last = len(bundle.manifest.cuts) - 1
    fits = len(table.segments) == len(bundle.manifest.segments) and all(
        0 <= half.start < half.stop <= last for half in table.halves
    )
    if table.bundle != bundle.digest or table.fingerprint != fingerprint or not fits:
        return None
    return table
