"""Step ``installed``: what is installed, and which provider reaches a GPU."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from engines.errors import EngineError
from engines.fingerprint import device_name
from engines.tensorrt.memory import PROVIDERS, DeviceMemory
from scripts.gpu_checks.kit import one_line
from scripts.gpu_checks.records import Gpu, Gpus, Machine, Package

__all__ = ["PACKAGES", "find_gpus", "look_at", "open_provider", "put_together", "version_of"]

PACKAGES = {
    "onnxruntime": ("onnxruntime",),
    "onnx": ("onnx",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "cuda-python": ("cuda.bindings.runtime", "cuda.cudart"),
    "pycuda": ("pycuda.driver",),
    "torch": ("torch",),
    "torch-tensorrt": ("torch_tensorrt",),
}
"""Package -> the modules that are tried in turn."""

_DISTRIBUTIONS = {"cuda-python": ("cuda-bindings", "cuda-python"), "tensorrt-rtx": (
    "tensorrt-rtx", "tensorrt_rtx")}  # fmt: skip


def find_gpus(open_one: Callable[[str], DeviceMemory] | None = None) -> Gpus:
    """Ask every provider of device memory for its GPU.

    Args:
        open_one: Opens a provider by its name.
    """
    gpus, reasons = [], []
    for provider in PROVIDERS:
        try:
            memory = (open_one or open_provider)(provider)
            about = memory.device
            gpus.append(
                Gpu(
                    provider=provider,
                    name=about.name,
                    compute_capability=about.compute_capability,
                    total_bytes=about.total_bytes,
                    cuda_graphs=memory.graphs,
                )
            )
        except (ImportError, EngineError) as exc:
            reasons.append(f"{provider}: {one_line(exc)}")
    return Gpus(gpus=tuple(gpus), no_gpu="; ".join(reasons))


def put_together(packages: Sequence[Package], found: Gpus) -> Machine:
    """Return all that was found of this machine."""
    return Machine(
        device=device_name(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=tuple(packages),
        gpus=found.gpus,
        no_gpu=found.no_gpu,
    )


def open_provider(name: str) -> DeviceMemory:
    """Return the memory of the first GPU through one provider.

    Raises:
        ImportError: It is not installed.
        EngineError: It reaches no GPU.
    """
    module, _, cls = PROVIDERS[name].partition(":")
    memory: DeviceMemory = getattr(importlib.import_module(module), cls)()
    return memory


def look_at(name: str) -> Package:
    """Import one of :data:`PACKAGES`."""
    version = version_of(name)
    said = ""
    for module in PACKAGES[name]:
        try:
            found = importlib.import_module(module)
        except Exception as exc:  # noqa: BLE001  libraries fail to load in every way
            said = said or one_line(exc)
            continue
        version = version or str(getattr(found, "__version__", "unknown"))
        return Package(name=name, version=version, works=True, said=_says(name, found))
    return Package(name=name, version=version, works=False, said=said)


def version_of(name: str) -> str | None:
    """Return what is installed of a package, without importing it."""
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _says(name: str, module: Any) -> str:
    """Return what a library says of this machine."""
    try:
        if name == "torch":
            if not module.cuda.is_available():
                built = module.version.cuda
                return f"built for CUDA {built}, finds no GPU" if built else "built for the CPU"
            major, minor = module.cuda.get_device_capability()
            return f"CUDA {module.version.cuda}, {module.cuda.get_device_name()} sm{major}{minor}"
        if name == "onnxruntime":
            return ", ".join(module.get_available_providers())
        if name == "tensorrt-rtx":
            kinds = dir(module.ComputeCapability)
            return "builds for " + ", ".join(k.lower() for k in kinds if k[:2] == "SM")
    except Exception as exc:  # noqa: BLE001  as above
        return one_line(exc)
    return ""
