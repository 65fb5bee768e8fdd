"""VGG19, without and with batch norm: sixteen convolutions in a chain, three wide linears.

Source:
    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition" (2015), configuration E; batch norm after every convolution in ``vgg19_bn``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VGG19", "vgg19", "vgg19_bn"]

STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
"""Convolutions and channels of each stage; every stage ends in a 2x2 pooling."""


class VGG19(nn.Module):
    """Classify a picture: float32 [N, 3, 224, 224] -> float32 [N, 1000]."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for depth, channels in STAGES:
            for _ in range(depth):
                layers.append(nn.Conv2d(last, channels, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                layers.append(nn.ReLU(inplace=True))
                last = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 1000),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg19() -> tuple[nn.Module, tuple[Tensor]]:
    """Return VGG19, 143.7 M parameters, and an example input."""
    return _built(batch_norm=False)


def vgg19_bn() -> tuple[nn.Module, tuple[Tensor]]:
    """Return VGG19 with batch norm, 143.7 M parameters, and an example input."""
    return _built(batch_norm=True)


def _built(*, batch_norm: bool) -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    model = VGG19(batch_norm=batch_norm)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.eval(), (torch.randn(1, 3, 224, 224),)
