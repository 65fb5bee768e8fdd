"""The zoo's results: gathered while it runs, written as one JSON file."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

VERSIONS = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--zoo-json", type=Path, help="write the zoo's results here, over those that are there"
    )


@pytest.fixture(scope="session")
def torchvision_operators() -> Iterator[None]:
    """Declare the operators that a wheel of torchvision made for CUDA lacks without it.

    Its compiled part needs the CUDA libraries, and importing it fails where they are absent;
    models, but for the selection of boxes, need none of it.
    """
    torch = pytest.importorskip("torch")
    library = None
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    del library


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Callable[[str, dict[str, Any]], None]:
    """Give a function that keeps the results of one model."""
    path: Path | None = pytestconfig.getoption("--zoo-json", None)

    def keep(name: str, results: dict[str, Any]) -> None:
        if path is None:
            return
        known = json.loads(path.read_text()) if path.exists() else {"models": {}}
        known["versions"] = {name: importlib.metadata.version(name) for name in VERSIONS}
        known["models"][name] = results
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n")

    return keep
