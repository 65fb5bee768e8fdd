"""Images as inputs: one file, or a folder of them that is read file by file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Dict, Iterator, List

from calibration.pictures import IMAGE_SUFFIXES, fit_image, need_pillow, open_picture, read_image
from engines.errors import SourceError
from engines.manifest import Manifest
from engines.tensors import Array
from runtime.sources.base import Fit, Sample, Source, repeated

__all__ = ["IMAGE_SUFFIXES", "fit_for", "fit_image", "folder_source", "image_source", "read_image"]

logger = logging.getLogger(__name__)

_KEPT_BYTES = 64 << 20
"""Inputs that are kept, so that a small folder is decoded once however often it is run."""


def fit_for(manifest: Manifest, where: str) -> Fit:
    """Return what makes a model's inputs of a picture.

    Raises:
        SourceError: The model takes no raw image, or Pillow is not installed.
    """
    if len(manifest.inputs) != 1 or manifest.inputs[0].name not in manifest.images:
        raise SourceError(
            f"{where}: model {manifest.name!r} takes no raw image; compile it with "
            "--preprocess NAME=imagenet (or your own mean and std), or give an .npz file"
        )
    need_pillow()
    spec = manifest.inputs[0]
    layout = manifest.images[spec.name]
    return lambda picture: {spec.name: fit_image(picture, spec, layout)}


def image_source(path: Path, manifest: Manifest) -> Source:
    """Read one image.

    Raises:
        SourceError: It cannot be read, or the model takes none.
    """
    fit = fit_for(manifest, str(path))
    return repeated(Sample(path.name, fit(open_picture(path))))


def folder_source(folder: Path, manifest: Manifest) -> Source:
    """Read the images of a folder in the order of their names, each when its turn comes.

    A file that cannot be read is left out, with a warning that names it, and counted.

    Raises:
        SourceError: There are none, or the model takes none. In going through them: none of them
            can be read.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as exc:
        raise SourceError(f"{folder}: folder cannot be read: {exc.strerror}") from exc
    if not paths:
        raise SourceError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    fit = fit_for(manifest, str(paths[0]))
    kept: Dict[Path, Dict[str, Array]] = {}
    bad: List[Path] = []
    sizes: List[int] = []

    def once() -> Iterator[Sample]:
        for path in paths:
            if path in bad:
                continue
            inputs = kept.get(path)
            if inputs is None:
                try:
                    inputs = fit(open_picture(path))
                except SourceError as exc:
                    logger.warning("left out: %s", exc)
                    bad.append(path)
                    source.unreadable += 1
                    continue
                sizes.append(sum(array.nbytes for array in inputs.values()))
                if sum(sizes) <= _KEPT_BYTES:
                    kept[path] = inputs
                else:
                    sizes.pop()
            yield Sample(path.name, inputs)
        if len(bad) == len(paths):
            raise SourceError(f"{folder}: none of its {len(paths)} images can be read")

    source = Source(once, size=len(paths))
    return source
