"""The error budget: every cut and codec against the float32 model, its table, page and limits."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.bundle_cli import main
from calibration.error_budget import LOCAL, pareto
from calibration.quality import quality_file, read_quality, stored_quality
from engines import codecs
from tests import toy

RANDOM = np.random.default_rng(5)

REGISTRY = {
    0: ("identity", "engines.codecs.identity:IdentityCodec"),
    1: ("bitpack", "engines.codecs.bitpack:BitpackCodec"),
    90: ("half", "tests.lossy:HalfCodec"),
    91: ("signs", "tests.lossy:SignCodec"),
    92: ("positive", "tests.lossy:PositiveCodec"),
    93: ("absent", "tests.lossy:AbsentCodec"),
}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    known = dict(REGISTRY)
    monkeypatch.setattr(codecs, "CODECS", known)
    monkeypatch.setattr(codecs, "CANDIDATES", tuple(name for name, _ in known.values()))
    for cached in (codecs.codec_by_id, codecs.open_codec):
        cached.cache_clear()
    yield known
    for cached in (codecs.codec_by_id, codecs.open_codec):
        cached.cache_clear()


@pytest.fixture
def bundle(tmp_path):
    return toy.write_toy_bundle(tmp_path / "toy.bundle")


@pytest.fixture
def data(bundle, tmp_path):
    shapes = {s.name: (6, *s.shape) for s in bundle.manifest.inputs}
    arrays = {name: RANDOM.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    return str(tmp_path / "data.npz")


def verify(bundle, *arguments):
    return CliRunner().invoke(main, ["verify", str(bundle.folder), *arguments])


def rows_of(bundle, *arguments):
    done = verify(bundle, *arguments, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    record = json.loads(done.stdout)
    return {(row["cut"], row["codec"]): row for row in record["rows"]}, done.exit_code


def test_every_cut_and_codec(bundle, data):
    rows, status = rows_of(bundle, "--data", data)
    assert status == 0
    manifest = bundle.manifest
    last = manifest.cuts[-1]
    assert rows[last.id, LOCAL]["error"] < 1e-6
    for cut in manifest.cuts[:-1]:
        identity = rows[cut.id, "identity"]
        assert identity["bytes"] == cut.bytes
        assert identity["error"] < 1e-6
        if all(spec.dtype == "float32" for spec in manifest.specs(cut.tensors)):
            assert rows[cut.id, "half"]["bytes"] == cut.bytes / 2
            assert rows[cut.id, "identity"]["error"] <= rows[cut.id, "half"]["error"] < 1e-3
            assert rows[cut.id, "signs"]["error"] > 10 * rows[cut.id, "half"]["error"]
            assert (cut.id, "bitpack") not in rows
    first = manifest.cuts[0]
    assert (first.id, "positive") not in rows  # its values are of both signs
    assert any(codec == "positive" for _, codec in rows)  # behind a Relu none is


def test_the_table_is_kept_for_the_runtime(bundle, data):
    rows, _ = rows_of(bundle, "--data", data, "--metric", "top1")
    table = stored_quality(bundle)
    assert (table.metric, table.samples, table.bundle) == ("top1", 6, bundle.digest)
    for (cut, codec), row in rows.items():
        assert table.error(cut, codec) == row["error"]
    page = quality_file(bundle, "top1").with_suffix(".html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert "<link" not in page
    # A part would hide what is not in it.
    before = quality_file(bundle, "top1").read_bytes()
    rows_of(bundle, "--data", data, "--metric", "top1", "--codec", "half")
    assert quality_file(bundle, "top1").read_bytes() == before


def test_a_limit_fails(bundle, data):
    done = verify(bundle, "--data", data, "--limit", "0.001", "--codec", "half")
    assert done.exit_code == 0, done.output
    assert "0 above the limit 0.001" in done.stdout
    done = verify(bundle, "--data", data, "--limit", "0.001", "--codec", "signs")
    assert done.exit_code == 1
    assert "above the limit 0.001" in done.stdout
    cut = bundle.manifest.cuts[0].id
    rows, _ = rows_of(bundle, "--data", data, "--cut", cut, "--codec", "identity")
    assert set(rows) == {(cut, "identity"), (bundle.manifest.cuts[-1].id, LOCAL)}


def test_a_codec_that_says_it_is_lossless_and_is_not(bundle, data, registry, monkeypatch):
    registry[94] = ("lying", "tests.lossy:LyingCodec")
    monkeypatch.setattr(codecs, "CANDIDATES", (*codecs.CANDIDATES, "lying"))
    done = verify(bundle, "--data", data)
    assert done.exit_code == 1
    assert "codec lying, cut" in done.stderr
    assert "says that it is lossless, and changes" in done.stderr


def test_a_missing_library_leaves_its_codec_out(bundle, data):
    done = verify(bundle, "--data", data, "--codec", "absent", "--codec", "half")
    assert done.exit_code == 0, done.output
    assert "codec absent: left out: absent needs libabsent" in done.stderr


def test_a_codec_whose_library_is_missing_says_so(bundle, data, monkeypatch):
    monkeypatch.setattr(codecs, "NEEDS", {"half": "a_module_that_is_not_here"})
    monkeypatch.setattr(codecs, "codec_names_here", lambda: ("identity", "signs"))
    done = verify(bundle, "--data", data, "--codec", "half", "--codec", "identity")
    assert done.exit_code == 0, done.output
    assert "codec half: left out: needs a_module_that_is_not_here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--codec", "jpeg"), "codec 'jpeg': expected absent, bitpack, half, identity"),
        (("--cut", "00000000"), "cut '00000000': not in bundle"),
        (("--metric", "f1"), "--metric 'f1': expected one of top1, cosine, rms, max"),
        (("--reference", "nowhere"), "nowhere"),
    ],
)
def test_what_does_not_exist_is_refused(bundle, data, arguments, message):
    done = verify(bundle, "--data", data, *arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") <= 2


def test_options_need_data(bundle):
    done = verify(bundle, "--metric", "top1", "--limit", "0.1")
    assert done.exit_code == 1
    assert "--metric, --limit: expected with --data, given without it" in done.stderr
    assert verify(bundle).exit_code == 0


def test_other_precisions_beside_the_reference(tmp_path, data, bundle):
    half = toy.write_toy_bundle(tmp_path / "half.bundle", seed=1)
    manifest = msgspec.json.decode((half.folder / "manifest.json").read_bytes())
    manifest["precision"] = "fp16"
    (half.folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    half = toy.reseal(half.folder)
    alone = verify(half, "--data", data)
    assert alone.exit_code == 1
    assert "computes in fp16: expected the float32 model to compare with" in alone.stderr
    done = verify(half, "--data", data, "--also", str(bundle.folder), "--json")
    rows = json.loads(done.stdout)["rows"]
    assert {row["precision"] for row in rows} == {"fp16", bundle.manifest.precision}
    # Its weights are others: that shows at every cut, with codecs that lose nothing too.
    own = [row["error"] for row in rows if row["precision"] == "fp16"]
    assert min(own) > 1e-4
    reference = verify(half, "--data", data, "--reference", str(bundle.folder), "--json")
    assert [row["error"] for row in json.loads(reference.stdout)["rows"]] == own
    table = read_quality(quality_file(half, "cosine"))
    assert (table.precision, table.reference) == ("fp16", bundle.digest)
    wrong = verify(bundle, "--data", data, "--reference", str(half.folder))
    assert "expected a bundle in float32, given one in fp16" in wrong.stderr


def test_the_front():
    points = [(10, 0.5), (10, 0.1), (5, 0.2), (1, 0.9), (7, 0.2), (20, 0.1), (1, 0.9)]
    assert pareto(points) == [1, 2, 3]
    assert pareto([]) == []
