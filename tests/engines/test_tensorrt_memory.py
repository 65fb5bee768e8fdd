"""Providers of device memory, on fakes of the modules that they call."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineError, IncompatibleError
from engines.tensorrt import memory as memory_module
from engines.tensorrt.cuda_memory import CudaMemory
from engines.tensorrt.memory import DeviceInfo, DeviceMemory, open_memory
from engines.tensorrt.pycuda_memory import PycudaMemory
from tests.engines.fakes.cuda import CudaRuntime, PycudaDriver


def _install(monkeypatch: pytest.MonkeyPatch, name: str, module: Any) -> None:
    """Make ``import name`` give ``module``, or fail where it is none."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), type(sys)("package"))
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    runtime = CudaRuntime()
    _install(monkeypatch, "cuda.bindings.runtime", runtime)
    return runtime


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> PycudaDriver:
    driver = PycudaDriver()
    _install(monkeypatch, "pycuda.driver", driver)
    return driver


def _there_and_back(memory: DeviceMemory) -> None:
    with memory.current():
        stream = memory.create_stream()
        address = memory.allocate(8)
        there, back = memory.pinned(8), memory.pinned(8)
        there[...] = np.arange(8)
        back[...] = 0
        memory.to_device(address, there, stream)
        memory.to_host(back, address, stream)
        memory.synchronize(stream)
        assert back.tolist() == list(range(8))
        assert (back.dtype, back.shape) == (np.uint8, (8,))
        empty = memory.pinned(0)
        assert empty.shape == (0,)
        for array in (there, back, empty):
            memory.free_pinned(array)
        memory.free(address)
        memory.free(memory.allocate(0))
        memory.destroy_stream(stream)


def test_cuda_python_there_and_back(cuda: CudaRuntime) -> None:
    memory = CudaMemory()
    assert memory.device == DeviceInfo("Fake", "sm87", 1 << 20)
    assert memory.graphs
    _there_and_back(memory)
    assert cuda.blocks == {}
    # What was current before is current again.
    assert cuda.calls[-1] == "cudaSetDevice"


def test_cuda_python_graphs(cuda: CudaRuntime) -> None:
    memory = CudaMemory()
    with memory.current():
        stream = memory.create_stream()
        memory.begin_capture(stream)
        graph = memory.end_capture(stream)
        memory.launch(graph, stream)
        memory.destroy_graph(graph)
        memory.destroy_stream(stream)
    assert cuda.blocks == {}


def test_cuda_python_errors_say_what_failed(cuda: CudaRuntime) -> None:
    memory = CudaMemory()
    with pytest.raises(
        EngineError,
        match=r"cudaFree: text of cudaErrorInvalidValue \(CUDA error 1\)",
    ):
        memory.free(12345)
    with pytest.raises(EngineError, match="GPU 1: expected one of 1"):
        CudaMemory(1)
    cuda.devices = -1
    with pytest.raises(EngineError, match=r"cudaGetDeviceCount: text of .*InsufficientDriver"):
        CudaMemory()


def test_cuda_python_under_its_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "cuda.bindings.runtime", None)
    _install(monkeypatch, "cuda.cudart", CudaRuntime())
    _there_and_back(CudaMemory())


def test_pycuda_there_and_back(pycuda: PycudaDriver) -> None:
    memory = PycudaMemory()
    assert memory.device == DeviceInfo("Fake", "sm72", 1 << 20)
    assert not memory.graphs
    _there_and_back(memory)
    assert pycuda.held == set()
    assert pycuda.depth == 0


def test_pycuda_holds_what_nobody_else_does(pycuda: PycudaDriver) -> None:
    """Its objects free their memory when they go: a number alone must keep it."""
    memory = PycudaMemory()
    with memory.current():
        memory.create_stream()
        memory.allocate(8)
        memory.pinned(8)
    assert len(pycuda.held) == 3


def test_pycuda_errors(pycuda: PycudaDriver) -> None:
    memory = PycudaMemory()
    with memory.current(), pytest.raises(EngineError, match=r"PyCUDA: .*out of memory"):
        memory.allocate(1 << 30)
    with pytest.raises(EngineError, match="PyCUDA: invalid device context"):
        memory.allocate(8)
    assert pycuda.depth == 0
    with pytest.raises(EngineError, match="GPU 1: expected one of 1"):
        PycudaMemory(1)


def test_pycuda_never_makes_a_context_of_its_own(pycuda: PycudaDriver) -> None:
    PycudaMemory()
    assert "pycuda.autoinit" not in sys.modules


class TestChoice:
    @pytest.fixture(autouse=True)
    def _afresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory_module, "_opened", None)

    def test_cuda_python_comes_first(self, cuda: CudaRuntime, pycuda: PycudaDriver) -> None:
        assert open_memory().name == "cuda-python"
        assert open_memory() is open_memory()

    def test_pycuda_where_cuda_python_finds_no_device(
        self, cuda: CudaRuntime, pycuda: PycudaDriver
    ) -> None:
        cuda.devices = -1
        assert open_memory().name == "pycuda"

    def test_pycuda_where_cuda_python_is_not_installed(
        self, pycuda: PycudaDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("cuda.bindings.runtime", "cuda.cudart"):
            _install(monkeypatch, name, None)
        assert open_memory().name == "pycuda"

    def test_none_says_why_each_and_what_to_install(
        self, cuda: CudaRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cuda.devices = -1
        _install(monkeypatch, "pycuda.driver", None)
        with pytest.raises(IncompatibleError) as caught:
            open_memory()
        said = str(caught.value)
        assert "cuda-python: cudaGetDeviceCount: text of cudaErrorInsufficientDriver" in said
        assert "pycuda: " in said
        assert "pip install 'splitrt[pycuda]'" in said
        assert "\n" not in said
