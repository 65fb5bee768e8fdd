"""Ranges: records, thresholds, codes, where they are kept."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.reference
import pytest
from click.testing import CliRunner
from onnx import helper as h

from calibration.bundle_cli import main
from calibration.collect import Collector
from calibration.ranges import (
    RANGES_FILE,
    Ranges,
    dequantised,
    quantised,
    read_ranges,
    scale_of,
    stored_ranges,
    write_ranges,
)
from engines.bundle import Bundle
from engines.errors import SplitError
from tests import toy

RANDOM = np.random.default_rng(3)


def collected(*runs, percentile=99.99):
    collector = Collector(percentile)
    for values in runs:
        collector.add("t", np.asarray(values))
    return collector.ranges()


def test_per_tensor_and_per_channel():
    spread = np.array([1, 10, 0]).reshape(1, 3, 1, 1)
    runs = [(RANDOM.normal(size=(1, 3, 400, 256)) * spread).astype("f4") for _ in range(4)]
    found = collected(*runs)["t"]
    whole = np.stack(runs)
    assert found.minimum == whole.min()
    assert found.maximum == whole.max()
    assert found.minimum <= found.low < 0 < found.high <= found.maximum
    assert found.threshold("minmax") == np.abs(whole).max()
    assert found.values == whole.size
    assert found.threshold("percentile") < found.threshold("minmax")
    assert found.channels.axis == 1
    by_channel = np.abs(whole).max(axis=(0, 1, 3, 4))
    assert found.channel_thresholds("minmax").tolist() == by_channel.tolist()
    assert found.channel_thresholds("mse")[2] == 0
    assert found.channel_thresholds("percentile")[0] < found.channel_thresholds("percentile")[1]


def test_thresholds_of_few_values_have_room():
    spread = np.array([1, 10]).reshape(1, 2, 1, 1)
    some = (RANDOM.normal(size=(1, 2, 64, 64)) * spread).astype("f4")
    found = collected(some)["t"]
    top = np.abs(some).max(axis=(0, 2, 3))
    assert found.threshold("mse") == found.threshold("minmax") == top.max()
    assert found.percentile < top.max()
    by_channel = found.channel_thresholds("minmax")
    assert by_channel == pytest.approx([1.5 * top[0], top[1]])
    few = collected(some[:, :, :16, :16])["t"]
    assert few.channels is not None
    assert few.channel_thresholds("minmax") is None


def test_the_axis_of_the_channels():
    assert collected(np.ones((1, 5, 4), np.float32))["t"].channels.axis == 2
    assert len(collected(np.ones((1, 4), np.float16))["t"].channels.mse) == 4
    assert collected(np.ones(4))["t"].channels is None
    assert collected(np.float32(2))["t"].maximum == 2
    assert collected(np.arange(4)) == {}  # integers need no range
    assert collected(np.zeros((1, 0, 3), np.float32))["t"].maximum == 0


def test_what_is_not_finite_is_counted_and_left_out():
    values = np.float32([[1, np.nan, np.inf, -2, -np.inf, 0]])
    found = collected(values, values)["t"]
    assert (found.nan, found.infinite) == (2, 4)
    assert (found.minimum, found.maximum) == (-2, 1)
    nothing = collected(np.float32([[np.nan]]))["t"]
    assert (nothing.minimum, nothing.maximum, nothing.mse) == (0, 0, 0)


def test_codes_against_onnx():
    x = RANDOM.normal(size=(1, 3, 4, 4)).astype(np.float32)
    thresholds = np.abs(x).max(axis=(0, 2, 3)) * 0.7
    scale = scale_of(thresholds)
    codes = quantised(x, scale, axis=1)
    assert codes.min() >= -127
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    weights = [
        onnx.numpy_helper.from_array(scale, "s"),
        onnx.numpy_helper.from_array(np.zeros(3, np.int8), "z"),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", 1, [1, 3, 4, 4])],
        [h.make_tensor_value_info("q", 3, None), h.make_tensor_value_info("y", 1, None)],
        weights,
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 19)])
    q, y = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(np.maximum(q, -127), codes)
    assert np.array_equal(dequantised(np.asarray(q), scale, axis=1), y)
    assert scale_of(0.0) == np.float32(1 / 127)
    one = quantised(x, scale_of(2.0))
    assert np.abs(dequantised(one, scale_of(2.0)) - np.clip(x, -2, 2)).max() <= 1 / 127 + 1e-6


@pytest.fixture
def bundle(tmp_path):
    return toy.write_toy_bundle(tmp_path / "toy.bundle")


def data_file(path, bundle, rows=10, dtype="float32"):
    arrays = {
        spec.name: RANDOM.normal(size=(rows, *spec.shape)).astype(dtype)
        for spec in bundle.manifest.inputs
    }
    np.savez(path, **arrays)
    return arrays


def test_the_command_writes_into_the_device_folder_and_says_the_same_again(bundle, tmp_path):
    data = tmp_path / "data.npz"
    arrays = data_file(data, bundle)
    arguments = ["calibrate", str(bundle.folder), str(data)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    path = bundle.device_folder / RANGES_FILE
    first = path.read_bytes()
    said = json.loads(done.stdout)
    assert said["samples"] == 10
    assert said["file"] == str(path)
    ranges = stored_ranges(Bundle.open(bundle.folder))
    name = bundle.manifest.inputs[0].name
    assert ranges.tensors[name].maximum == arrays[name].max()
    crossing = {n for cut in bundle.manifest.cuts for n in cut.tensors} - {"m"}  # a boolean
    assert crossing == set(ranges.tensors)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0
    assert path.read_bytes() == first
    assert "over 10 samples" in again.stdout
    few = CliRunner().invoke(main, [*arguments, "--samples", "2"])
    assert "warning: only 2 samples" in few.stderr


def test_ranges_of_another_model_or_schema_are_refused(bundle):
    ranges = Ranges(spec=1, model="m", data="d", samples=1, percentile=99, tensors={})
    path = bundle.device_folder / RANGES_FILE
    assert stored_ranges(bundle) is None
    write_ranges(path, ranges)
    with pytest.raises(SplitError, match=r"expected ranges of model .*, given those of m"):
        stored_ranges(bundle)
    path.write_text(path.read_text().replace('"spec": 1', '"spec": 2'))
    with pytest.raises(SplitError, match="expected schema 1, given 2"):
        read_ranges(path)
    path.write_text("{")
    with pytest.raises(SplitError, match="not ranges that `split-bundle calibrate` wrote"):
        read_ranges(path)


@pytest.mark.parametrize(
    ("rows", "values", "warning"),
    [
        (9, 1.0, "all 9 samples are equal"),
        (1, 1.0, "only 1 sample:"),
        (9, 1.0, "constant over all samples"),
        (9, np.nan, "'x': 6912 NaN, 0 infinite"),
    ],
)
def test_doubtful_data_is_reported(bundle, tmp_path, rows, values, warning):
    arrays = {s.name: np.full((rows, *s.shape), values, "f4") for s in bundle.manifest.inputs}
    np.savez(tmp_path / "data.npz", **arrays)
    done = CliRunner().invoke(main, ["calibrate", str(bundle.folder), str(tmp_path / "data.npz")])
    assert done.exit_code == 0, done.output
    assert warning in done.stderr
