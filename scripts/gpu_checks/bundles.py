"""The models of a check: compiled once, kept in its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engines.bundle import Bundle
from scripts.demo_model import INPUT, PREPROCESS, efficientnet_lite0

__all__ = ["DEMO", "TIMED", "bundle_of", "small_models"]

DEMO = "efficientnet_lite0"
TIMED = "residual"
"""The small model that times are taken of: they are launches, little else."""


def small_models() -> list[str]:
    """Return the names of the small-model table.

    Raises:
        ImportError: torch or onnx is not installed.
    """
    from tests.models import onnx_models, torch_models

    return [*torch_models.MODELS, *onnx_models.MODELS]


def bundle_of(name: str, work: Path, *, builder: str = "onnx") -> Bundle:
    """Return a model's bundle: of the small-model table, the demo model, or a bundle's path.

    Raises:
        ImportError: What compiles it is not installed.
        SplitError: It does not compile, or is no bundle.
    """
    if os.sep in name:
        return Bundle.open(name)
    out = work / f"{name}-{builder}.bundle"
    if out.exists():
        return Bundle.open(out)
    from compiler import CompileOptions, compile_model
    from compiler.images import parse_image
    from compiler.inputs import parse_input

    more: dict[str, Any] = {"name": name, "cuts": "all"}
    if builder != "onnx":
        more.update(targets=("tensorrt",), builder=builder)
    if name == DEMO:
        more.update(cuts="auto", inputs=(parse_input(INPUT),), images=(parse_image(PREPROCESS),))
        model: Any = efficientnet_lite0()
    else:
        model = _small(name, work)
    compile_model(model, out, options=CompileOptions(**more))
    return Bundle.open(out)


def _small(name: str, work: Path) -> Any:
    import onnx

    from tests.models import onnx_models, torch_models

    if name in torch_models.MODELS:
        return torch_models.MODELS[name]()
    path = work / f"{name}.onnx"
    onnx.save(onnx_models.MODELS[name](), path)
    return str(path)
