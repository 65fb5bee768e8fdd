"""Memory of a GPU behind one small protocol, and the providers of it.

Who may do what:

1. Everything happens within ``with memory.current():``, which makes the device's primary context
   current in the calling thread, and gives back what was current before.
2. Addresses and streams are plain integers: what TensorRT takes.
3. A copy is ordered on its stream and done only after ``synchronize``. Host arrays of copies are
   pinned ones, from ``pinned``; they must live, and not be written, until then.
4. Nothing is freed by itself: whoever allocates, frees, once.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any, ContextManager, Dict, NamedTuple, Optional, Protocol

from engines.errors import EngineError, IncompatibleError
from engines.tensors import Array

__all__ = ["MENDS", "PROVIDERS", "DeviceInfo", "DeviceMemory", "open_memory"]

PROVIDERS: Dict[str, str] = {
    "cuda-python": "engines.tensorrt.cuda_memory:CudaMemory",
    "pycuda": "engines.tensorrt.pycuda_memory:PycudaMemory",
}
"""Name of a provider -> ``module:Class``, in the order in which they are tried."""

MENDS = {
    "cuda-python": "pip install 'splitrt[cuda]'",
    "pycuda": "pip install 'splitrt[pycuda]' (needs nvcc)",
}


class DeviceInfo(NamedTuple):
    """A GPU.

    Attributes:
        name: As its maker calls it.
        compute_capability: As ``sm86``.
        total_bytes: Its memory.
    """

    name: str
    compute_capability: str
    total_bytes: int


class DeviceMemory(Protocol):
    """Memory, streams and graphs of one GPU."""

    @property
    def name(self) -> str:
        """Name in :data:`PROVIDERS`."""

    @property
    def device(self) -> DeviceInfo:
        """The GPU."""

    @property
    def graphs(self) -> bool:
        """Whether ``begin_capture`` and what belongs to it work."""

    def current(self) -> ContextManager[None]:
        """Make the device's primary context current in this thread meanwhile."""

    def allocate(self, nbytes: int) -> int:
        """Return the address of new device memory of at least one byte."""

    def free(self, address: int) -> None:
        """Free device memory."""

    def pinned(self, nbytes: int) -> Array:
        """Return new page-locked host memory, uint8 [nbytes], for asynchronous copies."""

    def free_pinned(self, array: Array) -> None:
        """Free page-locked memory; the array must not be touched afterwards."""

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""

    def synchronize(self, stream: int) -> None:
        """Wait until everything on the stream is done."""

    def destroy_stream(self, stream: int) -> None:
        """Free a stream."""

    def to_device(self, address: int, host: Array, stream: int) -> None:
        """Put a copy of a pinned array to device memory on the stream."""

    def to_host(self, host: Array, address: int, stream: int) -> None:
        """Put a copy of device memory to a pinned array on the stream."""

    def begin_capture(self, stream: int) -> None:
        """Record what is put on the stream from now on, instead of doing it."""

    def end_capture(self, stream: int) -> Any:
        """Return what was recorded as a graph that can be launched."""

    def launch(self, graph: Any, stream: int) -> None:
        """Put a graph on the stream."""

    def destroy_graph(self, graph: Any) -> None:
        """Free a graph."""


_opened: Optional[DeviceMemory] = None
_opening = threading.Lock()


def open_memory() -> DeviceMemory:
    """Return the memory of the first GPU, through the first provider that can reach it.

    Raises:
        IncompatibleError: None can; the message has each one's reason.
    """
    global _opened  # noqa: PLW0603  one primary context in a process
    with _opening:
        if _opened is None:
            _opened = _open()
        return _opened


def _open() -> DeviceMemory:
    reasons = []
    for name, target in PROVIDERS.items():
        module, _, cls = target.partition(":")
        try:
            memory: DeviceMemory = getattr(importlib.import_module(module), cls)()
        except ImportError as exc:
            reasons.append(f"{name}: {exc} ({MENDS[name]})")
        except EngineError as exc:
            reasons.append(f"{name}: {exc}")
        else:
            return memory
    raise IncompatibleError(f"no GPU can be used here: {'; '.join(reasons)}")
