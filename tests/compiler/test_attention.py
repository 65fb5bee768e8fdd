"""Attention over tensors that are not 4-D, which torch's exporter does not take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

from compiler import compile_model


class Windows(nn.Module):
    """Attention within windows: [N, windows, heads, tokens, channels] where 5-D."""

    def __init__(self, leading: tuple[int, ...]) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.leading = leading

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*self.leading, 4, 8, 3).unbind(-1)
        first = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        # The same in four dimensions, which stays one operator of PyTorch's.
        q, k, v = (t.reshape(1, -1, 4, 8) for t in (q, k, v))
        return first.flatten() + F.scaled_dot_product_attention(q, k, v).flatten()


@pytest.mark.parametrize("leading", [(2,), (1, 2), (1, 1, 2)])
def test_compiles(leading: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Windows(leading).eval()
    bundle, report = compile_model((module, (torch.randn(8, 8),)), tmp_path / "b")
    assert len(bundle.manifest.cuts) > 2
    assert report.max_error < 1e-5
