from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.bundle import Bundle
from engines.errors import SourceError
from runtime.sources import open_source, uri
from runtime.sources.live import Picture
from tests.runtime.sources.helpers import grey, image_model, take


@pytest.mark.parametrize("name", ["gone.png", "gone", "", "no/such/file.npz"])
def test_what_is_not_there_is_refused(toy: Bundle, name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file|found none"):
        open_source(name or str(tmp_path / "x"), toy.manifest)


def test_another_kind_of_file_is_refused(toy: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(SourceError, match=r"given '\.csv'"):
        open_source(str(tmp_path / "a.csv"), toy.manifest)


class Endless:
    def grab(self) -> Picture:
        return lambda: grey(9)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("name", ["a.png", "with space.png", "100%.png"])
def test_a_file_by_its_address(toy: Bundle, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (28, 14)).save(tmp_path / name)
    address = (tmp_path / name).as_uri()
    assert address.startswith("file:///")
    (sample,) = take(open_source(address, image_model(toy)), 1)
    assert sample.name == name


def test_an_npz_by_its_address(toy: Bundle, tmp_path: Path, inputs: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "one.npz", **inputs)
    source = open_source(f"file://{tmp_path}/one.npz", toy.manifest)
    assert take(source, 1)[0].name == "one.npz"


@pytest.mark.parametrize(
    ("text", "device", "mode"),
    [
        ("v4l2:///dev/video0", "/dev/video0", {}),
        (
            "v4l2:///dev/video2?size=640x480&rate=30&format=mjpeg",
            "/dev/video2",
            {"size": "640x480", "rate": "30", "format": "mjpeg"},
        ),
        ("/dev/null", "/dev/null", {}),  # as a device without a scheme is
    ],
)
def test_a_camera(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch, text: str, device: str, mode: dict[str, str]
) -> None:
    opened: list[object] = []

    def open_v4l2(*given: object) -> Endless:
        opened.append(given)
        return Endless()

    monkeypatch.setattr(uri, "open_v4l2", open_v4l2)
    with open_source(text, image_model(toy)) as source:
        assert take(source, 1)[0].name.startswith(f"{device}#")
    assert opened == [(device, mode)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("csi://1", ["nvarguscamerasrc sensor-id=1 ", "width=1280,height=720,framerate=30/1"]),
        ("csi://0?size=64x48&rate=60", ["sensor-id=0 ", "width=64,height=48,framerate=60/1"]),
        ("gst:videotestsrc pattern=ball", ["videotestsrc pattern=ball"]),
    ],
)  # fmt: skip
def test_a_pipeline(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch, text: str, parts: list[str]
) -> None:
    opened: list[str] = []

    def open_gstreamer(pipeline: str, *, name: str) -> Endless:
        opened.append(pipeline)
        return Endless()

    monkeypatch.setattr(uri, "open_gstreamer", open_gstreamer)
    with open_source(text, image_model(toy)) as source:
        take(source, 1)
    for part in parts:
        assert part in opened[0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rtsp://host/stream", "unknown scheme 'rtsp'; expected an image, a folder"),
        ("csi://front", "expected csi://0"),
        ("csi://0?zoom=2", "given zoom=2"),
        ("v4l2:///dev/video0?size=640", "given size=640"),
        ("v4l2:///dev/video0?size=0x480", "given size=0x480"),
        ("v4l2:///dev/video0?rate=", "given rate="),
        ("file:///no/such/file.mp4", "no such file"),
    ],
)
def test_what_is_no_address_is_refused(toy: Bundle, text: str, match: str) -> None:
    with pytest.raises(SourceError, match=match) as caught:
        open_source(text, image_model(toy))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_refused_and_not_waited_for(toy: Bundle, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(SourceError, match="expected a file or a folder"):
        open_source(str(tmp_path / "pipe.mp4"), image_model(toy))


def test_a_camera_for_a_model_that_takes_no_image(toy: Bundle) -> None:
    with pytest.raises(SourceError, match="--preprocess"):
        open_source("v4l2:///dev/video0", toy.manifest)
