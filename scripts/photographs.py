"""Crops of photographs that Python packages carry, as inputs of ImageNet classifiers.

Half of the photographs are for calibration, the others are held out: no crop of one half shows
anything of the other. ``split-compile --calibrate scripts/photographs.py:calibration_lite`` takes
them as EfficientNet-lite0 wants them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "PHOTOGRAPHS",
    "calibration_imagenet",
    "calibration_lite",
    "held_out",
    "held_out_lite",
    "imagenet",
    "lite",
]

PHOTOGRAPHS = (
    *("skimage:astronaut.png", "skimage:brick.png", "skimage:camera.png", "skimage:cell.png"),
    *("skimage:chelsea.png", "skimage:coffee.png", "skimage:coins.png", "skimage:grass.png"),
    *("skimage:gravel.png", "skimage:hubble_deep_field.jpg", "skimage:ihc.png"),
    *("skimage:moon.png", "skimage:motorcycle_left.png", "skimage:page.png"),
    *("skimage:retina.jpg", "skimage:rocket.jpg", "skimage:clock_motion.png"),
    *("sklearn.datasets:images/china.jpg", "sklearn.datasets:images/flower.jpg"),
    "matplotlib:mpl-data/sample_data/grace_hopper.jpg",
)
"""Package and file; every other one is held out."""

SIDE = 224
_CROPS = 8
"""Crops of each photograph."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def crops(photographs: tuple[str, ...], seed: int) -> Iterator[Pixels]:
    """Yield square crops of half to all of the shorter side, uint8 [224, 224, 3]."""
    random = np.random.default_rng(seed)
    for name in photographs:
        with Image.open(path_of(name)) as opened:
            image = opened.convert("RGB")
        for _ in range(_CROPS):
            side = int(random.uniform(0.5, 1.0) * min(image.size))
            left = int(random.integers(0, image.width - side + 1))
            top = int(random.integers(0, image.height - side + 1))
            crop = image.crop((left, top, left + side, top + side))
            yield np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def path_of(name: str) -> Path:
    """Return where a photograph lies; its package is not imported."""
    package, _, file = name.partition(":")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is missing; pip install 'splitrt[accuracy]'")
    folder = Path(spec.origin).parent
    inner = folder / "data" / file
    return inner if inner.is_file() else folder / file


def lite(pixels: Pixels) -> Floats:
    """Normalise for EfficientNet-lite: float32 [1, 3, 224, 224]."""
    return planes((pixels.astype(np.float32) - 127) / 128)


def imagenet(pixels: Pixels) -> Floats:
    """Normalise as torchvision does: float32 [1, 3, 224, 224]."""
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    return planes((pixels.astype(np.float32) - mean) / std)


def planes(values: Floats) -> Floats:
    """Return [H, W, 3] as [1, 3, H, W]."""
    return np.ascontiguousarray(values.transpose(2, 0, 1)[np.newaxis], np.float32)


def calibration_lite() -> Iterator[Floats]:
    """Yield the calibration half for EfficientNet-lite."""
    return (lite(pixels) for pixels in crops(PHOTOGRAPHS[::2], 0))


def calibration_imagenet() -> Iterator[Floats]:
    """Yield the calibration half for torchvision's classifiers."""
    return (imagenet(pixels) for pixels in crops(PHOTOGRAPHS[::2], 0))


def held_out_lite() -> Iterator[Floats]:
    """Yield the other half for EfficientNet-lite."""
    return (lite(pixels) for pixels in held_out())


def held_out() -> Iterator[Pixels]:
    """Yield the other half."""
    return crops(PHOTOGRAPHS[1::2], 1)
