"""Which tensors are pictures, and how they look to an image library.

uint8 tensors whose last axis is 1 or 3 are rows of pixels, [..., H, W, C]; with more than one
picture they are put one under the other. [..., 3, H, W] with one picture has its planes brought
together. What is left of two and more axes is one grey picture of all rows, for lossless coding
only: nobody says that its values are light.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, BinaryIO, ClassVar, NamedTuple, Optional, Tuple

import numpy as np

from engines.codecs.buffers import missing
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = [
    "PIXELS",
    "LossyPictureCodec",
    "Picture",
    "as_pixels",
    "from_pixels",
    "picture_in",
    "picture_of",
    "pillow",
    "read_picture",
]

PIXELS = 1 << 26
"""Pixels of the largest picture: within what Pillow takes without a warning."""


class Picture(NamedTuple):
    """A tensor as a picture.

    Attributes:
        height: Rows.
        width: Pixels of a row.
        channels: 1 or 3.
        planar: Whether the channels lie one after the other.
        light: Whether the shape says that it is a picture, and not just a grid of numbers.
    """

    height: int
    width: int
    channels: int
    planar: bool = False
    light: bool = True


def picture_of(spec: TensorSpec, longest: int) -> Optional[Picture]:
    """Return how a tensor is a picture; none where it is not, or has a side above ``longest``."""
    shape = spec.shape
    if spec.dtype != "uint8" or len(shape) < 2 or not spec.size:
        return None
    found: Picture
    if len(shape) >= 3 and shape[-1] in (1, 3):
        found = Picture(_product(shape[:-2]), shape[-2], shape[-1])
    elif len(shape) >= 3 and shape[-3] == 3 and _product(shape[:-3]) == 1:
        found = Picture(shape[-2], shape[-1], 3, planar=True)
    else:
        found = Picture(_product(shape[:-1]), shape[-1], 1, light=False)
    if max(found.height, found.width) > longest or found.height * found.width > PIXELS:
        return None
    return found


def as_pixels(array: Array, picture: Picture) -> Array:
    """Return an array as [H, W] or [H, W, 3]."""
    if picture.planar:
        planes = array.reshape(3, picture.height, picture.width)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))
    shape: Tuple[int, ...] = (picture.height, picture.width)
    return array.reshape(shape if picture.channels == 1 else (*shape, 3))


def from_pixels(pixels: Array, picture: Picture, out: Array) -> None:
    """Write pixels into the tensor they are of; of grey ones with three channels, one."""
    if picture.channels == 1 and pixels.ndim == 3:
        pixels = pixels[:, :, 1]
    if picture.planar:
        target = out.reshape(3, picture.height, picture.width)
        target[:] = pixels.transpose(2, 0, 1)
    else:
        out.reshape(pixels.shape)[:] = pixels


@lru_cache(maxsize=None)
def pillow(name: str) -> Any:
    """Return Pillow's ``Image`` module.

    Raises:
        CodecError: It is not installed.
    """
    try:
        from PIL import Image
    except ImportError as exc:
        raise missing(name, "Pillow") from exc
    return Image


def picture_in(name: str, array: Array, longest: int) -> Picture:
    """Return how an array is a picture, for a codec of this name.

    Raises:
        CodecError: It is none, or has a side above ``longest``.
    """
    picture = picture_of(TensorSpec("", array.dtype.name, array.shape), longest)
    if picture is None:
        raise CodecError(f"{name}: expected a picture, given {list(array.shape)}")
    return picture


def read_picture(
    name: str, data: BinaryIO, form: str, mode: str, picture: Picture, out: Array
) -> None:
    """Decompress a file into the tensor that it is of.

    Args:
        name: Name of the codec.
        data: The file.
        form: The only format that it may have, as Pillow calls it.
        mode: The only mode of its pixels.
        picture: How ``out`` is a picture.
        out: Where to.

    Raises:
        CodecError: It is damaged, or another picture.
    """
    image_module = pillow(name)
    try:
        with image_module.open(data, formats=(form,)) as image:
            if image.size != (picture.width, picture.height) or image.mode != mode:
                raise CodecError(f"{name}: a picture of another size or kind")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError) as exc:
        raise CodecError(f"{name}: the compressed bytes are damaged") from exc
    from_pixels(pixels, picture, out)


class LossyPictureCodec:
    """What the lossy codecs of pictures share: a quality, and which tensors they take.

    Args:
        wire_id: Number on the wire.
        quality: 1 to 100, of what is written.

    Attributes:
        form: Its name without the quality.
        longest: Most pixels that a side may have.
    """

    lossless = False
    form: ClassVar[str]
    longest: ClassVar[int]

    def __init__(self, wire_id: int, quality: int = 90) -> None:
        self.wire_id = wire_id
        self.name = f"{self.form}:{quality}"
        self._quality = quality

    def applies(self, spec: TensorSpec) -> bool:
        """Pictures that are light, with sides of at most ``longest`` pixels."""
        picture = picture_of(spec, self.longest)
        return picture is not None and picture.light


def _product(extents: Tuple[int, ...]) -> int:
    result = 1
    for extent in extents:
        result *= extent
    return result
