"""Engines that are loaded for each run and freed after it: slow, in little memory.

For proofs: every part of a model is run once or twice, and never two of them at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from engines.backend import Backend, CheckedEngine, Engine
from engines.fingerprint import Fingerprint
from engines.tensors import Array

__all__ = ["OnDemandBackend", "OnDemandEngine"]


class OnDemandEngine(CheckedEngine):
    """A plan, and the engine made of it while it runs."""

    def __init__(self, backend: Backend, plan: bytes, folder: Path) -> None:
        self._backend = backend
        self._plan = plan
        self._folder = folder
        engine = self._load()
        super().__init__(f"on demand: {engine!r}", engine.inputs, engine.outputs)
        engine.close()

    def _load(self) -> Engine:
        return self._backend.load(self._plan, folder=self._folder)

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        engine = self._load()
        try:
            return engine.run(inputs)
        finally:
            engine.close()


class OnDemandBackend:
    """Another backend, its engines in memory only while they run.

    Args:
        backend: What builds and runs.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name

    def build(self, onnx_path: Path) -> bytes:
        """Build as the other backend does."""
        return self._backend.build(onnx_path)

    def load(self, plan: bytes, *, folder: Path) -> OnDemandEngine:
        """Load a plan once to see what it takes and gives, and free it again."""
        return OnDemandEngine(self._backend, plan, folder)

    def fingerprint(self) -> Fingerprint:
        """Say what the other backend's plans are valid for."""
        return self._backend.fingerprint()
