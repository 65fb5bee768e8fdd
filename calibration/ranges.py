"""Ranges: which values every tensor that may cross a cut takes, as records a robot can read.

They lie in the bundle (``ranges.json``) where it was compiled with ``--calibrate``, or in its
device folder where ``split-bundle calibrate`` wrote them, which then counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional, Tuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.records import read_record, write_record
from engines.bundle import Bundle
from engines.codecs import METHODS
from engines.errors import SplitError

__all__ = [
    "ENOUGH",
    "ENOUGH_BY_CHANNEL",
    "LEAST_BY_CHANNEL",
    "LEVELS",
    "METHODS",
    "RANGES_FILE",
    "SPEC",
    "ChannelRanges",
    "Ranges",
    "TensorRange",
    "dequantised",
    "quantised",
    "read_ranges",
    "scale_of",
    "stored_ranges",
    "write_ranges",
]

SPEC = 1
"""Version of the records' schema; another one is refused."""

RANGES_FILE = "ranges.json"

LEVELS = 127
"""Largest code: symmetric int8 leaves -128 out, so that codes and their negatives are alike."""


ENOUGH = 1_000_000
ENOUGH_BY_CHANNEL = 100_000
LEAST_BY_CHANNEL = 1024
_ROOM = 1.5
"""How many values thresholds need, of a tensor and of a channel, to hold for other data.

Measured on EfficientNet-lite0 over photographs that calibration had not seen: with fewer than a
million values of a tensor, clipping some cost up to twice the error of clipping none; with fewer
than 100 000 of a channel, half as much room again took up to four fifths of the error away; with
one value a sample, thresholds by channel lost a third of the labels.
"""


class ChannelRanges(msgspec.Struct, frozen=True, kw_only=True):
    """The same as :class:`TensorRange` says, channel by channel.

    Attributes:
        axis: The dimension of the channels.
        minimum: Smallest value.
        maximum: Largest value.
        percentile: Threshold that all but a small share of |value| is within.
        mse: Threshold of the least squared error.
    """

    axis: int
    minimum: Tuple[float, ...]
    maximum: Tuple[float, ...]
    percentile: Tuple[float, ...]
    mse: Tuple[float, ...]


class TensorRange(msgspec.Struct, frozen=True, kw_only=True):
    """The values that one tensor took.

    Attributes:
        dtype: The tensor's dtype.
        shape: Its shape.
        minimum: Smallest finite value.
        maximum: Largest finite value.
        low: Value that a small share of the values lies below.
        high: Value that the same share lies above.
        percentile: Threshold that all but that share of |value| is within.
        mse: Threshold of the least squared error of symmetric int8.
        nan: How many NaN there were; they count for nothing else.
        infinite: How many infinities; likewise.
        values: How many finite values there were.
        channels: The same by channel; none where the tensor has no channels.
    """

    dtype: str
    shape: Tuple[int, ...]
    minimum: float
    maximum: float
    low: float
    high: float
    percentile: float
    mse: float
    nan: int = 0
    infinite: int = 0
    values: int = 0
    channels: Optional[ChannelRanges] = None

    def threshold(self, method: str) -> float:
        """Return the largest |value| that a code stands for, by one of :data:`METHODS`.

        Of fewer than :data:`ENOUGH` values nothing is clipped, whatever the method.
        """
        if method == "minmax" or self.values < ENOUGH:
            return max(abs(self.minimum), abs(self.maximum))
        return self.percentile if method == "percentile" else self.mse

    def channel_thresholds(self, method: str) -> "Optional[NDArray[np.float64]]":
        """Return the same for every channel; none where that would be no better.

        That is, where the tensor has no channels, or each had fewer than :data:`LEAST_BY_CHANNEL`
        values. Of fewer than :data:`ENOUGH_BY_CHANNEL`, thresholds are raised by half, up to the
        tensor's largest value: other data would have gone beyond them.
        """
        if self.channels is None or not self.channels.mse:
            return None
        values = self.values // len(self.channels.mse)
        if values < LEAST_BY_CHANNEL:
            return None
        found = np.maximum(np.abs(self.channels.minimum), np.abs(self.channels.maximum))
        if method != "minmax":
            chosen = self.channels.percentile if method == "percentile" else self.channels.mse
            found = np.asarray(chosen, np.float64)
        if values < ENOUGH_BY_CHANNEL:
            found = np.minimum(_ROOM * found, self.threshold("minmax"))
        return found


class Ranges(msgspec.Struct, frozen=True, kw_only=True):
    """The ranges of a bundle's tensors over some data.

    Attributes:
        spec: Version of this schema.
        model: SHA-256 of graph and weights, ``model_digest`` in the manifest.
        data: SHA-256 of the data; see ``calibration.samples``.
        samples: How many samples it has.
        percentile: Share of |value|, in percent, that the percentile thresholds are at.
        tensors: By name; floating-point tensors only, the others need none.
        warnings: What makes the ranges doubtful, a line each.
    """

    spec: int
    model: str
    data: str
    samples: int
    percentile: float
    tensors: Dict[str, TensorRange]
    warnings: Tuple[str, ...] = ()


def scale_of(threshold: "float | NDArray[np.float64]") -> "NDArray[np.float32]":
    """Return the real units per code; where nothing but zeros was seen, those of 1."""
    wide = np.where(np.asarray(threshold) > 0, threshold, 1.0)
    # Not 0 in float32: what is that small is all zeros anyway.
    return np.maximum(wide / LEVELS, np.finfo(np.float32).tiny).astype(np.float32)


def quantised(
    values: "NDArray[np.floating]",
    scale: "NDArray[np.float32]",
    axis: Optional[int] = None,
) -> "NDArray[np.int8]":
    """Return symmetric int8 codes.

    Args:
        values: What to quantise.
        scale: One, or one for each channel.
        axis: The dimension of the channels.

    Source:
        ONNX QuantizeLinear: round half to even, then saturate; here at -127.
    """
    codes = np.rint(values / _along(scale, values.ndim, axis))
    found: "NDArray[np.int8]" = np.clip(codes, -LEVELS, LEVELS).astype(np.int8)
    return found


def dequantised(
    codes: "NDArray[np.int8]", scale: "NDArray[np.float32]", axis: Optional[int] = None
) -> "NDArray[np.float32]":
    """Return what symmetric int8 codes stand for."""
    found: "NDArray[np.float32]" = codes.astype(np.float32) * _along(scale, codes.ndim, axis)
    return found


def _along(scale: "NDArray[np.float32]", rank: int, axis: Optional[int]) -> "NDArray[np.float32]":
    if axis is None or scale.ndim == 0:
        return scale
    shape = [1] * rank
    shape[axis] = scale.size
    return scale.reshape(shape)


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write ranges, whole or not at all.

    Raises:
        SplitError: The file cannot be written.
    """
    write_record(path, ranges, "ranges")


def read_ranges(path: Path) -> Ranges:
    """Read ranges.

    Raises:
        SplitError: They cannot be read, or are of another schema.
    """
    ranges = read_record(path, Ranges, "ranges that `split-bundle calibrate` wrote")
    if ranges.spec != SPEC:
        raise SplitError(
            f"{path}: expected schema {SPEC}, given {ranges.spec}; "
            "run `split-bundle calibrate BUNDLE DATA` again"
        )
    return ranges


def stored_ranges(bundle: Bundle) -> Optional[Ranges]:
    """Return the ranges of a bundle: those measured here, else those that it came with.

    Raises:
        SplitError: They cannot be read, or are of another model.
    """
    path = bundle.device_folder / RANGES_FILE
    if not path.is_file():
        if not bundle.manifest.ranges:
            return None
        path = bundle.path(bundle.manifest.ranges)
    ranges = read_ranges(path)
    if ranges.model != bundle.manifest.model_digest:
        raise SplitError(
            f"{path}: expected ranges of model {bundle.manifest.model_digest[:12]}, given those "
            f"of {ranges.model[:12]}; run `split-bundle calibrate BUNDLE DATA` again"
        )
    return ranges
