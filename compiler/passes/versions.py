"""Versions: what the oldest robot reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

__all__ = ["clamp_versions"]

_MAX_IR_VERSION = 10
"""Newest IR that ONNX Runtime 1.19 reads, the last one for the Python 3.8 of JetPack 5."""

_MIN_IR_VERSION = 8
"""Older files (below 4) demand that initialisers are inputs; nothing here needs less than 8."""


def clamp_versions(model: ir.Model) -> None:
    """Set the IR version to one that every robot reads, and drop operator sets without use."""
    model.ir_version = max(_MIN_IR_VERSION, min(_MAX_IR_VERSION, model.ir_version))
    RemoveUnusedOpsetsPass()(model)
