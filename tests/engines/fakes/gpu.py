"""A GPU of NumPy arrays that is as lazy and as unforgiving as a real one.

What is put on a stream is done when the stream is synchronised, not before: a missing wait, a
skipped copy or a wrong order gives wrong results, as it does on a GPU. New memory holds rubbish.
Memory that is freed while something on a stream may need it, freed twice or used after that, calls
without a current context, and two threads with the stream at once are errors.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Callable

import numpy as np

from engines.errors import EngineError
from engines.tensorrt.memory import DeviceInfo

RUBBISH = 0xCD
Work = Callable[[], None]


class FakeMemory:
    """Implements DeviceMemory."""

    name = "fake"

    def __init__(self, *, graphs: bool = True, capability: str = "sm86") -> None:
        self.device = DeviceInfo("Fake GPU", capability, 1 << 30)
        self.graphs = graphs
        self.calls: list[str] = []
        self.live: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.live_graphs: set[int] = set()
        self.faults: set[str] = set()
        self.overlaps = 0
        self._flying: set[int] = set()
        self._next = 0x1000
        self._here = threading.local()
        self._inside: set[int] = set()
        self._guard = threading.Lock()

    # --- what tests look at ---

    @property
    def leaked(self) -> int:
        return len(self.live) + len(self.host) + len(self.streams) + len(self.live_graphs)

    def read(self, address: int, nbytes: int) -> np.ndarray:
        block = self.live.get(address)
        assert block is not None, f"device memory {address:#x} is not there"
        assert nbytes <= block.nbytes, "read beyond the end of device memory"
        return block[:nbytes]

    def enqueue(self, stream: int, work: Work) -> None:
        assert stream in self.streams, f"stream {stream} is not there"
        self._touched()
        self.capturing.get(stream, self.streams[stream]).append(work)

    # --- DeviceMemory ---

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            yield
        finally:
            self._here.depth -= 1
            if not self._here.depth:
                with self._guard:
                    self._inside.discard(threading.get_ident())

    def allocate(self, nbytes: int) -> int:
        self._called("allocate")
        address = self._address()
        self.live[address] = np.full(max(nbytes, 1), RUBBISH, np.uint8)
        return address

    def free(self, address: int) -> None:
        self._called("free")
        self._idle("device memory")
        self.live.pop(address).fill(RUBBISH)

    def pinned(self, nbytes: int) -> np.ndarray:
        self._called("pinned")
        array = np.full(max(nbytes, 1), RUBBISH, np.uint8)
        self.host[array.ctypes.data] = array
        return array[:nbytes]

    def free_pinned(self, array: np.ndarray) -> None:
        self._called("free_pinned")
        self._idle("pinned memory")
        self.host.pop(array.ctypes.data).fill(RUBBISH)

    def create_stream(self) -> int:
        self._called("create_stream")
        stream = self._address()
        self.streams[stream] = []
        return stream

    def synchronize(self, stream: int) -> None:
        self._called("synchronize")
        if stream in self.capturing:
            raise EngineError("synchronised while capturing")
        queue = self.streams[stream]
        while queue:
            queue.pop(0)()
        self._flying.clear()

    def destroy_stream(self, stream: int) -> None:
        self._called("destroy_stream")
        self._idle("a stream")
        del self.streams[stream]

    def to_device(self, address: int, host: np.ndarray, stream: int) -> None:
        self._called("to_device")
        assert host.ctypes.data in self.host, "copied from memory that is not pinned"

        def copy() -> None:
            self.read(address, host.nbytes)[...] = host

        self.enqueue(stream, copy)

    def to_host(self, host: np.ndarray, address: int, stream: int) -> None:
        self._called("to_host")
        assert host.ctypes.data in self.host, "copied to memory that is not pinned"

        def copy() -> None:
            host[...] = self.read(address, host.nbytes)

        self.enqueue(stream, copy)

    def begin_capture(self, stream: int) -> None:
        self._called("begin_capture")
        assert self.graphs
        self.capturing[stream] = []

    def end_capture(self, stream: int) -> tuple[int, list[Work]]:
        recorded = self.capturing.pop(stream)
        self._called("end_capture")
        graph = self._address()
        self.live_graphs.add(graph)
        return graph, recorded

    def launch(self, graph: tuple[int, list[Work]], stream: int) -> None:
        self._called("launch")
        assert graph[0] in self.live_graphs, "a graph that was destroyed is launched"
        self._flying.add(graph[0])
        for work in graph[1]:
            self.enqueue(stream, work)

    def destroy_graph(self, graph: tuple[int, list[Work]]) -> None:
        self._called("destroy_graph")
        assert graph[0] not in self._flying, "a graph was destroyed while the stream needs it"
        self.live_graphs.remove(graph[0])

    def _called(self, name: str) -> None:
        assert getattr(self._here, "depth", 0), f"{name} without a current context"
        self.calls.append(name)
        if name != "allocate":
            self._touched()
        if name in self.faults:
            raise EngineError(f"{name}: out of luck (CUDA error 2)")

    def _touched(self) -> None:
        """Note who has the stream, from its first call to the end of its ``current``."""
        me = threading.get_ident()
        with self._guard:
            if self._inside - {me}:
                self.overlaps += 1
            self._inside.add(me)

    def _idle(self, what: str) -> None:
        assert not any(self.streams.values()), f"{what} was freed while the stream needs it"

    def _address(self) -> int:
        self._next += 0x100
        return self._next
