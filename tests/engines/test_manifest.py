from __future__ import annotations

from typing import Any, Callable

import msgspec
import pytest

from engines.bundle import Bundle
from engines.errors import ManifestError
from engines.manifest import SPEC, decode_manifest, encode_manifest

Change = Callable[[dict[str, Any]], object]


def _decode(record: Any) -> Any:
    return decode_manifest(msgspec.json.encode(record), where="here/manifest.json")


@pytest.fixture
def record(toy: Bundle) -> dict[str, Any]:
    whole: dict[str, Any] = msgspec.json.decode(encode_manifest(toy.manifest))
    return whole


def test_it_survives_writing_and_reading(toy: Bundle) -> None:
    text = encode_manifest(toy.manifest)
    assert text.endswith(b"}\n")
    assert decode_manifest(text, where="here") == toy.manifest
    assert encode_manifest(decode_manifest(text, where="here")) == text


def test_the_halves_of_a_target_are_files_of_the_bundle(record: dict[str, Any]) -> None:
    target = {"backend": "tensorrt", "opset": 18, "precision": "fp32"}
    older = _decode({**record, "targets": {"jetson": target}})
    assert older.targets["jetson"].halves == ()
    target["halves"] = ["graph/model.onnx"]
    assert _decode({**record, "targets": {"jetson": target}}).targets["jetson"].halves
    target["halves"] = ["graph/head_none.onnx"]
    with pytest.raises(ManifestError, match=r"'graph/head_none\.onnx' has no digest"):
        _decode({**record, "targets": {"jetson": target}})


def test_cuts_and_specifications_are_found_by_name(toy: Bundle) -> None:
    cut = toy.manifest.cuts[3]
    assert toy.manifest.cut(cut.id) is cut
    assert [spec.name for spec in toy.manifest.specs(cut.tensors)] == ["b", "m"]
    with pytest.raises(ManifestError, match=r"'ffffffff'.*split-bundle inspect"):
        toy.manifest.cut("ffffffff")


@pytest.mark.parametrize("version", [0, SPEC + 1, -1, 10**15])
def test_another_schema_is_refused_before_anything_else_is_read(version: int) -> None:
    with pytest.raises(ManifestError, match=f"expected manifest schema {SPEC}, given {version}"):
        _decode({"spec": version, "cuts": "of a kind that does not exist yet"})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"spec": 1}',
        b'{"spec": "1"}',
        b'{"spec": 1.5}',
        b'{"spec": 1e999}',
        b'{"spec": 1, "name": "\xff"}',
        b"\xff\xfe",
        b'{"spec": 1, "x": ' + b"[" * 100_000,
        b"\x00" * 40,
    ],
)
def test_what_is_no_manifest_is_refused_with_the_files_name(text: bytes) -> None:
    with pytest.raises(ManifestError, match=r"^here/manifest\.json: not a manifest"):
        decode_manifest(text, where="here/manifest.json")


def test_every_truncation_is_refused(toy: Bundle) -> None:
    text = encode_manifest(toy.manifest).rstrip()
    for end in range(0, len(text), 97):
        with pytest.raises(ManifestError):
            decode_manifest(text[:end], where="here")


@pytest.mark.parametrize("field", ["name", "cuts", "files", "parity", "tensors", "inputs"])
def test_a_missing_field_is_named(record: dict[str, Any], field: str) -> None:
    del record[field]
    with pytest.raises(ManifestError, match=f"`{field}`"):
        _decode(record)


ENTRY = {"bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "..", "", "graph/..", "..\\x", "a\\b", "//x"]
)
def test_a_path_that_leaves_the_bundle_is_refused(record: dict[str, Any], path: str) -> None:
    record["files"][path] = ENTRY
    with pytest.raises(ManifestError, match="leaves the bundle"):
        _decode(record)


@pytest.mark.parametrize("path", ["..x", "a/..b", "graph/a..onnx"])
def test_dots_in_a_name_are_fine(record: dict[str, Any], path: str) -> None:
    record["files"][path] = ENTRY
    assert path in _decode(record).files


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r["cuts"].pop(), "the last cut every one"),
        (lambda r: r["segments"].pop(), "the last cut every one"),
        (lambda r: r.update(cuts=r["cuts"][:1], segments=[]), "the last cut every one"),
        (lambda r: r["cuts"][2].update(robot_segments=[0, 9]), "segments that are not there"),
        (lambda r: r["cuts"][2].update(robot_segments=[1, 0]), "or not in order"),
        (lambda r: r["cuts"][2].update(id=r["cuts"][1]["id"]), "two cuts have one id"),
        (lambda r: r["cuts"][2].update(index=5), "says index 5, lies at 2"),
        (lambda r: r["cuts"][2].update(id="xyz"), "not 8 hex digits"),
        (lambda r: r["cuts"][2].update(id="ABCDEF01"), "not 8 hex digits"),
        (lambda r: r["segments"].reverse(), "segment 6 lies at 0"),
        (lambda r: r["files"].pop("graph/model.onnx"), "'graph/model.onnx' has no digest"),
        (lambda r: r["files"].pop("graph/weights.bin"), "'graph/weights.bin' has no digest"),
        (lambda r: r["files"].pop("parity.npz"), "'parity.npz' has no digest"),
        (lambda r: r["cuts"][2].update(tail="graph/none.onnx"), "'graph/none.onnx' has no digest"),
        (lambda r: r["segments"][2].update(file="../s.onnx"), r"'\.\./s\.onnx' has no digest"),
        (lambda r: r["tensors"].pop("m"), "tensor 'm' has no specification"),
        (lambda r: r["cuts"][2].update(results=["nowhere"]), "tensor 'nowhere' has no spec"),
        (lambda r: r["tensors"]["m"].update(dtype="object"), "dtype 'object'"),
        (lambda r: r["tensors"]["m"].update(shape=[1, -8]), "negative extent"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    record: dict[str, Any], change: Change, complaint: str
) -> None:
    change(record)
    with pytest.raises(ManifestError, match=complaint):
        _decode(record)


def test_the_untouched_record_of_these_tests_is_accepted(
    toy: Bundle, record: dict[str, Any]
) -> None:
    assert _decode(record) == toy.manifest
