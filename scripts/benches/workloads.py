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


def model_bundle(model: torch.nn.Module, shape: tuple[int, ...]) -> Bundle:
    """Return the bundle of a small model with one input, compiled if it is not there."""
    path = BUILD / f"bench-{type(model).__name__.lower()}.bundle"
    try:
        return Bundle.open(path)
    except BundleError:
        bundle, _ = compile_model((model.eval(), (torch.zeros(shape),)), path)
        return bundle


class DenseNet(torch.nn.Module):
    """Twelve convolutions, each on all before it: float32 [1, 3, 56, 56] in. Wide frontiers."""

    INPUT = (1, 3, 56, 56)

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(32 + 16 * depth, 16, 3, padding=1) for depth in range(12)
        )
        self.end = torch.nn.Linear(32 + 16 * 12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute ten scores, float32 [1, 10]."""
        kept = [self.stem(x)]
        for layer in self.layers:
            kept.append(torch.relu(layer(torch.cat(kept, 1))))
        return self.end(torch.cat(kept, 1).mean((2, 3)))


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
