"""What the accuracy script measures with: photographs, codes at a cut, boxes."""

from __future__ import annotations

import accuracy
import numpy as np
import photographs
import pytest
import text_boxes

from calibration.collect import Collector

SKIMAGE = tuple(name for name in photographs.PHOTOGRAPHS if name.startswith("skimage:"))


def test_halves_share_no_photograph_and_crops_are_always_the_same():
    halves = photographs.PHOTOGRAPHS[::2], photographs.PHOTOGRAPHS[1::2]
    assert not set(halves[0]) & set(halves[1])
    one, two = (list(photographs.crops(SKIMAGE[:1], 3)) for _ in range(2))
    assert np.array_equal(one, two)
    assert one[0].shape == (224, 224, 3)
    assert photographs.lite(one[0]).shape == (1, 3, 224, 224)
    assert np.abs(photographs.lite(np.full((224, 224, 3), 127, np.uint8))).max() == 0
    white = photographs.imagenet(np.full((224, 224, 3), 255, np.uint8))
    assert white[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229, rel=1e-4)


def test_codes_by_channel_are_nearer_where_channels_differ():
    random = np.random.default_rng(0)
    spread = np.array([0.01, 1.0]).reshape(1, 2, 1, 1)
    values = (random.normal(size=(1, 2, 64, 64)) * spread).astype(np.float32)
    collector = Collector()
    collector.add("t", values)
    found = collector.ranges()["t"]
    by_tensor, by_channel = (
        accuracy.through(values, found, "minmax", channels=channels) for channels in (False, True)
    )
    errors = [np.abs(given - values)[0, 0].max() for given in (by_tensor, by_channel)]
    assert errors[1] < errors[0] / 5


def test_boxes_and_their_agreement():
    one = np.zeros((1, 1, 40, 80), np.float32)
    one[..., 5:15, 10:40] = 1
    one[..., 25:35, 10:40] = 0.9
    assert text_boxes.boxes(one) == [(5, 10, 15, 40), (25, 10, 35, 40)]
    assert text_boxes.agreement(one, one) == 1
    half = one.copy()
    half[..., 20:, :] = 0
    assert text_boxes.agreement(half, one) == pytest.approx(2 / 3)
    assert text_boxes.agreement(np.zeros_like(one), one) == 0
    assert text_boxes.agreement(np.zeros_like(one), np.zeros_like(one)) == 1
    moved = np.roll(one, 8, axis=2)
    assert text_boxes.agreement(moved, one) == 0


def test_hmean_counts_boxes_and_not_pictures():
    one = np.zeros((1, 1, 40, 80), np.float32)
    one[..., 5:15, 10:40] = 1
    none = np.zeros_like(one)
    assert text_boxes.hmean([(one, one)] * 3 + [(none, none)]) == (1.0, 1.0)
    # Three boxes of four are found, and one that is not there.
    share, overlap = text_boxes.hmean([(one, one)] * 3 + [(none, one), (one, none)])
    assert share == pytest.approx(6 / 8)
    assert overlap == 1.0
    wide = none.copy()
    wide[..., 5:15, 10:50] = 1
    assert text_boxes.hmean([(wide, one)]) == (1.0, pytest.approx(30 / 40))
    assert text_boxes.hmean([(none, one)]) == (0.0, 0.0)
    assert text_boxes.hmean([]) == (1.0, 1.0)


def test_a_missed_goal_is_remembered(monkeypatch):
    monkeypatch.setattr(accuracy, "missed", [])
    accuracy.goal("one", met=True)
    accuracy.goal("two", met=False)
    assert accuracy.missed == ["two"]
