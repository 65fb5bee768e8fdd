"""Who writes: the codecs of a bundle's tensors, those by calibrated ranges with their ranges."""

from __future__ import annotations

from types import MappingProxyType
from typing import Dict, Mapping, NamedTuple, Optional, Tuple

from engines.codecs import CALIBRATED, codec_names_here, open_codec
from engines.codecs.base import Codec
from engines.codecs.int8 import Calibrated
from engines.tensors import Array

__all__ = ["NO_RANGES", "Encoders", "ValueRange"]


class ValueRange(NamedTuple):
    """The values of a tensor that codes stand for; others are clipped.

    Attributes:
        least: float64, one or one a channel.
        most: The same; none is below ``least``.
    """

    least: Array
    most: Array


NO_RANGES: Mapping[Tuple[str, str], ValueRange] = MappingProxyType({})
"""Nothing was calibrated."""


class Encoders:
    """Opens codecs for writing.

    Args:
        ranges: By tensor and by codec, of ``engines.codecs.CALIBRATED``.
    """

    def __init__(self, ranges: Mapping[Tuple[str, str], ValueRange] = NO_RANGES) -> None:
        self._ranges = ranges
        self._bound: Dict[Tuple[str, str], Codec] = {}

    def __repr__(self) -> str:
        return f"<Encoders {len(self._ranges)} ranges>"

    def names(self, tensor: str) -> Tuple[str, ...]:
        """Return the codecs that may be tried for a tensor here, identity among them."""
        here = codec_names_here()
        more = (name for name in CALIBRATED if (tensor, name) in self._ranges)
        return (*here, *(name for name in more if name.partition(":")[0] in here))

    def open(self, name: str, tensor: str) -> Optional[Codec]:
        """Return a codec for a tensor; none where it wants a range that is not known.

        Raises:
            CodecError: No codec has this name, or not this quality.
        """
        codec = open_codec(name)
        if name not in CALIBRATED:
            return codec
        key = (tensor, name)
        found = self._bound.get(key)
        if found is None and key in self._ranges:
            assert isinstance(codec, Calibrated)
            found = self._bound[key] = codec.within(*self._ranges[key])
        return found
