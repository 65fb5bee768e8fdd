"""Lower opset 18 to 17, the newest that TensorRT 8 parses.

1. ``CHANGED`` has every operator that opset 18 brought or changed, and how to write it in 17.
2. A rewriter changes one node, in place or by others with the same result; its outputs keep
   their names. Where 17 has no such thing, or wants a constant where there is none, it refuses.
3. All refusals are collected: one error names every node that stands in the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from engines.errors import EmitError
from engines.tensors import Array

__all__ = ["CHANGED", "LOWERED_FROM", "LOWERED_TO", "lower_opset"]

LOWERED_FROM = 18
LOWERED_TO = 17

_RESIZE_COORDINATES = frozenset(
    ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")
)
"""Coordinate modes of Resize in opset 17."""


class _Refused(Exception):  # noqa: N818 (an answer, caught in this file)
    """Why a node cannot be lowered."""


def lower_opset(model: ir.Model) -> None:
    """Lower a model of opset 18 to 17, in place; one of 17 or less is left as it is.

    Raises:
        EmitError: The model is of a newer opset, or has nodes that 17 cannot say.
    """
    version = model.opset_imports.get("", 0)
    if version <= LOWERED_TO:
        return
    if version > LOWERED_FROM:
        raise EmitError(
            f"--opset {LOWERED_TO}: expected a model of opset {LOWERED_FROM} or less, given one "
            f"of {version}; export it with opset {LOWERED_FROM}"
        )
    _Lowering(model).run()
    model.opset_imports[""] = LOWERED_TO


class _Lowering:
    """What the rewriters share: constants, names and the place of new nodes."""

    def __init__(self, model: ir.Model) -> None:
        self._main = model.graph
        self._taken: set[str] = {v.name or "" for v in (*model.graph.inputs,)}
        self._taken.update(model.graph.initializers)
        self._nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        for node in self._nodes:
            self._taken.add(node.name or "")
            self._taken.update(value.name or "" for value in node.outputs)

    def run(self) -> None:
        """Rewrite every node that changed, or say which cannot be."""
        refused = []
        for node in self._nodes:
            rewrite = CHANGED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rewrite is None:
                continue
            try:
                rewrite(self, node)
            except _Refused as exc:
                refused.append(f"{node.name} ({node.op_type}): {exc}")
        if refused:
            raise EmitError(
                f"--opset {LOWERED_TO}: {len(refused)} nodes need opset {LOWERED_FROM}: "
                f"{'; '.join(refused)}; change the model there, or leave --opset out"
            )
        for node in self._nodes:
            if node.version is not None:
                node.version = LOWERED_TO

    def constant(self, node: ir.Node, place: int, what: str) -> Array | None:
        """Return a constant input; none where it is absent.

        Raises:
            _Refused: It is computed.
        """
        value = node.inputs[place] if len(node.inputs) > place else None
        if value is None:
            return None
        tensor = value.const_value
        if tensor is None:
            raise _Refused(f"its {what} are computed, opset {LOWERED_TO} wants them constant")
        array: Array = tensor.numpy()
        return array

    def initialiser(self, array: Array, near: str) -> ir.Value:
        """Add a constant; bodies of If and Loop see it too."""
        tensor = ir.tensor(array, name=self.unique(near))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._main.register_initializer(value)
        return value

    def before(
        self,
        node: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int] | ir.Shape | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Put a new node in front of ``node``; return its result, of the first input's dtype."""
        made = ir.node(op, inputs=inputs, attributes=attributes)
        made.name = self.unique(f"{node.name}_{op.lower()}")
        made.metadata_props.update(node.metadata_props)
        output = made.outputs[0]
        output.name = self.unique(f"{node.outputs[0].name}_{op.lower()}")
        output.type = None if inputs[0] is None else inputs[0].type
        output.shape = None if shape is None else ir.Shape(shape)
        assert node.graph is not None
        node.graph.insert_before(node, made)
        return output

    def become(
        self, node: ir.Node, op: str, inputs: Sequence[ir.Value | None], **attributes: Any
    ) -> None:
        """Make ``node`` another operator with the same outputs."""
        node.op_type = op
        node.attributes.clear()
        node.attributes.update({a.name: a for a in ir.convenience.convert_attributes(attributes)})
        node.resize_inputs(len(inputs))
        for place, value in enumerate(inputs):
            node.replace_input_with(place, value)

    def unique(self, name: str) -> str:
        """Return ``name``, or one like it that is free."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    shape = value.shape if value is not None else None
    extents = None if shape is None else tuple(shape)
    if extents is None or not all(isinstance(extent, int) for extent in extents):
        raise _Refused(f"the shape of {value.name if value is not None else 'it'} is not static")
    return tuple(int(str(extent)) for extent in extents)


def _take(node: ir.Node, name: str, default: Any) -> Any:
    """Remove an attribute and return its value."""
    attribute = node.attributes.pop(name, None)
    return default if attribute is None else attribute.value


def _axes(axes: Sequence[int] | Array | None, rank: int) -> list[int]:
    if axes is None:
        return list(range(rank))
    return [int(axis) % rank for axis in np.asarray(axes).reshape(-1)]


def _refuse(lowering: _Lowering, node: ir.Node) -> None:
    del lowering, node
    raise _Refused("not in opset 17")


def _reduce(lowering: _Lowering, node: ir.Node) -> None:
    axes = lowering.constant(node, 1, "axes")
    noop = _take(node, "noop_with_empty_axes", 0)
    if (axes is None or not axes.size) and noop:
        if node.op_type not in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"):
            raise _Refused("noop_with_empty_axes, of which runtimes have different notions")
        lowering.become(node, "Identity", [node.inputs[0]])
        return
    node.resize_inputs(1)
    if axes is not None and axes.size:
        node.attributes.add(ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)]))


def _split(lowering: _Lowering, node: ir.Node) -> None:
    count = _take(node, "num_outputs", None)
    if count is None:
        return
    shape = _shape(node.inputs[0])
    axis = node.attributes.get_int("axis", 0)
    extent = shape[axis]
    if extent % count == 0:
        return  # 17 makes equal parts, as many as there are outputs
    part = math.ceil(extent / count)
    sizes = [max(0, min(part, extent - start * part)) for start in range(count)]
    value = lowering.initialiser(np.asarray(sizes, np.int64), f"{node.name}_split")
    node.resize_inputs(2)
    node.replace_input_with(1, value)


def _pad(lowering: _Lowering, node: ir.Node) -> None:
    axes = lowering.constant(node, 3, "axes")
    if axes is None:
        node.resize_inputs(min(len(node.inputs), 3))
        return
    pads = lowering.constant(node, 1, "pads")
    data = node.inputs[0]
    if data is None or data.shape is None:
        raise _Refused("the rank of its input is not known")
    rank = len(data.shape)
    assert pads is not None, node
    wide = np.zeros((2, rank), np.int64)
    wide[:, _axes(axes, rank)] = pads.reshape(2, -1)
    node.replace_input_with(1, lowering.initialiser(wide.reshape(-1), f"{node.name}_pads"))
    node.resize_inputs(3)


def _resize(lowering: _Lowering, node: ir.Node) -> None:
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode not in _RESIZE_COORDINATES:
        raise _Refused(f"coordinate_transformation_mode {mode}")
    if _take(node, "antialias", 0):
        raise _Refused("antialias")
    axes = _take(node, "axes", None)
    policy = _take(node, "keep_aspect_ratio_policy", "stretch")
    if axes is None and policy == "stretch":
        return
    if mode == "tf_crop_and_resize":
        raise _Refused("axes or keep_aspect_ratio_policy with a region of interest")
    shape = _shape(node.inputs[0])
    places = _axes(axes, len(shape))
    sizes = lowering.constant(node, 3, "sizes")
    scales = lowering.constant(node, 2, "scales") if sizes is None else None
    if sizes is None:
        assert scales is not None, node
        wide = np.ones(len(shape), np.float32)
        wide[places] = scales
        node.replace_input_with(2, lowering.initialiser(wide, f"{node.name}_scales"))
        return
    extents = np.asarray(shape, np.int64)
    if policy == "stretch":
        extents[places] = sizes
    else:
        ratios = sizes / extents[places]
        ratio = float(ratios.min() if policy == "not_larger" else ratios.max())
        wanted = extents[places] * ratio
        extents[places] = np.rint(wanted).astype(np.int64)
        if not np.allclose(wanted, extents[places], rtol=0, atol=1e-6):
            raise _Refused(f"keep_aspect_ratio_policy {policy}, which rounds {wanted.tolist()}")
    node.replace_input_with(3, lowering.initialiser(extents, f"{node.name}_sizes"))


def _scatter(lowering: _Lowering, node: ir.Node) -> None:
    del lowering
    reduction = node.attributes.get_string("reduction", "none")
    if reduction not in ("none", "add", "mul"):
        raise _Refused(f"reduction {reduction}")


def _lp_pool(lowering: _Lowering, node: ir.Node) -> None:
    del lowering
    dilations = _take(node, "dilations", [])
    if any(dilation != 1 for dilation in dilations):
        raise _Refused(f"dilations {list(dilations)}")
    if _take(node, "ceil_mode", 0):
        raise _Refused("ceil_mode")


def _optional(lowering: _Lowering, node: ir.Node) -> None:
    value = node.inputs[0] if node.inputs else None
    if value is not None and value.type is None:
        raise _Refused("the type of its input is not known")
    if value is not None and isinstance(value.type, ir.OptionalType):
        return
    if node.op_type == "OptionalGetElement":
        lowering.become(node, "Identity", [value])
        return
    there = lowering.initialiser(np.asarray(value is not None), f"{node.name}_there")
    lowering.become(node, "Identity", [there])


def _mish(lowering: _Lowering, node: ir.Node) -> None:
    x = node.inputs[0]
    shape = x.shape if x is not None else None
    soft = lowering.before(node, "Softplus", [x], shape)
    tanh = lowering.before(node, "Tanh", [soft], shape)
    lowering.become(node, "Mul", [x, tanh])


def _bitwise_not(lowering: _Lowering, node: ir.Node) -> None:
    x = node.inputs[0]
    if x is None or x.dtype is None:
        raise _Refused("the type of its input is not known")
    info = np.iinfo(x.dtype.numpy())
    ones = np.asarray(-1 if info.min < 0 else info.max, x.dtype.numpy())
    lowering.become(node, "Sub", [lowering.initialiser(ones, f"{node.name}_ones"), x])


def _center_crop_pad(lowering: _Lowering, node: ir.Node) -> None:
    x = node.inputs[0]
    shape = _shape(x)
    target = lowering.constant(node, 1, "target shape")
    assert target is not None, node
    assert x is not None, node
    places = _axes(_take(node, "axes", None), len(shape))
    starts = np.zeros(len(shape), np.int64)
    ends = np.asarray(shape, np.int64)
    pads = np.zeros((2, len(shape)), np.int64)
    for axis, wanted in zip(places, target.reshape(-1).tolist(), strict=True):
        more = wanted - shape[axis]
        if more >= 0:
            pads[:, axis] = more // 2, more - more // 2
        else:
            starts[axis] = -more // 2
            ends[axis] = starts[axis] + wanted
    every = np.arange(len(shape), dtype=np.int64)
    bounds = [
        lowering.initialiser(array, f"{node.name}_{what}")
        for array, what in ((starts, "starts"), (ends, "ends"), (every, "axes"))
    ]
    cropped = lowering.before(node, "Slice", [x, *bounds], (ends - starts).tolist())
    wide = lowering.initialiser(pads.reshape(-1), f"{node.name}_pads")
    lowering.become(node, "Pad", [cropped, wide])


def _group_normalization(lowering: _Lowering, node: ir.Node) -> None:
    x, scale, bias = node.inputs
    shape = _shape(x)
    groups = node.attributes.get_int("num_groups")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    split = (shape[0], groups, math.prod(shape[1:]) // groups)
    inner = lowering.initialiser(np.asarray(split, np.int64), f"{node.name}_groups")
    outer = lowering.initialiser(np.asarray(shape, np.int64), f"{node.name}_shape")
    grouped = lowering.before(node, "Reshape", [x, inner], split)
    normal = lowering.before(
        node, "InstanceNormalization", [grouped, scale, bias], split, epsilon=epsilon
    )
    lowering.become(node, "Reshape", [normal, outer])


CHANGED: dict[str, Callable[[_Lowering, ir.Node], None]] = {
    "BitwiseAnd": _refuse,
    "BitwiseNot": _bitwise_not,
    "BitwiseOr": _refuse,
    "BitwiseXor": _refuse,
    "CenterCropPad": _center_crop_pad,
    "Col2Im": _refuse,
    "GroupNormalization": _group_normalization,
    "LpPool": _lp_pool,
    "Mish": _mish,
    "OptionalGetElement": _optional,
    "OptionalHasElement": _optional,
    "Pad": _pad,
    "ReduceL1": _reduce,
    "ReduceL2": _reduce,
    "ReduceLogSum": _reduce,
    "ReduceLogSumExp": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSumSquare": _reduce,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Split": _split,
}
"""Operators that differ between opset 17 and 18, and what rewrites them."""
