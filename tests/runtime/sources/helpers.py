"""Models that take images, and images and videos for them."""

from __future__ import annotations

import msgspec
import numpy as np

from engines.bundle import Bundle
from engines.manifest import ImageLayout, Manifest
from engines.tensors import TensorSpec
from runtime.sources import Sample, Source


def take(source: Source, count: int) -> list[Sample]:
    return [sample for _, sample in zip(range(count), source.samples)]


def image_model(toy: Bundle, layout: str = "NHWC", color: str = "rgb") -> Manifest:
    shape = (1, 14, 28, 3) if layout == "NHWC" else (1, 3, 14, 28)
    return msgspec.structs.replace(
        toy.manifest,
        inputs=(TensorSpec("pixels", "uint8", shape),),
        images={"pixels": ImageLayout(layout=layout, color=color)},
    )


def grey(level: int) -> np.ndarray:
    """Give a picture of one grey."""
    return np.full((28, 56, 3), level, np.uint8)
