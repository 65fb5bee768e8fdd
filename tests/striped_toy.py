"""Striped bundles made by hand, without the compiler: a chain of convolutions with a skip.

    x -> Conv a -> MaxPool p -> Conv r -> Add (r + p) s -> Conv y           ``dense``: outputs r, y
                                                       s -> pooled -> Gemm  ``classes``: logits

One segment an operator, a cut at every boundary. The skip makes one frontier of two tensors that
lag differently behind the input. The forms are derived here for a chain of operators of kernel k,
stride s and padding p; nothing of the compiler's is used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from calibration.parity import TOLERANCE
from engines.bundle import Bundle, file_entries, new_bundle
from engines.manifest import SPEC, Cut, Manifest, Parity, Segment
from engines.stripes import (
    Carry,
    RowsOf,
    RowSplit,
    StripedCut,
    StripedSegment,
    StripeEnd,
    Striping,
    carry_name,
    kept_name,
)
from engines.tensors import TensorSpec

ROWS, WIDTH, CHANNELS = 48, 10, 4


class Op(NamedTuple):
    """An operator that takes some rows of each input: Conv, MaxPool or Add (k = s = 1)."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    channels: int = CHANNELS


OPS = (
    Op("Conv", ("x",), "a", 3, 1, 1, 3),
    Op("MaxPool", ("a",), "p", 2, 2, 0),
    Op("Conv", ("p",), "r", 3, 1, 1),
    Op("Add", ("r", "p"), "s"),
    Op("Conv", ("s",), "y", 3, 1, 1),
)
BAND = 2
_HALF = {"x": 1, "a": 1, "p": 2, "r": 2, "s": 2, "y": 2}


def _spec(name: str) -> TensorSpec:
    if name == "logits":
        return TensorSpec(name, "float32", (1, 5))
    rows, width = ROWS // _HALF[name], WIDTH // _HALF[name]
    return TensorSpec(name, "float32", (1, 3 if name == "x" else CHANNELS, rows, width))


def _weights(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    found = {
        f"w_{op.output}": draw.standard_normal((CHANNELS, op.channels, 3, 3)).astype(np.float32)
        for op in OPS
        if op.kind == "Conv"
    }
    found["w_logits"] = draw.standard_normal((CHANNELS, 5)).astype(np.float32)
    return found


class Rows:
    """Rows of every tensor once the base's [0, b) are known: b * num / den - lag."""

    def __init__(self, base: str, base_rows: int, ops: tuple[Op, ...]) -> None:
        self.of = {base: RowsOf(axis=2, rows=base_rows, num=1, den=1, lag=0)}
        if base == "r":  # the frontier of two tensors, of equal height
            self.of["p"] = self.of[base]
        self.carries: dict[str, dict[str, int]] = {}
        for op in ops:
            given = [self.of[name] for name in op.inputs]
            known = [-rows.lag for rows in given]
            known_out = min((k + op.pad - op.kernel) // op.stride + 1 for k in known)
            self.carries[op.output] = {
                name: k - known_out * op.stride + op.pad for name, k in zip(op.inputs, known)
            }
            rows = given[0]
            self.of[op.output] = RowsOf(
                axis=2,
                rows=rows.rows // op.stride,
                num=rows.num,
                den=rows.den * op.stride,
                lag=-known_out,
            )


class Form:
    """Writes one striped form: operators on rows that are new, with what is carried above."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, np.ndarray] = {}

    def take(self, name: str, like: str, rows: int | None = None) -> str:
        self.inputs.append(self._info(name, like, rows))
        return name

    def give(self, value: str, name: str, like: str, rows: int | None = None) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(self._info(name, like, rows))

    def rows(self, value: str, start: int, stop: int | None) -> str:
        """Slice rows [start, stop), counted from the end where negative."""
        bounds = {"lo": start, "hi": 2**40 if stop is None else stop, "axis": 2}
        names = []
        for key, number in bounds.items():
            name = f"c_{key}_{number}".replace("-", "m")
            self._constants[name] = np.asarray([number], np.int64)
            names.append(name)
        return self._add("Slice", [value, *names])

    def join(self, *values: str) -> str:
        return self._add("Concat", list(values), axis=2)

    def op(self, op: Op, values: list[str], top: int, bottom: int) -> str:
        if op.kind == "Add":
            return self._add("Add", values)
        side = 1 if op.kind == "Conv" else 0
        pads = [top, side, bottom, side]
        if op.kind == "Conv":
            return self._add("Conv", [*values, f"w_{op.output}"], pads=pads)
        sizes = {"kernel_shape": [op.kernel] * 2, "strides": [op.stride] * 2}
        return self._add("MaxPool", values, pads=pads, **sizes)

    def save(self, path: Path) -> None:
        used = {name for node in self.nodes for name in node.input}
        held = {**self._weights, **self._constants}
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(a, n) for n, a in held.items() if n in used],
        )
        _save(graph, path)

    def _add(self, kind: str, values: list[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, values, [name], **attributes))
        return name

    def _info(self, name: str, like: str, rows: int | None) -> onnx.ValueInfoProto:
        shape: list[object] = list(_spec(like).shape)
        shape[2] = f"rows of {name}" if rows is None else rows
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(path))


def _run_ops(
    form: Form, rows: Rows, ops: tuple[Op, ...], env: dict[str, str], place: str, segment: object
) -> None:
    """Write operators of a first, middle or last stripe; ``segment`` names the carried rows."""
    for op in ops:
        values = []
        for name in op.inputs:
            count = rows.carries[op.output][name]
            tag = name if isinstance(segment, int) else f"{name}>{op.output}"
            number = segment if isinstance(segment, int) else None
            value = env[name]
            if count and place != "first":
                value = form.join(form.take(carry_name(tag, number), name, count), value)
            if count and place != "last":
                kept = form.rows(value, -count, None)
                form.give(kept, kept_name(tag, number), name, count)
            if op.kind == "Add" and count and place != "last":
                value = form.rows(value, 0, -count)
            values.append(value)
        top, bottom = (op.pad if place == end else 0 for end in ("first", "last"))
        env[op.output] = form.op(op, values, top, bottom)


def _starts(rows: Rows, ops: tuple[Op, ...], frontier: tuple[str, ...], base: tuple[str, ...]):
    """Return the first row needed of each tensor, relative to its place at the bound."""
    starts = {name: -rows.of[name].lag for name in frontier}
    for op in reversed(ops):
        if op.output not in starts:
            continue
        for name in op.inputs:
            need = starts[op.output] * op.stride - op.pad
            starts[name] = min(starts.get(name, need), need)
    return starts


def _inner(
    form: Form, rows: Rows, ops: tuple[Op, ...], starts: dict[str, int], env: dict[str, str],
    at: dict[str, int], last: bool,
) -> None:  # fmt: skip
    """Write operators that start inside the picture: no padding at the top, no carry."""
    for op in ops:
        if op.output not in starts:
            continue
        values = []
        for name in op.inputs:
            need = starts[op.output] * op.stride - op.pad
            value = form.rows(env[name], need - at[name], None) if need > at[name] else env[name]
            if op.kind == "Add" and not last and rows.carries[op.output][name]:
                value = form.rows(value, 0, -rows.carries[op.output][name])
            values.append(value)
        env[op.output] = form.op(op, values, 0, op.pad if last else 0)
        at[op.output] = starts[op.output]


def _segment(folder: Path, rows: Rows, index: int, weights: dict[str, np.ndarray]):
    op = OPS[index]
    files = {}
    for place in ("first", "middle", "last"):
        form = Form(weights)
        env = {name: form.take(name, name) for name in op.inputs}
        _run_ops(form, rows, (op,), env, place, index)
        form.give(env[op.output], op.output, op.output)
        files[place] = f"graph/segment_{index}_{place}.onnx"
        form.save(folder / files[place])
    return StripedSegment(
        index=index,
        band=BAND,
        least=8,
        most=ROWS - 8,
        carries=tuple(Carry(n, c) for n, c in rows.carries[op.output].items() if c),
        **files,
    )


def _cut(folder: Path, rows: Rows, index: int, frontier: tuple[str, ...], weights) -> StripedCut:
    lag = max((rows.of[n].lag * rows.of[n].den for n in frontier), default=0)
    fixed = {"cut": index, "lag": lag, "band": BAND if index else 1}
    limits = {"least": 8 if index else 1, "most": ROWS - (8 if index else 1)}
    if not index:
        return StripedCut(halo=0, **fixed, **limits)
    ops = OPS[:index]
    # What the segments keep is theirs from the last rows on: only the frontier decides.
    starts = _starts(rows, ops, frontier, ("x",))
    halo = -(min(starts["x"], 0) // BAND) * BAND
    files = {}
    for kind in ("entry", "rest"):
        form = Form(weights)
        env, at = {"x": form.take("x", "x")}, {"x": -halo}
        _inner(form, rows, ops, starts, env, at, kind == "rest")
        for name in frontier:
            skip = -rows.of[name].lag - at[name]
            form.give(form.rows(env[name], skip, None), name, name)
        if kind == "entry":
            for segment, op in enumerate(ops):
                for name, count in rows.carries[op.output].items():
                    if count:
                        kept = form.rows(env[name], -count, None)
                        form.give(kept, kept_name(name, segment), name, count)
        files[kind] = f"graph/cut_{index}_{kind}.onnx"
        form.save(folder / files[kind])
    extra = tuple(0.5 for _ in ops)
    return StripedCut(halo=halo, entry_least=max(8, halo), extra=extra, **files, **fixed, **limits)


def _row_split(folder: Path, index: int, frontier: tuple[str, ...], weights) -> RowSplit:
    base = frontier[-1]
    height = _spec(base).shape[2]
    ops = OPS[index:]
    rows = Rows(base, height, ops)
    outputs = [name for name in ("r", "y") if name not in frontier and name in rows.of]
    outputs = [name for name in outputs if any(op.output == name for op in ops)]
    files, carries = {}, []
    for kind, place in (("top", "first"), ("last", "last")):
        form = Form(weights)
        env = {name: form.take(name, name) for name in frontier}
        _run_ops(form, rows, ops, env, place, "rows")
        for name in outputs:
            form.give(env[name], name, name)
        files[kind] = f"graph/rows_{index}_{kind}.onnx"
        form.save(folder / files[kind])
    for op in ops:
        for name, count in rows.carries[op.output].items():
            carries += [Carry(f"{name}>{op.output}", count)] if count else []
    starts = _starts(rows, ops, tuple(outputs), frontier)
    form = Form(weights)
    env = {name: form.take(name, name) for name in frontier}
    at = {name: min(starts.get(name, 0), 0) for name in frontier}
    _inner(form, rows, ops, starts, env, dict(at), True)
    for name in outputs:
        form.give(form.rows(env[name], -rows.of[name].lag - starts[name], None), name, name)
    files["bottom"] = f"graph/rows_{index}_bottom.onnx"
    form.save(folder / files["bottom"])
    halo = max(-start for start in at.values())
    return RowSplit(
        cut=index,
        rows=height,
        band=BAND,
        least=max(8, halo),
        most=height - 8,
        lag=3,
        halo=halo,
        tensors={n: rows.of[n] for n in (*frontier, *outputs)},
        starts={name: -start for name, start in at.items()},
        carries=tuple(carries),
        mean_lag=1.0,
        mean_extra=1.0,
        **files,
    )


def _plain(
    ops: tuple[Op, ...], weights, ins: tuple[str, ...], outs: tuple[str, ...], path: Path
) -> None:
    """Write operators unstriped; after the last of them, where asked for, the classifier."""
    form = Form(weights)
    env = {name: name for name in ins}
    for op in ops:
        env[op.output] = form.op(op, [env[n] for n in op.inputs], op.pad, op.pad)
    nodes = form.nodes
    if "logits" in outs:
        nodes.append(helper.make_node("GlobalAveragePool", [env["s"]], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        nodes.append(helper.make_node("Gemm", ["flat", "w_logits"], ["logits"]))
    nodes += [helper.make_node("Identity", [env[n]], [n]) for n in outs if env.get(n, n) != n]
    used = {name for node in nodes for name in node.input}
    info = [[_value(_spec(n)) for n in names] for names in (ins, outs)]
    held = [numpy_helper.from_array(a, n) for n, a in weights.items() if n in used]
    _save(helper.make_graph(nodes, path.stem, *info, held), path)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape)


def striped_inputs(seed: int = 3) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {"x": draw.standard_normal((1, 3, ROWS, WIDTH)).astype(np.float32)}


def whole_outputs(bundle: Bundle, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the whole graph in one plain session."""
    session = onnxruntime.InferenceSession(str(bundle.path(bundle.manifest.graph)))
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


def write_striped_bundle(
    target: Path, *, dense: bool = True, seed: int = 0, wrong_carry: bool = False
) -> Bundle:
    """Write a bundle. With ``wrong_carry`` one form hands on the wrong rows."""
    weights = _weights(seed)
    outputs = ("r", "y") if dense else ("logits",)
    frontiers = [("x",), ("a",), ("p",), ("p", "r"), ("s",), outputs]
    striped = len(OPS) if dense else len(OPS) - 1
    with new_bundle(target) as (folder, finish):
        (folder / "graph").mkdir()
        rows = Rows("x", ROWS, OPS)
        segments, cuts = [], []
        for index in range(len(OPS)):
            op = OPS[index]
            tail = not dense and index == len(OPS) - 1
            ins, outs = op.inputs, ("logits",) if tail else (op.output,)
            file = f"graph/segment_{index}.onnx"
            _plain(() if tail else (op,), weights, ins, outs, folder / file)
            kinds = ("GlobalAveragePool", "Flatten", "Gemm") if tail else (op.kind,)
            segments.append(
                Segment(index=index, file=file, inputs=ins, outputs=outs, operators=kinds, flops=9)
            )
        ops = OPS if dense else OPS[:-1]
        _plain(ops, weights, ("x",), outputs, folder / "graph" / "model.onnx")
        for index, frontier in enumerate(frontiers):
            last = index == len(frontiers) - 1
            early = index >= 3 and dense
            results = () if last else tuple(n for n in outputs if not (n == "r" and early))
            cuts.append(
                Cut(
                    id=hashlib.sha256("\n".join(sorted(frontier)).encode()).hexdigest()[:8],
                    index=index,
                    tensors=tuple(sorted(frontier)),
                    bytes=sum(_spec(n).nbytes for n in frontier),
                    results=results,
                    result_bytes=sum(_spec(n).nbytes for n in results),
                    flops_robot=9 * index,
                    flops_server=9 * (len(OPS) - index),
                    after=f"layer{index}" if index else "",
                    why=("every boundary",),
                    head="graph/model.onnx" if last else None,
                    tail=None if index else "graph/model.onnx",
                    robot_segments=tuple(range(index)),
                )
            )
        forms = tuple(_segment(folder, rows, i, weights) for i in range(striped))
        if wrong_carry:
            _spoil(folder / forms[0].middle)
        striping = Striping(
            rows=ROWS,
            tensors={n: rows.of[n] for n in ("x", *(op.output for op in OPS[:striped]))},
            segments=forms,
            cuts=tuple(_cut(folder, rows, i, frontiers[i], weights) for i in range(striped + 1)),
            row_splits=tuple(
                _row_split(folder, i, frontiers[i], weights) for i in ((0, 2, 3) if dense else ())
            ),
            ended_by=() if dense else (StripeEnd("pooled", "GlobalAveragePool", "needs all"),),
        )
        inputs = striped_inputs(7)
        session = onnxruntime.InferenceSession(str(folder / "graph" / "model.onnx"))
        vectors = {f"input:{k}": v for k, v in inputs.items()}
        vectors |= {f"output:{n}": v for n, v in zip(outputs, session.run(list(outputs), inputs))}
        np.savez(str(folder / "parity.npz"), **vectors)
        names = dict.fromkeys(
            ["x", *(n for s in segments for n in s.outputs), *(n for f in frontiers for n in f)]
        )
        manifest = Manifest(
            spec=SPEC,
            name="striped-toy",
            model_digest="1" * 64,
            producer={"splitrt": "test"},
            opset=18,
            precision="fp32",
            graph="graph/model.onnx",
            weights="",
            inputs=(_spec("x"),),
            outputs=tuple(_spec(n) for n in outputs),
            images={},
            tensors={n: _spec(n) for n in names},
            cuts=tuple(cuts),
            segments=tuple(segments),
            refused=(),
            estimates={},
            targets={},
            parity=Parity(
                file="parity.npz",
                seed=7,
                tolerance=TOLERANCE,
                max_error=0.0,
                compared_with="onnx",
            ),
            striping=striping,
            files=file_entries(folder),
        )
        return finish(manifest)


def _spoil(path: Path) -> None:
    """Let a form keep the rows above those that it should, as a wrong lag would."""
    model = onnx.load(str(path))
    kept = next(n for n in model.graph.node if n.output[0].startswith("kept:"))
    cut = next(n for n in model.graph.node if n.output[0] == kept.input[0])
    low, high = cut.input[1], cut.input[2]
    for constant in model.graph.initializer:
        if constant.name == low:
            first = numpy_helper.to_array(constant) - 1
            constant.CopyFrom(numpy_helper.from_array(first, low))
        elif constant.name == high:
            constant.CopyFrom(numpy_helper.from_array(np.asarray([-1]), high))
    onnx.save(model, str(path))
