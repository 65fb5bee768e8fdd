"""Codec ``jpeg``: pictures as JPEG at a quality, 90 unless said. Lossy.

Bytes: a baseline JPEG (ITU-T T.81, SOF0) of one scan with all its components, 8 bits, grey or
YCbCr with chroma at half resolution, with no segments but APP0, DQT, SOF0, DHT and SOS. A decoder
refuses all others, a size other than the tensor's, and a marker within the scan, before any
image library sees the bytes: a progressive file would cost far more memory and time than its
pixels. Only tensors that ``pictures`` knows to be light.
"""

from __future__ import annotations

import io

import numpy as np

from engines.codecs.buffers import put
from engines.codecs.pictures import (
    LossyPictureCodec,
    as_pixels,
    picture_in,
    picture_of,
    pillow,
    read_picture,
)
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["JpegCodec"]

_LONGEST = 65535
_SOI, _EOI, _SOF0, _DHT, _SOS, _DQT, _APP0 = 0xD8, 0xD9, 0xC0, 0xC4, 0xDA, 0xDB, 0xE0
_HEAD_BYTES = 1024
"""Above all segments together."""


class JpegCodec(LossyPictureCodec):
    """Writes and reads baseline JPEG."""

    form = "jpeg"
    longest = _LONGEST

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """Twice the tensor, whole blocks, and the segments; what is larger is not encoded."""
        picture = picture_of(spec, _LONGEST)
        if picture is None:
            return 0
        return _HEAD_BYTES + 2 * picture.channels * (picture.height + 15) * (picture.width + 15)

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Compress ``array`` into ``scratch``."""
        picture = picture_in(self.name, array, _LONGEST)
        image = pillow(self.name).fromarray(as_pixels(array, picture))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self._quality, subsampling=2)
        return put(self.name, scratch, file.getbuffer())

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decompress ``payload`` into ``out``."""
        picture = picture_in(self.name, out, _LONGEST)
        wrong = _trouble(payload, picture.height, picture.width, picture.channels)
        if wrong:
            raise CodecError(f"{self.name}: {wrong}")
        mode = "L" if picture.channels == 1 else "RGB"
        read_picture(self.name, io.BytesIO(payload), "JPEG", mode, picture, out)


def _trouble(data: memoryview, height: int, width: int, channels: int) -> str:
    """Walk through the segments; say what is not as this codec writes it, or nothing."""
    end = data.nbytes
    if end < 4 or data[0] != 0xFF or data[1] != _SOI:
        return "expected a JPEG"
    at, sized = 2, False
    while at + 4 <= end:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if data[at] != 0xFF or length < 2 or at + 2 + length > end:
            return "a broken segment"
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == _SOF0:
            wanted = bytes([8, height >> 8, height & 255, width >> 8, width & 255, channels])
            if sized or body.nbytes != 6 + 3 * channels or body[:6] != wanted:
                return f"expected one frame of {width} x {height} pixels, {channels} components"
            sized = True
        elif marker == _SOS:
            if not sized or body.nbytes != 4 + 2 * channels or body[0] != channels:
                return "expected one scan of all components"
            return _scan_trouble(data[at:])
        elif marker not in (_APP0, _DQT, _DHT):
            return f"segment {marker:02x}, which this codec does not write"
    return "no scan"


def _scan_trouble(scan: memoryview) -> str:
    codes = np.frombuffer(scan, np.uint8)
    if codes.size < 2 or codes[-2] != 0xFF or codes[-1] != _EOI:
        return "no end of the picture"
    marks = np.flatnonzero(codes[:-2] == 0xFF)
    if marks.size and codes[marks + 1].any():
        return "a marker within the scan"
    return ""
