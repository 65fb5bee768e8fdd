"""Options of the choice of cuts: what is taken, and what is refused before anything is loaded."""

from __future__ import annotations

import re

import pytest

from compiler import CompileOptions
from compiler.options import CutOptions, parse_size
from engines.errors import CutError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096B", 4096),
        ("512MB", 512_000_000),
        ("2GiB", 2 << 30),
        ("1.5 gb", 1_500_000_000),
        (" 64KiB ", 65536),
        ("10k", 10_000),
        ("8m", 8_000_000),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1TB", "1e9", "1,5GB", "12 34", "1MBs", "iB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(
        CutError, match=re.escape(f"size {text!r}: expected bytes, or as in 512MB")
    ):
        parse_size(text)


@pytest.mark.parametrize(("cuts", "most"), [("auto", None), ("all", None), ("1", 1), ("07", 7)])
def test_cuts(cuts: str, most: int | None) -> None:
    assert CutOptions(cuts=cuts).most == most


@pytest.mark.parametrize("cuts", ["", "0", "-1", "2.5", "ALL", "²", "1 2"])
def test_what_is_no_choice_of_cuts(cuts: str) -> None:
    with pytest.raises(CutError, match="--cuts: expected auto, all or a number from 1, given"):
        CutOptions(cuts=cuts)
    with pytest.raises(CutError, match="--cuts"):
        CompileOptions(cuts=cuts)


@pytest.mark.parametrize("number", [0, -1])
def test_limits_below_1(number: int) -> None:
    with pytest.raises(CutError, match=f"--max-frontier: expected 1 or more, given {number}"):
        CutOptions(max_frontier=number)
    with pytest.raises(CutError, match=f"--robot-memory: expected bytes above 0, given {number}"):
        CutOptions(robot_memory=number)
    with pytest.raises(CutError, match="--robot-memory"):
        CompileOptions(robot_memory=number)


def test_a_compilation_passes_them_on() -> None:
    options = CompileOptions(cuts="5", max_frontier=2, keep_local=("3", "stem"), robot_memory=9)
    expected = CutOptions(cuts="5", max_frontier=2, keep_local=("3", "stem"), robot_memory=9)
    assert options.cut_options == expected
