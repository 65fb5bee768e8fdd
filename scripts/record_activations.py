"""Record what a bundle's segments really give, for a replay to give it again.

    python scripts/record_activations.py BUNDLE -o VALUES.npz [--image FILE]

The model runs once, segment by segment, on a real photograph or, where it takes a voxel grid, on
the occupancy of a real scene (the stereo pair with measured disparity that scikit-image carries).
Zeros and noise would say nothing of what codecs make of the tensors that cross the link. With
random weights neither do activations: figures that rest on their compressed size must say so.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import skimage
from PIL import Image

from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.console import command_options, progress_bar
from engines.errors import SourceError
from engines.manifest import Manifest
from engines.ondemand import OnDemandBackend
from engines.program import Program
from engines.tensors import Array, TensorSpec

__all__ = ["occupancy", "photograph", "record", "sample_inputs"]

DATA = Path(skimage.__file__).parent / "data"
PHOTO = DATA / "motorcycle_left.png"

# Of the stereo pair, as its authors give them, scaled to the size in which it comes here.
BASELINE_M, FOCAL_PX, CENTRE_PX, OFFSET_PX = 0.193001, 994.978, (311.193, 254.877), 31.086

NEAREST_M, FARTHEST_M = 1.5, 5.5
"""Depth of the grid: from just before the nearest point of the scene to its back wall."""

HALF_WIDTH_M, HALF_HEIGHT_M = 1.6, 1.1
"""Half of what the camera sees at the back wall, about."""


def sample_inputs(manifest: Manifest, image: Path = PHOTO) -> dict[str, Array]:
    """Return inputs of a model that takes one photograph or one voxel grid.

    Raises:
        SourceError: It takes something else.
    """
    given: dict[str, Array] = {}
    for spec in manifest.inputs:
        if spec.dtype == "uint8" and len(spec.shape) == 4 and 3 in spec.shape:
            given[spec.name] = photograph(spec, image)
        elif spec.dtype == "bool" and len(spec.shape) == 5:
            given[spec.name] = occupancy(spec)
        else:
            raise SourceError(f"{spec}: expected a photograph in uint8 or a voxel grid in bool")
    return given


def photograph(spec: TensorSpec, image: Path = PHOTO) -> Array:
    """Return a photograph, its middle cut out, as uint8 [1, H, W, 3] or [1, 3, H, W]."""
    last = spec.shape[-1] == 3
    height, width = spec.shape[1:3] if last else spec.shape[2:4]
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    scale = max(height / picture.height, width / picture.width)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)))
    return np.ascontiguousarray((pixels if last else pixels.transpose(2, 0, 1))[np.newaxis])


def occupancy(spec: TensorSpec) -> Array:
    """Return which voxels the scene's surface passes, as bool [1, 1, LENGTH, HEIGHT, WIDTH]."""
    length, height, width = spec.shape[2:]
    with np.load(DATA / "motorcycle_disp.npz") as stored:
        disparity = stored["arr_0"]
    rows, columns = np.nonzero(np.isfinite(disparity))
    depth = BASELINE_M * FOCAL_PX / (disparity[rows, columns] + OFFSET_PX)
    across = (columns - CENTRE_PX[0]) * depth / FOCAL_PX
    down = (rows - CENTRE_PX[1]) * depth / FOCAL_PX
    places = np.stack(
        (
            (depth - NEAREST_M) / (FARTHEST_M - NEAREST_M) * length,
            (HALF_HEIGHT_M - down) / (2 * HALF_HEIGHT_M) * height,
            (across + HALF_WIDTH_M) / (2 * HALF_WIDTH_M) * width,
        )
    ).astype(np.int64)
    inside = np.all((places >= 0) & (places < np.asarray([[length], [height], [width]])), axis=0)
    grid = np.zeros(spec.shape, np.bool_)
    grid[(0, 0, *places[:, inside])] = True
    return grid


def record(bundle: Bundle, inputs: dict[str, Array], path: Path, *, threads: int = 0) -> int:
    """Run the model once and store its inputs, what each segment gives, and its outputs.

    Segments are loaded one at a time. Returns the bytes of all tensors.
    """
    backend = OnDemandBackend(open_backend("ort", BackendOptions(threads=threads)))
    segments = bundle.manifest.segments
    stored = dict(inputs)
    with Program(bundle, backend, fuse=False) as program, progress_bar("recording") as advance:
        for segment in segments:
            stored.update(program.run_segment(segment.index, stored))
            advance(segment.index + 1, len(segments))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.npz")
    try:
        np.savez(temporary, **stored)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(array.nbytes for array in stored.values())


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The .npz file.")
@click.option("--image", default=PHOTO, type=click.Path(path_type=Path), help="A photograph.")
@command_options
def main(bundle: Path, out: Path, image: Path) -> None:
    """Record the tensors of BUNDLE."""
    opened = Bundle.open(bundle)
    inputs = sample_inputs(opened.manifest, image)
    size = record(opened, inputs, out)
    taken = ", ".join(
        f"{n} {list(a.shape)}" + (f" ({100 * a.mean():.2f}% set)" if a.dtype == bool else "")
        for n, a in inputs.items()
    )
    click.echo(f"{out}: {len(opened.manifest.tensors)} tensors, {size / 1e6:.1f} MB, from {taken}")


if __name__ == "__main__":
    main()
