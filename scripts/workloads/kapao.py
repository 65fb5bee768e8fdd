"""A KAPAO-like network: people and their keypoints as objects, at four scales.

The backbone and neck of YOLOv5-L6 with convolutions that have batch norm folded in, and heads
that give, for three anchors a place: box, objectness, person and 17 keypoint classes, and the
coordinates of 17 keypoints. Selecting objects (thresholds, non-maximum suppression) depends on
the data and is left to the program around it.

Source:
    McNally et al., "Rethinking Keypoint Representations: Modeling Keypoints and Poses as
    Objects for Multi-Person Human Pose Estimation" (2022); Ultralytics' description of YOLOv5
    release 5.0, size L6 (focus, C3 blocks, SPP with 3, 5, 7).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

__all__ = ["Kapao", "kapao"]

HEIGHT, WIDTH = 640, 960
"""Size of the picture."""

STRIDES = (8, 16, 32, 64)
"""Pixels of the picture by pixel of each detection map."""

ANCHORS = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)
"""Width and height in pixels of each scale's anchors."""

KEYPOINTS = 17
FIELDS = 4 + 1 + (1 + KEYPOINTS) + 2 * KEYPOINTS
"""Box, objectness, classes (person and keypoints), coordinates of the keypoints."""

SETTLE_SIZE = (128, 192)
"""Height and width of the picture that the weights are scaled on: two pixels at the last scale."""

SETTLED = 8.0
"""Deviation that activations are brought to, where SiLU keeps the scale of what it is given.

Around 1 it gives a larger signal more gain, and small changes of the input grow layer by layer.
"""


class Conv(nn.Sequential):
    """Convolution and SiLU, the size kept but for the stride."""

    def __init__(self, given: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(given, out, kernel, stride, padding=kernel // 2), nn.SiLU(inplace=True)
        )


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution, with or without a skip connection."""

    def __init__(self, channels: int, *, skip: bool) -> None:
        super().__init__()
        self.first = Conv(channels, channels)
        self.second = Conv(channels, channels, 3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.skip else y


class C3(nn.Module):
    """Bottlenecks on one half of the channels, the other half past them."""

    def __init__(self, given: int, out: int, depth: int, *, skip: bool = False) -> None:
        super().__init__()
        self.inner = Conv(given, out // 2)
        self.blocks = nn.Sequential(*(Bottleneck(out // 2, skip=skip) for _ in range(depth)))
        self.past = Conv(given, out // 2)
        self.join = Conv(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat((self.blocks(self.inner(x)), self.past(x)), 1))


class Focus(nn.Module):
    """Every second pixel of every second row as four times the channels, and a convolution."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.conv = Conv(12, out, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = (
            x[..., ::2, ::2],
            x[..., 1::2, ::2],
            x[..., ::2, 1::2],
            x[..., 1::2, 1::2],
        )
        return self.conv(torch.cat(corners, 1))


class SPP(nn.Module):
    """Spatial pyramid pooling: maxima over three sizes beside the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = Conv(channels, channels // 2)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, padding=k // 2) for k in (3, 5, 7))
        self.join = Conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.join(torch.cat((x, *(pool(x) for pool in self.pools)), 1))


class Detect(nn.Module):
    """Detection map of one scale, decoded to pixels of the picture.

    [N, C, H, W] -> [N, 3 * H * W, FIELDS]. The centre of a box, ``(2 s - 0.5 + cell) * stride``
    for a sigmoid s, is computed as ``s * 2 stride - (0.5 - cell) * stride``.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        stride, anchors = STRIDES[scale], torch.tensor(ANCHORS[scale], dtype=torch.float32)
        self.conv = nn.Conv2d(channels, len(anchors) * FIELDS, 1)
        self.anchors = len(anchors)
        self.stride = stride
        rows, columns = torch.meshgrid(
            torch.arange(HEIGHT // stride), torch.arange(WIDTH // stride), indexing="ij"
        )
        cell = torch.stack((columns, rows), -1).float()[None, None]  # [1, 1, H, W, 2]
        sizes = anchors[None, :, None, None]  # [1, 3, 1, 1, 2]
        self.register_buffer("shift", (0.5 - cell) * stride, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        spots = (cell * stride).repeat(1, 1, 1, 1, KEYPOINTS)
        self.register_buffer("spots", spots, persistent=False)
        spans = sizes.repeat(1, 1, 1, 1, KEYPOINTS)
        self.register_buffer("spans", spans, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).unflatten(1, (self.anchors, FIELDS))
        y = y.permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        centres = y[..., 0:2] * (2 * self.stride) - self.shift
        boxes = (y[..., 2:4] * 2) ** 2 * self.sizes
        scores = y[..., 4 : FIELDS - 2 * KEYPOINTS]
        points = (y[..., FIELDS - 2 * KEYPOINTS :] * 4 - 2) * self.spans + self.spots
        return torch.cat((centres, boxes, scores, points), -1).flatten(1, 3)


class Kapao(nn.Module):
    """Find people: uint8 [1, 3, 640, 960] -> float32 [1, 38250, 57].

    The rows are the places of the four scales one after another, anchor by anchor; the columns
    x, y, width, height, objectness, 18 classes, 17 pairs of x, y.
    """

    def __init__(self) -> None:
        super().__init__()
        self.focus = Focus(64)
        self.down2 = Conv(64, 128, 3, 2)
        self.stage2 = C3(128, 128, 3, skip=True)
        self.down3 = Conv(128, 256, 3, 2)
        self.stage3 = C3(256, 256, 9, skip=True)
        self.down4 = Conv(256, 512, 3, 2)
        self.stage4 = C3(512, 512, 9, skip=True)
        self.down5 = Conv(512, 768, 3, 2)
        self.stage5 = C3(768, 768, 3, skip=True)
        self.down6 = Conv(768, 1024, 3, 2)
        self.spp = SPP(1024)
        self.stage6 = C3(1024, 1024, 3)
        self.narrow6 = Conv(1024, 768)
        self.up5 = C3(768 + 768, 768, 3)
        self.narrow5 = Conv(768, 512)
        self.up4 = C3(512 + 512, 512, 3)
        self.narrow4 = Conv(512, 256)
        self.up3 = C3(256 + 256, 256, 3)
        self.again4 = Conv(256, 256, 3, 2)
        self.out4 = C3(256 + 256, 512, 3)
        self.again5 = Conv(512, 512, 3, 2)
        self.out5 = C3(512 + 512, 768, 3)
        self.again6 = Conv(768, 768, 3, 2)
        self.out6 = C3(768 + 768, 1024, 3)
        self.detect = nn.ModuleList(Detect(c, i) for i, c in enumerate((256, 512, 768, 1024)))

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the four scales: float32 [N, 3, H, W] -> [N, C, H/8, W/8], ..."""
        c3 = self.stage3(self.down3(self.stage2(self.down2(self.focus(x)))))
        c4 = self.stage4(self.down4(c3))
        c5 = self.stage5(self.down5(c4))
        c6 = self.stage6(self.spp(self.down6(c5)))
        n6 = self.narrow6(c6)
        n5 = self.narrow5(self.up5(torch.cat((_twice(n6), c5), 1)))
        n4 = self.narrow4(self.up4(torch.cat((_twice(n5), c4), 1)))
        p3 = self.up3(torch.cat((_twice(n4), c3), 1))
        p4 = self.out4(torch.cat((self.again4(p3), n4), 1))
        p5 = self.out5(torch.cat((self.again5(p4), n5), 1))
        p6 = self.out6(torch.cat((self.again6(p5), n6), 1))
        return [p3, p4, p5, p6]

    def forward(self, picture: Tensor) -> Tensor:
        maps = self.features(picture / 255)
        return torch.cat([head(x) for head, x in zip(self.detect, maps, strict=True)], 1)


def kapao() -> tuple[nn.Module, tuple[Tensor]]:
    """Return the network, 77 M parameters, and an example picture."""
    torch.manual_seed(0)
    model = Kapao().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    _settle(model)
    return model, (torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8),)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _settle(model: Kapao) -> None:
    """Scale the weights so that each convolution's output has a given deviation, in order.

    A hundred SiLUs without batch norm would otherwise let the signal die out.

    Source:
        Mishkin and Matas, "All You Need is a Good Init" (2016), one pass.
    """

    def scale(conv: nn.Module, _given: object, out: Tensor) -> Tensor:
        deviation = out.std() / (1 if conv in heads else SETTLED)
        for parameter in conv.parameters():
            parameter.div_(deviation)
        return out / deviation

    heads = [head.conv for head in model.detect]
    with torch.no_grad():
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        hooks = [conv.register_forward_hook(scale) for conv in convs]
        maps = model.features(torch.rand(1, 3, *SETTLE_SIZE))
        for conv, x in zip(heads, maps, strict=True):
            conv(x)
        for hook in hooks:
            hook.remove()
