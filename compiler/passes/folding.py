"""Fold constants, for graphs that no exporter of ours has optimised.

Dynamic shapes that have become static leave Shape, Gather and Concat nodes behind that compute
nothing but constants; every one of them would widen a frontier.
"""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer

from compiler.quiet import one_line, quiet
from engines.errors import TraceError

__all__ = ["fold_constants"]


def fold_constants(model: ir.Model) -> None:
    """Fold what depends on no input, with onnxscript's optimiser.

    Raises:
        TraceError: The optimiser fails on the graph.
    """
    try:
        with quiet():
            onnxscript.optimizer.optimize(model)
    except Exception as exc:  # the optimiser evaluates operators, which raise what they like
        raise TraceError(
            f"constants of the ONNX graph cannot be folded: {one_line(exc)}; "
            "check that ONNX Runtime runs the file"
        ) from exc
