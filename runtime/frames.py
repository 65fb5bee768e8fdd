"""Inputs that know when they were taken."""

from __future__ import annotations

import time
from typing import Dict, Mapping

from engines.tensors import Array

__all__ = ["Frame", "taken_of"]


class Frame(Dict[str, Array]):
    """A model's inputs by name, taken at a known moment.

    Args:
        inputs: Arrays by name.
        taken_s: When a camera gave them (``time.monotonic``).
    """

    def __init__(self, inputs: Mapping[str, Array], taken_s: float) -> None:
        super().__init__(inputs)
        self.taken_s = taken_s


def taken_of(inputs: Mapping[str, Array]) -> float:
    """Return when inputs were taken: now, where they do not say."""
    return inputs.taken_s if isinstance(inputs, Frame) else time.monotonic()
