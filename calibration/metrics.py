"""Metrics: how far the results of one inference are from the reference's; 0 for equal ones.

A metric is a function of two results by output name. ``top1``, ``cosine``, ``rms`` and ``max`` are
here; ``module:function`` or ``file.py:function`` is the user's own.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, Mapping

import numpy as np

from calibration.objects import load_object
from calibration.parity import largest_error, rms_error_of
from engines.errors import SplitError
from engines.tensors import Array

__all__ = [
    "METRICS",
    "Metric",
    "cosine_distance",
    "label_disagreement",
    "open_metric",
    "relative_rms",
]

Outputs = Mapping[str, Array]

Metric = Callable[[Outputs, Outputs], float]
"""From what was given and what was expected, by output, to an error of 0 or more."""


def label_disagreement(given: Outputs, expected: Outputs) -> float:
    """Return the share of places whose label, the largest of the scores, is another.

    Scores lie along dimension 1, as in ``[1, classes]`` and ``[1, classes, H, W]``; a vector is
    one set of scores. Of several outputs the first counts. Integers are labels already.
    """
    name = next(iter(expected))
    if name not in given or given[name].shape != expected[name].shape:
        return 1.0
    a, b = given[name], expected[name]
    if b.dtype.kind == "f":
        axis = 0 if b.ndim < 2 else 1
        a, b = np.argmax(a, axis=axis), np.argmax(b, axis=axis)
    return float(np.mean(a != b))


def cosine_distance(given: Outputs, expected: Outputs) -> float:
    """Return 1 - cosine between all values of both results, the outputs' vectors weighed alike.

    That is the mean over the outputs. Two vectors of zeros are equal; a vector of zeros is at
    distance 1 from any other, and so is what has an infinity or a NaN.
    """
    distances = [_distance(given.get(name), array) for name, array in expected.items()]
    return float(np.mean(distances)) if distances else 0.0


def _distance(given: "Array | None", expected: Array) -> float:
    if given is None or given.shape != expected.shape:
        return 1.0
    a = given.astype(np.float64).reshape(-1)
    b = expected.astype(np.float64).reshape(-1)
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if not lengths or not math.isfinite(lengths):
        return 1.0
    return max(0.0, 1.0 - float(a @ b) / lengths)


def relative_rms(given: Outputs, expected: Outputs) -> float:
    """Return the relative root mean square of the differences, the mean over the outputs."""
    errors = [
        rms_error_of(given[name], array) if name in given else math.inf
        for name, array in expected.items()
    ]
    return float(np.mean(errors)) if errors else 0.0


METRICS: Dict[str, Metric] = {
    "top1": label_disagreement,
    "cosine": cosine_distance,
    "rms": relative_rms,
    "max": largest_error,
}


def open_metric(name: str) -> Metric:
    """Return the metric called ``name``, or a function of the user's.

    Raises:
        SplitError: No such metric.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise SplitError(
            f"--metric {name!r}: expected one of {', '.join(METRICS)}, or module:function or "
            "file.py:function that takes the outputs given and expected, by name, and returns "
            "an error"
        )
    function = load_object(name, "--metric")
    if not callable(function):
        raise SplitError(
            f"--metric {name!r}: expected a function, given {type(function).__name__}"
        )

    def checked(given: Outputs, expected: Outputs) -> float:
        try:
            error = float(function(given, expected))
        except Exception as exc:  # a user's own code raises what it likes
            raise SplitError(f"--metric {name!r} failed: {type(exc).__name__}: {exc}") from exc
        if not error >= 0:
            raise SplitError(
                f"--metric {name!r}: expected an error of 0 or more, given {error}; "
                "return 1 - agreement, not agreement"
            )
        return error

    return checked
