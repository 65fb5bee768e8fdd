"""Codec ``video``: pictures as frames of a VP8 stream, at a quality, 75 unless said. Lossy.

Bytes: a head of 12, little-endian: uint32 *stream*, uint32 *number*, uint16 width, uint16 height;
then one VP8 frame (RFC 6386), without a container. A stream begins with number 0, which is a key
frame, and all others are not; each refers to the ones before it, of which it needs every one.

1. A stream is of one tensor on one connection, and has an encoder and a decoder of its own
   (:meth:`VideoCodec.stream`); what is said of one tensor never depends on another.
2. A decoder takes number 0 of any stream, and after number n of a stream number n + 1 of it and
   nothing else. What it refuses ends the stream: every frame is refused then up to the next key
   frame. So a frame that was lost, or sent elsewhere, never shows as a wrong picture.
3. An encoder begins a stream anew whenever it is told that one was lost, when coding fails, and
   when VP8 itself puts a key frame, as for a new scene.
4. Without a stream, as any codec is used that is opened by name or id, every frame is a key frame.

Only VP8 is opened, never a container. Its key frames say their size in plain bytes, which must be
the tensor's, and others cannot change it; it knows one pixel format and no frame that comes later.
Both ends of it are in the PyAV that extra ``video`` brings, the encoder by libvpx. Pictures become
luma and chroma as ITU-R BT.601 has them in limited range, swscale's default; chroma has half the
resolution.

Source:
    ``python scripts/video_table.py`` prints bytes, times and errors beside JPEG's and WebP's.
"""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from functools import lru_cache
from typing import Any, Optional, Tuple

from engines.codecs.buffers import missing, put
from engines.codecs.pictures import Picture, as_pixels, from_pixels, picture_of
from engines.errors import CodecError
from engines.tensors import Array, TensorSpec

__all__ = ["VideoCodec", "VideoStream"]

_LONGEST = 16383
_HEAD = struct.Struct("<IIHH")
_LAST = 0xFFFFFFFF

_RATE_BPS = 10**9
_NEVER = 10**6
"""More than the quality asks for, so that nothing but the quality counts; and no key frames by the
clock."""


class VideoCodec:
    """Writes key frames, and opens streams.

    Args:
        wire_id: Number on the wire.
        quality: 1 to 100, of what is written.
    """

    lossless = False

    def __init__(self, wire_id: int, quality: int = 75) -> None:
        self.wire_id = wire_id
        self.name = f"video:{quality}"
        self._quality = quality

    def stream(self) -> VideoStream:
        """Return one end of a new stream."""
        return VideoStream(self, self._quality)

    def applies(self, spec: TensorSpec) -> bool:
        """Single pictures of three channels, at most 16383 pixels a side."""
        return _picture(spec) is not None

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """Twice the tensor, in whole blocks; what is larger is not encoded."""
        picture = _picture(spec)
        if picture is None:
            return 0
        return 1024 + 6 * (picture.height + 15) * (picture.width + 15)

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Write ``array`` as a key frame."""
        return self.stream().encode(array, scratch)

    def decode(self, payload: memoryview, out: Array) -> None:
        """Read a key frame."""
        self.stream().decode(payload, out)


class VideoStream:
    """One end of a stream: an encoder or a decoder. For one thread at a time.

    Args:
        codec: What opened it.
        quality: Of what is written.
    """

    lossless = False

    def __init__(self, codec: VideoCodec, quality: int) -> None:
        self.wire_id = codec.wire_id
        self.name = codec.name
        self.applies = codec.applies
        self.max_encoded_bytes = codec.max_encoded_bytes
        self._quality = quality
        self._context: Any = None
        self._picture: Optional[Picture] = None
        self._stream = 0
        self._next = 0
        self._written = 0

    def __repr__(self) -> str:
        return f"<VideoStream {self.name} {self._stream:08x} {self._next}>"

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Write the next frame of the stream, the first as a key frame.

        Raises:
            CodecError: It could not be written; the next one will be a key frame.
        """
        picture = _picture(TensorSpec("", array.dtype.name, array.shape))
        if picture is None:
            raise CodecError(f"{self.name}: expected a picture, given {list(array.shape)}")
        av = _pyav(self.name)
        context, before = self._context, self._picture
        self._context = None  # unless all goes well, the stream ends here
        fresh = context is None or before != picture or self._next > _LAST
        if fresh:
            context = _encoder(av, picture, self._quality)
            self._picture = picture
        try:
            frame = av.VideoFrame.from_ndarray(as_pixels(array, picture), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts = self._written = self._written + 1
            packets = [bytes(packet) for packet in context.encode(frame)]
        except _failures(av) as exc:
            raise CodecError(f"{self.name}: the picture cannot be written: {exc}") from exc
        if len(packets) != 1 or not packets[0] or (fresh and packets[0][0] & 1):
            raise CodecError(f"{self.name}: expected one frame, given {len(packets)}")
        if not packets[0][0] & 1:  # a key frame, which may also be one of VP8's own choice
            self._stream, self._next = int.from_bytes(os.urandom(4), "little"), 0
        head = _HEAD.pack(self._stream, self._next, picture.width, picture.height)
        if len(head) + len(packets[0]) > self.max_encoded_bytes(_spec(array)):
            raise CodecError(f"{self.name}: the picture takes more than twice its bytes")
        coded = put(self.name, scratch, head, packets[0])
        self._context, self._next = context, self._next + 1
        return coded

    def decode(self, payload: memoryview, out: Array) -> None:
        """Read the next frame of the stream, or the first of another.

        Raises:
            CodecError: Not a frame of such a tensor, or the one before it is missing. Nothing but
                a key frame is taken next.
        """
        context, self._context = self._context, None
        picture = _picture(_spec(out))
        if picture is None:
            raise CodecError(f"{self.name}: expected a picture, given {list(out.shape)}")
        stream, number, frame = self._opened(payload, picture)
        if number:
            if context is None or self._picture != picture:
                raise CodecError(f"{self.name}: frame {number}, of which the first is missing")
            if (stream, number) != (self._stream, self._next):
                raise CodecError(
                    f"{self.name}: expected frame {self._next} of stream {self._stream:08x}, "
                    f"given {number} of {stream:08x}"
                )
        av = _pyav(self.name)
        if not number:
            context = _decoder(av)
        try:
            found = context.decode(av.Packet(frame))
            if len(found) != 1:
                raise CodecError(f"{self.name}: expected one frame, given {len(found)}")
            kind = (found[0].width, found[0].height, found[0].format.name)
            if kind != (picture.width, picture.height, "yuv420p"):
                raise CodecError(f"{self.name}: a picture of another size or kind")
            pixels = found[0].to_ndarray(format="rgb24")
        except _failures(av) as exc:
            raise CodecError(f"{self.name}: the compressed bytes are damaged") from exc
        from_pixels(pixels, picture, out)
        self._context, self._picture = context, picture
        self._stream, self._next = stream, number + 1

    def _opened(self, payload: memoryview, picture: Picture) -> Tuple[int, int, bytes]:
        """Check all that can be seen of a frame; returns stream, number and the VP8 frame."""
        most = 1024 + 6 * (picture.height + 15) * (picture.width + 15)
        if not _HEAD.size + 3 < payload.nbytes <= most:
            raise CodecError(
                f"{self.name}: expected {_HEAD.size + 4} to {most} bytes, given {payload.nbytes}"
            )
        stream, number, width, height = _HEAD.unpack_from(payload)
        if (width, height) != (picture.width, picture.height):
            raise CodecError(
                f"{self.name}: expected {picture.width} x {picture.height} pixels, "
                f"given {width} x {height}"
            )
        frame = bytes(payload[_HEAD.size :])
        # The tag: not a key frame, 3 bits of version, whether it is shown, the first part's size.
        tag = int.from_bytes(frame[:3], "little")
        first, inner = tag >> 5, (tag >> 1) & 0b1111
        key = not tag & 1
        if key == bool(number) or inner != 0b1000 or not 0 < first < len(frame):
            raise CodecError(f"{self.name}: not a frame as this codec writes it")
        # Then in a key frame a start code, width and height; their upper bits ask for scaling.
        size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
        if key and frame[3:10] != b"\x9d\x01\x2a" + size:
            raise CodecError(
                f"{self.name}: expected a key frame of {picture.width} x {picture.height} pixels"
            )
        return stream, number, frame


def _spec(array: Array) -> TensorSpec:
    return TensorSpec("", array.dtype.name, array.shape)


def _picture(spec: TensorSpec) -> Optional[Picture]:
    found = picture_of(spec, _LONGEST)
    if found is None or found.channels != 3:
        return None
    return found if found.height * found.width * 3 == _pixels(spec) else None


def _pixels(spec: TensorSpec) -> int:
    """Return the elements of the last three axes: of one picture."""
    size = 1
    for extent in spec.shape[-3:]:
        size *= extent
    return size


def _encoder(av: Any, picture: Picture, quality: int) -> Any:
    try:
        context = av.CodecContext.create("libvpx", "w")
    except (ValueError, *_failures(av)) as exc:
        raise CodecError("video: this PyAV has no libvpx to write VP8 with") from exc
    level = str(round((100 - quality) * 63 / 100))
    context.width, context.height, context.pix_fmt = picture.width, picture.height, "yuv420p"
    context.time_base = Fraction(1, 30)
    context.bit_rate, context.gop_size, context.thread_count = _RATE_BPS, _NEVER, 1
    context.options = {
        "deadline": "realtime",
        "cpu-used": "8",
        "lag-in-frames": "0",
        "auto-alt-ref": "0",
        "qmin": level,
        "qmax": level,
    }
    return context


def _decoder(av: Any) -> Any:
    context = av.CodecContext.create("vp8", "r")
    context.thread_count = 1
    return context


def _failures(av: Any) -> Tuple[Any, ...]:
    return (av.error.FFmpegError, OSError, ValueError, EOFError, RuntimeError)


@lru_cache(maxsize=None)
def _pyav(name: str) -> Any:
    try:
        import av
    except ImportError as exc:
        raise missing(name, "PyAV", extra="video") from exc
    return av
