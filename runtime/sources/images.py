"""Images as inputs: one file, or a folder of them that is read file by file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np

from engines.errors import SourceError
from engines.manifest import ImageLayout, Manifest
from engines.tensors import Array, TensorSpec
from runtime.sources.base import Fit, Sample, Source, repeated

__all__ = ["IMAGE_SUFFIXES", "fit_for", "fit_image", "folder_source", "image_source", "read_image"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

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
    _pillow()
    spec = manifest.inputs[0]
    layout = manifest.images[spec.name]
    return lambda picture: {spec.name: fit_image(picture, spec, layout)}


def image_source(path: Path, manifest: Manifest) -> Source:
    """Read one image.

    Raises:
        SourceError: It cannot be read, or the model takes none.
    """
    fit = fit_for(manifest, str(path))
    return repeated(Sample(path.name, fit(_picture(path))))


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
                    inputs = fit(_picture(path))
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


def read_image(path: Path, spec: TensorSpec, layout: ImageLayout) -> Array:
    """Read an image file into a model's raw input; see :func:`fit_image`.

    Raises:
        SourceError: Not an image, or Pillow is not installed.
    """
    return fit_image(_picture(path), spec, layout)


def fit_image(picture: Any, spec: TensorSpec, layout: ImageLayout) -> Array:
    """Make a model's raw input, uint8 [1, H, W, 3] or [1, 3, H, W], of a picture.

    The shorter side is scaled to 8/7 of the input's (256 for 224), then the middle is cut out,
    as the usual evaluation of image classifiers does.

    Args:
        picture: An RGB image of Pillow, or an array of one, uint8 [H, W, 3].
        spec: The input.
        layout: How its pixels lie.
    """
    pillow = _pillow()
    if isinstance(picture, np.ndarray):
        picture = pillow.fromarray(picture)
    height, width = spec.shape[1:3] if layout.layout == "NHWC" else spec.shape[2:4]
    scale = max(height / picture.height, width / picture.width) * 8 / 7
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(size, pillow.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)))
    if layout.color == "bgr":
        pixels = pixels[:, :, ::-1]
    if layout.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[np.newaxis])


def _picture(path: Path) -> Any:
    pillow = _pillow()
    try:
        with pillow.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as exc:
        raise SourceError(f"{path}: not a readable image: {exc}") from exc


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 (optional)
    except ImportError as exc:
        raise SourceError(
            "images need Pillow, which is not installed; pip install 'splitrt[codecs]'"
        ) from exc
    return Image
