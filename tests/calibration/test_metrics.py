"""Metrics of results, and the user's own."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.metrics import open_metric
from engines.errors import SplitError

SCORES = np.float32([[0.1, 0.7, 0.2]])


def test_labels():
    top1 = open_metric("top1")
    assert top1({"y": SCORES * 5}, {"y": SCORES}) == 0
    assert top1({"y": SCORES[:, ::-1] + [[9, 0, 0]]}, {"y": SCORES}) == 1
    dense = np.zeros((1, 3, 2, 2), np.float32)
    other = dense.copy()
    other[0, 1, 0, 1] = 1
    assert top1({"y": other}, {"y": dense}) == 0.25
    labels = np.arange(8).reshape(1, 8)
    assert top1({"y": labels % 6}, {"y": labels}) == 0.25
    assert top1({}, {"y": labels}) == 1
    assert top1({"a": SCORES[0, ::-1], "b": SCORES}, {"a": SCORES[0], "b": SCORES * 0}) == 0


def test_cosine():
    cosine = open_metric("cosine")
    assert cosine({"y": 3 * SCORES}, {"y": SCORES}) == pytest.approx(0, abs=1e-12)
    assert cosine({"y": np.float32([1, 0])}, {"y": np.float32([0, 1])}) == 1
    assert cosine({"y": SCORES * 0}, {"y": SCORES * 0}) == 0
    assert cosine({"y": SCORES * np.nan}, {"y": SCORES}) == 1
    two = {"a": np.float32([1, 0]), "b": np.float32([1, 1])}
    assert cosine({**two, "a": np.float32([0, 1])}, two) == 0.5


def test_largest():
    assert open_metric("max")({"y": SCORES + np.float32(0.5)}, {"y": SCORES}) == pytest.approx(0.5)


def test_a_function_of_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def boxes(given, expected):\n    return abs(len(given) - len(expected))\n"
        "def wrong(given, expected):\n    return -1\n"
        "def fails(given, expected):\n    return given['z']\n"
        "number = 1\n"
    )
    assert open_metric("mine.py:boxes")({}, {"y": SCORES}) == 1
    for name, message in (
        ("mine.py:wrong", "expected an error of 0 or more, given -1.0"),
        ("mine.py:fails", "failed: KeyError"),
        ("mine.py:number", "expected a function, given int"),
        ("mine.py:other", "no 'other' there; it has boxes, wrong"),
        ("absent.py:boxes", "cannot be imported: FileNotFoundError"),
        ("absent:boxes", "cannot be imported: ModuleNotFoundError"),
        ("median", "expected one of top1, cosine, rms, max"),
    ):
        with pytest.raises(SplitError, match=message):
            open_metric(name)({}, {})
