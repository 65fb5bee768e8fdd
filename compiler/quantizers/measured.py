"""The default quantizer: all that can take codes does, as far as the measured ranges say.

ONNX Runtime runs the float32 graph for these ranges (``compiler.int8``), and its values are
counted by ``calibration.collect``.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from calibration.samples import Samples
from compiler.passes.quantise import quantisable
from compiler.quantizers import Placement
from engines.errors import TraceError

__all__ = ["MeasuredQuantizer"]


class MeasuredQuantizer:
    """Quantises data inputs and weights; see :class:`compiler.quantizers.Quantizer`."""

    def place(
        self,
        model: ir.Model,
        exact: Path,
        samples: Samples,
        *,
        left_out: Collection[str],
        method: str,
    ) -> Placement:
        """Choose the data input and the weight of every node that can be quantised."""
        able = quantisable(model, left_out)
        if not able:
            raise TraceError(
                "--precision int8: no node can be quantised: expected a Conv, ConvTranspose, Gemm "
                "or MatMul of a float32 value with constant float32 weights; compile with "
                "--precision fp16, or leave it out"
            )
        return Placement(dict.fromkeys(able, (0, 1)))
