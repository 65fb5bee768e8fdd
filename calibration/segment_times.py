"""How long segments take on one device, whole and as stripes. Pure.

A stripe does not take its share of the whole time: every operator is launched anew, and small
bands fill a device badly. So stripes are measured at a few shares, and read off in between. Where
nothing was measured, a segment is taken to be a fixed cost for each launch and the rest of its
time by share.
"""

from __future__ import annotations

from typing import List, Mapping, Sequence, Tuple

import msgspec

from engines.manifest import Manifest

__all__ = [
    "LAUNCH_S",
    "SHARES",
    "SegmentTimes",
    "at_shares",
    "estimated_times",
    "launched_s",
    "time_at",
]

SHARES: Tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of a segment's rows at which its stripes are timed."""

LAUNCH_S = 10e-6
"""Taken for the launch of an operator where no stripe was measured. Assumed: between what a
kernel of a desktop GPU and what an operator of ONNX Runtime on a small CPU costs."""


class SegmentTimes(msgspec.Struct, frozen=True):
    """Expected times on one device.

    Attributes:
        segments_s: Seconds of each segment as a whole.
        striped_s: For each segment, seconds of one stripe of it at each of :data:`SHARES`; empty
            where it is not striped or was not measured, and as a whole where nothing was.
        row_splits_s: Likewise for each of ``Striping.row_splits``: of one side's rows, as a share
            of those of the split's base.
    """

    segments_s: Tuple[float, ...]
    striped_s: Tuple[Tuple[float, ...], ...] = ()
    row_splits_s: Tuple[Tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.striped_s and len(self.striped_s) != len(self.segments_s):
            raise ValueError(
                f"expected stripes of {len(self.segments_s)} segments, given {len(self.striped_s)}"
            )
        for points in self.striped_s + self.row_splits_s:
            if points and len(points) != len(SHARES):
                raise ValueError(f"expected {len(SHARES)} times or none, given {len(points)}")

    def stripe_s(self, segment: int, share: float) -> float:
        """Return the seconds of one stripe.

        Args:
            segment: Index of the segment.
            share: Of the segment's rows; above 1 where a stripe computes rows twice.
        """
        points = self.striped_s[segment] if self.striped_s else ()
        return time_at(points, share) if points else launched_s(self.segments_s[segment], share)

    def rows_s(self, split: int, share: float, *, whole_s: float) -> float:
        """Return the seconds of one side's rows of a row split.

        Args:
            split: Place in ``Striping.row_splits``.
            share: Of the rows of the split's base.
            whole_s: Seconds of all that follows the cut, for where no rows were measured.
        """
        points = self.row_splits_s[split] if self.row_splits_s else ()
        return time_at(points, share) if points else launched_s(whole_s, share)


def at_shares(samples: Mapping[float, float]) -> Tuple[float, ...]:
    """Turn times measured at whatever shares could be had into those at :data:`SHARES`.

    Args:
        samples: Seconds by share; one alone is taken to be by share throughout.
    """
    shares = sorted(samples)
    if len(shares) == 1:
        return tuple(samples[shares[0]] * share / shares[0] for share in SHARES)
    points = [samples[share] for share in shares]
    return tuple(time_at(points, share, shares) for share in SHARES)


def time_at(points: Sequence[float], share: float, shares: Sequence[float] = SHARES) -> float:
    """Read a time off the points at some shares, straight lines in between.

    Below the smallest share the first line goes on. But a stripe there takes at least its part of
    the smallest measured one, and at most as long as that: a line through two noisy points must
    not make it free, nor dearer the smaller it is. Beyond the largest share the last line goes on,
    never falling.
    """
    first, last = shares[0], shares[-1]
    if share < first:
        slope = (points[1] - points[0]) / (shares[1] - first)
        line = points[0] + slope * (share - first)
        return min(points[0], max(points[0] * max(share, 0.0) / first, line))
    if share >= last:
        slope = (points[-1] - points[-2]) / (last - shares[-2])
        return points[-1] + max(slope, 0.0) * (share - last)
    place = next(i for i in range(1, len(shares)) if share < shares[i])
    low, high = shares[place - 1], shares[place]
    return points[place - 1] + (points[place] - points[place - 1]) * (share - low) / (high - low)


def launched_s(whole_s: float, share: float, *, launches: int = 1) -> float:
    """Guess the seconds of a stripe: its launches, at most the whole, and the rest by share."""
    fixed = min(whole_s, LAUNCH_S * launches)
    return fixed + max(share, 0.0) * (whole_s - fixed)


def estimated_times(manifest: Manifest, times: SegmentTimes) -> SegmentTimes:
    """Fill in what was not measured of stripes, with a launch for every operator.

    Args:
        manifest: The bundle's manifest.
        times: Times of its segments; measured stripes are kept.
    """
    striping = manifest.striping
    if striping is None:
        return times
    forms = {striped.index for striped in striping.segments}
    for bounded in striping.bounded:
        forms.update(manifest.cuts[bounded.cut].robot_segments)
    striped: List[Tuple[float, ...]] = []
    for segment in manifest.segments:
        points = times.striped_s[segment.index] if times.striped_s else ()
        if not points and segment.index in forms:
            launches = len(segment.operators)
            points = _points(times.segments_s[segment.index], launches)
        striped.append(points)
    splits: List[Tuple[float, ...]] = []
    for place, split in enumerate(striping.row_splits):
        points = times.row_splits_s[place] if place < len(times.row_splits_s) else ()
        if not points:
            before = set(manifest.cuts[split.cut].robot_segments)
            behind = [s for s in manifest.segments if s.index not in before]
            launches = sum(len(segment.operators) for segment in behind)
            points = _points(sum(times.segments_s[s.index] for s in behind), launches)
        splits.append(points)
    return SegmentTimes(times.segments_s, tuple(striped), tuple(splits))


def _points(whole_s: float, launches: int) -> Tuple[float, ...]:
    return tuple(launched_s(whole_s, share, launches=launches) for share in SHARES)
