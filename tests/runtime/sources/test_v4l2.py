from __future__ import annotations

import errno
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engines.errors import SourceError
from runtime.sources import v4l2
from runtime.sources.v4l2 import PyAvCamera, open_v4l2, opencv_camera
from tests.runtime.sources.helpers import grey


class FFmpegError(Exception):
    pass


class InvalidDataError(FFmpegError):
    pass


class FakeFrame:
    def __init__(self, level: int) -> None:
        self._level = level

    def to_ndarray(self, *, format: str) -> np.ndarray:  # noqa: A002 (PyAV's name)
        assert format == "rgb24"
        return grey(self._level)


class FakeAv:
    """PyAV with one camera, which gives frames and errors in turn."""

    error = SimpleNamespace(FFmpegError=FFmpegError, InvalidDataError=InvalidDataError)

    def __init__(self, *events: object, trouble: Exception | None = None) -> None:
        self._events = iter(events)
        self._trouble = trouble
        self.streams = SimpleNamespace(video=["stream"])
        self.closed = 0
        self.opened: tuple[object, ...] = ()

    def open(self, device: str, **more: object) -> FakeAv:
        self.opened = (device, more)
        if self._trouble is not None:
            raise self._trouble
        return self

    def decode(self, stream: object) -> object:
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield FakeFrame(event)

    def close(self) -> None:
        self.closed += 1


def _level(picture: object) -> int:
    assert callable(picture)
    return int(picture()[0, 0, 0])


def test_frames_and_what_is_asked_of_the_camera() -> None:
    av = FakeAv(1, 2)
    camera = PyAvCamera(av, "/dev/video0", {"size": "640x480", "rate": "30", "format": "mjpeg"})
    assert av.opened == (
        "/dev/video0",
        {
            "format": "v4l2",
            "options": {"video_size": "640x480", "framerate": "30", "input_format": "mjpeg"},
        },
    )
    assert [_level(camera.grab()), _level(camera.grab())] == [1, 2]
    assert camera.grab() is None
    camera.close()
    assert av.closed == 1


def test_not_yet_and_a_damaged_frame_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v4l2, "_AGAIN_S", 0)
    av = FakeAv(BlockingIOError(errno.EAGAIN, "again"), InvalidDataError("bad"), 7)
    assert _level(PyAvCamera(av, "/dev/video0", {}).grab()) == 7


def test_nothing_but_damaged_frames_is_an_error() -> None:
    av = FakeAv(*[InvalidDataError("bad data")] * 100)
    with pytest.raises(SourceError, match="bad data"):
        PyAvCamera(av, "/dev/video0", {}).grab()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOENT, "ls /dev/video"),
        (errno.EACCES, "usermod -aG video"),
        (errno.EBUSY, "another program uses it"),
        (errno.ENOTTY, "not a camera"),
        (errno.EINVAL, "v4l2-ctl --list-formats-ext"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(number: int, hint: str) -> None:
    trouble = OSError(number, "Input/output error")
    for av in (FakeAv(trouble=trouble), FakeAv(trouble)):
        with pytest.raises(SourceError, match=f"camera /dev/video9: .*{hint}") as caught:
            PyAvCamera(av, "/dev/video9", {}).grab()
        assert "\n" not in str(caught.value)


def test_what_has_no_video_is_no_camera() -> None:
    av = FakeAv()
    av.streams.video = []
    with pytest.raises(SourceError, match="not a camera"):
        PyAvCamera(av, "/dev/video0", {})
    assert av.closed == 1


@pytest.mark.parametrize("device", ["/dev/video99", "/dev/null", "/no/such/device"])
def test_what_pyav_itself_says_of_devices_that_are_none(device: str) -> None:
    pytest.importorskip("av")
    with pytest.raises(SourceError, match=f"camera {device}: cannot be read: ") as caught:
        open_v4l2(device, {})
    assert "\n" not in str(caught.value)


class FakeCapture:
    def __init__(self, levels: list[int], *, opens: bool = True) -> None:
        self._levels = levels
        self._opens = opens
        self.properties: dict[str, object] = {}
        self.released = 0

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return self._opens

    def set(self, name: str, value: object) -> None:
        self.properties[name] = value

    def read(self) -> tuple[bool, np.ndarray | None]:
        if not self._levels:
            return False, None
        pixels = grey(0)
        pixels[..., 0] = self._levels.pop(0)  # blue comes first
        return True, pixels

    def release(self) -> None:
        self.released += 1


def fake_cv2(capture: FakeCapture, *, build: str = "") -> SimpleNamespace:
    opened: list[tuple[object, ...]] = []

    def video_capture(*args: object) -> FakeCapture:
        opened.append(args)
        return capture

    return SimpleNamespace(
        VideoCapture=video_capture, opened=opened, CAP_V4L2="v4l2", CAP_GSTREAMER="gst",
        CAP_PROP_FOURCC="fourcc", CAP_PROP_FRAME_WIDTH="width", CAP_PROP_FRAME_HEIGHT="height",
        CAP_PROP_FPS="fps", VideoWriter_fourcc=lambda *letters: "".join(letters),
        getBuildInformation=lambda: build,
    )  # fmt: skip


def test_opencv_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = FakeCapture([5, 6])
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "cv2", fake_cv2(capture))
    camera = open_v4l2("/dev/video0", {"size": "640x480", "rate": "15", "format": "mjpg"})
    assert capture.properties == {"fourcc": "MJPG", "width": 640, "height": 480, "fps": 15.0}
    picture = camera.grab()
    assert picture is not None
    assert picture()[0, 0].tolist() == [0, 0, 5]  # RGB
    assert camera.grab() is not None
    assert camera.grab() is None
    camera.close()
    assert capture.released == 1


def test_opencv_that_cannot_open_it_or_gives_nothing() -> None:
    closed = FakeCapture([], opens=False)
    with pytest.raises(SourceError, match="OpenCV cannot open it"):
        opencv_camera(fake_cv2(closed), "/dev/video0", {})
    assert closed.released == 1
    with pytest.raises(SourceError, match="gives no frame"):
        opencv_camera(fake_cv2(FakeCapture([])), "/dev/video0", {}).grab()


def test_with_neither_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SourceError, match=r"pip install 'splitrt\[video\]'"):
        open_v4l2("/dev/video0", {})
