"""Where inputs come from: an image, a folder of images, an ``.npz`` file, or random numbers.

A source yields the model's inputs by name, over and over for as long as it is asked.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple
from zipfile import BadZipFile
from zlib import error as ZlibError  # noqa: N812 (a class, whatever zlib calls it)

import numpy as np

from calibration.parity import seeded_inputs
from calibration.pictures import IMAGE_SUFFIXES, read_image
from engines.errors import SourceError
from engines.manifest import Manifest
from engines.tensors import Array, TensorSpec, check_tensors

__all__ = ["Sample", "Source", "open_source"]

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, BadZipFile, ZlibError)
"""What NumPy and zipfile raise for a damaged, encrypted or foreign archive."""


class Sample(NamedTuple):
    """One inference's inputs.

    Attributes:
        name: Where they come from, for people.
        inputs: Arrays by name.
    """

    name: str
    inputs: Dict[str, Array]


class Source(NamedTuple):
    """Samples to run.

    Attributes:
        size: Samples before they repeat.
        samples: All of them, over and over.
    """

    size: int
    samples: Iterator[Sample]


def open_source(text: str, manifest: Manifest) -> Source:
    """Open ``IMAGE``, ``FOLDER``, ``FILE.npz`` or ``random:N`` (N different draws).

    Args:
        text: What the user gave.
        manifest: What the inputs must fit.

    Raises:
        SourceError: No such source, or it does not fit the model.
        TensorMismatchError: The arrays of an ``.npz`` do not fit the model.
    """
    drawn = re.fullmatch(r"random:(\d+)", text)
    if drawn:
        return _random(int(drawn.group(1)), manifest)
    path = Path(text)
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise SourceError(f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
        return _images(images, manifest)
    if not path.is_file():
        raise SourceError(
            f"source {text!r}: no such file; expected an image, a folder of images, "
            "an .npz file or random:N"
        )
    if path.suffix.lower() == ".npz":
        return _npz(path, manifest)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _images([path], manifest)
    raise SourceError(
        f"{path}: expected .npz or an image ({', '.join(IMAGE_SUFFIXES)}), given {path.suffix!r}"
    )


def _random(size: int, manifest: Manifest) -> Source:
    """Draw ``size`` samples, from the seeds 0, 1, ...; drawn anew each time, not kept."""
    if size < 1:
        raise SourceError(f"source 'random:{size}': expected at least 1")

    def draw() -> Iterator[Sample]:
        for seed in itertools.cycle(range(size)):
            yield Sample(f"random:{seed}", seeded_inputs(manifest.inputs, seed))

    return Source(size, draw())


def _npz(path: Path, manifest: Manifest) -> Source:
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
    return _repeated(samples)


def _rows(specs: Tuple[TensorSpec, ...], arrays: Dict[str, Array]) -> int:
    """Return the samples stacked along a leading dimension; 0 if the arrays are one sample."""
    stacked = {
        array.shape[0]
        for spec in specs
        for array in [arrays.get(spec.name)]
        if array is not None and array.ndim == len(spec.shape) + 1
    }
    return stacked.pop() if len(stacked) == 1 else 0


def _images(paths: List[Path], manifest: Manifest) -> Source:
    if len(manifest.inputs) != 1 or manifest.inputs[0].name not in manifest.images:
        raise SourceError(
            f"{paths[0]}: model {manifest.name!r} takes no raw image; compile it with "
            "--preprocess NAME=imagenet (or your own mean and std), or give an .npz file"
        )
    spec = manifest.inputs[0]
    layout = manifest.images[spec.name]
    samples = [Sample(path.name, {spec.name: read_image(path, spec, layout)}) for path in paths]
    return _repeated(samples)


def _repeated(samples: List[Sample]) -> Source:
    return Source(len(samples), itertools.cycle(samples))
