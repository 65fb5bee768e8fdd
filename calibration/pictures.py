"""Pictures: an image file as a model's raw input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import SourceError
from engines.manifest import ImageLayout
from engines.tensors import Array, TensorSpec

__all__ = ["IMAGE_SUFFIXES", "fit_image", "need_pillow", "open_picture", "read_image"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: Path, spec: TensorSpec, layout: ImageLayout) -> Array:
    """Read an image file into a model's raw input; see :func:`fit_image`.

    Raises:
        SourceError: Not an image, or Pillow is not installed.
    """
    return fit_image(open_picture(path), spec, layout)


def fit_image(picture: Any, spec: TensorSpec, layout: ImageLayout) -> Array:
    """Make a model's raw input, uint8 [1, H, W, 3] or [1, 3, H, W], of a picture.

    The shorter side is scaled to 8/7 of the input's (256 for 224), then the middle is cut out,
    as the usual evaluation of image classifiers does.

    Args:
        picture: An RGB image of Pillow, or an array of one, uint8 [H, W, 3].
        spec: The input.
        layout: How its pixels lie.
    """
    pillow = need_pillow()
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


def open_picture(path: Path) -> Any:
    """Return an image file as an RGB image of Pillow.

    Raises:
        SourceError: Not an image, or Pillow is not installed.
    """
    pillow = need_pillow()
    try:
        with pillow.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as exc:
        raise SourceError(f"{path}: not a readable image: {exc}") from exc


def need_pillow() -> Any:
    """Return Pillow's module.

    Raises:
        SourceError: It is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415 (optional)
    except ImportError as exc:
        raise SourceError(
            "images need Pillow, which is not installed; pip install 'splitrt[codecs]'"
        ) from exc
    return Image
