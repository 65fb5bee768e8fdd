"""GStreamer pipelines: a Jetson's CSI cameras, and whatever else a pipeline can read.

Through OpenCV where that was built with GStreamer (JetPack's is; that of PyPI is not), else
through PyGObject (``gi``; apt install python3-gst-1.0).
"""

from __future__ import annotations

import importlib
import re
from typing import Any, Optional, Tuple

import numpy as np

from engines.errors import SourceError
from runtime.sources.live import Grabber, Picture
from runtime.sources.v4l2 import CaptureMode, OpenCvCamera

__all__ = ["GiPipeline", "csi_pipeline", "open_gstreamer"]

_SINK = "splitrt"
_TAIL = "videoconvert ! video/x-raw,format={format} ! appsink name={sink} drop=true "
_TAIL += "max-buffers=1 sync=false"
_PULL_NS = 1_000_000_000
_PULLS = 5


def csi_pipeline(sensor: int, mode: CaptureMode) -> str:
    """Return the pipeline of a Jetson's CSI camera; 1280x720 at 30 Hz unless asked otherwise.

    Source:
        NVIDIA Jetson Linux Developer Guide, Accelerated GStreamer: nvarguscamerasrc, nvvidconv.
    """
    width, height = mode.get("size", "1280x720").split("x")
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},"
        f"height={height},framerate={mode.get('rate', '30')}/1 ! nvvidconv ! "
        "video/x-raw,format=BGRx"
    )


def open_gstreamer(pipeline: str, *, name: str) -> Grabber:
    """Open a pipeline; what hands over its frames is put at its end.

    Args:
        pipeline: As for ``gst-launch-1.0``; an ``appsink`` at its end is replaced.
        name: What it is called in errors.

    Raises:
        SourceError: It cannot be opened, or nothing here can run it.
    """
    head = re.sub(r"\s*!?\s*appsink\b[^!]*$", "", pipeline).strip()
    if not head:
        raise SourceError(f"{name}: expected a GStreamer pipeline, given {pipeline!r}")
    cv2 = _module("cv2")
    if cv2 is not None and re.search(r"GStreamer:\s*YES", cv2.getBuildInformation()):
        text = f"{head} ! {_TAIL.format(format='BGR', sink=_SINK)}"
        capture = cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{name}: OpenCV cannot open it; try it with gst-launch-1.0")
        return OpenCvCamera(capture, name)
    gst = _gst()
    if gst is None:
        raise SourceError(
            f"{name}: needs OpenCV built with GStreamer, or PyGObject, and found neither; "
            "apt install python3-gst-1.0 gstreamer1.0-plugins-base"
        )
    return GiPipeline(gst, f"{head} ! {_TAIL.format(format='RGB', sink=_SINK)}", name=name)


class GiPipeline:
    """A pipeline that PyGObject runs.

    Args:
        gst: ``gi.repository.Gst``, initialised.
        pipeline: Ends with an appsink called ``splitrt`` that takes RGB.
        name: What it is called in errors.
    """

    def __init__(self, gst: Any, pipeline: str, *, name: str) -> None:
        self._gst = gst
        self._name = name
        try:
            self._pipeline = gst.parse_launch(pipeline)
        except RuntimeError as exc:  # GLib.Error is one
            raise SourceError(f"{name}: not a pipeline that can be run: {exc}") from exc
        self._sink = self._pipeline.get_by_name(_SINK)
        if self._pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
            trouble = self._trouble()
            self.close()
            raise SourceError(f"{name}: the pipeline does not start: {trouble}")

    def grab(self) -> Optional[Picture]:
        """Wait for the next frame; none where the stream has ended. Raises SourceError."""
        for _ in range(_PULLS):
            sample = self._sink.emit("try-pull-sample", _PULL_NS)
            if sample is not None:
                return lambda: self._pixels(sample)
            trouble = self._trouble()
            if trouble:
                raise SourceError(f"{self._name}: the pipeline failed: {trouble}")
            if self._sink.get_property("eos"):
                return None
        raise SourceError(f"{self._name}: the pipeline gives no frames; try gst-launch-1.0")

    def close(self) -> None:
        """Stop the pipeline."""
        self._pipeline.set_state(self._gst.State.NULL)

    def _trouble(self) -> str:
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        return "" if message is None else str(message.parse_error()[0])

    def _pixels(self, sample: Any) -> Any:
        caps = sample.get_caps().get_structure(0)
        size: Tuple[int, int] = (caps.get_value("height"), caps.get_value("width"))
        buffer = sample.get_buffer()
        data = buffer.extract_dup(0, buffer.get_size())
        return rgb_of(data, *size, name=self._name)


def rgb_of(data: bytes, height: int, width: int, *, name: str) -> Any:
    """Return the pixels of a raw RGB frame, whose rows GStreamer pads to 4 bytes.

    Raises:
        SourceError: The frame is shorter than that.
    """
    stride = (width * 3 + 3) // 4 * 4
    if len(data) < stride * height:
        raise SourceError(
            f"{name}: expected {stride * height} bytes of {width}x{height} RGB, given {len(data)}"
        )
    rows = np.frombuffer(data, np.uint8, stride * height).reshape(height, stride)
    return rows[:, : width * 3].reshape(height, width, 3)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _gst() -> Any:
    gi = _module("gi")
    if gi is None:
        return None
    try:
        gi.require_version("Gst", "1.0")
        gst = importlib.import_module("gi.repository.Gst")
    except (ImportError, ValueError):
        return None
    gst.init(None)
    return gst
