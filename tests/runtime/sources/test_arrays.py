from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from calibration.parity import seeded_inputs
from engines.bundle import Bundle
from engines.errors import SourceError, TensorMismatchError
from runtime.sources import open_source
from tests.runtime.sources.helpers import take


class TestRandom:
    def test_each_seed_once_and_then_again(self, toy: Bundle) -> None:
        source = open_source("random:3", toy.manifest)
        assert source.size == 3
        samples = take(source, 7)
        assert [s.name for s in samples] == [f"random:{i % 3}" for i in range(7)]
        for index, sample in enumerate(samples):
            drawn = seeded_inputs(toy.manifest.inputs, index % 3)
            assert np.array_equal(sample.inputs["x"], drawn["x"])
        assert not np.array_equal(samples[0].inputs["x"], samples[1].inputs["x"])

    def test_a_large_number_costs_nothing_until_it_is_drawn(self, toy: Bundle) -> None:
        source = open_source("random:1000000000", toy.manifest)
        assert len(take(source, 2)) == 2

    @pytest.mark.parametrize("text", ["random:0", "random:", "random:-1", "random:x", "random"])
    def test_what_is_no_count_is_refused(self, toy: Bundle, text: str) -> None:
        with pytest.raises(SourceError, match="random:"):
            open_source(text, toy.manifest)


class TestNpz:
    def test_one_sample(self, toy: Bundle, tmp_path: Path, inputs: dict[str, np.ndarray]) -> None:
        np.savez(tmp_path / "one.npz", **inputs)
        source = open_source(str(tmp_path / "one.npz"), toy.manifest)
        assert source.size == 1
        first, again = take(source, 2)
        assert first.name == again.name == "one.npz"
        assert np.array_equal(first.inputs["x"], inputs["x"])

    def test_stacked_samples(self, toy: Bundle, tmp_path: Path) -> None:
        stacked = np.random.default_rng(0).standard_normal((4, 1, 3, 16, 16)).astype(np.float32)
        np.savez_compressed(tmp_path / "four.npz", x=stacked)
        source = open_source(str(tmp_path / "four.npz"), toy.manifest)
        assert source.size == 4
        samples = take(source, 5)
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
