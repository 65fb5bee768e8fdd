"""Cameras by Video4Linux, through PyAV or, where that is not installed, OpenCV."""

from __future__ import annotations

import errno
import importlib
import time
from functools import partial
from typing import Any, Dict, Optional

from engines.errors import SourceError
from runtime.sources.live import Grabber, Picture
from runtime.sources.video import import_av

__all__ = ["CaptureMode", "PyAvCamera", "open_v4l2", "opencv_camera"]

CaptureMode = Dict[str, str]
"""What is asked of a camera: ``size`` (640x480), ``rate`` (30), ``format`` (mjpeg, yuyv422)."""

_AGAIN_S = 0.002
_DAMAGED = 10
"""Damaged frames in a row that are passed over: USB cameras begin with one or two."""

_HINTS = {
    errno.ENOENT: "no such device; `ls /dev/video*` lists those there are",
    errno.ENODEV: "no such device; `ls /dev/video*` lists those there are",
    errno.ENXIO: "no such device; `ls /dev/video*` lists those there are",
    errno.EACCES: "permission denied; sudo usermod -aG video $USER, then log in again",
    errno.EPERM: "permission denied; sudo usermod -aG video $USER, then log in again",
    errno.EBUSY: "another program uses it; `fuser -v` on it says which",
    errno.ENOTTY: "not a camera",
    errno.EINVAL: "it cannot do this size, rate or format; `v4l2-ctl --list-formats-ext` lists "
    "what it can",
}


def open_v4l2(device: str, mode: CaptureMode) -> Grabber:
    """Open a camera.

    Raises:
        SourceError: No such camera, or it is in use; neither PyAV nor OpenCV is installed.
    """
    try:
        av = import_av("cameras")
    except SourceError:
        try:
            cv2 = importlib.import_module("cv2")
        except ImportError:
            cv2 = None
        if cv2 is None:
            raise
        return opencv_camera(cv2, device, mode)
    return PyAvCamera(av, device, mode)


class PyAvCamera:
    """A camera through PyAV.

    Args:
        av: The module.
        device: ``/dev/video0``.
        mode: What is asked of it.
    """

    def __init__(self, av: Any, device: str, mode: CaptureMode) -> None:
        names = {"size": "video_size", "rate": "framerate", "format": "input_format"}
        options = {names[key]: value for key, value in mode.items()}
        self._damaged = av.error.InvalidDataError
        self._errors = (av.error.FFmpegError, OSError, ValueError)
        self._device = device
        try:
            self._container = av.open(device, format="v4l2", options=options)
        except self._errors as exc:
            raise self._told(exc) from exc
        try:
            self._stream = self._container.streams.video[0]
        except IndexError:
            self._container.close()
            raise SourceError(f"{device}: not a camera") from None
        self._frames = self._container.decode(self._stream)

    def grab(self) -> Optional[Picture]:
        """Wait for the next frame; none where the stream has ended. Raises SourceError."""
        damaged = 0
        while True:
            try:
                frame = next(self._frames, None)
            except BlockingIOError:
                time.sleep(_AGAIN_S)
            except self._damaged as exc:
                damaged += 1
                if damaged > _DAMAGED:
                    raise self._told(exc) from exc
            except self._errors as exc:
                raise self._told(exc) from exc
            else:
                return None if frame is None else partial(frame.to_ndarray, format="rgb24")
            self._frames = self._container.decode(self._stream)  # an error ended the one before

    def close(self) -> None:
        """Let go of the camera."""
        self._container.close()

    def _told(self, exc: BaseException) -> SourceError:
        hint = _HINTS.get(getattr(exc, "errno", None) or 0)
        why = hint or getattr(exc, "strerror", None) or str(exc)
        return SourceError(f"camera {self._device}: cannot be read: {why}")


class OpenCvCamera:
    """Whatever OpenCV's ``VideoCapture`` reads.

    Args:
        capture: An opened one.
        name: What it is called.
    """

    def __init__(self, capture: Any, name: str) -> None:
        self._capture = capture
        self._name = name
        self._any = False

    def grab(self) -> Optional[Picture]:
        """Wait for the next frame; none where the stream has ended. Raises SourceError."""
        read, pixels = self._capture.read()
        if read:
            self._any = True
            return lambda: pixels[:, :, ::-1]
        if self._any:
            return None
        raise SourceError(
            f"{self._name}: it opens, but gives no frame; is it used by another program?"
        )

    def close(self) -> None:
        """Let go of it."""
        self._capture.release()


def opencv_camera(cv2: Any, device: str, mode: CaptureMode) -> OpenCvCamera:
    """Open a camera by OpenCV.

    Raises:
        SourceError: It cannot be opened.
    """
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    if not capture.isOpened():
        capture.release()
        raise SourceError(
            f"camera {device}: OpenCV cannot open it; `ls /dev/video*` lists those there are, "
            "`fuser -v` on it says who uses it"
        )
    if "format" in mode:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*mode["format"].upper()[:4]))
    if "size" in mode:
        width, height = mode["size"].split("x")
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, int(width))
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, int(height))
    if "rate" in mode:
        capture.set(cv2.CAP_PROP_FPS, float(mode["rate"]))
    return OpenCvCamera(capture, f"camera {device}")
