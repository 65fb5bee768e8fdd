"""Collects ranges from a stream of runs; what it keeps does not grow with their number."""

from __future__ import annotations

import itertools
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from calibration.histogram import Histogram
from calibration.ranges import SPEC, ChannelRanges, Ranges, TensorRange
from calibration.samples import DataDigest, Samples
from engines.errors import SourceError
from engines.program import Program
from engines.tensors import Array

__all__ = ["FEW", "PERCENTILE", "Collector", "calibrate_cuts", "collect", "no_progress"]

PERCENTILE = 99.99
"""Share of |value|, in percent, that a percentile threshold is at."""

FEW = 8
"""Fewer samples than this are reported: some 30 to 500 are usual."""

_BINS = 2048
_CHANNEL_BINS = 128
"""Bins on either side of 0: for a whole tensor, and for each of up to thousands of channels."""

_SHOWN = 4
"""Most tensors that one warning names."""

Run = Callable[[Mapping[str, Array]], Iterable[Tuple[str, Array]]]
"""From the inputs of one inference to named values; a name may come once only."""


def no_progress(done: int, total: Optional[int]) -> None:
    """Ignore how far it is."""


class Collector:
    """The ranges of some tensors so far."""

    def __init__(self, percentile: float = PERCENTILE) -> None:
        if not 50 < percentile <= 100:
            raise SourceError(f"percentile: expected above 50 and up to 100, given {percentile}")
        self._share = percentile / 100
        self._tensors: Dict[str, _Tensor] = {}

    def add(self, name: str, values: Array) -> None:
        """Count the values of a tensor in one inference; integers and booleans are ignored."""
        if values.dtype.kind != "f":
            return
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._tensors[name] = _Tensor(values)
        tensor.add(values)

    def ranges(self) -> Dict[str, TensorRange]:
        """Return what was found so far, by name."""
        return {name: self._tensors[name].range(self._share) for name in sorted(self._tensors)}


class _Tensor:
    """Histograms of one tensor: of all its values, and of every channel's."""

    def __init__(self, like: Array) -> None:
        self._dtype = like.dtype.name
        self._shape = like.shape
        # [N, C, ...] of convolutions; [N, tokens, C] of transformers; [N, C].
        self._axis = None if like.ndim < 2 else (2 if like.ndim == 3 else 1)
        channels = 1 if self._axis is None else like.shape[self._axis]
        self._all = Histogram(1, _BINS)
        self._by_channel = None if self._axis is None else Histogram(channels, _CHANNEL_BINS)
        self._lowest = np.full(channels, np.inf)
        self._highest = np.full(channels, -np.inf)
        self._values = 0
        self._nan = 0
        self._infinite = 0

    def add(self, values: Array) -> None:
        wide = values.astype(np.float64 if values.dtype == np.float64 else np.float32, copy=False)
        rows = (
            wide.reshape(1, -1)
            if self._axis is None
            else np.moveaxis(wide, self._axis, 0).reshape(wide.shape[self._axis], -1)
        )
        finite = np.isfinite(rows)
        whole = bool(finite.all())
        if not whole:
            nan = int(np.count_nonzero(np.isnan(rows)))
            self._nan += nan
            self._infinite += int(rows.size - np.count_nonzero(finite)) - nan
        self._values += int(np.count_nonzero(finite))
        if not rows.size:
            return
        low = rows if whole else np.where(finite, rows, np.inf)
        high = rows if whole else np.where(finite, rows, -np.inf)
        self._lowest = np.minimum(self._lowest, low.min(axis=1))
        self._highest = np.maximum(self._highest, high.max(axis=1))
        if whole:
            self._all.add(rows.reshape(1, -1))
            if self._by_channel is not None:
                self._by_channel.add(rows)
            return
        self._all.add(rows[finite].reshape(1, -1))
        if self._by_channel is not None:
            # Zeros in the place of what is not finite: they move no threshold to speak of.
            self._by_channel.add(np.where(finite, rows, 0))

    def range(self, share: float) -> TensorRange:
        lowest = np.where(np.isfinite(self._lowest), self._lowest, 0.0)
        highest = np.where(np.isfinite(self._highest), self._highest, 0.0)
        least, most = float(lowest.min(initial=np.inf)), float(highest.max(initial=-np.inf))
        least, most = (v if np.isfinite(v) else 0.0 for v in (least, most))
        tail = (1 - share) / 2
        channels = None
        if self._by_channel is not None and self._axis is not None:
            channels = ChannelRanges(
                axis=self._axis,
                minimum=_floats(lowest),
                maximum=_floats(highest),
                percentile=_floats(self._by_channel.magnitude_quantile(share)),
                mse=_floats(self._by_channel.least_squares()),
            )
        return TensorRange(
            dtype=self._dtype,
            shape=self._shape,
            minimum=least,
            maximum=most,
            low=max(least, float(self._all.quantile(tail)[0])),
            high=min(most, float(self._all.quantile(1 - tail)[0])),
            percentile=float(self._all.magnitude_quantile(share)[0]),
            mse=float(self._all.least_squares()[0]),
            nan=self._nan,
            infinite=self._infinite,
            values=self._values,
            channels=channels,
        )


def collect(
    run: Run,
    samples: Samples,
    *,
    model: str,
    percentile: float = PERCENTILE,
    progress: Callable[[int, Optional[int]], Any] = no_progress,
) -> Ranges:
    """Run samples and collect the ranges of all that the runs give.

    Args:
        run: Runs one inference.
        samples: The data.
        model: SHA-256 of graph and weights.
        percentile: Share of |value|, in percent, that percentile thresholds are at.
        progress: Called with (samples done, samples in all if that is known).

    Raises:
        SourceError: There are no samples, or one cannot be read.
    """
    collector = Collector(percentile)
    digest = DataDigest()
    done = 0
    for sample in samples:
        digest.add(sample.inputs)
        for name, values in run(sample.inputs):
            collector.add(name, values)
        done += 1
        progress(done, samples.size)
    if not done:
        raise SourceError(f"{samples.name}: expected at least one sample, found none")
    tensors = collector.ranges()
    return Ranges(
        spec=SPEC,
        model=model,
        data=digest.hexdigest(),
        samples=done,
        percentile=percentile,
        tensors=tensors,
        warnings=tuple(_warnings(digest, done, tensors)),
    )


def calibrate_cuts(
    program: Program,
    samples: Samples,
    *,
    percentile: float = PERCENTILE,
    progress: Callable[[int, Optional[int]], Any] = no_progress,
) -> Ranges:
    """Collect the ranges of every tensor that crosses some cut, and of the outputs.

    Args:
        program: The bundle, its whole chain of segments loaded.
        samples: The data.
        percentile: As :func:`collect` takes it.
        progress: Called with (samples done, samples in all if that is known).

    Raises:
        SourceError: There are no samples, or one cannot be read.
        EngineError: The backend failed.
    """

    def run(inputs: Mapping[str, Array]) -> Iterable[Tuple[str, Array]]:
        seen: Dict[str, None] = {}
        for _, env in program.frontiers(inputs):
            for name, values in env.items():
                if name not in seen:
                    seen[name] = None
                    yield name, values

    return collect(
        run,
        samples,
        model=program.bundle.manifest.model_digest,
        percentile=percentile,
        progress=progress,
    )


def _warnings(
    digest: DataDigest, samples: int, tensors: Mapping[str, TensorRange]
) -> Iterable[str]:
    if samples < FEW:
        count = "sample" if samples == 1 else "samples"
        yield f"only {samples} {count}: the ranges miss values; give {FEW} or more, better 100"
    elif digest.constant:
        yield f"all {samples} samples are equal: the ranges are those of one; give others"
    broken = {
        n: f"{t.nan} NaN, {t.infinite} infinite" for n, t in tensors.items() if t.nan + t.infinite
    }
    if broken:
        shown = "; ".join(f"{n!r}: {text}" for n, text in itertools.islice(broken.items(), _SHOWN))
        more = f" and {len(broken) - _SHOWN} more tensors" if len(broken) > _SHOWN else ""
        yield f"values that are not finite, left out of the ranges: {shown}{more}"
    constant = [n for n, t in tensors.items() if t.minimum == t.maximum and n not in broken]
    if constant:
        yield f"constant over all samples: {_named(constant)}"


def _named(names: List[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _floats(values: Array) -> Tuple[float, ...]:
    return tuple(float(value) for value in values)
