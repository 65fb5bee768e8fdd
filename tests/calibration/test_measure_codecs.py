from __future__ import annotations

import numpy as np
import pytest

from calibration.codecs_cli import codec_records, print_codecs
from calibration.measure_codecs import crossing_tensors, measure_codecs, tensor_samples
from engines.codecs import codec_names_here, open_codec
from engines.program import Program


def test_every_codec_of_every_tensor_that_may_cross(
    program: Program, inputs: dict[str, np.ndarray]
) -> None:
    told: list[tuple[int, int]] = []
    costs = measure_codecs(program, [inputs], budget_s=0.0, progress=lambda *at: told.append(at))
    specs = {spec.name: spec for spec in crossing_tensors(program.bundle.manifest)}
    found = {(cost.tensor, cost.codec) for cost in costs}
    for spec in specs.values():
        for name in codec_names_here():
            if open_codec(name).applies(spec) and spec.dtype.startswith("float") and spec.nbytes:
                assert ((spec.name, name) in found) == (name != "identity")
    for cost in costs:
        most = open_codec(cost.codec).max_encoded_bytes(specs[cost.tensor])
        assert 0 < cost.ratio * specs[cost.tensor].nbytes <= most
        assert cost.encode_s > 0
        assert cost.decode_s > 0
    assert told[-1][0] == told[-1][1] >= len(costs)


def test_samples_are_what_the_segments_give(
    program: Program, inputs: dict[str, np.ndarray]
) -> None:
    found = tensor_samples(program, [inputs, inputs])
    manifest = program.bundle.manifest
    for cut in manifest.cuts[:-1]:
        for name, array in program.run(inputs, 0, cut.index).items():
            if name in cut.tensors:
                assert len(found[name]) == 2
                np.testing.assert_allclose(found[name][0], array, atol=1e-5)


def test_the_size_is_that_of_the_samples(program: Program) -> None:
    spec = program.bundle.manifest.inputs[0]
    flat = {spec.name: np.zeros(spec.shape, spec.dtype)}
    (cost,) = [
        cost
        for cost in measure_codecs(program, [flat], budget_s=0.0)
        if (cost.tensor, cost.codec) == (spec.name, "zstd")
    ]
    assert cost.ratio * spec.nbytes < 60


def test_costs_are_shown_as_bytes_and_milliseconds(
    program: Program, inputs: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = program.bundle.manifest
    costs = measure_codecs(program, [inputs], budget_s=0.0)
    records = codec_records(manifest, costs)
    assert len(records) == len(costs)
    assert {record["lossless"] for record in records} == {True, False}
    print_codecs(manifest, costs)
    assert "encode ms" in capsys.readouterr().out
    print_codecs(manifest, ())
    assert capsys.readouterr().out == ""
