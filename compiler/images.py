"""Image inputs: what ``--preprocess`` says about an input that is to take raw pixels.

``color`` is the order of the channels that the model was trained with, and so the order in
which the robot lays a photograph into the raw input; the graph never swaps channels. ``mean``
and ``std`` are in that order too, in units of the pixels: 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.errors import TraceError
from engines.manifest import ImageLayout
from engines.tensors import Array

__all__ = ["CHANNELS", "ImageSpec", "parse_image", "split_pixels"]

CHANNELS = 3
"""Channels of a photograph, as :class:`engines.manifest.ImageLayout` knows them."""

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)
"""Mean and standard deviation of ImageNet's training images, red first, times 255.

Source:
    torchvision's ``transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))``.
"""

_EXPECTED = (
    "expected NAME=imagenet or "
    "NAME=uint8[hwc|chw][,color=rgb|bgr][,mean=R:G:B][,std=R:G:B] with mean and std in 0 to 255"
)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One ``--preprocess``: ``float = (uint8 - mean) / std``, channel by channel.

    Attributes:
        name: The model's input.
        layout: ``hwc`` or ``chw``, of the raw pixels. The model's own input is [1, C, H, W].
        color: ``rgb`` or ``bgr``.
        mean: One value for each channel.
        std: One value for each channel, above 0.
    """

    name: str
    layout: str = "hwc"
    color: str = "rgb"
    mean: tuple[float, ...] = (0.0,) * CHANNELS
    std: tuple[float, ...] = (255.0,) * CHANNELS

    def __post_init__(self) -> None:
        wrong = []
        if self.layout not in ("hwc", "chw"):
            wrong.append(f"layout {self.layout!r}")
        if self.color not in ("rgb", "bgr"):
            wrong.append(f"color {self.color!r}")
        if len(self.mean) != CHANNELS or not np.all(np.isfinite(self.mean)):
            wrong.append(f"mean {list(self.mean)}")
        if len(self.std) != CHANNELS or not all(0 < v < np.inf for v in self.std):
            wrong.append(f"std {list(self.std)}")
        if wrong:
            raise TraceError(f"--preprocess {self.name}: {_EXPECTED}; given {', '.join(wrong)}")

    @property
    def image_layout(self) -> ImageLayout:
        """What the manifest records."""
        return ImageLayout(layout="N" + self.layout.upper(), color=self.color)

    def raw_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the raw pixels for a model's input of ``[1, C, H, W]``."""
        return (1, *shape[2:], shape[1]) if self.layout == "hwc" else shape

    def normalise(self, pixels: Array, dtype: str) -> Array:
        """Do in NumPy what the compiled graph does.

        Args:
            pixels: uint8 [1, H, W, 3] or [1, 3, H, W], as ``layout`` says.
            dtype: Floating-point type of the model's input.

        Returns:
            [1, 3, H, W] of that type.
        """
        planes = np.moveaxis(pixels, 3, 1) if self.layout == "hwc" else pixels
        mean = np.asarray(self.mean, dtype).reshape(1, CHANNELS, 1, 1)
        std = np.asarray(self.std, dtype).reshape(1, CHANNELS, 1, 1)
        return np.ascontiguousarray((planes.astype(dtype) - mean) / std)


def split_pixels(
    example: Mapping[str, Array] | None, images: Sequence[ImageSpec]
) -> tuple[dict[str, Array] | None, dict[str, Array]]:
    """Return a user's example as the model takes it, and the raw pixels that were in it.

    Raises:
        TraceError: uint8 values that are no picture.
    """
    if example is None:
        return None, {}
    own = dict(example)
    pixels: dict[str, Array] = {}
    for image in images:
        array = own.get(image.name)
        if array is None or array.dtype != np.uint8:
            continue
        if array.ndim != 4 or array.shape[3 if image.layout == "hwc" else 1] != CHANNELS:
            want = "[1, H, W, 3]" if image.layout == "hwc" else "[1, 3, H, W]"
            raise TraceError(
                f"--example {image.name!r}: expected raw pixels uint8 {want}, "
                f"given uint8 {list(array.shape)}"
            )
        pixels[image.name] = array
        own[image.name] = image.normalise(array, "float32")
    return own, pixels


def parse_image(text: str) -> ImageSpec:
    """Read one ``--preprocess``.

    Raises:
        TraceError: It cannot be read.
    """
    name, _, rest = text.partition("=")
    kind, *fields = (field.strip() for field in rest.split(","))
    if not name or not kind:
        raise TraceError(f"--preprocess {text!r}: {_EXPECTED}")
    layout = "hwc"
    mean, std, color = (0.0,) * CHANNELS, (255.0,) * CHANNELS, "rgb"
    if kind == "imagenet":
        mean, std = _IMAGENET_MEAN, _IMAGENET_STD
    elif kind.startswith("uint8[") and kind.endswith("]"):
        layout = kind[len("uint8[") : -1]
    else:
        raise TraceError(f"--preprocess {text!r}: {_EXPECTED}")
    for field in fields:
        key, _, value = field.partition("=")
        if key == "color":
            color = value
        elif key == "mean":
            mean = _triple(value, text)
        elif key == "std":
            std = _triple(value, text)
        else:
            raise TraceError(f"--preprocess {text!r}: unknown field {field!r}; {_EXPECTED}")
    return ImageSpec(name, layout, color, mean, std)


def _triple(value: str, text: str) -> tuple[float, ...]:
    """Read ``R:G:B``, or one number for all three."""
    try:
        numbers = tuple(float(number) for number in value.split(":"))
    except ValueError as exc:
        raise TraceError(f"--preprocess {text!r}: {value!r} is not R:G:B; {_EXPECTED}") from exc
    return numbers * CHANNELS if len(numbers) == 1 else numbers
