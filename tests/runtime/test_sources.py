from __future__ import annotations

import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from calibration.parity import seeded_inputs
from engines.bundle import Bundle
from engines.errors import SourceError, TensorMismatchError
from engines.manifest import ImageLayout, Manifest
from engines.tensors import TensorSpec
from runtime.sources import Sample, Source, open_source


def _take(source: Source, count: int) -> list[Sample]:
    return [sample for _, sample in zip(range(count), source.samples)]


def _image_model(toy: Bundle, layout: str = "NHWC", color: str = "rgb") -> Manifest:
    shape = (1, 14, 28, 3) if layout == "NHWC" else (1, 3, 14, 28)
    return msgspec.structs.replace(
        toy.manifest,
        inputs=(TensorSpec("pixels", "uint8", shape),),
        images={"pixels": ImageLayout(layout=layout, color=color)},
    )


def _save(path: Path, size: tuple[int, int] = (64, 32), color: object = (200, 100, 0)) -> Path:
    Image.new("RGB", size, color).save(path)  # type: ignore[arg-type]
    return path


class TestRandom:
    def test_each_seed_once_and_then_again(self, toy: Bundle) -> None:
        source = open_source("random:3", toy.manifest)
        assert source.size == 3
        samples = _take(source, 7)
        assert [s.name for s in samples] == [f"random:{i % 3}" for i in range(7)]
        for index, sample in enumerate(samples):
            drawn = seeded_inputs(toy.manifest.inputs, index % 3)
            assert np.array_equal(sample.inputs["x"], drawn["x"])
        assert not np.array_equal(samples[0].inputs["x"], samples[1].inputs["x"])

    def test_a_large_number_costs_nothing_until_it_is_drawn(self, toy: Bundle) -> None:
        source = open_source("random:1000000000", toy.manifest)
        assert len(_take(source, 2)) == 2

    @pytest.mark.parametrize("text", ["random:0", "random:", "random:-1", "random:x", "random"])
    def test_what_is_no_count_is_refused(self, toy: Bundle, text: str) -> None:
        with pytest.raises(SourceError, match="random:"):
            open_source(text, toy.manifest)


class TestNpz:
    def test_one_sample(self, toy: Bundle, tmp_path: Path, inputs: dict[str, np.ndarray]) -> None:
        np.savez(tmp_path / "one.npz", **inputs)
        source = open_source(str(tmp_path / "one.npz"), toy.manifest)
        assert source.size == 1
        first, again = _take(source, 2)
        assert first.name == again.name == "one.npz"
        assert np.array_equal(first.inputs["x"], inputs["x"])

    def test_stacked_samples(self, toy: Bundle, tmp_path: Path) -> None:
        stacked = np.random.default_rng(0).standard_normal((4, 1, 3, 16, 16)).astype(np.float32)
        np.savez_compressed(tmp_path / "four.npz", x=stacked)
        source = open_source(str(tmp_path / "four.npz"), toy.manifest)
        assert source.size == 4
        samples = _take(source, 5)
        assert [s.name for s in samples][:4] == [f"four.npz[{i}]" for i in range(4)]
        for index, sample in enumerate(samples):
            assert np.array_equal(sample.inputs["x"], stacked[index % 4])

    @pytest.mark.parametrize(
        "arrays",
        [
            {},
            {"y": np.zeros(1)},
            {"x": np.zeros((1, 3, 16, 16))},
            {"x": np.zeros((1, 3, 8, 8), np.float32)},
            {"x": np.zeros((0, 1, 3, 16, 16), np.float32)},
            {"x": np.zeros((2, 1, 3, 16, 16), np.float32), "label": np.array(3)},
            {"x": np.zeros((2, 1, 3, 16, 16), np.float32), "label": np.zeros(1)},
            {"x": np.zeros((1, 3, 16, 16), np.float32), "label": np.zeros(5)},
        ],
    )
    def test_arrays_that_do_not_fit_are_named(
        self, toy: Bundle, tmp_path: Path, arrays: dict[str, np.ndarray]
    ) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(TensorMismatchError, match=r"bad\.npz: .*split-bundle inspect"):
            open_source(str(tmp_path / "bad.npz"), toy.manifest)

    def test_pickled_objects_are_never_loaded(self, toy: Bundle, tmp_path: Path) -> None:
        np.savez(tmp_path / "evil.npz", x=np.array([print], object))
        with pytest.raises(SourceError, match=r"evil\.npz: not a readable \.npz"):
            open_source(str(tmp_path / "evil.npz"), toy.manifest)

    def test_a_single_array_under_the_wrong_name_is_refused(
        self, toy: Bundle, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "a.npy", np.zeros(3))
        (tmp_path / "a.npy").rename(tmp_path / "a.npz")
        with pytest.raises(SourceError, match=r"np\.savez"):
            open_source(str(tmp_path / "a.npz"), toy.manifest)

    @pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(60), b"text", b"\x80"])
    def test_what_is_no_archive_is_refused(
        self, toy: Bundle, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(SourceError, match=r"bad\.npz: not a readable"):
            open_source(str(tmp_path / "bad.npz"), toy.manifest)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_any_damage_is_an_error_of_one_line_or_no_damage(
        self, toy: Bundle, tmp_path: Path, save: object
    ) -> None:
        path = tmp_path / "x.npz"
        save(path, x=np.zeros((1, 3, 16, 16), np.float32))  # type: ignore[operator]
        content = path.read_bytes()
        places = {
            *range(200),
            *range(0, len(content), 101),
            *range(len(content) - 120, len(content)),
        }
        for place in sorted(p for p in places if 0 <= p < len(content)):
            for bits in (0xFF, 0x01):
                damaged = bytearray(content)
                damaged[place] ^= bits
                path.write_bytes(damaged)
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)
                        open_source(str(path), toy.manifest)
                except (SourceError, TensorMismatchError):
                    pass


class TestImages:
    def test_an_image_is_scaled_cropped_and_laid_out(self, toy: Bundle, tmp_path: Path) -> None:
        path = _save(tmp_path / "a.png")
        (sample,) = _take(open_source(str(path), _image_model(toy)), 1)
        pixels = sample.inputs["pixels"]
        assert (pixels.shape, pixels.dtype) == ((1, 14, 28, 3), np.uint8)
        assert (pixels == [200, 100, 0]).all()
        assert pixels.flags.c_contiguous

    @pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
    def test_bgr_and_channels_first(self, toy: Bundle, tmp_path: Path, layout: str) -> None:
        path = _save(tmp_path / "a.png")
        (sample,) = _take(open_source(str(path), _image_model(toy, layout, "bgr")), 1)
        pixels = sample.inputs["pixels"]
        flat = pixels if layout == "NHWC" else pixels.transpose(0, 2, 3, 1)
        assert (flat == [0, 100, 200]).all()
        assert pixels.flags.c_contiguous

    @pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (28, 14), (14, 28)])
    def test_every_aspect_fits(self, toy: Bundle, tmp_path: Path, size: tuple[int, int]) -> None:
        path = _save(tmp_path / "a.png", size)
        (sample,) = _take(open_source(str(path), _image_model(toy)), 1)
        assert sample.inputs["pixels"].shape == (1, 14, 28, 3)

    def test_the_middle_is_kept(self, toy: Bundle, tmp_path: Path) -> None:
        image = Image.new("RGB", (96, 16), "black")
        image.paste("white", (32, 0, 64, 16))
        image.save(tmp_path / "a.png")
        (sample,) = _take(open_source(str(tmp_path / "a.png"), _image_model(toy)), 1)
        assert sample.inputs["pixels"][0, :, 14].min() > 250

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
    def test_every_mode_becomes_rgb(self, toy: Bundle, tmp_path: Path, mode: str) -> None:
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new(mode, (30, 30)).save(tmp_path / f"a.{suffix}")
        (sample,) = _take(open_source(str(tmp_path / f"a.{suffix}"), _image_model(toy)), 1)
        assert sample.inputs["pixels"].shape == (1, 14, 28, 3)

    def test_a_folder_gives_its_images_by_name(self, toy: Bundle, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.jpg", "c.bmp"):
            _save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("text")
        source = open_source(str(tmp_path), _image_model(toy))
        assert source.size == 3
        assert [s.name for s in _take(source, 4)] == ["a.jpg", "b.PNG", "c.bmp", "a.jpg"]

    def test_a_folder_without_images_is_refused(self, toy: Bundle, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="found none"):
            open_source(str(tmp_path), _image_model(toy))

    @pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"text"])
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "ppm"])
    def test_a_broken_image_is_refused_with_its_path(
        self, toy: Bundle, tmp_path: Path, content: bytes, suffix: str
    ) -> None:
        path = tmp_path / f"broken.{suffix}"
        path.write_bytes(content)
        with pytest.raises(SourceError, match=f"broken.{suffix}: not a readable image"):
            open_source(str(path), _image_model(toy))

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
    def test_a_truncated_image_is_refused(self, toy: Bundle, tmp_path: Path, suffix: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(SourceError, match=f"cut.{suffix}: not a readable image"):
            open_source(str(path), _image_model(toy))

    def test_a_bomb_is_refused(
        self, toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = _save(tmp_path / "bomb.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(SourceError, match=r"bomb\.png: not a readable image"):
            open_source(str(path), _image_model(toy))

    def test_a_model_that_takes_no_image_says_how_to_make_it(
        self, toy: Bundle, tmp_path: Path
    ) -> None:
        with pytest.raises(SourceError, match="--preprocess"):
            open_source(str(_save(tmp_path / "a.png")), toy.manifest)


@pytest.mark.parametrize("name", ["gone.png", "gone", "", "no/such/file.npz"])
def test_what_is_not_there_is_refused(toy: Bundle, name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file|found none"):
        open_source(name or str(tmp_path / "x"), toy.manifest)


def test_another_kind_of_file_is_refused(toy: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(SourceError, match=r"given '\.csv'"):
        open_source(str(tmp_path / "a.csv"), toy.manifest)
