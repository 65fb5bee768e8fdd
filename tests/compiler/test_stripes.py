"""Striped forms against the whole, by brute force: random graphs, every kind of operator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compiler.stripes.emit import find_streams
from tests.compiler.striped_graphs import Striped, graph_of, striped

N = helper.make_node


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(given: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for what the backend's kernels make of another shape."""
    assert given.shape == wanted.shape
    if given.dtype.kind == "f":
        scale = max(1.0, float(np.abs(wanted).max()))
        assert float(np.abs(given - wanted).max()) <= 1e-5 * scale
    else:
        assert np.array_equal(given, wanted)


def check(found: Striped, draw: np.random.Generator, trials: int = 6) -> None:
    """Compare random divisions, from the top and from inside, with the whole."""
    for _ in range(trials):
        count = int(draw.integers(1, min(5, len(found.bounds)) + 1))
        bounds = sorted(draw.choice(found.bounds, count, replace=False).tolist())
        assert_same(found.stripes(bounds), found.whole)
        inside = [b for b in found.bounds if b >= found.entry_least]
        if not inside:
            continue
        count = int(draw.integers(1, min(4, len(inside)) + 1))
        bound, *more = sorted(draw.choice(inside, count, replace=False).tolist())
        assert_same(found.bottom(bound, *more), found.below(bound))


CASES = {
    "conv": ([N("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], {"w": floats(3, 4, 3, 3)}),
    "conv asymmetric": (
        [N("Conv", ["x", "w"], ["y"], pads=[3, 0, 1, 0], strides=[3, 1], dilations=[2, 1])],
        {"w": floats(3, 4, 4, 1)},
    ),
    "conv same upper": (
        [N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        {"w": floats(3, 4, 3, 3)},
    ),
    "conv same lower": (
        [N("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])],
        {"w": floats(3, 4, 4, 4)},
    ),
    "conv valid": (
        [N("Conv", ["x", "w"], ["y"], auto_pad="VALID", strides=[2, 2])],
        {"w": floats(3, 4, 3, 3)},
    ),
    "conv grouped": (
        [N("Conv", ["x", "w"], ["y"], group=4, pads=[2, 2, 2, 2])],
        {"w": floats(4, 1, 5, 5)},
    ),
    "conv of small kernel and large stride": (
        [N("Conv", ["x", "w"], ["y"], strides=[3, 3])],
        {"w": floats(3, 4, 1, 1)},
    ),
    "max pool, partial windows": (
        [N("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)],
        {},
    ),
    "average pool with padding": (
        [
            N(
                "AveragePool",
                ["x"],
                ["y"],
                kernel_shape=[3, 3],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
                count_include_pad=1,
            )
        ],
        {},
    ),
    "average pool without padding": (
        [N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
    ),
    "transposed conv": (
        [N("ConvTranspose", ["x", "w"], ["y"], pads=[2, 2, 2, 2], strides=[2, 2])],
        {"w": floats(4, 3, 6, 6)},
    ),
    "transposed conv, output padding": (
        [
            N(
                "ConvTranspose",
                ["x", "w"],
                ["y"],
                pads=[1, 1, 1, 1],
                strides=[2, 2],
                output_padding=[1, 1],
            )
        ],
        {"w": floats(4, 3, 3, 3)},
    ),
    "transposed conv, dilated": (
        [N("ConvTranspose", ["x", "w"], ["y"], dilations=[2, 1], pads=[1, 0, 2, 0])],
        {"w": floats(4, 3, 3, 3)},
    ),
    "transposed conv, same": (
        [N("ConvTranspose", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[3, 2])],
        {"w": floats(4, 3, 4, 3)},
    ),
    "nearest": (
        [
            N(
                "Resize",
                ["x", "", "s"],
                ["y"],
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        ],
        {"s": np.asarray([1, 1, 3, 2], np.float32)},
    ),
    "nearest by sizes": (
        [N("Resize", ["x", "", "", "s"], ["y"], mode="nearest")],
        {"s": ints(1, 4, 48, 16)},
    ),
    "linear": (
        [N("Resize", ["x", "", "s"], ["y"], mode="linear")],
        {"s": np.asarray([1, 1, 2, 2], np.float32)},
    ),
    "linear, asymmetric": (
        [
            N(
                "Resize",
                ["x", "", "s"],
                ["y"],
                mode="linear",
                coordinate_transformation_mode="asymmetric",
            )
        ],
        {"s": np.asarray([1, 1, 4, 2], np.float32)},
    ),
    "every second row": (
        [N("Slice", ["x", "a", "b", "c", "d"], ["y"])],
        {"a": ints(1), "b": ints(10**6), "c": ints(2), "d": ints(2)},
    ),
    "rows in the middle": (
        [N("Slice", ["x", "a", "b", "c"], ["y"])],
        {"a": ints(2, 1), "b": ints(-3, 3), "c": ints(2, 1)},
    ),
    "pad": ([N("Pad", ["x", "p"], ["y"])], {"p": ints(0, 0, 2, 1, 0, 0, 3, 1)}),
    "crop": ([N("Pad", ["x", "p"], ["y"])], {"p": ints(0, 0, -2, 1, 0, 0, -3, 1)}),
    "reflect": (
        [N("Pad", ["x", "p"], ["y"], mode="reflect")],
        {"p": ints(0, 0, 2, 1, 0, 0, 3, 1)},
    ),
    "edge": ([N("Pad", ["x", "p"], ["y"], mode="edge")], {"p": ints(0, 0, 2, 1, 0, 0, 3, 1)}),
    "space to depth": ([N("SpaceToDepth", ["x"], ["y"], blocksize=2)], {}),
    "depth to space": ([N("DepthToSpace", ["x"], ["y"], blocksize=2)], {}),
    "clip": (
        [N("Clip", ["x", "a", "b"], ["y"])],
        {"a": np.asarray(-0.5, np.float32), "b": np.asarray(0.5, np.float32)},
    ),
    "softmax over channels": ([N("Softmax", ["x"], ["y"], axis=1)], {}),
    "arg max over channels": ([N("ArgMax", ["x"], ["y"], axis=1, keepdims=0)], {}),
    "mean over channels": ([N("ReduceMean", ["x", "a"], ["y"], keepdims=0)], {"a": ints(1)}),
    "batch normalisation": (
        [N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
        {
            "s": floats(4),
            "b": floats(4, seed=1),
            "m": floats(4, seed=2),
            "v": floats(4, seed=3) ** 2,
        },
    ),
    "layer normalisation of every pixel": (
        [
            N("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            N("LayerNormalization", ["t", "s"], ["l"], axis=-1),
            N("MatMul", ["l", "w"], ["m"]),
            N("Transpose", ["m"], ["y"], perm=[0, 3, 1, 2]),
        ],
        {"s": floats(4), "w": floats(4, 6)},
    ),
    "channel shuffle": (
        [
            N("Reshape", ["x", "a"], ["r"]),
            N("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
            N("Reshape", ["t", "b"], ["s"]),
            N("Conv", ["s", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {"a": ints(1, 2, 2, 24, 8), "b": ints(1, 4, 24, 8), "w": floats(3, 4, 3, 3)},
    ),
    "quantised": (
        [
            N("QuantizeLinear", ["x", "s", "z"], ["q"]),
            N("DequantizeLinear", ["q", "s", "z"], ["d"]),
            N("Conv", ["d", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {
            "s": np.asarray(0.05, np.float32),
            "z": np.asarray(0, np.int8),
            "w": floats(3, 4, 3, 3),
        },
    ),
    "focus": (
        [
            N("Slice", ["x", "0", "e", "r", "2"], ["even"]),
            N("Slice", ["x", "1", "e", "r", "2"], ["odd"]),
            N("Concat", ["even", "odd"], ["c"], axis=1),
            N("Conv", ["c", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {"0": ints(0), "1": ints(1), "2": ints(2), "e": ints(10**6), "r": ints(2)}
        | {"w": floats(3, 8, 3, 3)},
    ),
    "residual": (
        [
            N("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            N("Relu", ["a"], ["b"]),
            N("Conv", ["b", "w"], ["c"], pads=[2, 2, 2, 2], dilations=[2, 2]),
            N("Add", ["c", "x"], ["d"]),
            N("Conv", ["d", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 1]),
        ],
        {"w": floats(4, 4, 3, 3)},
    ),
    "down and up": (
        [
            N("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
            N("ConvTranspose", ["a", "t"], ["b"], pads=[1, 1, 1, 1], strides=[2, 2]),
            N("Concat", ["b", "x"], ["c"], axis=1),
            N("Conv", ["c", "v"], ["y"]),
        ],
        {"w": floats(4, 4, 3, 3), "t": floats(4, 4, 4, 4), "v": floats(2, 8, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_operator_in_stripes_equals_the_whole(name: str) -> None:
    nodes, weights = CASES[name]
    found = striped(*graph_of(nodes, (1, 4, 24, 8), weights))
    assert found is not None
    assert "rest" in found.sessions
    check(found, np.random.default_rng(0))


@pytest.mark.parametrize("height", [17, 18, 19, 23])
def test_heights_that_strides_do_not_divide(height: int) -> None:
    nodes = [
        N("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        N("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        N("Relu", ["b"], ["y"]),
    ]
    found = striped(*graph_of(nodes, (1, 4, height, 8), {"w": floats(4, 4, 3, 3)}))
    assert found is not None
    check(found, np.random.default_rng(height))


def test_three_dimensional_convolutions() -> None:
    nodes = [
        N("Conv", ["x", "w"], ["a"], pads=[1] * 6),
        N("Conv", ["a", "w"], ["b"], pads=[3] * 6, dilations=[3] * 3),
        N("Add", ["a", "b"], ["c"]),
        N("MaxPool", ["c"], ["y"], kernel_shape=[2] * 3, strides=[2] * 3),
    ]
    found = striped(*graph_of(nodes, (1, 2, 24, 6, 6), {"w": floats(2, 2, 3, 3, 3)}), axis=2)
    assert found is not None
    check(found, np.random.default_rng(0))


def test_one_dimensional_convolutions() -> None:
    nodes = [N("Conv", ["x", "w"], ["y"], pads=[4, 4], strides=[2])]
    found = striped(*graph_of(nodes, (1, 2, 64), {"w": floats(3, 2, 9)}), axis=2)
    assert found is not None
    check(found, np.random.default_rng(0))


def test_pictures_of_bytes_with_the_channels_last() -> None:
    nodes = [
        N("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        N("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        N("Sub", ["t", "m"], ["n"]),
        N("Conv", ["n", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    weights = {"m": floats(3, 1, 1), "w": floats(4, 3, 3, 3)}
    found = striped(*graph_of(nodes, (1, 32, 12, 3), weights, dtype=TensorProto.UINT8), axis=1)
    assert found is not None
    check(found, np.random.default_rng(0))


def test_a_wrong_carried_row_is_found() -> None:
    nodes, weights = CASES["residual"]
    found = striped(*graph_of(nodes, (1, 4, 24, 8), weights))
    assert found is not None
    bounds = found.bounds[:2]
    assert_same(found.stripes(bounds), found.whole)
    assert float(np.abs(found.stripes(bounds, spoil=True) - found.whole).max()) > 0.1


def test_rows_at_the_wrong_place_are_found() -> None:
    nodes, weights = CASES["conv"]
    found = striped(*graph_of(nodes, (1, 4, 24, 8), weights))
    assert found is not None
    shifted = found.run("rest", found.rows(9 - found.starts["x"], 24), {})["y"]
    assert_same(shifted, found.below(9))
    wrong = found.run("rest", found.rows(8 - found.starts["x"], 23), {})["y"]
    assert float(np.abs(wrong - found.below(9)).max()) > 0.1


# --- random graphs --------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn, rows: int) -> dict[str, list[int]]:
    """Kernel, stride, dilation and padding of a window that fits."""
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    reach = dilation * (kernel - 1) + 1
    pads = [draw(st.integers(0, min(3, reach - 1))) for _ in range(2)]
    stride = draw(st.integers(1, 3))
    if rows + sum(pads) < reach:
        return {"kernel": [1, 1], "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4}
    return {
        "kernel": [kernel, 1],
        "strides": [stride, 1],
        "dilations": [dilation, 1],
        "pads": [pads[0], 0, pads[1], 0],
    }


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list, tuple[int, ...], dict[str, np.ndarray]]:
    """A chain of up to six operators with branches that join again, two channels throughout."""
    height = draw(st.integers(16, 60))
    nodes, weights = [], dict[str, np.ndarray]()
    given, rows = "x", height
    same: dict[int, list[str]] = {height: ["x"]}
    for place in range(draw(st.integers(1, 6))):
        name = f"v{place}"
        kind = draw(
            st.sampled_from(["conv", "pool", "average", "up", "nearest", "linear", "join", "relu"])
        )
        if kind in ("conv", "pool", "average"):
            window = draw(windows(rows))
            kernel = window.pop("kernel")
            if kind != "conv":
                window["pads"] = [min(p, kernel[0] - 1) for p in window["pads"]]
                window["dilations"] = [1, 1]
            reach = window["dilations"][0] * (kernel[0] - 1) + 1
            left = rows + window["pads"][0] + window["pads"][2] - reach
            if left < 0 or left // window["strides"][0] + 1 < 4:
                continue
            rows = left // window["strides"][0] + 1
            if kind == "conv":
                weights[f"w{place}"] = floats(2, 2, *kernel, seed=place)
                nodes.append(N("Conv", [given, f"w{place}"], [name], **window))
            else:
                if kind == "average":
                    window["count_include_pad"] = draw(st.integers(0, 1))
                    window.pop("dilations")
                op = "MaxPool" if kind == "pool" else "AveragePool"
                nodes.append(N(op, [given], [name], kernel_shape=kernel, **window))
        elif kind == "up" and rows <= 60:
            stride = draw(st.integers(1, 3))
            kernel = draw(st.integers(stride, stride + 3))
            pad = draw(st.integers(0, (kernel - 1) // 2))
            weights[f"w{place}"] = floats(2, 2, kernel, 1, seed=place)
            rows = (rows - 1) * stride + kernel - 2 * pad
            nodes.append(
                N(
                    "ConvTranspose",
                    [given, f"w{place}"],
                    [name],
                    strides=[stride, 1],
                    pads=[pad, 0, pad, 0],
                )
            )
        elif kind in ("nearest", "linear") and rows <= 60:
            factor = draw(st.sampled_from([2, 4] if kind == "linear" else [2, 3]))
            weights[f"s{place}"] = np.asarray([1, 1, factor, 1], np.float32)
            nodes.append(N("Resize", [given, "", f"s{place}"], [name], mode=kind))
            rows *= factor
        elif kind == "join" and len(same.get(rows, [])) > 1:
            other = draw(st.sampled_from(same[rows]))
            nodes.append(N("Add", [given, other], [name]))
        else:
            nodes.append(N("Relu", [given], [name]))
        same.setdefault(rows, []).append(name)
        given = name
    if not nodes:
        nodes.append(N("Relu", ["x"], ["y"]))
    return nodes, (1, 2, height, 3), weights


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 2**16))
def test_random_graphs_in_stripes_equal_the_whole(built, seed: int) -> None:
    nodes, shape, weights = built
    model, graph = graph_of(nodes, shape, weights)
    streams = find_streams(model, graph, {})
    assert streams.extents is not None
    if any("different scales" in end.reason for end in streams.extents.ended_by):
        return  # branches of other strides that happen to have as many rows
    found = striped(model, graph)
    if found is not None:
        check(found, np.random.default_rng(seed), trials=3)


# --- where the striped part ends ------------------------------------------------------------

ENDS = {
    "GlobalAveragePool": ([N("GlobalAveragePool", ["x"], ["y"])], {}, "needs every row"),
    "Flatten": ([N("Flatten", ["x"], ["y"])], {}, "no rule"),
    "Reshape": ([N("Reshape", ["x", "s"], ["y"])], {"s": ints(1, 4, 192)}, "mixes rows"),
    "InstanceNormalization": (
        [N("InstanceNormalization", ["x", "s", "s"], ["y"])],
        {"s": floats(4)},
        "needs every row",
    ),
    "Softmax": ([N("Softmax", ["x"], ["y"], axis=2)], {}, "along the rows"),
    "Concat": ([N("Concat", ["x", "x"], ["y"], axis=2)], {}, "joins rows"),
    "ReduceMean": ([N("ReduceMean", ["x", "a"], ["y"])], {"a": ints(2, 3)}, "every row"),
    "Add": ([N("Add", ["x", "c"], ["y"])], {"c": floats(1, 4, 24, 8)}, "differs from row"),
    "Resize": (
        [N("Resize", ["x", "", "s"], ["y"], mode="cubic")],
        {"s": np.asarray([1, 1, 2, 2], np.float32)},
        "not exact",
    ),
    "MatMul": ([N("MatMul", ["x", "x2"], ["y"])], {"x2": floats(1, 4, 8, 8)}, "constant matrix"),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_operator_that_needs_more_than_rows_ends_the_striped_part(name: str) -> None:
    nodes, weights, reason = ENDS[name]
    front = [N("Relu", ["x"], ["front"])]
    behind = []
    for node in nodes:
        node_inputs = ["front" if n == "x" else n for n in node.input]
        behind.append(N(node.op_type, node_inputs, list(node.output), name=name))
        behind[-1].attribute.extend(node.attribute)
    model, graph = graph_of([*front, *behind], (1, 4, 24, 8), weights)
    order = [node for node in graph.nodes if not node.free]
    protos = [model.graph.node[node.index] for node in order]
    facts = find_streams(model, graph, {}).facts
    from compiler.stripes.extents import follow

    extents = follow(order, protos, facts, {"x": 2})
    assert list(extents.rules) == [0]
    assert [end.operator for end in extents.ended_by] == [name]
    assert reason in extents.ended_by[0].reason
