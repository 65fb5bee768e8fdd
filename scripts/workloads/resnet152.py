"""ResNet152: fifty bottleneck blocks, each with a skip connection.

Source:
    He et al., "Deep Residual Learning for Image Recognition" (2016), table 1, with the stride
    in the 3x3 convolution of a block, as the common implementations have it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResNet152", "resnet152"]

STAGES = ((3, 64), (8, 128), (36, 256), (3, 512))
"""Blocks and inner channels of each stage."""

EXPANSION = 4
"""Output channels of a block by its inner channels."""

RESIDUAL_SCALE = 0.2
"""Scale of the last batch norm of a block: keeps fifty sums of unit variance near one."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a skip connection."""

    def __init__(self, given: int, inner: int, stride: int) -> None:
        super().__init__()
        out = inner * EXPANSION
        self.conv1 = nn.Conv2d(given, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or given != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(given, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet152(nn.Module):
    """Classify a picture: float32 [N, 3, 224, 224] -> float32 [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        last = 64
        for stage, (depth, inner) in enumerate(STAGES, start=1):
            blocks = nn.Sequential()
            for block in range(depth):
                blocks.append(Bottleneck(last, inner, 2 if stage > 1 and block == 0 else 1))
                last = inner * EXPANSION
            self.add_module(f"layer{stage}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet152() -> tuple[nn.Module, tuple[Tensor]]:
    """Return ResNet152, 60.2 M parameters, and an example input."""
    torch.manual_seed(0)
    model = ResNet152()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, RESIDUAL_SCALE)
    return model.eval(), (torch.randn(1, 3, 224, 224),)
