"""Bytes, time and error of picture codecs on a camera's frames: one by one, and as a video.

``python scripts/video_table.py [--frames N] [--noise LEVELS]``

The frames are crops that move over a photograph by 3 and 2 pixels from one to the next, with
noise as a camera has it, of its own in every frame. A real camera's frames change in more ways:
measure your own with ``runtime profile BUNDLE --source VIDEO --samples 30``. Times are medians on
one core. The error is the mean absolute difference of levels.
"""

from __future__ import annotations

import time

import click
import numpy as np
from PIL import Image
from record_activations import PHOTO
from rich.console import Console
from rich.table import Table

from engines.codecs import codec_names_here, open_codec
from engines.codecs.decoders import Decoders
from engines.codecs.encoders import Encoders
from engines.tensors import Array, TensorSpec

SIZES = ((224, 224), (320, 480))
STEP = (3, 2)
CODECS = ("webp-lossless", "jpeg", "webp", "video")


def frames(height: int, width: int, count: int, noise: int) -> list[Array]:
    """Return crops that move, uint8 [1, H, W, 3]."""
    with Image.open(PHOTO) as image:
        picture = np.asarray(image.convert("RGB"))
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    rng = np.random.default_rng(0)
    found = []
    for n in range(count):
        y, x = top + STEP[0] * (n - count // 2), left + STEP[1] * (n - count // 2)
        crop = picture[y : y + height, x : x + width].astype(np.int16)
        crop += np.rint(rng.normal(scale=max(noise, 1e-9), size=crop.shape)).astype(np.int16)
        found.append(np.clip(crop, 0, 255).astype(np.uint8)[None])
    return found


def line(name: str, some: list[Array]) -> list[str]:
    """Send frames through a codec, one after the other on one connection."""
    spec = TensorSpec("t", "uint8", some[0].shape)
    encoders, decoders = Encoders(), Decoders()
    scratch = np.empty(open_codec(name).max_encoded_bytes(spec), np.uint8).data
    sizes, errors, encodes, decodes = [], [], [], []
    for frame in some:
        out = np.empty_like(frame)
        begin = time.perf_counter()
        with encoders.message({"t": name}):
            codec = encoders.open(name, "t")
            assert codec is not None, name
            coded = codec.encode(frame, scratch)
        between = time.perf_counter()
        decoders.open(codec.wire_id, "t").decode(coded, out)
        decodes.append(time.perf_counter() - between)
        encodes.append(between - begin)
        sizes.append(coded.nbytes)
        errors.append(float(np.abs(out.astype(np.int16) - frame).mean()))
    return [
        name,
        str(sizes[0]),
        f"{np.median(sizes[1:]):.0f}",
        f"{np.mean(sizes) / spec.nbytes:.4f}",
        f"{np.median(encodes) * 1e3:.2f}",
        f"{np.median(decodes) * 1e3:.2f}",
        f"{np.mean(errors):.2f}",
        f"{np.max(errors):.2f}",
    ]


@click.command(help=__doc__)
@click.option("--frames", "count", type=click.IntRange(2, 60), default=30, show_default=True)
@click.option("--noise", type=click.IntRange(0, 50), default=2, show_default=True, help="Levels.")
def main(count: int, noise: int) -> None:
    """Print a table for each size."""
    for height, width in SIZES:
        some = frames(height, width, count, noise)
        table = Table(
            "codec", "first", "others", "of raw", "encode ms", "decode ms", "error", "worst",
            title=f"{count} frames of {height} x {width}, {some[0].nbytes} bytes each",
        )  # fmt: skip
        for name in codec_names_here():
            if name.partition(":")[0] in CODECS:
                table.add_row(*line(name, some))
        Console(width=max(90, Console().width)).print(table)


if __name__ == "__main__":
    main()
