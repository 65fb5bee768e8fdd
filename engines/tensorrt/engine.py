"""Runs a plan: preallocated buffers, one stream, CUDA graphs, chains that stay on the device.

How a run goes:

1. All engines of a backend share a :class:`Session`: device memory, one stream, one lock. Runs
   from several threads queue up at the lock, since they would write to the same buffers; the
   stream keeps the order of what is put on it, also from one engine of a chain to the next.
2. Every input and output has device memory, and pinned host memory once it crosses over, from the
   first run to ``close``. An input is written to pinned memory, copied over on the stream; the
   engine is enqueued; its outputs are copied to pinned memory on the stream; one synchronisation;
   the caller gets arrays of its own.
3. ``run_device`` leaves outputs on the device as :class:`DeviceTensor`. The next engine reads them
   where they are. They hold until their engine runs again or is closed; using one after that is
   an error, not a wrong result. ``run_chain`` is made of such steps: what enters is copied over
   once, what is wanted is copied back from where it was computed, and all is waited for once.
4. The first run at given addresses is done as it is, since the library allocates in it. The second
   is captured as a CUDA graph; later ones launch it. Where capturing fails, runs go on without.
   A library that makes graphs itself (TensorRT-RTX) is left to it.

Invariant: nothing is freed, and no pinned memory is read or written, while the stream may use it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import numpy as np

from engines.backend import CheckedEngine, Engine
from engines.errors import EngineError
from engines.tensorrt.api import Api, Context, IoTensor
from engines.tensorrt.loaded_plan import LoadedPlan
from engines.tensorrt.session import Session
from engines.tensors import Array, TensorSpec, check_tensors

__all__ = ["DeviceTensor", "TensorRTEngine", "run_chain"]

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 4
"""CUDA graphs that an engine keeps: one for each place where its inputs were found."""

_MOST_PLACES = 64
"""Places that an engine remembers to have run at once."""

Addresses = Tuple[int, ...]


class DeviceTensor(NamedTuple):
    """A tensor that is on the device, in a buffer of the engine that computed or was given it.

    Attributes:
        spec: Its name, dtype and shape.
        address: Where it is.
        engine: Whose buffer it is.
        generation: Which run of that engine it belongs to.
    """

    spec: TensorSpec
    address: int
    engine: TensorRTEngine
    generation: int

    @property
    def stale(self) -> bool:
        """Whether its engine has run again or was closed since."""
        return not self.engine.holds(self.generation)


Given = Union[Array, DeviceTensor]


class TensorRTEngine(CheckedEngine):
    """A plan on the device. It may be run from any thread; runs queue up.

    Args:
        name: Name for messages.
        api: The library.
        session: What the engines of a backend share.
        runtime: The library's runtime, kept alive.
        engine: The deserialised engine.
        context: What to run it with.
        names: The library's name of a tensor -> the name that it goes by; empty for its own.
        graphs: Whether to make CUDA graphs, where the library does not do so itself.
        save_cache: Given the library's runtime cache when the engine is closed.

    Raises:
        EngineError: It has inputs or outputs that cannot be run with, or there is no memory.
    """

    def __init__(
        self,
        name: str,
        api: Api,
        session: Session,
        *,
        runtime: Any,
        engine: Any,
        context: Context,
        names: Optional[Mapping[str, str]] = None,
        graphs: bool = True,
        save_cache: Optional[Callable[[bytes], None]] = None,
    ) -> None:
        tensors, self._own_names = _renamed(api.io_tensors(engine), names or {})
        super().__init__(
            name,
            [tensor.spec for tensor in tensors if tensor.is_input],
            [tensor.spec for tensor in tensors if not tensor.is_input],
        )
        self.scratch_bytes = api.device_memory_bytes(engine)
        self._session = session
        self._graphs_wanted = graphs and session.memory.graphs and not context.captures
        self._host: Dict[str, Array] = {}
        self._bound: Dict[str, int] = {}
        self._warm: Set[Addresses] = set()
        self._graphs: "OrderedDict[Addresses, Any]" = OrderedDict()
        self._generation = 0
        self._put_at: Optional[int] = None
        self._plan = LoadedPlan(
            *(name, api, session),
            runtime=runtime,
            engine=engine,
            context=context,
            save_cache=save_cache,
        )
        try:
            self._allocate()
        except BaseException:
            self._closed = True
            self._free()
            raise

    @property
    def device_bytes(self) -> int:
        """Device memory that this engine took for its tensors and its scratch memory."""
        return sum(s.nbytes for s in self._inputs + self._outputs) + self.scratch_bytes

    def holds(self, generation: int) -> bool:
        """Say whether the outputs of a run are still in the buffers."""
        return not self._closed and generation == self._generation

    def run(self, inputs: Mapping[str, Array]) -> Dict[str, Array]:
        """Check the inputs, compute the outputs, copy them back. See :meth:`Engine.run`."""
        with self._session.lock:  # so that close waits for a run, and a run finds it open or not
            return super().run(inputs)

    def run_device(
        self, inputs: Mapping[str, Given], *, to_host: Collection[str] = ()
    ) -> Dict[str, Given]:
        """Compute the outputs and leave them on the device, but for those of ``to_host``.

        Without ``to_host`` nothing is waited for: what follows on the device is in order.

        Args:
            inputs: Arrays, and tensors that engines of the same backend left on the device.
            to_host: Names of outputs to return as arrays, which the caller owns.

        Raises:
            TensorMismatchError: An input does not fit.
            EngineError: A tensor is stale or of another backend, or the library failed.
        """
        with self._session.lock:
            self._check_open()
            given, there = self._checked(inputs)
            unknown = set(to_host).difference(spec.name for spec in self._outputs)
            if unknown:
                raise EngineError(f"engine {self._name!r} has no outputs {sorted(unknown)}")
            with self._session.use() as stream:
                arrays = self._compute(stream, given, there, tuple(to_host))
            return {**self._left(self._outputs), **arrays}

    def run_chain(
        self,
        following: Sequence[Engine],
        inputs: Mapping[str, Array],
        outputs: Collection[str],
    ) -> Dict[str, Array]:
        """Run a chain that stays on the device. See :meth:`ChainingEngine.run_chain`."""
        return run_chain([self, *following], inputs, outputs)

    def wait(self) -> None:
        """Wait until everything that runs have put on the device is done."""
        with self._session.use() as stream:
            self._session.wait(stream)

    # --- a run ---

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"engine {self._name!r} is closed; load it again to run it")

    def _left(self, specs: Sequence[TensorSpec]) -> Dict[str, DeviceTensor]:
        """Return tensors of the latest run that are in this engine's buffers."""
        return {
            spec.name: DeviceTensor(spec, self._plan.buffers[spec.name], self, self._generation)
            for spec in specs
        }

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        with self._session.use() as stream:
            return self._compute(stream, inputs, {}, [spec.name for spec in self._outputs])

    def _checked(
        self, inputs: Mapping[str, Given]
    ) -> Tuple[Dict[str, Array], Dict[str, DeviceTensor]]:
        """Sort the inputs into arrays and tensors on the device, and check both."""
        where = f"engine {self._name!r}"
        there = {n: t for n, t in inputs.items() if isinstance(t, DeviceTensor)}
        arrays = {n: t for n, t in inputs.items() if not isinstance(t, DeviceTensor)}
        specs = {spec.name: spec for spec in self._inputs}
        for name, tensor in there.items():
            spec = specs.get(name)
            if spec is None or (spec.dtype, spec.shape) != (tensor.spec.dtype, tensor.spec.shape):
                wanted = "no such input" if spec is None else f"{spec.dtype} {list(spec.shape)}"
                raise EngineError(f"{where}: {name!r}: expected {wanted}, given {tensor.spec}")
            if tensor.engine._session is not self._session:
                raise EngineError(f"{where}: {name!r} is on the device of another backend")
            if tensor.engine is self:
                raise EngineError(f"{where}: {name!r} is in a buffer that this run writes to")
            if tensor.stale:
                raise EngineError(
                    f"{where}: {name!r} is stale: {tensor.engine!r} has run again or was closed"
                )
        host = [spec for spec in self._inputs if spec.name not in there]
        return check_tensors(host, arrays, where=where), there

    def _compute(
        self,
        stream: int,
        arrays: Mapping[str, Array],
        there: Mapping[str, DeviceTensor],
        to_host: Sequence[str],
    ) -> Dict[str, Array]:
        """Do a run, and wait for it if something is to return. The session is held."""
        self._put(stream, arrays, there, to_host)
        return self._collect(stream, to_host) if to_host else {}

    def _put(
        self,
        stream: int,
        arrays: Mapping[str, Array],
        there: Mapping[str, DeviceTensor],
        to_host: Sequence[str],
    ) -> None:
        """Put a run on the stream. What is there when this fails is waited for by the next."""
        memory = self._session.memory
        self._generation += 1  # what earlier runs left on the device is overwritten from here on
        with self._plan.failures():
            if arrays:
                # A run that nobody has waited for may not have read pinned memory yet.
                self._settle(stream)
            self._put_at = self._session.waits
            for name, array in arrays.items():
                self._host_view(name)[...] = array
                if array.nbytes:
                    memory.to_device(self._plan.buffers[name], self._plan.pinned[name], stream)
            self._bind(there)
            self._enqueue(stream)
            for name in to_host:
                self._host_view(name)
                if self._plan.pinned[name].nbytes:
                    memory.to_host(self._plan.pinned[name], self._plan.buffers[name], stream)

    def _collect(self, stream: int, names: Sequence[str]) -> Dict[str, Array]:
        """Wait, if nobody has since the latest run, and return what was copied back."""
        with self._plan.failures():
            self._settle(stream)
        return {name: self._host[name].copy() for name in names}

    def _settle(self, stream: int) -> None:
        if self._put_at == self._session.waits:
            self._session.wait(stream)

    def _bind(self, there: Mapping[str, DeviceTensor]) -> None:
        """Tell the library where every tensor is, where that has changed."""
        for spec in self._inputs + self._outputs:
            elsewhere = there.get(spec.name)
            address = self._plan.buffers[spec.name] if elsewhere is None else elsewhere.address
            if self._bound.get(spec.name) != address:
                self._bound.pop(spec.name, None)
                own_name = self._own_names.get(spec.name, spec.name)
                self._plan.bind(own_name, address, called=spec.name)
                self._bound[spec.name] = address

    def _enqueue(self, stream: int) -> None:
        """Put the computation on the stream: as a graph, else as it is."""
        memory = self._session.memory
        place = tuple(self._bound[spec.name] for spec in self._inputs)
        graph = self._graphs.get(place)
        if graph is None and self._graphs_wanted and place in self._warm:
            graph = self._capture(stream, place)
        if graph is not None:
            self._graphs.move_to_end(place)
            memory.launch(graph, stream)
            return
        self._plan.execute(stream)
        if self._graphs_wanted:
            if len(self._warm) == _MOST_PLACES:
                self._warm.clear()
            self._warm.add(place)

    def _capture(self, stream: int, place: Addresses) -> Any:
        """Capture the computation; none, and no graphs from now on, where that fails."""
        memory = self._session.memory
        graph: Any = None
        try:
            memory.begin_capture(stream)
            failed: Optional[EngineError] = None
            try:
                self._plan.execute(stream)
            except EngineError as exc:
                failed = exc
            graph = memory.end_capture(stream)  # in any case: the stream would stay captured
            if failed is not None:
                raise failed
        except EngineError as exc:
            logger.info("engine %r runs without CUDA graphs: %s", self._name, exc)
            self._graphs_wanted = False
            if graph is not None:
                memory.destroy_graph(graph)
            return None
        if len(self._graphs) == _MOST_GRAPHS:
            memory.synchronize(stream)  # the oldest may be running
            place_of_oldest, oldest = self._graphs.popitem(last=False)
            self._warm.discard(place_of_oldest)
            memory.destroy_graph(oldest)
        self._graphs[place] = graph
        return graph

    # --- what it holds ---

    def _allocate(self) -> None:
        with self._session.use():
            for spec in self._inputs + self._outputs:
                self._plan.buffers[spec.name] = self._session.memory.allocate(spec.nbytes)

    def _host_view(self, name: str) -> Array:
        """Return a tensor's pinned memory; made when the tensor first crosses over."""
        if name not in self._host:
            spec = next(s for s in self._inputs + self._outputs if s.name == name)
            self._plan.pinned[name] = self._session.memory.pinned(spec.nbytes)
            self._host[name] = (
                self._plan.pinned[name].view(np.dtype(spec.dtype)).reshape(spec.shape)
            )
        return self._host[name]

    def close(self) -> None:
        """Wait for the device, then free everything; safe to call again."""
        with self._session.lock:
            super().close()

    def _free(self) -> None:
        plan = self._plan
        with self._session.use() as stream:
            plan.give_back(self._session.memory.synchronize, stream)
            for graph in self._graphs.values():
                plan.give_back(self._session.memory.destroy_graph, graph)
            self._graphs.clear()
            self._host.clear()
            plan.free(stream)
        self._session.leave()


def _renamed(
    tensors: Sequence[IoTensor], names: Mapping[str, str]
) -> Tuple[List[IoTensor], Dict[str, str]]:
    """Return tensors by the names that they go by, and the library's name of each of those.

    Raises:
        EngineError: The names are not those of the plan's tensors.
    """
    own = [tensor.spec.name for tensor in tensors]
    if names and sorted(names) != sorted(own):
        raise EngineError(
            f"a named plan: expected names for {', '.join(sorted(own))}, given "
            f"{', '.join(sorted(names))}; build it again"
        )
    renamed = [
        IoTensor(TensorSpec(names.get(t.spec.name, t.spec.name), t.spec.dtype, t.spec.shape), t[1])
        for t in tensors
    ]
    return renamed, {name: known for known, name in names.items()}


def run_chain(
    engines: Sequence[Engine], inputs: Mapping[str, Array], outputs: Collection[str]
) -> Dict[str, Array]:
    """Run engines one after another; only ``inputs`` and ``outputs`` cross over, each once.

    Args:
        engines: Engines of one backend, each once, in an order in which each finds its inputs.
        inputs: Arrays by name; there may be more than the chain takes.
        outputs: Names of the tensors to return; arrays that the caller owns.

    Raises:
        TensorMismatchError: An input does not fit or is missing.
        EngineError: An engine failed, or an output is computed by none of them.
    """
    chain = [engine for engine in engines if isinstance(engine, TensorRTEngine)]
    if not chain or len(chain) < len(engines):
        raise AssertionError(f"a chain of {[type(engine).__name__ for engine in engines]}")
    maker = {spec.name: engine for engine in chain for spec in engine.outputs}
    missing = sorted(set(outputs).difference(maker))
    if missing:
        raise EngineError(f"a chain of {len(chain)} engines does not give {missing}")
    session = chain[0]._session
    with session.lock:  # another run between two engines would overwrite buffers
        for engine in chain:
            engine._check_open()
        known: Dict[str, Given] = dict(inputs)
        with session.use() as stream:
            for engine in chain:
                own = {spec.name: known[spec.name] for spec in engine.inputs if spec.name in known}
                arrays, there = engine._checked(own)
                engine._put(stream, arrays, there, [n for n in outputs if maker[n] is engine])
                entered = [spec for spec in engine.inputs if spec.name in arrays]
                known.update(engine._left((*entered, *engine._outputs)))
            given: Dict[str, Array] = {}
            for engine in reversed(chain):  # the last waits for all
                given.update(engine._collect(stream, [n for n in outputs if maker[n] is engine]))
    return {name: given[name] for name in outputs}
