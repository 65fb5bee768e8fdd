"""Constants: Constant nodes become initialisers, so that they are no part of the data flow."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveInitializersFromInputsPass

__all__ = ["lift_constants"]


def lift_constants(model: ir.Model) -> None:
    """Lift every Constant node, and take initialisers off the list of inputs.

    Before IR version 4 an initialiser had to be an input as well, which a caller could override;
    here it is a constant.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RemoveInitializersFromInputsPass()(model)
