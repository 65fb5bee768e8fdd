"""Inputs that are arrays already: ``.npz`` files, and random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Tuple
from zipfile import BadZipFile
from zlib import error as ZlibError  # noqa: N812 (a class, whatever zlib calls it)

import numpy as np

from calibration.parity import seeded_inputs
from engines.errors import SourceError
from engines.manifest import Manifest
from engines.tensors import Array, TensorSpec, check_tensors
from runtime.sources.base import Sample, Source, repeated

__all__ = ["npz_source", "random_source"]

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, BadZipFile, ZlibError)
"""What NumPy and zipfile raise for a damaged, encrypted or foreign archive."""


def random_source(size: int, manifest: Manifest) -> Source:
    """Draw ``size`` samples, from the seeds 0, 1, ...; drawn anew each time, not kept."""
    if size < 1:
        raise SourceError(f"source 'random:{size}': expected at least 1")

    def draw() -> Iterator[Sample]:
        for seed in range(size):
            yield Sample(f"random:{seed}", seeded_inputs(manifest.inputs, seed))

    return Source(draw, size=size)


def npz_source(path: Path, manifest: Manifest) -> Source:
    """Read arrays by input name; with one dimension more than the input, one sample a row."""
    try:
        with path.open("rb") as raw:  # np.load itself leaves a broken archive open
            file = np.load(raw, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise SourceError(f"{path}: one array without a name; save it with np.savez")
            with file:
                arrays = {name: file[name] for name in file.files}
    except _UNREADABLE as exc:
        raise SourceError(f"{path}: not a readable .npz file: {exc}") from exc
    specs = manifest.inputs
    stacked = {spec.name: len(spec.shape) + 1 for spec in specs}
    rows = _rows(specs, arrays)
    samples: List[Sample] = []
    for row in range(rows or 1):
        given = {n: a[row] if rows and a.ndim == stacked.get(n) else a for n, a in arrays.items()}
        inputs = check_tensors(specs, given, where=str(path), hint="see `split-bundle inspect`")
        samples.append(Sample(f"{path.name}[{row}]" if rows else path.name, inputs))
    return repeated(*samples)


def _rows(specs: Tuple[TensorSpec, ...], arrays: Dict[str, Array]) -> int:
    """Return the samples stacked along a leading dimension; 0 if the arrays are one sample."""
    stacked = {
        array.shape[0]
        for spec in specs
        for array in [arrays.get(spec.name)]
        if array is not None and array.ndim == len(spec.shape) + 1
    }
    return stacked.pop() if len(stacked) == 1 else 0
