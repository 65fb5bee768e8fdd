"""A rule: what one operator does to rows, and how it is written into a form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import NodeProto
from onnx.helper import make_attribute, make_node

from compiler.stripes.facts import Facts, RowAxis

__all__ = [
    "END",
    "Emit",
    "Factory",
    "Place",
    "Rule",
    "copied",
    "cropped",
    "plain",
    "pointwise",
    "slice_rows",
]

END = np.iinfo(np.int64).max
"""ONNX's word for the end of an axis in a Slice."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its form a node is emitted.

    The numbers hold for one place; only their differences are used, which are the same at every
    place.

    Attributes:
        top: Whether the rows begin at the picture's top.
        bottom: Whether they end at its bottom.
        begin: First row of the input that the node is given.
        end: Row behind the last.
        out_begin: First row of the output that is wanted.
        out_end: Row behind the last.
        inputs: Names of the inputs as prepared.
        constant: Makes an initialiser and returns its name.
    """

    top: bool
    bottom: bool
    begin: int
    end: int
    out_begin: int
    out_end: int
    inputs: Sequence[str]
    constant: Callable[[np.ndarray], str]


Emit = Callable[[NodeProto, Place], list[NodeProto]]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one node treats rows.

    Attributes:
        axis: Dimension of the output's rows, by output.
        scale: Rows of the output for each row of the input.
        determined: Rows of the output for so many known rows of the input.
        needs: First row of the input for the output from this row on.
        emit: Gives the nodes of a form.
        ends: Row of the input behind the last that the output up to this row needs, where the
            node must be given no more than that; none where surplus rows do no harm.
        least_rows: Fewest rows of the input with which a form that pads can begin.
    """

    axis: int
    scale: Fraction
    determined: Callable[[int], int]
    needs: Callable[[int], int]
    emit: Emit
    ends: Callable[[int], int] | None = None
    least_rows: int = 1


def _same(row: int) -> int:
    return row


def copied(node: NodeProto, place: Place, **attributes: Any) -> NodeProto:
    """Return a copy of ``node`` with the inputs of ``place``, and some attributes replaced."""
    new = NodeProto()
    new.CopyFrom(node)
    del new.input[:]
    new.input.extend(place.inputs)
    for name, value in attributes.items():
        kept = [a for a in new.attribute if a.name != name]
        del new.attribute[:]
        new.attribute.extend(kept)
        if value is not None:
            new.attribute.append(make_attribute(name, value))
    return new


def cropped(node: NodeProto, place: Place, axis: int, top: int, bottom: int) -> list[NodeProto]:
    """Return ``node``, its output less some rows at both ends."""
    assert min(top, bottom) >= 0, f"{node.op_type} {node.name}: too few rows"
    if not (top or bottom):
        return [node]
    name = node.output[0]
    node.output[0] = f"uncropped:{name}"
    crop = slice_rows(f"uncropped:{name}", name, axis, top, bottom, place.constant)
    return [node, crop]


def slice_rows(
    source: str,
    result: str,
    axis: int,
    top: int,
    bottom: int,
    constant: Callable[[np.ndarray], str],
) -> NodeProto:
    """Return a Slice that leaves out rows at both ends."""
    start, end = np.asarray([top], np.int64), np.asarray([-bottom if bottom else END], np.int64)
    return make_node(
        "Slice",
        [source, constant(start), constant(end), constant(np.asarray([axis], np.int64))],
        [result],
        name=f"slice:{result}",
    )


def plain(node: NodeProto, place: Place) -> list[NodeProto]:
    """Write a node as it is, on the rows that it is given."""
    return [copied(node, place)]


def pointwise(axis: int, emit: Emit = plain) -> Rule:
    """Return the rule of an operator that gives each row from that very row."""
    return Rule(axis, Fraction(1), _same, _same, emit, _same)


Factory = Callable[[NodeProto, Mapping[str, RowAxis], Facts], Rule]
"""Makes the rule of a node, or raises ``Unstriped``."""
