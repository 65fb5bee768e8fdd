"""Device memory through cuda-python: ``cuda.bindings.runtime``, or ``cuda.cudart`` before 12.6.

The runtime API uses the primary context by itself; ``cudaSetDevice`` makes it current.
"""

from __future__ import annotations

import ctypes
import importlib
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import numpy as np

from engines.errors import EngineError
from engines.tensorrt.memory import DeviceInfo
from engines.tensors import Array

__all__ = ["CudaMemory"]


class CudaMemory:
    """One GPU through cuda-python.

    Args:
        device: Its number.

    Raises:
        ImportError: cuda-python is not installed.
        EngineError: There is no such GPU, or no driver.
    """

    name = "cuda-python"

    def __init__(self, device: int = 0) -> None:
        self._rt = _import_runtime()
        self._number = device
        self._pinned: Dict[int, int] = {}
        count = self._call("cudaGetDeviceCount")
        if device >= count:
            raise EngineError(f"GPU {device}: expected one of {count}")
        about = self._call("cudaGetDeviceProperties", device)
        name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
        capability = f"sm{about.major}{about.minor}"
        self.device = DeviceInfo(name.strip("\0 "), capability, int(about.totalGlobalMem))
        self.graphs = hasattr(self._rt, "cudaStreamBeginCapture")

    @contextmanager
    def current(self) -> Iterator[None]:
        before = self._call("cudaGetDevice")
        self._call("cudaSetDevice", self._number)
        try:
            yield
        finally:
            if before != self._number:
                self._call("cudaSetDevice", before)

    def allocate(self, nbytes: int) -> int:
        return int(self._call("cudaMalloc", max(nbytes, 1)))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pinned(self, nbytes: int) -> Array:
        address = int(self._call("cudaHostAlloc", max(nbytes, 1), self._rt.cudaHostAllocDefault))
        block = (ctypes.c_uint8 * max(nbytes, 1)).from_address(address)
        array: Array = np.ctypeslib.as_array(block)[:nbytes]
        self._pinned[array.ctypes.data] = address
        return array

    def free_pinned(self, array: Array) -> None:
        self._call("cudaFreeHost", self._pinned.pop(array.ctypes.data))

    def create_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def to_device(self, address: int, host: Array, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, stream)

    def to_host(self, host: Array, address: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, stream)

    def begin_capture(self, stream: int) -> None:
        # What other threads do, such as allocating, must not break this capture.
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            if hasattr(self._rt, "cudaGraphInstantiateWithFlags"):
                return self._call("cudaGraphInstantiateWithFlags", graph, 0)
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime. Every one returns its error first."""
        try:
            error, *values = getattr(self._rt, name)(*arguments)
        except RuntimeError as exc:  # a library that is not there, found when it is first called
            raise EngineError(f"{name}: {exc}") from exc
        if int(error) != 0:
            text = self._rt.cudaGetErrorString(error)[1]
            said = text.decode() if isinstance(text, bytes) else str(text)
            raise EngineError(f"{name}: {said} (CUDA error {int(error)})")
        return values[0] if values else None


def _import_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")
