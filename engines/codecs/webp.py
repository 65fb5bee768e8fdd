"""Codecs ``webp-lossless`` and ``webp``: pictures by WebP, exactly or at a quality.

Bytes of ``webp-lossless``: 0 and the values as codec ``identity`` has them; or 1 and a VP8L
bitstream (RFC 9649, section 3) without alpha. Of ``webp``: a VP8 key frame (RFC 6386). Neither has
the RIFF container around it, which a decoder puts back: it says nothing that is not known, and is
where animations and metadata would be. A bitstream's own size must be the tensor's.

Source:
    Measured on photographs: against PNG at any level and JPEG-LS, lossless WebP at its quickest
    setting is both smaller and quicker to write and read. QOI is some times quicker and 40%
    larger.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from engines.codecs.buffers import CODED, opened, put, store
from engines.codecs.pictures import (
    LossyPictureCodec,
    Picture,
    as_pixels,
    picture_in,
    picture_of,
    pillow,
    read_picture,
)
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["WebpCodec", "WebpLosslessCodec"]

_LONGEST = 16383
_RIFF = struct.Struct("<4sI4s4sI")


class WebpLosslessCodec:
    """Writes and reads VP8L."""

    name = "webp-lossless"
    lossless = True

    def __init__(self, wire_id: int) -> None:
        self.wire_id = wire_id

    def applies(self, spec: TensorSpec) -> bool:
        """Pictures and grids of at most 16383 a side."""
        return picture_of(spec, _LONGEST) is not None

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """One byte more than the tensor."""
        return spec.nbytes + 1

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Compress ``array`` into ``scratch``, or store it where that is not smaller."""
        picture = picture_in(self.name, array, _LONGEST)
        stream = _written(self.name, array, picture, b"VP8L", lossless=True, quality=0, method=0)
        if stream.nbytes < array.nbytes:
            return put(self.name, scratch, bytes([CODED]), stream)
        return store(self.name, array, scratch)

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decompress ``payload`` into ``out``."""
        picture = picture_in(self.name, out, _LONGEST)
        stream = opened(self.name, payload, out)
        if stream is None:
            return
        # Signature, 14 bits of width - 1, 14 bits of height - 1, alpha, 3 bits of version.
        bits = int.from_bytes(stream[1:5], "little")
        wanted = (picture.width - 1) | (picture.height - 1) << 14
        if stream.nbytes < 6 or stream[0] != 0x2F or bits != wanted:
            raise CodecError(
                f"{self.name}: expected {picture.width} x {picture.height} pixels without alpha"
            )
        _read(self.name, stream, b"VP8L", picture, out)


class WebpCodec(LossyPictureCodec):
    """Writes and reads VP8 key frames."""

    form = "webp"
    longest = _LONGEST

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """Twice the tensor, in whole blocks; what is larger is not encoded."""
        picture = picture_of(spec, _LONGEST)
        if picture is None:
            return 0
        return 1024 + 6 * (picture.height + 15) * (picture.width + 15)

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Compress ``array`` into ``scratch``."""
        picture = picture_in(self.name, array, _LONGEST)
        quality = self._quality
        return put(
            self.name,
            scratch,
            _written(self.name, array, picture, b"VP8 ", quality=quality, method=0),
        )

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decompress ``payload`` into ``out``."""
        picture = picture_in(self.name, out, _LONGEST)
        # A frame tag whose lowest bit is 0 in a key frame, a start code, width, height; the upper
        # two bits of both ask for scaling.
        size = picture.width.to_bytes(2, "little") + picture.height.to_bytes(2, "little")
        key = payload.nbytes > 10 and not payload[0] & 1
        if not key or payload[3:10] != b"\x9d\x01\x2a" + size:
            raise CodecError(
                f"{self.name}: expected a key frame of {picture.width} x {picture.height} pixels"
            )
        _read(self.name, payload, b"VP8 ", picture, out)


def _written(name: str, array: Array, picture: Picture, kind: bytes, **options: Any) -> memoryview:
    """Compress and return the bitstream without its container."""
    pixels = as_pixels(array, picture)
    if picture.channels == 1:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    file = io.BytesIO()
    pillow(name).fromarray(pixels).save(file, "WEBP", **options)
    data = file.getbuffer()
    riff, _, webp, found, size = _RIFF.unpack(data[: _RIFF.size])
    if (riff, webp, found) != (b"RIFF", b"WEBP", kind) or _RIFF.size + size > data.nbytes:
        raise CodecError(f"{name}: this Pillow writes another kind of WebP")
    return data[_RIFF.size : _RIFF.size + size]


def _read(name: str, stream: memoryview, kind: bytes, picture: Picture, out: Array) -> None:
    padding = stream.nbytes & 1
    head = _RIFF.pack(b"RIFF", 12 + stream.nbytes + padding, b"WEBP", kind, stream.nbytes)
    file = io.BytesIO(b"".join((head, stream, bytes(padding))))
    read_picture(name, file, "WEBP", "RGB", picture, out)
