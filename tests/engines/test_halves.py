"""Which halves there are, and which are likely."""

from __future__ import annotations

import msgspec
import pytest

from engines.bundle import Bundle
from engines.halves import half_file, halves_of, segments_of
from engines.manifest import Manifest


def with_cut(manifest: Manifest, index: int, **changes: object) -> Manifest:
    cuts = list(manifest.cuts)
    cuts[index] = msgspec.structs.replace(cuts[index], **changes)
    return msgspec.structs.replace(manifest, cuts=tuple(cuts))


def test_none_all_and_the_whole(toy: Bundle) -> None:
    manifest = toy.manifest
    last = len(manifest.cuts) - 1
    assert halves_of(manifest, "none") == {}
    assert halves_of(manifest, "auto") == {(0, last): manifest.graph}, "no cut is likely"
    every = halves_of(manifest, "all")
    assert next(iter(every)) == (0, last)
    assert set(every) == {
        (0, last), *((0, i) for i in range(2, last)), *((i, last) for i in range(1, last - 1))
    }  # fmt: skip
    assert all(every[0, i] == manifest.cuts[i].head for i in range(2, last))
    assert all(every[i, last] == manifest.cuts[i].tail for i in range(1, last - 1))
    with pytest.raises(AssertionError, match="halves"):
        halves_of(manifest, "some")


@pytest.mark.parametrize("why", [("serial",), ("spread", "serial"), ("keep-local",)])
def test_cuts_that_the_search_found_are_likely(toy: Bundle, why: tuple[str, ...]) -> None:
    manifest = with_cut(toy.manifest, 3, why=why)
    assert list(halves_of(manifest, "auto")) == [(0, 7), (0, 3), (3, 7)]
    refused = with_cut(manifest, 3, refused="too large")
    assert list(halves_of(refused, "auto")) == [(0, 7)]


def test_the_whole_is_left_out_where_neither_side_may_run_it(toy: Bundle) -> None:
    manifest = with_cut(toy.manifest, 0, refused="private")
    assert list(halves_of(manifest, "auto")) == [(0, 7)], "the robot may"
    manifest = with_cut(manifest, 7, refused="too large")
    assert halves_of(manifest, "auto") == {}


def test_a_single_segment_is_its_own_half(toy: Bundle) -> None:
    manifest = toy.manifest
    assert segments_of(manifest, (2, 4)) == (2, 3)
    assert half_file(manifest, (0, 1)) is None
    assert half_file(manifest, (6, 7)) is None
    assert half_file(manifest, (2, 4)) is None, "neither head nor tail"
    assert half_file(manifest, (0, 2)) == manifest.cuts[2].head
