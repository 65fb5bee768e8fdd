from __future__ import annotations

import pytest

from calibration.objectives import (
    LATENCY,
    Constraints,
    Objective,
    check_constraints,
    parse_objective,
)
from engines.errors import ManifestError, SplitError
from tests.striped import serial


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("latency", LATENCY),
        ("latency:p95", Objective("latency", quantile=0.95)),
        ("latency:p99.9", Objective("latency", quantile=0.999)),
        ("energy", Objective("energy")),
        ("rate", Objective("rate")),
        ("deadline=80ms", Objective("deadline", limit=0.08)),
        ("deadline=2500us", Objective("deadline", limit=0.0025)),
        ("deadline=1.5s", Objective("deadline", limit=1.5)),
        ("deadline=.5s", Objective("deadline", limit=0.5)),
        ("energy-budget=1.2J", Objective("energy-budget", limit=1.2)),
        ("energy-budget=350mJ", Objective("energy-budget", limit=0.35)),
    ],
)
def test_text_and_back(text: str, objective: Objective) -> None:
    parsed = parse_objective(text)
    assert parsed.kind == objective.kind
    assert parsed.limit == pytest.approx(objective.limit)
    assert parsed.quantile == pytest.approx(objective.quantile)
    again = parse_objective(str(parsed))
    assert str(again) == str(parsed)
    assert again.limit == pytest.approx(parsed.limit)


def test_the_shortest_text_is_written() -> None:
    texts = ("latency", "latency:p95", "energy", "deadline=80ms", "energy-budget=1.2J", "rate")
    for text in texts:
        assert str(parse_objective(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "latency:95", "latency:p", "latency:p100", "latency:p20", "energy:p95",
        "deadline", "deadline=", "deadline=80", "deadline=-1ms", "deadline=0ms", "deadline=80 ms",
        "deadline=infs", "energy-budget=1", "energy-budget=0J", "energy-budget=1ms", "LATENCY",
        "rate=30", "deadline=" + "9" * 400 + "s",
    ],
)  # fmt: skip
def test_what_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SplitError, match="expected") as caught:
        parse_objective(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "deadline"},
        {"kind": "deadline", "limit": float("nan")},
        {"kind": "energy-budget", "limit": float("inf")},
        {"kind": "latency", "limit": 1.0},
        {"kind": "energy", "quantile": 0.95},
        {"kind": "latency", "quantile": 0.3},
        {"kind": "hurry"},
    ],
)
def test_records_are_checked(fields: dict[str, object]) -> None:
    with pytest.raises(SplitError, match="expected"):
        Objective(**fields)  # type: ignore[arg-type]


def test_constraints_name_cuts_of_the_bundle() -> None:
    manifest = serial([100, 10, 5])
    check_constraints(Constraints(), manifest)
    check_constraints(Constraints(keep_local=manifest.cuts[1].id), manifest)
    with pytest.raises(ManifestError, match="split-bundle inspect"):
        check_constraints(Constraints(keep_local="ffffffff"), manifest)
