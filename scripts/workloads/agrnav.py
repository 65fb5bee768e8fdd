"""An AGRNav-like network: complete and label a voxel grid, seen only in part.

A U-Net of 2-D convolutions over the ground plane, with height as the channels, whose scales are
brought together at full size; and a 3-D head with three dilations that labels every voxel.

The channels and sizes are those of the published profile of AGRNav, whose operators hold 0.35 M
parameters with 3x3 kernels, the size that their measured times speak for. AGRNav is quoted with
0.8 M: more than the profiled operators can hold, so the rest is not seen in inference.

Source:
    Wang et al., "AGRNav: Efficient and Energy-Saving Autonomous Navigation for Air-Ground Robots
    in Occlusion-Prone Environments" (2024); Roldao et al., "LMSCNet: Lightweight Multiscale 3D
    Semantic Completion" (2020), figure 2 and section 3, for the network that it builds on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AgrNav", "agrnav"]

LENGTH, HEIGHT, WIDTH = 256, 32, 256
"""Voxels of the grid."""

CLASSES = 20
DILATIONS = (1, 2, 3)
HEAD_CHANNELS = 8

OCCUPIED = 0.05
"""Share of occupied voxels in the example."""


def _pair(given: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(given, out, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def _single(given: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, out, 3, padding=1), nn.ReLU(inplace=True))


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 6, 2, padding=2)


class Head(nn.Module):
    """Label voxels: [N, H, L, W] -> [N, CLASSES, H, L, W], by parallel dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, HEAD_CHANNELS, 3, padding=1)
        self.branches = nn.ModuleList(self._branch(dilation) for dilation in DILATIONS)
        self.relu = nn.ReLU(inplace=True)
        self.classify = nn.Conv3d(HEAD_CHANNELS, CLASSES, 3, padding=1)

    @staticmethod
    def _branch(dilation: int) -> nn.Sequential:
        channels = HEAD_CHANNELS
        around = {"padding": dilation, "dilation": dilation, "bias": False}
        return nn.Sequential(
            nn.Conv3d(channels, channels, 3, **around),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, 3, **around),
            nn.BatchNorm3d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x[:, None]))
        first, *others = self.branches
        y = first(x)
        for branch in others:
            y += branch(x)
        return self.classify(self.relu(x + y))


class AgrNav(nn.Module):
    """Label every voxel: bool [1, 1, L, H, W] -> uint8 [1, L, H, W], a byte a voxel each."""

    def __init__(self) -> None:
        super().__init__()
        c1, c2, c4, c8 = HEIGHT, HEIGHT * 3 // 2, HEIGHT * 2, HEIGHT * 5 // 2
        s2, s4, s8 = HEIGHT // 2, HEIGHT // 4, HEIGHT // 8  # what a scale gives to finer ones
        self.pool = nn.MaxPool2d(2)
        self.encode1 = _pair(c1, c1)
        self.encode2 = _pair(c1, c2)
        self.encode4 = _pair(c2, c4)
        self.encode8 = _pair(c4, c8)
        self.give8 = nn.Conv2d(c8, s8, 3, padding=1)
        self.up8to4 = _double(s8)
        self.up8to2 = nn.ConvTranspose2d(s8, s8, 4, 4)
        self.up8to1 = nn.ConvTranspose2d(s8, s8, 8, 8)
        self.decode4 = _single(c4 + s8, c4)
        self.give4 = nn.Conv2d(c4, s4, 3, padding=1)
        self.up4to2 = _double(s4)
        self.up4to1 = nn.ConvTranspose2d(s4, s4, 4, 4)
        self.decode2 = _single(c2 + s4 + s8, c2)
        self.give2 = nn.Conv2d(c2, s2, 3, padding=1)
        self.up2to1 = _double(s2)
        self.decode1 = _single(c1 + s2 + s4 + s8, c1)
        self.head = Head()

    def forward(self, occupied: Tensor) -> Tensor:
        x = occupied.float().squeeze(1).permute(0, 2, 1, 3)  # [1, H, L, W]
        e1 = self.encode1(x)
        e2 = self.encode2(self.pool(e1))
        e4 = self.encode4(self.pool(e2))
        e8 = self.encode8(self.pool(e4))
        g8 = self.give8(e8)
        g4 = self.give4(self.decode4(torch.cat((e4, self.up8to4(g8)), 1)))
        d2 = self.decode2(torch.cat((e2, self.up4to2(g4), self.up8to2(g8)), 1))
        g2 = self.give2(d2)
        d1 = self.decode1(torch.cat((e1, self.up2to1(g2), self.up4to1(g4), self.up8to1(g8)), 1))
        scores = self.head(d1).permute(0, 1, 3, 2, 4)  # [1, CLASSES, L, H, W]
        return scores.argmax(1).to(torch.uint8)


def agrnav() -> tuple[nn.Module, tuple[Tensor]]:
    """Return the network, 0.35 M parameters, and an example grid."""
    torch.manual_seed(0)
    model = AgrNav()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.eval(), (torch.rand(1, 1, LENGTH, HEIGHT, WIDTH) < OCCUPIED,)
