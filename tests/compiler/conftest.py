from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from compiler import CompileOptions, Report, compile_model
from engines.bundle import Bundle
from tests.models import onnx_models, torch_models

NAMES = [*torch_models.MODELS, *onnx_models.MODELS]


@dataclass
class Compiled:
    bundle: Bundle
    report: Report


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Compiled]:
    """Compile a small model by name, once in a session for each choice of cuts."""
    folder = tmp_path_factory.mktemp("bundles")
    done: dict[tuple[str, str], Compiled] = {}

    def get(name: str, cuts: str = "all") -> Compiled:
        if (name, cuts) not in done:
            options = CompileOptions(name=name, max_frontier=4, cuts=cuts)
            out = folder / f"{name}-{cuts}.bundle"
            if name in torch_models.MODELS:
                model = torch_models.MODELS[name]()
            else:
                model = str(save_onnx(name, folder))
            _, report = compile_model(model, out, options=options)
            done[name, cuts] = Compiled(Bundle.open(out), report)
        return done[name, cuts]

    return get


def save_onnx(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(getattr(onnx_models, name)(), path)
    return path
