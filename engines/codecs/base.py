"""What a codec is."""

from __future__ import annotations

from typing import Protocol

from engines.tensors import Array, TensorSpec

__all__ = ["Codec"]


class Codec(Protocol):
    """Writes a tensor's values as bytes, and reads them back. Stateless; safe across threads."""

    @property
    def name(self) -> str:
        """Name in the registry."""

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
            CodecError: The values cannot be encoded, or ``scratch`` is too small.
        """

    def decode(self, payload: memoryview, out: Array) -> None:
        """Decode into ``out``, a C-contiguous array of the tensor's dtype and shape.

        Raises:
            CodecError: ``payload`` is not an encoding of such a tensor. ``out`` is undefined.
        """
