"""Small ONNX graphs to be striped, and what runs their forms over any bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from compiler.graph import ValueGraph, build_graph, infer_values
from compiler.stripes.emit import Streams, find_streams
from compiler.stripes.extents import Extents
from compiler.stripes.forms import Band, Former
from compiler.whole import plain_session

FORMS = {
    "first": ("first", "more"),
    "middle": ("carry", "more"),
    "last": ("carry", "last"),
    "entry": ("entry", "more"),
    "rest": ("entry", "last"),
}


def graph_of(
    nodes: list[NodeProto],
    shape: tuple[int, ...],
    weights: dict[str, np.ndarray],
    *,
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
) -> tuple[onnx.ModelProto, ValueGraph]:
    """Return a model that takes ``x`` and gives what its last node gives."""
    out = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "striped",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [onnx.ValueInfoProto(name=out)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return model, build_graph(model, {}, infer_values(model))


@dataclass
class Striped:
    """A model all of whose nodes are striped, with its forms in ONNX Runtime."""

    streams: Streams
    extents: Extents
    out: str
    band: Band
    kept: dict[str, int]
    starts: dict[str, int]
    entry_least: int
    whole: np.ndarray
    x: np.ndarray
    sessions: dict[str, Any]

    @property
    def bounds(self) -> list[int]:
        return list(range(self.band.least, self.band.most + 1, self.band.step))

    def rows(self, low: int, high: int) -> np.ndarray:
        where = [slice(None)] * self.x.ndim
        where[self.extents.flows["x"].axis] = slice(low, high)
        return np.ascontiguousarray(self.x[tuple(where)])

    def known(self, bound: int) -> int:
        return self.extents.flows[self.out].upto(bound)

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, self.extents.flows[self.out].axis)

    def below(self, bound: int) -> np.ndarray:
        """Return the whole output's rows from a bound on."""
        axis = self.extents.flows[self.out].axis
        return np.take(self.whole, range(self.known(bound), self.whole.shape[axis]), axis)

    def run(self, form: str, x: np.ndarray, kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self.sessions[form]
        feed = {"x": x}
        for value in session.get_inputs():
            if value.name.startswith("carry:"):
                feed[value.name] = kept["kept:" + value.name[6:]]
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, feed)))

    def stripes(self, bounds: list[int], *, spoil: bool = False) -> np.ndarray:
        """Run stripe by stripe; with ``spoil``, one value of every carried tensor is wrong."""
        parts, kept, low = [], dict[str, np.ndarray](), 0
        for place, high in enumerate([*bounds, self.extents.rows]):
            form = "first" if not place else "last" if place == len(bounds) else "middle"
            kept = self.run(form, self.rows(low, high), kept)
            parts.append(kept[self.out])
            if spoil:
                kept = {n: a + 1 if n.startswith("kept:") else a for n, a in kept.items()}
            low = high
        return self.join(parts)

    def bottom(self, bound: int, *more: int) -> np.ndarray:
        """Compute the rows from a bound on, from raw rows; in stripes up to ``more``."""
        begin = bound - self.starts["x"]
        if not more:
            return self.run("rest", self.rows(begin, self.extents.rows), {})[self.out]
        kept = self.run("entry", self.rows(begin, more[0]), {})
        parts = [kept[self.out]]
        for low, high in zip(more, [*more[1:], self.extents.rows]):
            form = "last" if high == self.extents.rows else "middle"
            kept = self.run(form, self.rows(low, high), kept)
            parts.append(kept[self.out])
        return self.join(parts)


def striped(
    model: onnx.ModelProto, graph: ValueGraph, *, seed: int = 0, axis: int | None = None
) -> Striped | None:
    """Return the forms of a model; none if it is too low to be divided.

    Every node must have a rule.
    """
    streams = find_streams(model, graph, {})
    extents = streams.extents
    assert extents is not None
    assert not extents.ended_by, extents.ended_by
    assert axis is None or extents.flows["x"].axis == axis
    out = graph.outputs[0]
    former = Former(model, graph, streams.order, extents)
    places = list(range(len(streams.order)))
    kept = former.kept(places)
    band = former.band(places, kept)
    if band.empty:
        return None
    starts = former.starts(places, [out])
    least = former.entry_least(places, starts, band)
    sessions = {}
    for form, (top, bottom) in FORMS.items():
        if top == "entry" and least > band.most:
            continue
        piece = former.form(
            places,
            [out],
            top=top,
            bottom=bottom,
            owners=dict.fromkeys(places, 0),
            kept={0: kept},
            starts=starts,
        )
        onnx.checker.check_model(piece, full_check=True)
        sessions[form] = plain_session(piece.SerializeToString())
    spec = graph.values.specs["x"]
    draw = np.random.default_rng(seed)
    x = draw.standard_normal(spec.shape).astype(np.float32)
    if spec.dtype != "float32":
        x = draw.integers(0, 256, spec.shape).astype(spec.dtype)
    whole = plain_session(model.SerializeToString()).run([out], {"x": x})[0]
    return Striped(streams, extents, out, band, kept, starts, least, whole, x, sessions)
