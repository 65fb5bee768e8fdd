"""Video files, by PyAV: every frame in order, decoded when its turn comes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Iterator

from engines.errors import SourceError
from engines.manifest import Manifest
from runtime.sources.base import Fit, Sample, Source
from runtime.sources.images import fit_for

__all__ = ["VIDEO_SUFFIXES", "import_av", "video_source"]

VIDEO_SUFFIXES = (
    ".avi", ".h264", ".h265", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm",
)  # fmt: skip

_MISSING_FRAMES = 2
"""So many fewer frames than the file says: some encoders count what is never shown."""


def video_source(path: Path, manifest: Manifest) -> Source:
    """Read a video file.

    Raises:
        SourceError: Not a video, one without frames, or the model takes no image; PyAV is not
            installed. In going through it: it is damaged, or shorter than it says.
    """
    fit = fit_for(manifest, str(path))
    av = import_av("videos")
    first = _frames(av, path, fit)
    if next(first, None) is None:
        raise SourceError(f"{path}: expected a video with frames, found none")
    first.close()  # type: ignore[attr-defined]  # a generator: closes the file
    return Source(lambda: _frames(av, path, fit))


def import_av(what: str) -> Any:
    """Import PyAV.

    Raises:
        SourceError: It is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as exc:
        raise SourceError(
            f"{what} need PyAV, which cannot be imported ({exc}); pip install 'splitrt[video]'"
        ) from exc


def _frames(av: Any, path: Path, fit: Fit) -> Iterator[Sample]:
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise SourceError(f"{path}: expected a video, found no video stream in it")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            declared = stream.frames
            for frame in container.decode(stream):
                inputs = fit(frame.to_ndarray(format="rgb24"))
                yield Sample(f"{path.name}#{count}", inputs)
                count += 1
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        if count:
            raise SourceError(f"{path}: video is damaged after frame {count - 1}: {why}") from exc
        if isinstance(exc, EOFError):
            raise SourceError(f"{path}: expected a video with frames, found none") from exc
        raise SourceError(f"{path}: not a readable video: {why}") from exc
    if count + _MISSING_FRAMES < declared:
        raise SourceError(
            f"{path}: expected {declared} frames, found {count}; the file was cut short: copy it "
            "again"
        )
