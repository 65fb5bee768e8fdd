"""Fused halves: which a bundle has, and which of them are likely to be used.

A half is named by its span, the indices of the first and the last cut of a run. Heads go from
cut 0 to a cut, tails from a cut to the end, and the whole graph is the half of ``local`` and
``offload``. A half of a single segment is that segment, and needs no engine of its own.
"""

from __future__ import annotations

from typing import Dict, Optional, Tuple

from engines.manifest import Cut, Manifest

__all__ = ["HALVES", "LIKELY", "Span", "half_file", "halves_of", "segments_of"]

Span = Tuple[int, int]
"""Indices of the first and the last cut of a run."""

HALVES = ("auto", "none", "all")
"""Which halves to build plans for: the likely ones, none, or those of every cut."""

LIKELY = ("serial", "keep-local")
"""Reasons of a cut that make it likely: it is best for some goodput, speed ratio and objective."""


def segments_of(manifest: Manifest, span: Span) -> Tuple[int, ...]:
    """Return the segments of a span, in their order."""
    start, stop = span
    before = set(manifest.cuts[start].robot_segments)
    return tuple(i for i in manifest.cuts[stop].robot_segments if i not in before)


def half_file(manifest: Manifest, span: Span) -> Optional[str]:
    """Return the ONNX file of a half; none where a single segment is it, or there is none."""
    start, stop = span
    last = len(manifest.cuts) - 1
    if len(segments_of(manifest, span)) < 2:
        return None
    if span == (0, last):
        return manifest.graph
    if start == 0:
        return manifest.cuts[stop].head
    return manifest.cuts[start].tail if stop == last else None


def halves_of(manifest: Manifest, choice: str) -> Dict[Span, str]:
    """Return the ONNX files of halves by span: the whole graph first, then cut by cut.

    Args:
        manifest: The bundle's manifest.
        choice: One of :data:`HALVES`.
    """
    if choice not in HALVES:
        raise AssertionError(f"halves: expected one of {HALVES}, given {choice!r}")
    last = len(manifest.cuts) - 1
    spans = []
    if choice != "none" and not (manifest.cuts[0].refused and manifest.cuts[last].refused):
        spans.append((0, last))
    for cut in manifest.cuts[1:last]:
        if not cut.refused and (choice == "all" or (choice == "auto" and _likely(cut))):
            spans += [(0, cut.index), (cut.index, last)]
    files = {span: half_file(manifest, span) for span in spans}
    return {span: file for span, file in files.items() if file is not None}


def _likely(cut: Cut) -> bool:
    return any(reason in LIKELY for reason in cut.why)
