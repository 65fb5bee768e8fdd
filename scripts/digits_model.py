"""A small convolutional network trained on scikit-learn's digits, in seconds.

Source:
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (1998), UCI Machine
    Learning Repository, as ``sklearn.datasets.load_digits`` carries it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["trained"]

_EPOCHS = 30
_HELD_OUT = 450
_CALIBRATION = 128


def network() -> nn.Module:
    """Return the network: float32 [1, 1, 8, 8] -> [1, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def trained(folder: Path) -> tuple[Any, list[NDArray[np.float32]], NDArray[Any], str]:
    """Train it.

    Args:
        folder: Where the calibration data goes.

    Returns:
        The model with an example, pictures that it has not seen, their labels, and the data.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    images = (loaded.images[order, np.newaxis] / 16).astype(np.float32)
    labels = loaded.target[order]
    torch.manual_seed(0)
    module = network()
    seen = torch.from_numpy(images[_HELD_OUT:]), torch.from_numpy(labels[_HELD_OUT:])
    optimiser = torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(seen[0])).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(seen[0][rows]), seen[1][rows]).backward()
            optimiser.step()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "digits.npz"
    np.savez(data, input=images[_HELD_OUT : _HELD_OUT + _CALIBRATION, np.newaxis])
    held_out = [np.ascontiguousarray(image[np.newaxis]) for image in images[:_HELD_OUT]]
    return (module.eval(), (torch.zeros(1, 1, 8, 8),)), held_out, labels[:_HELD_OUT], str(data)
