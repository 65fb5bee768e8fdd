from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engines.errors import SourceError
from runtime.sources import gstreamer
from runtime.sources.gstreamer import GiPipeline, csi_pipeline, open_gstreamer, rgb_of
from tests.runtime.sources.test_v4l2 import FakeCapture, fake_cv2

WITH = "  Video I/O:\n    GStreamer:                   YES (1.20.3)\n"
WITHOUT = "  Video I/O:\n    GStreamer:                   NO\n"


class FakeGst:
    """GStreamer with one pipeline, which gives samples, errors and its end in turn."""

    State = SimpleNamespace(PLAYING="playing", NULL="null")
    StateChangeReturn = SimpleNamespace(FAILURE="failure")
    MessageType = SimpleNamespace(ERROR="error")

    def __init__(self, *events: object, starts: bool = True) -> None:
        self._events = list(events)
        self._starts = starts
        self.launched = ""
        self.states: list[str] = []
        self.trouble = ""

    def parse_launch(self, text: str) -> FakeGst:
        if "nonsense" in text:
            raise RuntimeError('no element "nonsense"')
        self.launched = text
        return self

    def get_by_name(self, name: str) -> FakeGst:
        assert name == "splitrt"
        return self

    def set_state(self, state: str) -> str:
        self.states.append(state)
        return "success" if self._starts else "failure"

    def emit(self, signal: str, wait_ns: int) -> object:
        assert (signal, wait_ns) == ("try-pull-sample", 1_000_000_000)
        event = self._events.pop(0) if self._events else None
        if isinstance(event, str):
            self.trouble = event
            return None
        return event

    def get_property(self, name: str) -> bool:
        assert name == "eos"
        return not self._events

    def get_bus(self) -> FakeGst:
        return self

    def pop_filtered(self, kind: str) -> object:
        if not self.trouble:
            return None
        return SimpleNamespace(parse_error=lambda: (self.trouble, "details"))


def _sample(width: int, height: int, data: bytes) -> SimpleNamespace:
    values = {"width": width, "height": height}
    structure = SimpleNamespace(get_value=values.__getitem__)
    buffer = SimpleNamespace(get_size=lambda: len(data), extract_dup=lambda a, n: data[a : a + n])
    return SimpleNamespace(
        get_caps=lambda: SimpleNamespace(get_structure=lambda index: structure),
        get_buffer=lambda: buffer,
    )


class TestOpenCv:
    @pytest.mark.parametrize(
        "pipeline",
        ["videotestsrc ! videoscale", " videotestsrc ! videoscale ! appsink",
         "videotestsrc ! videoscale ! appsink drop=1 max-buffers=3"],
    )  # fmt: skip
    def test_it_is_used_where_it_was_built_with_gstreamer(
        self, monkeypatch: pytest.MonkeyPatch, pipeline: str
    ) -> None:
        cv2 = fake_cv2(FakeCapture([3]), build=WITH)
        monkeypatch.setitem(sys.modules, "cv2", cv2)
        picture = open_gstreamer(pipeline, name="gst").grab()
        assert picture is not None
        assert picture()[0, 0].tolist() == [0, 0, 3]
        ((text, api),) = cv2.opened
        assert api == "gst"
        assert text == (
            "videotestsrc ! videoscale ! videoconvert ! video/x-raw,format=BGR ! appsink "
            "name=splitrt drop=true max-buffers=1 sync=false"
        )

    def test_one_that_it_cannot_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        capture = FakeCapture([], opens=False)
        monkeypatch.setitem(sys.modules, "cv2", fake_cv2(capture, build=WITH))
        with pytest.raises(SourceError, match="camera csi://0: OpenCV cannot open it"):
            open_gstreamer(csi_pipeline(0, {}), name="camera csi://0")
        assert capture.released == 1


class TestGi:
    @pytest.fixture(autouse=True)
    def without_opencv(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cv2", fake_cv2(FakeCapture([]), build=WITHOUT))

    def test_it_is_used_where_opencv_has_no_gstreamer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gst = FakeGst(_sample(2, 1, bytes([1, 2, 3, 4, 5, 6, 0, 0])))
        monkeypatch.setattr(gstreamer, "_gst", lambda: gst)
        camera = open_gstreamer("videotestsrc", name="gst")
        assert gst.launched.startswith("videotestsrc ! videoconvert ! video/x-raw,format=RGB ! ")
        picture = camera.grab()
        assert picture is not None
        assert picture().tolist() == [[[1, 2, 3], [4, 5, 6]]]
        assert camera.grab() is None
        camera.close()
        assert gst.states == ["playing", "null"]

    def test_a_pipeline_that_is_none(self) -> None:
        with pytest.raises(SourceError, match='no element "nonsense"'):
            GiPipeline(FakeGst(), "nonsense", name="gst")

    def test_one_that_does_not_start(self) -> None:
        gst = FakeGst(starts=False)
        gst.trouble = "No cameras available"
        with pytest.raises(SourceError, match="does not start: No cameras available"):
            GiPipeline(gst, "nvarguscamerasrc", name="gst")
        assert gst.states[-1] == "null"

    def test_one_that_fails_on_the_way(self) -> None:
        pipeline = GiPipeline(FakeGst("device lost", None), "v4l2src", name="gst")
        with pytest.raises(SourceError, match="gst: the pipeline failed: device lost"):
            pipeline.grab()

    def test_one_that_gives_nothing(self) -> None:
        pipeline = GiPipeline(FakeGst(*[None] * 20), "v4l2src", name="gst")
        with pytest.raises(SourceError, match="gives no frames"):
            pipeline.grab()

    def test_with_neither_the_error_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gstreamer, "_gst", lambda: None)
        with pytest.raises(SourceError, match="apt install python3-gst") as caught:
            open_gstreamer("videotestsrc", name="gst")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " ", "appsink", "! appsink drop=true"])
def test_no_pipeline_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="expected a GStreamer pipeline"):
        open_gstreamer(text, name="gst")


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 640])
def test_rows_are_padded_to_4_bytes(width: int) -> None:
    stride = (width * 3 + 3) // 4 * 4
    rows = np.arange(2 * stride, dtype=np.uint8).reshape(2, stride)
    pixels = rgb_of(rows.tobytes(), 2, width, name="gst")
    assert np.array_equal(pixels.reshape(2, -1), rows[:, : width * 3])
    with pytest.raises(SourceError, match="expected"):
        rgb_of(rows.tobytes()[:-1], 2, width, name="gst")
