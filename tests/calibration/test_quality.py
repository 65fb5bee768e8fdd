"""The measured quality of codecs: written, read, found again."""

from __future__ import annotations

import msgspec
import pytest

from calibration.quality import (
    SPEC,
    CodecQuality,
    QualityTable,
    quality_file,
    read_quality,
    stored_quality,
    write_quality,
)
from engines.bundle import Bundle
from engines.errors import SplitError


def table(metric="top1", bundle="b" * 64, spec=SPEC):
    row = CodecQuality(
        cut="0123abcd",
        codec="int8",
        metric=metric,
        error=0.02,
        largest=1.0,
        bytes=100.5,
        lossless=False,
    )
    return QualityTable(
        spec=spec,
        bundle=bundle,
        reference=bundle,
        precision="float32",
        metric=metric,
        data="d" * 64,
        samples=50,
        rows=(row,),
    )


@pytest.fixture
def bundle(tmp_path):
    return Bundle(tmp_path / "m.bundle", None, "b" * 64)


def test_a_table_survives_its_file(bundle):
    assert stored_quality(bundle) is None
    path = quality_file(bundle, "top1")
    write_quality(path, table())
    assert path == bundle.folder.with_name("m.bundle.device") / "quality-top1.json"
    assert read_quality(path) == table()
    assert stored_quality(bundle).error("0123abcd", "int8") == 0.02
    assert stored_quality(bundle).error("0123abcd", "fp16") is None
    assert stored_quality(bundle, "cosine") is None


def test_the_usual_metric_comes_first_and_a_function_has_a_plain_file_name(bundle):
    for metric in ("my/metrics.py:boxes", "max", "cosine"):
        write_quality(quality_file(bundle, metric), table(metric))
    assert quality_file(bundle, "my/metrics.py:boxes").name == "quality-my-metrics.py-boxes.json"
    assert stored_quality(bundle).metric == "cosine"


def test_another_bundle_schema_or_file_is_refused(bundle):
    path = quality_file(bundle, "top1")
    write_quality(path, table(bundle="c" * 64))
    with pytest.raises(
        SplitError, match="expected a table of bundle bbbbbbbbbbbb, given one of c"
    ):
        stored_quality(bundle)
    write_quality(path, table(spec=9))
    with pytest.raises(SplitError, match="expected schema 1, given 9"):
        read_quality(path)
    path.write_bytes(msgspec.json.encode({"spec": 1}))
    with pytest.raises(SplitError, match="not a table that"):
        read_quality(path)
