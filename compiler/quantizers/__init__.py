"""Quantizers: which inputs of which nodes take 8-bit codes, and how far those reach.

That is all that a quantizer decides, over the user's data. What follows is the same for all of
them: pairs are written by ``compiler.passes.quantise`` in one form, nodes that cost too much are
left out again (``compiler.int8``), and what comes out is proved against the float32 model.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from calibration.ranges import METHODS
from calibration.samples import Samples

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "DEFAULT_QUANTIZER",
    "QUANTIZERS",
    "Placement",
    "Quantizer",
    "QuantizerSpec",
    "open_quantizer",
]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where codes go.

    Attributes:
        sites: Numbers of the inputs that take codes, values or weights, by node.
        thresholds: Largest |value| that a code stands for, by value; none for what the measured
            ranges of the values say.
    """

    sites: Mapping[str, tuple[int, ...]]
    thresholds: Mapping[str, float] | None = None


class Quantizer(Protocol):
    """Decides where codes go."""

    def place(
        self,
        model: ir.Model,
        exact: Path,
        samples: Samples,
        *,
        left_out: Collection[str],
        method: str,
    ) -> Placement:
        """Choose the inputs that take codes.

        Args:
            model: The final graph, in float32; not changed.
            exact: File of the same graph, its weights beside it.
            samples: The data.
            left_out: Names of nodes that take no codes.
            method: How far codes reach, one of the quantizer's methods.

        Raises:
            TraceError: Nothing in the model can be quantised.
            SourceError: A sample cannot be read.
        """


@dataclass(frozen=True, slots=True)
class QuantizerSpec:
    """A quantizer that there is.

    Attributes:
        target: Its class, as ``module:Class``.
        methods: How it can choose the reach of codes.
        default: The one of these that it takes by default.
    """

    target: str
    methods: tuple[str, ...]
    default: str


QUANTIZERS = {
    "measured": QuantizerSpec("compiler.quantizers.measured:MeasuredQuantizer", METHODS, "mse"),
    "modelopt": QuantizerSpec(
        "compiler.quantizers.modelopt:ModeloptQuantizer", ("entropy", "minmax"), "entropy"
    ),
}

DEFAULT_QUANTIZER = "measured"


def open_quantizer(name: str) -> Quantizer:
    """Return the quantizer ``name``, one of :data:`QUANTIZERS`.

    Raises:
        TraceError: What it needs is not installed.
    """
    module, cls = QUANTIZERS[name].target.split(":")
    factory: Any = getattr(importlib.import_module(module), cls)
    quantizer: Quantizer = factory()
    return quantizer
