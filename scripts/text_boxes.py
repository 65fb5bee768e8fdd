"""Text boxes by the PP-OCRv4 detector, on pictures of text that scikit-image carries.

Source:
    Du and others, "PP-OCR: A Practical Ultra Lightweight OCR System" (2020); weights and
    preprocessing from the package ``rapidocr-onnxruntime``. Boxes are the upright rectangles
    around what lies above a threshold in its map: simpler than its own polygons.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

__all__ = ["agreement", "boxes", "calibration", "held_out", "hmean", "static_model"]

PACKAGE = "rapidocr_onnxruntime"
WEIGHTS = "models/ch_PP-OCRv4_det_infer.onnx"
HEIGHT, WIDTH = 320, 640
OPSET = 17
_THRESHOLD = 0.3
_SMALLEST = 20
"""Pixels of the smallest box."""

Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]


def static_model(folder: Path) -> Path:
    """Write the detector with a static shape, in an opset that can be quantised."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "the detector is missing; pip install --no-deps rapidocr-onnxruntime==1.4.4"
        )
    model = onnx.load(Path(found.origin).parent / WEIGHTS)
    for value, shape in ((model.graph.input[0], (1, 3, HEIGHT, WIDTH)),):
        for dim, extent in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = extent
    output = model.graph.output[0].type.tensor_type.shape
    for dim, extent in zip(output.dim, (1, 1, HEIGHT, WIDTH), strict=True):
        dim.dim_value = extent
    model = onnx.version_converter.convert_version(model, OPSET)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "text.onnx"
    onnx.save(model, path)
    return path


def calibration() -> Iterator[Floats]:
    """Yield crops of the left half of a page, at several sizes."""
    return _crops("page.png", 24, 0, part=(0.0, 0.5))


def held_out() -> Iterator[Floats]:
    """Yield crops of the right half, and of another picture."""
    yield from _crops("page.png", 16, 1, part=(0.5, 1.0))
    yield from _crops("text.png", 8, 1)


def boxes(scores: Floats) -> list[Box]:
    """Return the boxes in a map of scores [1, 1, H, W], as top, left, bottom, right."""
    from skimage.measure import label, regionprops

    regions = regionprops(label(scores[0, 0] > _THRESHOLD))
    return [tuple(region.bbox) for region in regions if region.area >= _SMALLEST]


def agreement(given: Floats, expected: Floats) -> float:
    """Return the F1 score of the boxes of one picture; 1 where neither has any."""
    return hmean([(given, expected)])[0]


def hmean(pairs: Iterable[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Return the F1 score of the boxes of all pictures, and the mean overlap of those that agree.

    A pair of boxes agrees where their intersection is at least half of their union (IoU).

    Args:
        pairs: Maps of scores given and expected, picture by picture.
    """
    boxes_given, boxes_wanted = 0, 0
    overlaps: list[float] = []
    for given, expected in pairs:
        found, left = boxes(given), boxes(expected)
        boxes_given, boxes_wanted = boxes_given + len(found), boxes_wanted + len(left)
        for box in found:
            best = max(left, key=lambda other: _overlap(box, other), default=None)
            if best is not None and _overlap(box, best) >= 0.5:
                left.remove(best)
                overlaps.append(_overlap(box, best))
    if not boxes_given + boxes_wanted:
        return 1.0, 1.0
    mean = float(np.mean(overlaps)) if overlaps else 0.0
    return 2 * len(overlaps) / (boxes_given + boxes_wanted), mean


def _overlap(a: Box, b: Box) -> float:
    height = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return height * width / (sum(areas) - height * width)


def _crops(
    name: str, count: int, seed: int, part: tuple[float, float] = (0.0, 1.0)
) -> Iterator[Floats]:
    """Yield pieces of a part of a picture's width, scaled to float32 [1, 3, HEIGHT, WIDTH]."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data" / name) as opened:
        left, right = (round(share * opened.width) for share in part)
        image = opened.convert("RGB").crop((left, 0, right, opened.height))
    random = np.random.default_rng(seed)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    for _ in range(count):
        width = int(random.uniform(0.5, 1.0) * min(image.width, image.height * WIDTH // HEIGHT))
        height = width * HEIGHT // WIDTH
        left = int(random.integers(0, image.width - width + 1))
        top = int(random.integers(0, image.height - height + 1))
        crop = image.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT))
        values = (np.asarray(crop, np.float32)[:, :, ::-1] / 255 - mean) / std
        yield np.ascontiguousarray(values.transpose(2, 0, 1)[np.newaxis], np.float32)
