from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.bundle import Bundle
from engines.errors import SourceError
from runtime.sources import images, open_source
from tests.runtime.sources.helpers import image_model, take


def _save(path: Path, size: tuple[int, int] = (64, 32), color: object = (200, 100, 0)) -> Path:
    Image.new("RGB", size, color).save(path)  # type: ignore[arg-type]
    return path


class TestImages:
    def test_an_image_is_scaled_cropped_and_laid_out(self, toy: Bundle, tmp_path: Path) -> None:
        path = _save(tmp_path / "a.png")
        (sample,) = take(open_source(str(path), image_model(toy)), 1)
        pixels = sample.inputs["pixels"]
        assert (pixels.shape, pixels.dtype) == ((1, 14, 28, 3), np.uint8)
        assert (pixels == [200, 100, 0]).all()
        assert pixels.flags.c_contiguous

    @pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
    def test_bgr_and_channels_first(self, toy: Bundle, tmp_path: Path, layout: str) -> None:
        path = _save(tmp_path / "a.png")
        (sample,) = take(open_source(str(path), image_model(toy, layout, "bgr")), 1)
        pixels = sample.inputs["pixels"]
        flat = pixels if layout == "NHWC" else pixels.transpose(0, 2, 3, 1)
        assert (flat == [0, 100, 200]).all()
        assert pixels.flags.c_contiguous

    @pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (28, 14), (14, 28)])
    def test_every_aspect_fits(self, toy: Bundle, tmp_path: Path, size: tuple[int, int]) -> None:
        path = _save(tmp_path / "a.png", size)
        (sample,) = take(open_source(str(path), image_model(toy)), 1)
        assert sample.inputs["pixels"].shape == (1, 14, 28, 3)

    def test_the_middle_is_kept(self, toy: Bundle, tmp_path: Path) -> None:
        image = Image.new("RGB", (96, 16), "black")
        image.paste("white", (32, 0, 64, 16))
        image.save(tmp_path / "a.png")
        (sample,) = take(open_source(str(tmp_path / "a.png"), image_model(toy)), 1)
        assert sample.inputs["pixels"][0, :, 14].min() > 250

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
    def test_every_mode_becomes_rgb(self, toy: Bundle, tmp_path: Path, mode: str) -> None:
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new(mode, (30, 30)).save(tmp_path / f"a.{suffix}")
        (sample,) = take(open_source(str(tmp_path / f"a.{suffix}"), image_model(toy)), 1)
        assert sample.inputs["pixels"].shape == (1, 14, 28, 3)

    def test_a_folder_gives_its_images_by_name(self, toy: Bundle, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.jpg", "c.bmp"):
            _save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("text")
        source = open_source(str(tmp_path), image_model(toy))
        assert source.size == 3
        assert [s.name for s in take(source, 4)] == ["a.jpg", "b.PNG", "c.bmp", "a.jpg"]

    def test_a_folder_without_images_is_refused(self, toy: Bundle, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="found none"):
            open_source(str(tmp_path), image_model(toy))

    @pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"text"])
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "ppm"])
    def test_a_broken_image_is_refused_with_its_path(
        self, toy: Bundle, tmp_path: Path, content: bytes, suffix: str
    ) -> None:
        path = tmp_path / f"broken.{suffix}"
        path.write_bytes(content)
        with pytest.raises(SourceError, match=f"broken.{suffix}: not a readable image"):
            open_source(str(path), image_model(toy))

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
    def test_a_truncated_image_is_refused(self, toy: Bundle, tmp_path: Path, suffix: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(SourceError, match=f"cut.{suffix}: not a readable image"):
            open_source(str(path), image_model(toy))

    def test_a_bomb_is_refused(
        self, toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = _save(tmp_path / "bomb.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(SourceError, match=r"bomb\.png: not a readable image"):
            open_source(str(path), image_model(toy))

    def test_a_model_that_takes_no_image_says_how_to_make_it(
        self, toy: Bundle, tmp_path: Path
    ) -> None:
        with pytest.raises(SourceError, match="--preprocess"):
            open_source(str(_save(tmp_path / "a.png")), toy.manifest)


class TestFolders:
    def test_nothing_is_read_before_its_turn(
        self, toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []
        right = images.open_picture

        def picture(path: Path) -> object:
            read.append(path.name)
            return right(path)

        monkeypatch.setattr(images, "open_picture", picture)
        for name in "abc":
            _save(tmp_path / f"{name}.png")
        samples = open_source(str(tmp_path), image_model(toy)).samples
        assert read == []
        next(samples)
        assert read == ["a.png"]
        for _ in range(7):  # what fits into memory is read once
            next(samples)
        assert read == ["a.png", "b.png", "c.png"]

    def test_what_does_not_fit_into_memory_is_read_again(
        self, toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(images, "_KEPT_BYTES", 14 * 28 * 3)
        for level, name in ((10, "a"), (20, "b"), (30, "c")):
            _save(tmp_path / f"{name}.png", color=(level, level, level))
        source = open_source(str(tmp_path), image_model(toy))
        levels = [int(sample.inputs["pixels"].max()) for sample in take(source, 7)]
        assert levels == [10, 20, 30, 10, 20, 30, 10]

    def test_files_that_cannot_be_read_are_named_left_out_and_counted(
        self, toy: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("a.png", "c.png"):
            _save(tmp_path / name)
        (tmp_path / "b.png").write_bytes(b"not an image")
        (tmp_path / "d.png").mkdir()
        source = open_source(str(tmp_path), image_model(toy))
        with caplog.at_level(logging.WARNING):
            names = [sample.name for sample in take(source, 4)]
        assert names == ["a.png", "c.png", "a.png", "c.png"]
        assert source.unreadable == 2
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2
        assert "b.png: not a readable image" in told[0]
        assert "d.png" in told[1]

    def test_a_folder_of_which_nothing_can_be_read_is_an_error(
        self, toy: Bundle, tmp_path: Path
    ) -> None:
        for name in "ab":
            (tmp_path / f"{name}.png").write_bytes(b"")
        source = open_source(str(tmp_path), image_model(toy))
        with pytest.raises(SourceError, match="none of its 2 images"):
            next(source.samples)
