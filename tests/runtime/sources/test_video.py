"""Videos that PyAV makes here, whole and damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import Bundle
from engines.errors import SourceError
from runtime.sources import open_source
from tests.runtime.sources.helpers import grey, image_model

av = pytest.importorskip("av", reason="PyAV is not installed; pip install 'splitrt[video]'")

FRAMES = 12


def _level(number: int) -> int:
    return 20 + 18 * number


def write_video(path: Path, frames: int = FRAMES, *, codec: str = "mpeg4") -> Path:
    """Write a video whose frames grow brighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 56, 28, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(grey(_level(number)), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_every_frame_in_order_and_none_dropped(toy: Bundle, tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip.{suffix}")
    source = open_source(str(path), image_model(toy))
    samples = list(source.take())
    assert [sample.name for sample in samples] == [f"clip.{suffix}#{i}" for i in range(FRAMES)]
    for number, sample in enumerate(samples):
        pixels = sample.inputs["pixels"]
        assert (pixels.shape, pixels.dtype) == ((1, 14, 28, 3), np.uint8)
        assert abs(float(pixels.mean()) - _level(number)) < 6
    assert source.dropped == 0


def test_with_a_count_it_starts_again(toy: Bundle, tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "clip.mp4", 3)), image_model(toy))
    assert [s.name[-1] for s in source.take(8)] == list("01201201")
    assert [s.name[-1] for s in source.take(2)] == list("01")
    assert len(list(source.take())) == 3


@pytest.mark.parametrize("content", [b"", b"text", bytes(4096), b"\x00\x00\x00\x18ftypmp42"])
def test_what_is_no_video_is_refused(toy: Bundle, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"bad\.mp4: not a readable video") as caught:
        open_source(str(path), image_model(toy))
    assert "\n" not in str(caught.value)


def test_a_video_without_frames_is_refused(toy: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "empty.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 56, 28, "yuv420p"
        container.start_encoding()
    with pytest.raises(SourceError, match=r"empty\.mkv: expected a video with frames, found none"):
        open_source(str(path), image_model(toy))


def test_sound_alone_is_refused(toy: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(SourceError, match="found no video stream"):
        open_source(str(path), image_model(toy))


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4"])
def test_every_truncation_is_an_error_of_one_line_or_fewer_frames(
    toy: Bundle, tmp_path: Path, suffix: str
) -> None:
    content = write_video(tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    errors = 0
    for place in range(0, len(content), max(len(content) // 24, 1)):
        path.write_bytes(content[:place])
        told = ""
        try:
            samples = list(open_source(str(path), image_model(toy)).take())
        except SourceError as exc:
            errors += 1
            told = str(exc)
        assert told.startswith(str(path)) if told else 0 < len(samples) <= FRAMES
        assert "\n" not in told
    assert errors > 0


def test_one_that_is_shorter_than_it_says_is_told(toy: Bundle, tmp_path: Path) -> None:
    """The index of an mp4 with ``faststart`` comes first, so only the frames are missing."""
    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 56, 28, "yuv420p"
        draw = np.random.default_rng(0)
        for _ in range(FRAMES):
            noise = draw.integers(0, 256, (28, 56, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    seen = []
    with pytest.raises(SourceError, match=r"fast\.mp4: (expected 12 frames, found|video is dam)"):
        seen.extend(open_source(str(path), image_model(toy)).take())
    assert 0 < len(seen) < FRAMES


def test_without_pyav_the_error_names_the_extra(
    toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SourceError, match=r"pip install 'splitrt\[video\]'") as caught:
        open_source(str(path), image_model(toy))
    assert "\n" not in str(caught.value)


def test_a_model_that_takes_no_image(toy: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--preprocess"):
        open_source(str(write_video(tmp_path / "clip.mp4", 2)), toy.manifest)
