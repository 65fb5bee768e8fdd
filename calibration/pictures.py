"""Pictures: an image file as a model's raw input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import SourceError
from engines.manifest import ImageLayout
from engines.tensors import Array, TensorSpec

__all__ = ["IMAGE_SUFFIXES", "read_image"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: Path, spec: TensorSpec, layout: ImageLayout) -> Array:
    """Read an image into a model's raw input, uint8 [1, H, W, 3] or [1, 3, H, W].

    The shorter side is scaled to 8/7 of the input's (256 for 224), then the middle is cut out,
    as the usual evaluation of image classifiers does.

    Raises:
        SourceError: Not an image, or Pillow is not installed.
    """
    pillow = _pillow()
    height, width = spec.shape[1:3] if layout.layout == "NHWC" else spec.shape[2:4]
    try:
        with pillow.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as exc:
        raise SourceError(f"{path}: not a readable image: {exc}") from exc
    scale = max(height / image.height, width / image.width) * 8 / 7
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, pillow.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    if layout.color == "bgr":
        pixels = pixels[:, :, ::-1]
    if layout.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[np.newaxis])


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 (optional)
    except ImportError as exc:
        raise SourceError(
            "images need Pillow, which is not installed; pip install 'splitrt[codecs]'"
        ) from exc
    return Image
