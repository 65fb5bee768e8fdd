"""Inline the model's own functions: cuts may fall inside them, and few runtimes take them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model) -> None:
    """Replace every call of a function of the model by its body."""
    if model.functions:
        InlinePass()(model)
