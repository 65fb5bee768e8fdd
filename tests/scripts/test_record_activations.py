from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from record_activations import occupancy, photograph, record, sample_inputs

from engines.bundle import Bundle
from engines.errors import SourceError
from engines.tensors import TensorSpec


@pytest.mark.parametrize("shape", [(1, 60, 80, 3), (1, 3, 60, 80), (1, 200, 100, 3)])
def test_a_photograph_in_either_layout(shape: tuple[int, ...]) -> None:
    pixels = photograph(TensorSpec("x", "uint8", shape))
    assert pixels.shape == shape
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.std() > 30


def test_a_grid_is_the_surface_of_a_scene() -> None:
    grid = occupancy(TensorSpec("v", "bool", (1, 1, 64, 16, 64)))
    assert grid.dtype == np.bool_
    assert 0.005 < grid.mean() < 0.2
    # The camera is on the near side: most rays end in one voxel of their direction.
    assert grid.any(axis=2).sum() > 0.8 * grid.any(axis=(2, 3)).sum()


def test_all_tensors_between_segments_are_stored(
    toy: Bundle, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    size = record(toy, inputs, tmp_path / "some" / "values.npz", threads=1)
    with np.load(tmp_path / "some" / "values.npz") as stored:
        assert set(stored.files) == set(toy.manifest.tensors)
        assert size == sum(stored[name].nbytes for name in stored.files)
        for name, spec in toy.manifest.tensors.items():
            assert spec.mismatch(stored[name]) == ""
    assert [p.name for p in (tmp_path / "some").iterdir()] == ["values.npz"]


def test_what_takes_neither_is_refused(toy: Bundle) -> None:
    with pytest.raises(SourceError, match=r"x: float32 .*expected a photograph"):
        sample_inputs(toy.manifest)
