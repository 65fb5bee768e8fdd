"""Small PyTorch models, one for each shape of graph that cuts must cope with.

Every factory takes no arguments and returns a module in inference mode and its example inputs,
so that `split-compile tests.models.torch_models:chain` works as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

Built = tuple[nn.Module, Any]


class _Layers(nn.Module):
    """A module made of a few named layers and a function over them."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def _built(module: nn.Module, *examples: Any) -> Built:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval(), examples


def chain() -> Built:
    """Convolution, batch norm, activation, pooling, linear: no branch."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )
    return _built(module, torch.zeros(1, 3, 16, 16))


class _Residual(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.second(F.relu(self.first(x)))
        return F.relu(x + y)


def residual() -> Built:
    """A skip connection over two convolutions."""
    convs = {n: nn.Conv2d(4, 4, 3, padding=1) for n in ("stem", "first", "second")}
    return _built(_Residual(**convs), torch.zeros(1, 4, 8, 8))


class _Dense(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        kept = [x]
        for layer in self.children():
            kept.append(F.relu(layer(torch.cat(kept, 1))))
        return torch.cat(kept, 1)


def dense() -> Built:
    """Every layer sees all layers before it: wide frontiers."""
    layers = {f"layer{n}": nn.Conv2d(2 + 3 * n, 3, 3, padding=1) for n in range(5)}
    return _built(_Dense(**layers), torch.zeros(1, 2, 6, 6))


class _Branches(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [self.one(x), self.three(x), self.five(F.relu(self.five_in(x))), F.max_pool2d(x, 1)], 1
        )


def branches() -> Built:
    """An inception block."""
    module = _Branches(
        one=nn.Conv2d(4, 3, 1),
        three=nn.Conv2d(4, 3, 3, padding=1),
        five_in=nn.Conv2d(4, 2, 1),
        five=nn.Conv2d(2, 3, 5, padding=2),
    )
    return _built(module, torch.zeros(1, 4, 8, 8))


class _TwoEnds(_Layers):
    def forward(self, image: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = F.relu(self.look(image)).mean((2, 3))
        both = torch.cat([seen, state], 1)
        action = self.act(both)
        value = self.judge(action)
        return seen, action, value


def two_ends() -> Built:
    """Two inputs, three outputs; one output early, one used again after it was given."""
    module = _TwoEnds(look=nn.Conv2d(3, 4, 3), act=nn.Linear(7, 5), judge=nn.Linear(5, 1))
    return _built(module, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3))


class _Embedding(_Layers):
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.table(tokens)
        x = torch.where(mask.unsqueeze(-1), x, torch.zeros_like(x))
        return self.out(x.sum(1))


def embedding() -> Built:
    """Integer tokens that index a table, and a boolean mask."""
    module = _Embedding(table=nn.Embedding(11, 6), out=nn.Linear(6, 3))
    return _built(module, torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool))


class _Structured(_Layers):
    def forward(
        self, batch: dict[str, Tensor], pair: tuple[Tensor, Tensor], scale: float = 2.0
    ) -> dict[str, Any]:
        a = self.left(batch["a"]) * scale + pair[0]
        b = self.right(batch["b"]) + pair[1]
        return {"sum": a + b, "parts": (a, [b])}


def structured() -> Built:
    """Dict and tuple as inputs and as outputs, and a default that is no tensor."""
    module = _Structured(left=nn.Linear(3, 4), right=nn.Linear(2, 4))
    batch = {"a": torch.zeros(1, 3), "b": torch.zeros(1, 2)}
    return _built(module, batch, (torch.zeros(1, 4), torch.zeros(1, 4)))


class _Shared(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return F.linear(x, self.layer.weight)


def shared_weights() -> Built:
    """One weight on both sides of every cut; large enough to lie in the weights file."""
    return _built(_Shared(layer=nn.Linear(32, 32)), torch.zeros(1, 32))


class _Transformer(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def transformer() -> Built:
    """One block with attention and layer norm."""
    module = _Transformer(
        norm1=nn.LayerNorm(16),
        attention=nn.MultiheadAttention(16, 2, batch_first=True),
        norm2=nn.LayerNorm(16),
        up=nn.Linear(16, 32),
        down=nn.Linear(32, 16),
    )
    return _built(module, torch.zeros(1, 6, 16))


def voxels() -> Built:
    """3-D and transposed convolution."""
    module = nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv3d(4, 4, 3, padding=1, groups=2),
        nn.Sigmoid(),
        nn.ConvTranspose3d(4, 1, 2, stride=2),
    )
    return _built(module, torch.zeros(1, 1, 8, 8, 8))


class _Recurrent(_Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self.gru(x)
        return self.out(y), last


def recurrent() -> Built:
    """A recurrent layer with two outputs."""
    module = _Recurrent(gru=nn.GRU(4, 8, batch_first=True), out=nn.Linear(8, 2))
    return _built(module, torch.zeros(1, 5, 4))


class _Passing(_Layers):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = F.relu(self.layer(x))
        return y, y, x, self.table


def passing() -> Built:
    """An input that is an output, an output given twice, a constant output, an unused input."""
    return _built(_Passing(layer=nn.Linear(4, 4)), torch.zeros(1, 4), torch.zeros(2))


class _Scalars(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y / y.abs().max() + y[:0].sum()


def scalars() -> Built:
    """Tensors without axes, and one without elements."""
    return _built(_Scalars(layer=nn.Linear(4, 4)), torch.zeros(2, 4))


class _Half(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.layer(x.half()).float())
        return y * 2


def half() -> Built:
    """Computes in float16 in the middle."""
    module, examples = _built(_Half(layer=nn.Linear(8, 8)), torch.zeros(1, 8))
    module.get_submodule("layer").half()
    return module, examples


MODELS = {
    factory.__name__: factory
    for factory in (
        chain,
        residual,
        dense,
        branches,
        two_ends,
        embedding,
        structured,
        shared_weights,
        transformer,
        voxels,
        recurrent,
        passing,
        scalars,
        half,
    )
}
"""Every small model by name."""
