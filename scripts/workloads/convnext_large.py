"""ConvNeXt-Large: depthwise 7x7 convolutions, layer norms and linears with the channels last.

Source:
    Liu et al., "A ConvNet for the 2020s" (2022), section 3 and appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ConvNeXtLarge", "convnext_large"]

STAGES = ((3, 192), (3, 384), (27, 768), (3, 1536))
"""Blocks and channels of each stage."""

LAYER_SCALE = 0.1
"""Start of the layer scales. Training starts from 1e-6, which makes every block do nothing."""

EPSILON = 1e-6
"""Of every layer norm."""


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise convolution, norm, and two linears beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPSILON)
        self.expand = nn.Linear(channels, 4 * channels)
        self.gelu = nn.GELU()
        self.project = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(self.gelu(self.expand(y)))
        y = self.scale * y.permute(0, 3, 1, 2)
        y += x
        return y


class ConvNeXtLarge(nn.Module):
    """Classify a picture: float32 [N, 3, 224, 224] -> float32 [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        features = nn.Sequential()
        last = 3
        for index, (depth, channels) in enumerate(STAGES):
            if index == 0:
                features.append(nn.Conv2d(last, channels, 4, 4))
                features.append(LayerNorm2d(channels))
            else:
                features.append(LayerNorm2d(last))
                features.append(nn.Conv2d(last, channels, 2, 2))
            for _ in range(depth):
                features.append(Block(channels))
            last = channels
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.norm = LayerNorm2d(last)
        self.classifier = nn.Linear(last, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.avgpool(self.features(x)))
        return self.classifier(torch.flatten(x, 1))


def convnext_large() -> tuple[nn.Module, tuple[Tensor]]:
    """Return ConvNeXt-Large, 197.8 M parameters, and an example input."""
    torch.manual_seed(0)
    model = ConvNeXtLarge()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.eval(), (torch.randn(1, 3, 224, 224),)
