"""What a codec is."""

from __future__ import annotations

from typing import Protocol

from engines.tensors import Array, TensorSpec

__all__ = ["Codec", "StreamCodec"]


class Codec(Protocol):
    """Writes a tensor's values as bytes, and reads them back.

    Stateless and safe across threads, but for what :meth:`StreamCodec.stream` returns.
    """

    @property
    def name(self) -> str:
        """Name in the registry, with its quality where it has one."""

    @property
    def wire_id(self) -> int:
        """Number on the wire, 0 to 255."""

    @property
    def lossless(self) -> bool:
        """Whether ``decode`` gives back exactly what ``encode`` took."""

    def applies(self, spec: TensorSpec) -> bool:
        """Whether tensors of this dtype and shape can be encoded at all."""

    def max_encoded_bytes(self, spec: TensorSpec) -> int:
        """Upper bound of the encoded size in bytes, known before anything is encoded."""

    def encode(self, array: Array, scratch: memoryview) -> memoryview:
        """Encode a C-contiguous array.

        Args:
            array: Values; not changed, and not kept after the returned view is dropped.
            scratch: At least ``max_encoded_bytes`` writable bytes, owned by the caller.

        Returns:
            The encoded bytes: a view of ``scratch``, or of ``array`` itself where its bytes
            already are the encoding. Valid as long as both are left alone.

        Raises:
            CodecError: The values cannot be encoded, ``scratch`` is too small, or a library that
                the codec needs is not installed.
        """

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decode into ``out``, a C-contiguous array of the tensor's dtype and shape.

        Sizes that ``payload`` states are checked against ``out`` before anything is allocated for
        them: whatever it says, memory stays within a small multiple of ``out``.

        Raises:
            CodecError: ``payload`` is not an encoding of such a tensor. ``out`` is undefined.
        """


class StreamCodec(Codec, Protocol):
    """A codec that can write a tensor by what was sent of it before, on the same connection."""

    def stream(self) -> Codec:
        """Return one end of a new stream of one tensor, for one thread at a time.

        Its ``encode`` refers to what it encoded before, its ``decode`` to what it decoded: both
        must see the same tensors in the same order. One that fails ends the stream: the next
        that is encoded needs none before it, and nothing else is decoded next.
        """
