"""Device memory through PyCUDA, as it is common on JetPack 5 and 6.

The primary context is retained, never one of PyCUDA's own (``pycuda.autoinit``), and pushed and
popped around every use: a context belongs to no thread. PyCUDA has no CUDA graphs.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import numpy as np

from engines.errors import EngineError
from engines.tensorrt.memory import DeviceInfo
from engines.tensors import Array

__all__ = ["PycudaMemory"]


class PycudaMemory:
    """One GPU through PyCUDA.

    Args:
        device: Its number.

    Raises:
        ImportError: PyCUDA is not installed, or the driver's library is missing.
        EngineError: There is no such GPU.
    """

    name = "pycuda"
    graphs = False

    def __init__(self, device: int = 0) -> None:
        self._cuda: Any = importlib.import_module("pycuda.driver")
        with _errors(self._cuda):
            self._cuda.init()
            count = self._cuda.Device.count()
            if device >= count:
                raise EngineError(f"GPU {device}: expected one of {count}")
            gpu = self._cuda.Device(device)
            major, minor = gpu.compute_capability()
            self.device = DeviceInfo(gpu.name(), f"sm{major}{minor}", int(gpu.total_memory()))
            self._context = gpu.retain_primary_context()
        # PyCUDA frees what its objects lose: they are kept until they are freed here.
        self._allocations: Dict[int, Any] = {}
        self._pinned: Dict[int, Any] = {}
        self._streams: Dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        with _errors(self._cuda):
            self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def allocate(self, nbytes: int) -> int:
        with _errors(self._cuda):
            allocation = self._cuda.mem_alloc(max(nbytes, 1))
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        with _errors(self._cuda):
            self._allocations.pop(address).free()

    def pinned(self, nbytes: int) -> Array:
        with _errors(self._cuda):
            array: Array = self._cuda.pagelocked_empty(max(nbytes, 1), np.uint8)
        self._pinned[array.ctypes.data] = array.base
        return array[:nbytes]

    def free_pinned(self, array: Array) -> None:
        with _errors(self._cuda):
            self._pinned.pop(array.ctypes.data).free()

    def create_stream(self) -> int:
        non_blocking = 1  # CU_STREAM_NON_BLOCKING; PyCUDA has no name for it
        with _errors(self._cuda):
            stream = self._cuda.Stream(non_blocking)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def synchronize(self, stream: int) -> None:
        with _errors(self._cuda):
            self._streams[stream].synchronize()

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]  # PyCUDA destroys it with its object

    def to_device(self, address: int, host: Array, stream: int) -> None:
        with _errors(self._cuda):
            self._cuda.memcpy_htod_async(address, host, self._streams[stream])

    def to_host(self, host: Array, address: int, stream: int) -> None:
        with _errors(self._cuda):
            self._cuda.memcpy_dtoh_async(host, address, self._streams[stream])

    def begin_capture(self, stream: int) -> None:
        raise AssertionError("PyCUDA has no CUDA graphs")

    def end_capture(self, stream: int) -> Any:
        raise AssertionError("PyCUDA has no CUDA graphs")

    def launch(self, graph: Any, stream: int) -> None:
        raise AssertionError("PyCUDA has no CUDA graphs")

    def destroy_graph(self, graph: Any) -> None:
        raise AssertionError("PyCUDA has no CUDA graphs")


@contextmanager
def _errors(cuda: Any) -> Iterator[None]:
    try:
        yield
    except cuda.Error as exc:
        raise EngineError(f"PyCUDA: {exc}") from exc
