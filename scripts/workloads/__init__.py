"""The published workloads: models as factories, and which published profile each one has.

Every factory is in a file of its own that imports nothing from its neighbours, so that
``split-compile scripts/workloads/vgg19.py:vgg19`` works. It takes no arguments, seeds PyTorch's
generator and returns a module in inference mode with example inputs. Weights are random and keep
activations near unit variance, so that every operator sees values as large as a trained one's.

Built under ``torch.device("meta")`` a workload has shapes only and costs milliseconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["WORKLOADS", "Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload.

    Attributes:
        module: Name of its file in this folder.
        factory: Name of the factory in it.
        profile: Name of its published profile; none where only its kin was profiled.
    """

    module: str
    factory: str
    profile: str | None

    def build(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the module and its example inputs."""
        module = importlib.import_module(f".{self.module}", __name__)
        built: tuple[Any, tuple[Any, ...]] = getattr(module, self.factory)()
        return built


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "vgg19": Workload("vgg19", "vgg19", None),
        "vgg19_bn": Workload("vgg19", "vgg19_bn", "vgg19_bn"),
        "resnet152": Workload("resnet152", "resnet152", "resnet152"),
        "densenet121": Workload("densenet121", "densenet121", "densenet121"),
        "convnext_large": Workload("convnext_large", "convnext_large", "convnext_large"),
        "kapao": Workload("kapao", "kapao", "kapao"),
        "agrnav": Workload("agrnav", "agrnav", "agrnav"),
    }
)
"""By name. ``vgg19`` is ``vgg19_bn`` without its batch norms."""
