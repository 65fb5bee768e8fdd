"""Calibrated ranges for codecs: what they become, and that they are used as measured."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.bundle_cli import main
from calibration.codec_ranges import codec_ranges, open_encoders, ranges_digest, value_range
from calibration.collect import Collector
from calibration.measure_codecs import measure_codecs
from calibration.quality import stored_quality
from calibration.ranges import ENOUGH_BY_CHANNEL, TensorRange, stored_ranges
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.program import Program
from tests.toy import write_toy_bundle

RANDOM = np.random.default_rng(1)


def _collected(values: np.ndarray) -> TensorRange:
    collector = Collector(99.99)
    for sample in values:
        collector.add("t", sample)
    return collector.ranges()["t"]


@pytest.fixture
def calibrated(tmp_path: Path) -> Bundle:
    bundle = write_toy_bundle(tmp_path / "toy.bundle")
    spec = bundle.manifest.inputs[0]
    data = tmp_path / "data.npz"
    np.savez(data, **{spec.name: RANDOM.normal(size=(60, *spec.shape)).astype("f4")})
    done = CliRunner().invoke(main, ["calibrate", str(bundle.folder), str(data)])
    assert done.exit_code == 0, done.output
    return bundle


def test_codes_end_where_values_did() -> None:
    values = np.maximum(RANDOM.normal(size=(20, 1, 4, 160, 160)), 0).astype("f4")
    values[3, 0, 2, 5, 5] = 50.0
    found = _collected(values)
    least, most = value_range(found, "minmax") or ((), ())
    assert (list(least), list(most)) == ([0.0], [50.0])
    for method in ("percentile", "mse"):
        narrow = value_range(found, method)
        assert narrow is not None
        assert narrow.least[0] == 0.0  # no code for what never is
        assert 2 < narrow.most[0] < 20
        by_channel = value_range(found, method, channels=True)
        assert by_channel is not None
        assert by_channel.least.shape == (4,)
        assert (by_channel.most < 30).all()


def test_few_values_a_channel_leave_room_at_both_ends() -> None:
    values = RANDOM.uniform(-1, 2, size=(10, 1, 4, 20, 20)).astype("f4")
    values[0, 0, 0, 0, 0] = 9.0
    found = _collected(values)
    assert found.values < ENOUGH_BY_CHANNEL
    channels = value_range(found, "minmax", channels=True)
    assert channels is not None
    assert found.channels is not None
    seen = np.asarray(found.channels.minimum)
    assert (channels.least[1:] < 1.4 * seen[1:]).all()
    assert channels.most[0] == pytest.approx(9.0)  # never above the tensor's largest


def test_what_has_no_channels_or_was_never_finite() -> None:
    small = _collected(RANDOM.normal(size=(5, 1, 8)).astype("f4"))
    assert value_range(small, "mse", channels=True) is None
    assert value_range(small, "mse") is not None
    nothing = _collected(np.full((2, 1, 8), np.nan, np.float32))
    assert value_range(nothing, "mse") is None
    assert codec_ranges(None) == {}


def test_a_calibrated_bundle_has_more_codecs_to_measure(calibrated: Bundle) -> None:
    encoders = open_encoders(calibrated)
    name = calibrated.manifest.inputs[0].name
    with Program(calibrated, open_backend("ort"), fuse=False) as program:
        (inputs, _) = calibrated.parity_vectors()
        costs = measure_codecs(program, [inputs], budget_s=0.0)
    found = {(cost.tensor, cost.codec): cost for cost in costs}
    for method in ("minmax", "percentile", "mse"):
        assert f"int8:{method}" in encoders.names(name)
        assert found[name, f"int8:{method}"].ratio == found[name, "int8"].ratio
    assert not any(codec.startswith("int8") for tensor, codec in found if tensor == "m")


def test_their_error_is_measured_and_bound_to_the_ranges(
    calibrated: Bundle, tmp_path: Path
) -> None:
    data = str(tmp_path / "data.npz")
    arguments = ["verify", str(calibrated.folder), "--data", data, "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    rows = {(row["cut"], row["codec"]): row for row in json.loads(done.stdout)["rows"]}
    first = calibrated.manifest.cuts[0].id
    assert rows[first, "int8:minmax"]["error"] < 1e-3
    assert rows[first, "int8:mse"]["bytes"] == rows[first, "int8"]["bytes"]
    table = stored_quality(calibrated)
    assert table is not None
    assert table.ranges == ranges_digest(stored_ranges(calibrated))
    ranges = stored_ranges(calibrated)
    assert ranges is not None
    assert table.ranges != ranges_digest(msgspec.structs.replace(ranges, samples=1))


def test_asking_for_a_range_of_a_bundle_that_has_none_says_what_to_do(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy.bundle")
    spec = bundle.manifest.inputs[0]
    data = tmp_path / "data.npz"
    np.savez(data, **{spec.name: RANDOM.normal(size=(3, *spec.shape)).astype("f4")})
    arguments = ["verify", str(bundle.folder), "--data", str(data), "--codec", "int8:mse"]
    done = CliRunner().invoke(main, [*arguments, "--codec", "identity"])
    assert done.exit_code == 0, done.output
    assert "codec int8:mse: left out: needs calibrated ranges; run `split-bundle" in done.stderr
