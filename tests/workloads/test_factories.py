"""The workloads are the published architectures: parameters, inputs, outputs."""

from __future__ import annotations

import math

import pytest
import torch

from compiler.factories import build_module
from scripts.workloads import WORKLOADS

PICTURE = ("float32", (1, 3, 224, 224))
CLASSES = ("float32", (1, 1000))

# Parameters of the torchvision models are those that torchvision publishes.
EXPECTED = {
    "vgg19": (143_667_240, PICTURE, CLASSES),
    "vgg19_bn": (143_678_248, PICTURE, CLASSES),
    "resnet152": (60_192_808, PICTURE, CLASSES),
    "densenet121": (7_978_856, PICTURE, CLASSES),
    "convnext_large": (197_767_336, PICTURE, CLASSES),
    "kapao": (77_003_244, ("uint8", (1, 3, 640, 960)), ("float32", (1, 38250, 57))),
    "agrnav": (348_044, ("bool", (1, 1, 256, 32, 256)), ("uint8", (1, 256, 32, 256))),
}


def described(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def test_all_are_expected() -> None:
    assert EXPECTED.keys() == WORKLOADS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_and_shapes(name: str) -> None:
    parameters, given, out = EXPECTED[name]
    with torch.device("meta"), torch.no_grad():
        module, examples = WORKLOADS[name].build()
        result = module(*examples)
    assert not module.training
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert [described(example) for example in examples] == [given]
    assert described(result) == out


def test_a_voxel_grid_is_a_byte_a_voxel_each_way() -> None:
    _, given, out = EXPECTED["agrnav"]
    for dtype, shape in (given, out):
        assert math.prod(shape) * getattr(torch, dtype).itemsize == 2_097_152


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("densenet121", (..., slice(64), slice(64))),
        ("agrnav", (..., slice(64), slice(32), slice(64))),
    ],
)
def test_computes_something(name: str, part: tuple[slice, ...]) -> None:
    module, (example,) = WORKLOADS[name].build()
    example = example[part]  # fully convolutional: a corner is enough, and fast
    with torch.no_grad():
        result = module(example)
        other = module(example.roll(7, -1))
    assert result.isfinite().all()
    assert result.unique().numel() > 5
    assert not torch.equal(result, other), "the result does not depend on the input"


def test_a_hundred_activations_do_not_die_out() -> None:
    module, (example,) = WORKLOADS["kapao"].build()
    with torch.no_grad():
        maps = module.features(example[..., :128, :192] / 255)
    assert [x.shape[1] for x in maps] == [256, 512, 768, 1024]
    assert all(0.1 < x.std() < 10 for x in maps)


def test_weights_are_the_same_every_time() -> None:
    first, (example,) = WORKLOADS["agrnav"].build()
    torch.rand(3)
    second, (again,) = WORKLOADS["agrnav"].build()
    assert torch.equal(example, again)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_poses_are_decoded_as_published() -> None:
    # The head's arithmetic against the form in which the paper's code has it.
    from scripts.workloads.kapao import ANCHORS, Detect

    torch.manual_seed(1)
    head = Detect(4, 3).eval()
    x = torch.randn(1, 4, 10, 15)
    with torch.no_grad():
        rows = head(x).view(3, 10, 15, 57)
        s = head.conv(x).view(3, 57, 10, 15).sigmoid()
    a, row, column = 1, 7, 11
    cell = torch.tensor([column, row])
    size = torch.tensor(ANCHORS[3][a])
    got, sig = rows[a, row, column], s[a, :, row, column]
    torch.testing.assert_close(got[0:2], (sig[0:2] * 2 - 0.5 + cell) * 64)
    torch.testing.assert_close(got[2:4], (sig[2:4] * 2) ** 2 * size)
    torch.testing.assert_close(got[4:23], sig[4:23])
    points = (sig[23:].view(17, 2) * 4 - 2) * size + cell * 64
    torch.testing.assert_close(got[23:].view(17, 2), points)


@pytest.mark.parametrize("module", ["scripts.workloads.vgg19", "scripts/workloads/vgg19.py"])
def test_is_a_factory_for_the_compiler(module: str, request: pytest.FixtureRequest) -> None:
    if module.endswith(".py"):
        module = str(request.config.rootpath / module)
    with torch.device("meta"):
        built, examples = build_module(module, "vgg19_bn")
    assert isinstance(built, torch.nn.Module)
    assert len(examples) == 1
