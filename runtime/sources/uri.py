"""Reads what the user calls a source, and opens it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable
from urllib.parse import parse_qsl, unquote

from engines.errors import SourceError
from engines.manifest import Manifest
from runtime.sources.arrays import npz_source, random_source
from runtime.sources.base import Source
from runtime.sources.gstreamer import csi_pipeline, open_gstreamer
from runtime.sources.images import IMAGE_SUFFIXES, fit_for, folder_source, image_source
from runtime.sources.live import Grabber, LiveSource
from runtime.sources.v4l2 import CaptureMode, open_v4l2
from runtime.sources.video import VIDEO_SUFFIXES, video_source

__all__ = ["open_source"]

_MODE = {"size": r"[1-9]\d*x[1-9]\d*", "rate": r"[1-9]\d*", "format": r"\w+"}
_KINDS = (
    "an image, a folder of images, a video, an .npz file, random:N, v4l2:///dev/video0, csi://0 "
    "or gst:PIPELINE"
)


def open_source(text: str, manifest: Manifest) -> Source:
    """Open a source.

    ======================================  ====================================================
    ``IMAGE``, ``FOLDER``, ``FILE.npz``     files, or ``file://`` before them
    ``VIDEO``                               a file that PyAV reads
    ``random:N``                            N different draws
    ``v4l2:///dev/video0``                  a camera; ``?size=640x480&rate=30&format=mjpeg``
    ``csi://0``                             a Jetson's camera; ``?size=1280x720&rate=30``
    ``gst:PIPELINE``                        what a GStreamer pipeline gives
    ======================================  ====================================================

    Args:
        text: What the user gave.
        manifest: What the inputs must fit.

    Raises:
        SourceError: No such source, or it does not fit the model.
        TensorMismatchError: The arrays of an ``.npz`` do not fit the model.
    """
    drawn = re.fullmatch(r"random:(\d+)", text)
    if drawn:
        return random_source(int(drawn.group(1)), manifest)
    if text.startswith("gst:"):
        pipeline = text[len("gst:") :]
        return _live("gst", lambda: open_gstreamer(pipeline, name="gst"), manifest)
    scheme, found, rest = text.partition("://")
    if not found:
        return _file(Path(text), text, manifest)
    if scheme == "file":
        path = Path(unquote(rest))
        return _file(path, text, manifest)
    if scheme == "v4l2":
        device, mode = _mode(text, rest)
        return _live(device, lambda: open_v4l2(device, mode), manifest)
    if scheme == "csi":
        sensor, mode = _mode(text, rest)
        if not sensor.isdigit():
            raise SourceError(f"source {text!r}: expected csi://0, csi://1, ..., given {sensor!r}")
        pipeline = csi_pipeline(int(sensor), mode)
        return _live(text, lambda: open_gstreamer(pipeline, name=f"camera {text}"), manifest)
    raise SourceError(f"source {text!r}: unknown scheme {scheme!r}; expected {_KINDS}")


def _file(path: Path, text: str, manifest: Manifest) -> Source:
    if path.is_char_device():
        device = str(path)
        return _live(device, lambda: open_v4l2(device, {}), manifest)
    if path.is_dir():
        return folder_source(path, manifest)
    if not path.exists():
        raise SourceError(f"source {text!r}: no such file; expected {_KINDS}")
    if not path.is_file():
        raise SourceError(f"source {text!r}: expected a file or a folder, given neither")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return npz_source(path, manifest)
    if suffix in IMAGE_SUFFIXES:
        return image_source(path, manifest)
    if suffix in VIDEO_SUFFIXES:
        return video_source(path, manifest)
    raise SourceError(
        f"{path}: expected .npz, an image ({', '.join(IMAGE_SUFFIXES)}) or a video "
        f"({', '.join(VIDEO_SUFFIXES)}), given {path.suffix!r}"
    )


def _live(name: str, open_grabber: Callable[[], Grabber], manifest: Manifest) -> Source:
    return LiveSource(name, open_grabber, fit_for(manifest, name))


def _mode(text: str, rest: str) -> "tuple[str, CaptureMode]":
    """Take what is asked of a camera off its address."""
    device, _, query = rest.partition("?")
    mode = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in mode.items():
        if not re.fullmatch(_MODE.get(key, "(?!)"), value):
            raise SourceError(
                f"source {text!r}: expected ?size=WxH&rate=HZ&format=NAME, given {key}={value}"
            )
    return device, mode
