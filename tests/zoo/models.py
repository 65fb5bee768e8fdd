"""The zoo: architectures of torchvision and timm with random weights, at small input sizes.

A table by kind of architecture; :func:`build` makes one. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ZOO", "Entry", "build"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture.

    Attributes:
        name: What its library calls it.
        library: ``torchvision`` or ``timm``.
        kind: What is special about its graph.
        shape: Of the input, float32.
    """

    name: str
    library: str
    kind: str
    shape: tuple[int, ...]


def _rows(library: str, kind: str, size: int, names: str) -> list[Entry]:
    return [Entry(name, library, kind, (1, 3, size, size)) for name in names.split()]


_VIDEO = (1, 3, 8, 64, 64)

_ENTRIES = [
    *_rows("torchvision", "chain", 96, "alexnet vgg11_bn squeezenet1_1"),
    *_rows("torchvision", "residual", 64, "resnet18 resnext50_32x4d"),
    *_rows("torchvision", "multi-branch", 96, "googlenet inception_v3"),
    *_rows("torchvision", "dense", 64, "densenet121"),
    *_rows("torchvision", "mobile", 64, "mobilenet_v2 mobilenet_v3_small mnasnet0_5"),
    *_rows("torchvision", "mobile", 64, "shufflenet_v2_x0_5 efficientnet_b0"),
    *_rows("torchvision", "residual", 64, "regnet_y_400mf convnext_tiny"),
    *_rows("torchvision", "transformer", 224, "vit_b_32 swin_t"),
    *_rows("torchvision", "segmentation", 64, "fcn_resnet50 lraspp_mobilenet_v3_large"),
    *_rows("torchvision", "segmentation", 64, "deeplabv3_mobilenet_v3_large"),
    *_rows("torchvision", "detector", 128, "retinanet_head ssd_head fcos_head"),
    *(Entry(n, "torchvision", "video", _VIDEO) for n in ("r3d_18", "mc3_18", "r2plus1d_18")),
    Entry("s3d", "torchvision", "video", (1, 3, 16, 224, 224)),
    *_rows("timm", "residual", 64, "resnet26d seresnet18 skresnet18 resnest14d res2net50_14w_8s"),
    *_rows("timm", "residual", 64, "eca_nfnet_l0 convnextv2_atto"),
    *_rows("timm", "multi-branch", 64, "hrnet_w18_small dla34 selecsls42b repvgg_a0 mobileone_s0"),
    *_rows("timm", "dense", 64, "cspdarknet53 dpn48b ese_vovnet19b_dw rdnet_tiny"),
    *_rows("timm", "mobile", 64, "mobilenetv4_conv_small efficientnet_lite0 ghostnetv2_100"),
    *_rows("timm", "mobile", 64, "tf_mixnet_s rexnet_100 hardcorenas_a starnet_s1 repvit_m0_9"),
    *_rows("timm", "hybrid", 128, "mobilevit_xxs mobilevitv2_050 fastvit_t8 edgenext_xx_small"),
    *_rows("timm", "hybrid", 224, "efficientformer_l1 levit_128s tiny_vit_5m_224 coat_lite_tiny"),
    *_rows("timm", "hybrid", 224, "coatnet_nano_rw_224 nextvit_small visformer_tiny"),
    *_rows("timm", "transformer", 224, "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224"),
    *_rows("timm", "transformer", 224, "pit_ti_224 xcit_nano_12_p16_224 pvt_v2_b0"),
    *_rows("timm", "transformer", 224, "twins_svt_small hiera_tiny_224"),
    *_rows("timm", "transformer", 240, "crossvit_tiny_240"),
    *_rows("timm", "mixer", 224, "mixer_s32_224 resmlp_12_224 gmixer_12_224 poolformer_s12"),
]

ZOO: dict[str, Entry] = {f"{entry.library}-{entry.name}": entry for entry in _ENTRIES}
"""Every entry, by library and name."""


class _Detector(nn.Module):
    """Backbone and heads of a detector: all it computes before it selects boxes."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.head(list(self.backbone(x).values()))
        return outputs


def _detector(name: str) -> nn.Module:
    from torchvision.models import detection

    whole: dict[str, Callable[..., Any]] = {
        "retinanet_head": detection.retinanet_resnet50_fpn,
        "fcos_head": detection.fcos_resnet50_fpn,
        "ssd_head": detection.ssdlite320_mobilenet_v3_large,
    }
    model = whole[name](weights=None, weights_backbone=None)
    return _Detector(model.backbone, model.head)


_EXTRA: dict[str, dict[str, Any]] = {
    "fcn_resnet50": {"weights_backbone": None},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
"""Arguments that keep torchvision from downloading, or from heads for training only."""


def build(entry: Entry) -> tuple[nn.Module, tuple[Tensor]]:
    """Return the module in inference mode, seeded, and an example input."""
    torch.manual_seed(0)
    if entry.library == "timm":
        import timm

        module = timm.create_model(entry.name, pretrained=False)
    elif entry.kind == "detector":
        module = _detector(entry.name)
    else:
        import torchvision

        module = torchvision.models.get_model(
            entry.name, weights=None, **_EXTRA.get(entry.name, {})
        )
    example = torch.randn(entry.shape)
    _settle(module.eval(), example)
    return module, (example,)


def _settle(module: nn.Module, example: Tensor) -> None:
    """Give every batch norm statistics from what it takes, roughly as training would have.

    Those that a new one has, 0 and 1, would hide an error in how they are folded into weights,
    and let activations grow until attention is a step function, which nothing computes twice
    alike. One scale for all channels, and an eighth of the mean, since one small example says
    little of a channel: where its deviation is small by chance, dividing by it leaves rounding.
    """

    def observe(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].transpose(0, 1).flatten(1)
        norm.running_mean.copy_(x.mean(1) / 8)
        norm.running_var.fill_(x.square().mean() + norm.eps)

    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    norms = [m for m in module.modules() if isinstance(m, kinds) and m.track_running_stats]
    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
