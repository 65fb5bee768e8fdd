"""What is benchmarked: the demo's bundle, and a chain of convolutions that can be cut by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from demo_model import INPUT, PREPROCESS

from compiler import CompileOptions, compile_model, parse_image, parse_input
from engines.bundle import Bundle
from engines.errors import BundleError

BUILD = Path(__file__).resolve().parent.parent.parent / "build"


def demo_bundle(*, cuts: str = "auto") -> Bundle:
    """Return the demo's bundle, compiled if it is not there; ``all`` for every boundary."""
    path = BUILD / ("demo.bundle" if cuts == "auto" else f"demo-{cuts}.bundle")
    try:
        return Bundle.open(path)
    except BundleError:
        options = CompileOptions(
            inputs=(parse_input(INPUT),), images=(parse_image(PREPROCESS),), cuts=cuts
        )
        factory = Path(__file__).resolve().parent.parent / "demo_model.py"
        bundle, _ = compile_model(f"{factory}:efficientnet_lite0", path, options=options)
        return bundle


class ChainNet(torch.nn.Sequential):
    """Twelve blocks of convolution and ReLU, 128 channels: float32 [1, 3, 56, 56] in."""

    INPUT = (1, 3, 56, 56)

    def __init__(self) -> None:
        torch.manual_seed(0)
        blocks = [
            torch.nn.Sequential(torch.nn.Conv2d(channels, 128, 3, padding=1), torch.nn.ReLU())
            for channels in [3, *[128] * 11]
        ]
        super().__init__(*blocks)
