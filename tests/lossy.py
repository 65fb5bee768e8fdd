"""Codecs for tests: one that rounds, one that says it is lossless and is not."""

from __future__ import annotations

import numpy as np

from engines.errors import CodecError


class HalfCodec:
    """Sends floats in float16."""

    name = "half"
    lossless = False

    def __init__(self, wire_id):
        self.wire_id = wire_id

    def applies(self, spec):
        return spec.dtype == "float32"

    def max_encoded_bytes(self, spec):
        return 2 * spec.size

    def encode(self, array, scratch):
        values = array.astype(np.float16).reshape(-1).view(np.uint8)
        scratch[: values.size] = values.data
        return scratch[: values.size]

    def decode(self, payload, out):
        out.reshape(-1)[:] = np.frombuffer(payload, np.float16)


class SignCodec(HalfCodec):
    """Keeps the signs only: far from what it was given."""

    name = "signs"

    def encode(self, array, scratch):
        return super().encode(np.sign(array), scratch)


class LyingCodec(HalfCodec):
    """Says that it loses nothing."""

    name = "lying"
    lossless = True


class PositiveCodec(HalfCodec):
    """Has no bytes for negative values."""

    name = "positive"

    def encode(self, array, scratch):
        if array.min() < 0:
            raise CodecError("positive: expected values from 0")
        return super().encode(array, scratch)


class AbsentCodec:
    """Needs a library that is not here."""

    name = "absent"

    def __init__(self, wire_id):
        raise CodecError("absent needs libabsent; pip install it")
