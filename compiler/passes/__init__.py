"""Graph passes: what is done to the ONNX graph between export and cutting, in order.

Every pass changes the graph in place, keeps the names of the values it leaves, and has a file of
its own. ``run_passes`` is the list; ``strip_provenance`` follows once the graph is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compiler.images import ImageSpec
from compiler.passes.cleanup import remove_dead
from compiler.passes.constants import lift_constants
from compiler.passes.ends import name_ends
from compiler.passes.folding import fold_constants
from compiler.passes.inlining import inline_functions
from compiler.passes.lower_opset import LOWERED_TO, lower_opset
from compiler.passes.naming import name_nodes
from compiler.passes.preprocess import fold_preprocess
from compiler.passes.provenance import take_provenance
from compiler.passes.shapes import fix_shapes
from compiler.passes.versions import clamp_versions

__all__ = ["Passed", "run_passes"]


class Passed:
    """What the passes found out.

    Attributes:
        paths: Module path of the node that produces a value, by the value's name.
        floats: Name and dtype of the normalised value of each image input.
    """

    def __init__(self, paths: dict[str, str], floats: dict[str, tuple[str, str]]) -> None:
        self.paths = paths
        self.floats = floats


def run_passes(
    model: ir.Model,
    *,
    input_names: Sequence[str],
    input_shapes: Sequence[tuple[int, ...]],
    output_names: Sequence[str],
    images: Sequence[ImageSpec],
    fold: bool,
    opset: int,
) -> Passed:
    """Run every pass over ``model``, in place.

    Args:
        model: The exported graph.
        input_names: What to call its inputs, in order.
        input_shapes: Their static shapes.
        output_names: What to call its outputs, in order.
        images: Inputs that are to take raw pixels.
        fold: Whether constants are still to be folded.
        opset: The opset asked for.

    Raises:
        TraceError: The graph cannot be made into what the compiler cuts.
        EmitError: It cannot be lowered to ``opset``.
    """
    name_nodes(model)
    inline_functions(model)
    lift_constants(model)
    fix_shapes(model, input_shapes)
    if fold:
        fold_constants(model)
        lift_constants(model)
    remove_dead(model)
    name_ends(model, input_names, output_names)
    name_nodes(model)  # those that the passes made
    if opset == LOWERED_TO:
        lower_opset(model)
    paths = take_provenance(model)
    floats = fold_preprocess(model, images)
    clamp_versions(model)
    return Passed(paths, floats)
