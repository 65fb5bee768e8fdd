"""The contract between SplitRT and an execution provider, and the registry of providers.

A ``Backend`` turns ONNX into a plan (``build``) and a plan into an ``Engine`` (``load``). An
``Engine`` runs. ``CheckedEngine`` is what backends derive from: it checks every input against
the engine's specification, so that a backend only sees tensors that fit.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Protocol, Sequence, Tuple

import msgspec

from engines.errors import EngineError, IncompatibleError
from engines.fingerprint import Fingerprint
from engines.tensors import Array, TensorSpec, check_tensors

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendOptions",
    "ChainingEngine",
    "CheckedEngine",
    "Engine",
    "available_backends",
    "open_backend",
]

BACKENDS: Dict[str, str] = {
    "ort": "engines.ort:OrtBackend",
    "reference": "engines.reference:ReferenceBackend",
    "tensorrt": "engines.tensorrt.backend:TensorRTBackend",
    "tensorrt-rtx": "engines.tensorrt.backend:TensorRTRTXBackend",
}
"""Name of a backend -> ``module:Class``; imported only when it is asked for."""


class BackendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options that every backend understands or ignores.

    Attributes:
        threads: Threads that one engine computes with; 0 lets the backend choose.
    """

    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must be 0 (automatic) or more, given {self.threads}")


class Engine(Protocol):
    """A loaded program that can be run, from any thread, one run at a time or more."""

    @property
    def inputs(self) -> Tuple[TensorSpec, ...]:
        """Tensors that ``run`` takes."""

    @property
    def outputs(self) -> Tuple[TensorSpec, ...]:
        """Tensors that ``run`` gives."""

    def run(self, inputs: Mapping[str, Array]) -> Dict[str, Array]:
        """Compute the outputs. The caller owns the returned arrays.

        Raises:
            TensorMismatchError: An input does not fit; every offender is listed.
            EngineError: The backend failed.
        """

    def close(self) -> None:
        """Free what the engine holds. Running it afterwards is an error."""


class ChainingEngine(Engine, Protocol):
    """An engine that hands its outputs to others of its backend where they are, as on a GPU.

    Optional: whoever runs a chain asks its first engine for ``run_chain`` by name, and passes
    arrays from engine to engine where there is none.
    """

    def run_chain(
        self,
        following: Sequence[Engine],
        inputs: Mapping[str, Array],
        outputs: Collection[str],
    ) -> Dict[str, Array]:
        """Run this engine, then ``following``, each on what the inputs and those before it gave.

        Args:
            following: Engines of the same backend, each once, in the order of the chain.
            inputs: Arrays by name; there may be more than the chain takes.
            outputs: Names of the tensors to return, whichever engine computes them.

        Returns:
            The outputs; the caller owns the arrays.

        Raises:
            TensorMismatchError: An input does not fit or is missing.
            EngineError: An engine failed, or an output is computed by none of them.
        """


class Backend(Protocol):
    """An execution provider."""

    @property
    def name(self) -> str:
        """Name in :data:`BACKENDS`."""

    def build(self, onnx_path: Path) -> bytes:
        """Return the plan for one ONNX file.

        Raises:
            BuildError: The file cannot be built; the message has the backend's reason.
        """

    def load(self, plan: bytes, *, folder: Path) -> Engine:
        """Load a plan.

        Args:
            plan: What ``build`` returned.
            folder: Folder of the ONNX file, where the weights file lies too.

        Raises:
            IncompatibleError: The plan was built for something else.
            EngineError: The backend refused it.
        """

    def fingerprint(self) -> Fingerprint:
        """Say what a plan built here is valid for."""


class CheckedEngine:
    """Base of engines: holds the specifications and checks inputs before ``_run``."""

    def __init__(
        self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._name = name
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {self._name} {state}>"

    @property
    def inputs(self) -> Tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> Tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> Dict[str, Array]:
        """Check the inputs, then compute the outputs. See :meth:`Engine.run`."""
        if self._closed:
            raise EngineError(f"engine {self._name!r} is closed; load it again to run it")
        return self._run(check_tensors(self._inputs, inputs, where=f"engine {self._name!r}"))

    def close(self) -> None:
        """Free what the engine holds; safe to call again."""
        if not self._closed:
            self._closed = True
            self._free()

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        raise AssertionError("a backend's engine overrides _run")

    def _free(self) -> None:
        """Drop the backend's objects; overridden where there are any."""


def open_backend(name: str, options: BackendOptions = BackendOptions()) -> Backend:
    """Return the backend called ``name``.

    Raises:
        IncompatibleError: No such backend, or its library is not installed here.
    """
    target = BACKENDS.get(name)
    if target is None:
        raise IncompatibleError(
            f"backend {name!r}: expected one of {', '.join(sorted(BACKENDS))}; "
            "`runtime doctor` lists what works here"
        )
    module, _, cls = target.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), cls)
    except ImportError as exc:
        raise IncompatibleError(
            f"backend {name!r} cannot be used here: {exc}; `runtime doctor` says what to install"
        ) from exc
    backend: Backend = factory(options)
    return backend


def available_backends() -> Dict[str, str]:
    """Return each backend's name with an empty string if it works here, else the reason."""
    found: Dict[str, str] = {}
    names: List[str] = sorted(BACKENDS)
    for name in names:
        try:
            open_backend(name).fingerprint()
        except EngineError as exc:
            found[name] = str(exc)
        else:
            found[name] = ""
    return found
