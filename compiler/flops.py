"""FLOPs of ONNX operators: what a cut's two sides weigh, before anything is measured.

A multiply-accumulate counts as two. Matrix products and convolutions are counted exactly; an
elementwise operator costs one per element of its output, a reduction or pooling one per element
it reads; moving data costs nothing. Biases count as one addition per output element.

Source:
    The usual convention of PyTorch's ``torch.utils.flop_counter`` for the first group (2 per
    multiply-accumulate), extended to the cheap operators, which it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["flops_of"]

Shape = Sequence[int] | None
Attributes = Mapping[str, object]

_FREE = frozenset(
    (
        *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace"),
        *("Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"),
        *("If", "Loop", "OneHot", "Pad", "Reshape", "ScatterElements", "ScatterND", "Scan"),
        *("Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        "Unsqueeze",
    )
)
"""Operators that move data or only rename it, and control flow, whose bodies are not counted."""

_PER_ELEMENT = {
    "BatchNormalization": 2,  # scale and shift, statistics fixed
    "Elu": 2,
    "Gelu": 8,
    "GroupNormalization": 8,
    "HardSigmoid": 3,
    "HardSwish": 4,
    "InstanceNormalization": 8,
    "LRN": 8,
    "LayerNormalization": 8,  # mean, variance, normalise, scale and shift
    "LogSoftmax": 5,
    "Mish": 5,
    "Resize": 7,  # bilinear: three interpolations of a multiply and an add, at most
    "RMSNormalization": 5,
    "Sigmoid": 4,
    "Softmax": 5,
    "Softplus": 3,
    "Tanh": 4,
    "Upsample": 7,
}
"""Operations per element of the output, where it is not one. Transcendentals count as one."""


def flops_of(
    op: str, inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
) -> int:
    """Return the floating-point operations of one node.

    Args:
        op: Operator of the default ONNX domain; another one counts as elementwise.
        inputs: Shapes of its inputs; none where there is no input or its shape is unknown.
        outputs: Shapes of its outputs.
        attributes: Its attributes: integers, lists of integers and strings.
    """
    if op in _FREE:
        return 0
    if any(shape is None for shape in inputs[:2]) or not outputs or outputs[0] is None:
        return 0
    shapes = [shape or () for shape in inputs]
    # An input left out has no shape and no bias.
    has_bias = len(inputs) > 2 and inputs[2] is not None
    call = _Call(shapes, outputs[0], attributes, has_bias=has_bias)
    rule = _RULES.get(op)
    if rule is not None:
        return rule(call)
    if op.startswith(("Reduce", "Global")) or op in ("ArgMax", "ArgMin"):
        return math.prod(shapes[0]) if shapes else 0
    return _PER_ELEMENT.get(op, 1) * math.prod(outputs[0])


@dataclass(frozen=True, slots=True)
class _Call:
    """One node: shapes of its inputs and of its first output, its attributes."""

    inputs: Sequence[Sequence[int]]
    output: Sequence[int]
    attributes: Attributes
    has_bias: bool

    @property
    def bias(self) -> int:
        return math.prod(self.output) if self.has_bias else 0


def _pool(call: _Call) -> int:
    return math.prod(call.output) * math.prod(_integers(call.attributes.get("kernel_shape")))


def _conv(call: _Call) -> int:
    # The weight is [M, C/groups, k...]: the groups are in it.
    return 2 * math.prod(call.output) * math.prod(call.inputs[1][1:]) + call.bias


def _quantised_conv(call: _Call) -> int:
    # x, its scale and zero point, then the weight.
    return 2 * math.prod(call.output) * math.prod(call.inputs[3][1:])


def _conv_transpose(call: _Call) -> int:
    # The weight is [C, M/groups, k...].
    return 2 * math.prod(call.inputs[0]) * math.prod(call.inputs[1][1:]) + call.bias


def _matmul(call: _Call) -> int:
    depth = call.inputs[0][-1] if call.inputs[0] else 1
    return 2 * math.prod(call.output) * depth


def _gemm(call: _Call) -> int:
    depth = call.inputs[0][0 if call.attributes.get("transA") else 1]
    return 2 * math.prod(call.output) * depth + call.bias


def _einsum(call: _Call) -> int:
    equation = call.attributes.get("equation")
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    extents: dict[str, int] = {}
    for term, shape in zip(text.replace(" ", "").split("->")[0].split(","), call.inputs):
        if "." in term or len(term) != len(shape):
            return 2 * math.prod(call.output)  # a lower bound
        for axis, extent in zip(term, shape):
            extents[axis] = max(extent, extents.get(axis, 0))
    return 2 * math.prod(extents.values())


def _recurrent(call: _Call) -> int:
    """X [T, N, I], W [D, gates*H, I], R [D, gates*H, H]: two products a step and direction."""
    x, w, r = call.inputs[:3]
    return 2 * math.prod(x[:2]) * (math.prod(w) + math.prod(r))


def _integers(value: object) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else ()


_RULES: dict[str, Callable[[_Call], int]] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "LpPool": _pool,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MaxPool": _pool,
    "QLinearConv": _quantised_conv,
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
}
