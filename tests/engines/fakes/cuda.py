# ruff: noqa: N801, N802, N815  the names are CUDA's
"""Fakes of the modules ``cuda.bindings.runtime`` and ``pycuda.driver``, on host memory.

Both have the signatures of the real ones: cuda-python 13.5, where every function returns its error
first, and PyCUDA 2026.1, whose objects free what they hold.
"""

from __future__ import annotations

import ctypes
import enum
import types
from typing import Any

import numpy as np


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorInsufficientDriver = 35


class CudaRuntime(types.SimpleNamespace):
    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = 1, 2

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal = 0, 1

    def __init__(self, devices: int = 1) -> None:
        super().__init__()
        self.devices = devices
        self.blocks: dict[int, Any] = {}
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("cuda") and callable(found) and name != "cudaGetErrorString":
            super().__getattribute__("calls").append(name)
        return found

    def _new(self, nbytes: int) -> int:
        block = ctypes.create_string_buffer(nbytes)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _drop(self, address: int) -> tuple[Error]:
        known = self.blocks.pop(int(address), None)
        return (Error.cudaErrorInvalidValue if known is None else Error.cudaSuccess,)

    def cudaGetDeviceCount(self) -> tuple[Error, int | None]:
        if self.devices < 0:
            return Error.cudaErrorInsufficientDriver, None
        return Error.cudaSuccess, self.devices

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, b"text of " + error.name.encode()

    def cudaGetDeviceProperties(self, _: int) -> tuple[Error, Any]:
        about = types.SimpleNamespace(name=b"Fake\0", major=8, minor=7, totalGlobalMem=1 << 20)
        return Error.cudaSuccess, about

    def cudaGetDevice(self) -> tuple[Error, int]:
        return Error.cudaSuccess, 3

    def cudaSetDevice(self, _: int) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Error, int]:
        return Error.cudaSuccess, self._new(size)

    def cudaHostAlloc(self, size: int, _: int) -> tuple[Error, int]:
        return Error.cudaSuccess, self._new(size)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, int]:
        assert flags == self.cudaStreamNonBlocking
        return Error.cudaSuccess, self._new(1)

    def cudaMemcpyAsync(
        self, target: int, source: int, count: int, kind: Any, stream: int
    ) -> tuple[Error]:
        assert isinstance(kind, self.cudaMemcpyKind)
        assert stream in self.blocks
        ctypes.memmove(target, source, count)
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        known = stream in self.blocks
        return (Error.cudaSuccess if known else Error.cudaErrorInvalidValue,)

    def cudaStreamBeginCapture(self, _: int, mode: Any) -> tuple[Error]:
        assert isinstance(mode, self.cudaStreamCaptureMode)
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, _: int) -> tuple[Error, int]:
        return Error.cudaSuccess, self._new(1)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Error, int]:
        assert (graph in self.blocks, flags) == (True, 0)
        return Error.cudaSuccess, self._new(1)

    def cudaGraphLaunch(self, graph: int, _: int) -> tuple[Error]:
        assert graph in self.blocks
        return (Error.cudaSuccess,)

    def cudaFree(self, address: int) -> tuple[Error]:
        return self._drop(address)

    cudaFreeHost = cudaStreamDestroy = cudaGraphDestroy = cudaGraphExecDestroy = cudaFree


class _Held:
    """An object of PyCUDA that counts itself as long as it holds something."""

    def __init__(self, driver: Any, nbytes: int) -> None:
        self.driver = driver
        self.block = ctypes.create_string_buffer(nbytes)
        self.handle = ctypes.addressof(self.block)
        driver.check()
        driver.held.add(self.handle)

    def __int__(self) -> int:
        return self.handle

    def free(self) -> None:
        self.driver.check()
        self.driver.held.remove(self.handle)

    def __del__(self) -> None:
        self.driver.held.discard(self.handle)

    def synchronize(self) -> None:
        self.driver.check()


class PycudaDriver(types.SimpleNamespace):
    class Error(Exception):
        pass

    def __init__(self, devices: int = 1) -> None:
        super().__init__()
        self.held: set[int] = set()
        self.depth = 0
        self.Context = types.SimpleNamespace(pop=self._pop)
        context = types.SimpleNamespace(push=self._push)

        class Device:
            count = staticmethod(lambda: devices)

            def __init__(self, number: int) -> None:
                assert number < devices

            name = staticmethod(lambda: "Fake")
            compute_capability = staticmethod(lambda: (7, 2))
            total_memory = staticmethod(lambda: 1 << 20)
            retain_primary_context = staticmethod(lambda: context)

        self.Device = Device

    def init(self) -> None:
        self.initialised = True

    def _push(self) -> None:
        self.depth += 1

    def _pop(self) -> None:
        self.depth -= 1

    def check(self) -> None:
        if not self.depth:
            raise self.Error("invalid device context")

    def mem_alloc(self, nbytes: int) -> _Held:
        if nbytes > 1 << 20:
            raise self.Error("cuMemAlloc failed: out of memory")
        return _Held(self, nbytes)

    def Stream(self, flags: int) -> _Held:
        assert flags == 1
        return _Held(self, 1)

    def pagelocked_empty(self, nbytes: int, dtype: Any) -> Any:
        held = _Held(self, nbytes)

        class Base:
            free = staticmethod(held.free)
            __array_interface__ = {  # noqa: RUF012
                "shape": (nbytes,),
                "typestr": np.dtype(dtype).str,
                "data": (held.handle, False),
                "version": 3,
            }

        return np.asarray(Base())

    def memcpy_htod_async(self, target: int, source: Any, stream: _Held) -> None:
        self.check()
        assert isinstance(stream, _Held)
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: Any, source: int, stream: _Held) -> None:
        self.check()
        assert isinstance(stream, _Held)
        ctypes.memmove(target.ctypes.data, source, target.nbytes)
