"""Calibrated ranges as codecs take them: which values of a tensor their codes stand for."""

from __future__ import annotations

import hashlib
from typing import Dict, Optional, Tuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.ranges import METHODS, Ranges, TensorRange, stored_ranges
from engines.bundle import Bundle
from engines.codecs.encoders import Encoders, ValueRange
from engines.codecs.quantized import channel_grid
from engines.tensors import TensorSpec

__all__ = ["codec_ranges", "open_encoders", "ranges_digest", "value_range"]

_BY_TENSOR = ("int8", "int8-zstd")
_BY_CHANNEL = "int8-channel"


def open_encoders(bundle: Bundle) -> Encoders:
    """Return what opens a bundle's codecs, with its calibrated ranges where it has some.

    Raises:
        SplitError: They cannot be read, or are of another model.
    """
    return Encoders(codec_ranges(stored_ranges(bundle)))


def codec_ranges(ranges: Optional[Ranges]) -> Dict[Tuple[str, str], ValueRange]:
    """Return the range of every tensor and codec that has one."""
    found: Dict[Tuple[str, str], ValueRange] = {}
    for name, tensor in {} if ranges is None else ranges.tensors.items():
        for method in METHODS:
            whole = value_range(tensor, method)
            if whole is not None:
                found.update({(name, f"{base}:{method}"): whole for base in _BY_TENSOR})
            by_channel = value_range(tensor, method, channels=True)
            if by_channel is not None:
                found[name, f"{_BY_CHANNEL}:{method}"] = by_channel
    return found


def value_range(
    tensor: TensorRange, method: str, *, channels: bool = False
) -> Optional[ValueRange]:
    """Return the values that codes are to stand for; none where none was finite.

    A threshold is of |value|; where fewer values were seen below 0, or above, codes end there.

    Args:
        tensor: What was seen of it.
        method: One of ``calibration.ranges.METHODS``.
        channels: Whether there is to be a range for each channel; none too where that would be
            no better.
    """
    if not tensor.values:
        return None
    if not channels:
        threshold = np.asarray([tensor.threshold(method)], np.float64)
        least, most = np.asarray([tensor.minimum]), np.asarray([tensor.maximum])
        return _within(least, most, threshold)
    thresholds = tensor.channel_thresholds(method)
    if thresholds is None or tensor.channels is None:
        return None
    spec = TensorSpec("", tensor.dtype, tensor.shape)
    if thresholds.size != channel_grid(spec)[1]:
        return None
    least = np.asarray(tensor.channels.minimum, np.float64)
    most = np.asarray(tensor.channels.maximum, np.float64)
    # What thresholds were raised by, so are the ends: other data goes beyond those too.
    seen = np.maximum(np.abs(least), np.abs(most))
    room = np.maximum(thresholds / np.where(seen > 0, seen, 1), 1)
    return _within(np.minimum(least, least * room), np.maximum(most, most * room), thresholds)


def _within(
    least: "NDArray[np.float64]", most: "NDArray[np.float64]", threshold: "NDArray[np.float64]"
) -> ValueRange:
    low = np.maximum(least, -threshold)
    return ValueRange(low, np.maximum(np.minimum(most, threshold), low))


def ranges_digest(ranges: Optional[Ranges]) -> str:
    """Return what tells ranges from others; nothing where there are none."""
    return "" if ranges is None else hashlib.sha256(msgspec.json.encode(ranges)).hexdigest()
