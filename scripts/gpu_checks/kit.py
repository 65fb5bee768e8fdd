"""What every step works with: the libraries, the GPU, a folder, a budget. Tests put fakes in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import EngineError, IncompatibleError, SplitError
from engines.plans import PlanStore
from engines.tensorrt.api import Api, find_api
from engines.tensorrt.backend import TensorRTBackend, TensorRTOptions, TensorRTRTXBackend
from engines.tensorrt.builder import BuildOptions
from engines.tensorrt.memory import DeviceMemory, open_memory
from scripts.gpu_checks.records import Row

__all__ = [
    "BACKENDS",
    "FOREIGN",
    "NO_GPU",
    "Budget",
    "Kit",
    "OutOfTimeError",
    "guarded",
    "one_line",
]

BACKENDS = {"tensorrt": TensorRTBackend, "tensorrt-rtx": TensorRTRTXBackend}

FOREIGN = ("sm86", "sm89")
"""What TensorRT for RTX builds for where there is no GPU."""

NO_GPU = "no GPU can be used here"
"""What rows say; why it is so stands once, in the row ``GPU``."""

_MESSAGE_CHARS = 400


class OutOfTimeError(Exception):
    """The step's budget is spent."""


class Budget:
    """Seconds that a step may take; looked at between its parts.

    Args:
        seconds: How many.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left; below 0 once they are spent."""
        return self._end - time.monotonic()


@dataclass
class Kit:
    """What a step works with.

    Attributes:
        work: Folder for bundles and plans, shared by all steps of a check.
        budget: Of the step.
        api: Finds a library by the name of its backend.
        memory: Opens the GPU.
        runs: Most runs that a time is taken over.
    """

    work: Path
    budget: Budget
    api: Callable[[str], Api] = find_api
    memory: Callable[[], DeviceMemory] = open_memory
    runs: int = 200
    _no_gpu: str | None = field(default=None, init=False)

    @property
    def no_gpu(self) -> str:
        """Why no GPU can be used here; empty where one can."""
        if self._no_gpu is None:
            try:
                self.memory()
                self._no_gpu = ""
            except EngineError as exc:
                self._no_gpu = one_line(exc)
        return self._no_gpu

    def backend(self, name: str, *, cuda_graphs: bool = True) -> TensorRTBackend:
        """Return a backend for this GPU; without one, for those that it can build for.

        Raises:
            IncompatibleError: Its library cannot be used here, or it needs a GPU.
        """
        api = self.api(name)
        targets = FOREIGN if self.no_gpu and api.target_names else ()
        if self.no_gpu and not targets:
            raise IncompatibleError(f"{api.library} {api.version} builds on a GPU only: {NO_GPU}")
        build = BuildOptions(
            compute_capabilities=targets, timing_cache=self.work / f"timing-{name}.cache"
        )
        options = TensorRTOptions(build=build, cuda_graphs=cuda_graphs)
        return BACKENDS[name](options, api=api, memory=self.memory)

    def store(self, name: str) -> PlanStore:
        """Return where a backend's plans are kept until the check is over."""
        return PlanStore(self.work / f"plans-{name}")

    def lost(self) -> str:
        """Say why the GPU can no longer be used; empty where it can, or where there is none.

        After some errors a CUDA context is lost to its process, and everything fails in it.
        """
        if self.no_gpu:
            return ""
        memory = self.memory()
        try:
            with memory.current():
                memory.free(memory.allocate(16))
        except EngineError as exc:
            return one_line(exc)
        return ""


def guarded(step: str, subject: str, backend: str, work: Callable[[], Row]) -> Row:
    """Return the row of a step, whatever happens in it."""
    started = time.monotonic()
    try:
        row = work()
    except (ImportError, IncompatibleError) as exc:
        row = _said(step, subject, backend, "not done", exc)
    except OutOfTimeError as exc:
        row = Row(step=step, subject=subject, backend=backend, status="out of time", said=str(exc))
    except SplitError as exc:
        row = _said(step, subject, backend, "refused", exc)
    except Exception as exc:  # noqa: BLE001  one step that breaks must leave the others
        row = _said(step, subject, backend, "failed", exc)
    fields: dict[str, Any] = {name: getattr(row, name) for name in row.__struct_fields__}
    fields["seconds"] = round(time.monotonic() - started, 3)
    return Row(**fields)


def one_line(exc: BaseException) -> str:
    """Return an error as one line of bounded length."""
    line = " ".join(str(exc).split())
    if not isinstance(exc, SplitError):
        line = f"{type(exc).__name__}: {line}" if line else type(exc).__name__
    return line if len(line) <= _MESSAGE_CHARS else line[: _MESSAGE_CHARS - 3] + "..."


def _said(step: str, subject: str, backend: str, status: Any, exc: BaseException) -> Row:
    return Row(step=step, subject=subject, backend=backend, status=status, said=one_line(exc))
