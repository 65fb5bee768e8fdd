"""DenseNet121: every layer of a block reads what all layers before it wrote.

Source:
    Huang et al., "Densely Connected Convolutional Networks" (2017), table 1, growth rate 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DenseNet121", "densenet121"]

BLOCKS = (6, 12, 24, 16)
"""Dense layers of each block; a transition halves channels and size between two blocks."""

GROWTH = 32
"""Channels that a dense layer adds."""

BOTTLENECK = 4
"""Channels within a dense layer, in units of the growth rate."""


class DenseLayer(nn.Module):
    """Concatenate all before; norm, ReLU, 1x1 convolution; norm, ReLU, 3x3 convolution."""

    def __init__(self, given: int) -> None:
        super().__init__()
        inner = BOTTLENECK * GROWTH
        self.norm1 = nn.BatchNorm2d(given)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(given, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, GROWTH, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu(self.norm2(x)))


class DenseBlock(nn.ModuleList):
    """Dense layers, each on the block's input and the outputs of those before."""

    def __init__(self, given: int, depth: int) -> None:
        super().__init__(DenseLayer(given + i * GROWTH) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet121(nn.Module):
    """Classify a picture: float32 [N, 3, 224, 224] -> float32 [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        features = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        last = 64
        for index, depth in enumerate(BLOCKS):
            if index:
                features.append(nn.BatchNorm2d(last))
                features.append(nn.ReLU(inplace=True))
                features.append(nn.Conv2d(last, last // 2, 1, bias=False))
                features.append(nn.AvgPool2d(2))
                last //= 2
            features.append(DenseBlock(last, depth))
            last += depth * GROWTH
        features.append(nn.BatchNorm2d(last))
        features.append(nn.ReLU(inplace=True))
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def densenet121() -> tuple[nn.Module, tuple[Tensor]]:
    """Return DenseNet121, 8.0 M parameters, and an example input."""
    torch.manual_seed(0)
    model = DenseNet121()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.eval(), (torch.randn(1, 3, 224, 224),)
