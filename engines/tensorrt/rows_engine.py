"""Runs the plan of a striped form: any number of rows within its profile.

Every tensor has device and pinned memory for the most rows that the profile allows, from loading
to ``close``. A run says how many rows its inputs have, copies these over, computes, asks how many
rows came out, and copies those back. Everything is on the session's stream and waited for before
the run returns, so nothing of a run is left on the device. CUDA graphs are not made: they hold for
one height only.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

import numpy as np

from engines.errors import EngineError
from engines.rows import RowsEngine, RowsSpec
from engines.tensorrt.api import Api, Context, one_line
from engines.tensorrt.session import Session
from engines.tensors import Array

__all__ = ["TensorRTRowsEngine"]

logger = logging.getLogger(__name__)

Shape = Tuple[int, ...]


class TensorRTRowsEngine(RowsEngine):
    """A striped form on the device. It may be run from any thread; runs queue up.

    Args:
        name: Name for messages.
        api: The library.
        session: What the engines of a backend share.
        runtime: The library's runtime, kept alive.
        engine: The deserialised engine.
        context: What to run it with.
        save_cache: Given the library's runtime cache when the engine is closed.

    Raises:
        EngineError: It has no profile of rows, tensors that cannot be run with, or there is no
            memory.
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
        save_cache: Optional[Callable[[bytes], None]] = None,
    ) -> None:
        tensors = api.rows_tensors(engine)
        super().__init__(
            name,
            [spec for spec, is_input in tensors if is_input],
            [spec for spec, is_input in tensors if not is_input],
        )
        if not any(None in spec.shape for spec in self.inputs):
            raise EngineError(f"engine {name!r}: expected a plan of a striped form, given another")
        self._api = api
        self._session = session
        self._runtime = runtime
        self._engine = engine
        self._context: Optional[Context] = context
        self._save_cache = save_cache
        self._ran = False
        self._buffers: Dict[str, int] = {}
        self._pinned: Dict[str, Array] = {}
        session.join()
        try:
            with self._failures():
                self._allocate()
        except EngineError:
            self.close()
            raise

    def run(self, inputs: Mapping[str, Array]) -> Dict[str, Array]:
        """Check the inputs, compute, copy back. See :meth:`RowsEngine.run`."""
        with self._session.lock:  # so that close waits for a run, and a run finds it open or not
            return super().run(inputs)

    def close(self) -> None:
        """Wait for the device, then free everything; safe to call again."""
        with self._session.lock:
            super().close()

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        memory, execution = self._session.memory, self._execution
        with self._session.use() as stream, self._failures():
            self._set_shapes({name: array.shape for name, array in inputs.items()})
            shapes = {spec.name: self._shape_of(spec) for spec in self.outputs}
            for name, array in inputs.items():
                place = self._pinned[name][: array.nbytes]
                place.view(array.dtype).reshape(array.shape)[...] = array
                if array.nbytes:
                    memory.to_device(self._buffers[name], place, stream)
            self._ran = True
            with self._api.errors() as errors:
                if not execution.execute_async_v3(stream):
                    reason = "; ".join(errors) or "it gave no reason"
                    raise EngineError(f"{self._api.library} failed: {reason}")
            given: Dict[str, Array] = {}
            for spec in self.outputs:
                given[spec.name] = self._view(spec, shapes[spec.name])
                if given[spec.name].nbytes:
                    place = self._pinned[spec.name][: given[spec.name].nbytes]
                    memory.to_host(place, self._buffers[spec.name], stream)
            self._session.wait(stream)
            return {name: view.copy() for name, view in given.items()}

    def _allocate(self) -> None:
        """Take memory for the most rows, and tell the library where it is."""
        most: Dict[str, Shape] = {}
        for spec in self.inputs:
            extents: Any = spec.shape
            if None in spec.shape:
                extents = self._engine.get_tensor_profile_shape(spec.name, 0)[2]
            most[spec.name] = tuple(int(extent) for extent in extents)
        self._set_shapes(most)
        most.update({spec.name: self._shape_of(spec) for spec in self.outputs})
        memory = self._session.memory
        with self._session.use():
            for spec in (*self.inputs, *self.outputs):
                nbytes = _nbytes(spec, most[spec.name])
                self._buffers[spec.name] = memory.allocate(nbytes)
                self._pinned[spec.name] = memory.pinned(nbytes)
                if not self._execution.set_tensor_address(spec.name, self._buffers[spec.name]):
                    raise EngineError(f"{self._api.library} refused the address of {spec.name!r}")

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        for spec in self.inputs:
            if None not in spec.shape:
                continue
            shape = shapes[spec.name]
            with self._api.errors() as errors:
                if not self._execution.set_input_shape(spec.name, shape):
                    least, _, most = self._engine.get_tensor_profile_shape(spec.name, 0)
                    reason = f": {'; '.join(errors)}" if errors else ""
                    raise EngineError(
                        f"{spec.name!r}: expected from {list(least)} to {list(most)}, given "
                        f"{list(shape)}{reason}"
                    )

    def _shape_of(self, spec: RowsSpec) -> Shape:
        shape = tuple(int(e) for e in self._execution.get_tensor_shape(spec.name))
        if min(shape, default=0) < 0:
            raise EngineError(
                f"{spec.name!r}: its shape does not follow from the inputs': {shape}"
            )
        return shape

    def _view(self, spec: RowsSpec, shape: Shape) -> Array:
        place = self._pinned[spec.name][: _nbytes(spec, shape)]
        return place.view(np.dtype(spec.dtype)).reshape(shape)

    @property
    def _execution(self) -> Any:
        if self._context is None:
            raise AssertionError("a closed engine was run")
        return self._context.execution

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Give errors this engine's name."""
        try:
            yield
        except EngineError as exc:
            raise EngineError(f"engine {self._name!r}: {exc}") from exc
        except Exception as exc:  # TensorRT and CUDA bindings raise errors of every kind
            raise EngineError(f"engine {self._name!r} failed: {one_line(exc)}") from exc

    def _free(self) -> None:
        memory = self._session.memory
        with self._session.use() as stream:
            self._give_back(memory.synchronize, stream)
            if self._save_cache is not None and self._context is not None and self._ran:
                data = self._api.save_cache(self._context)
                if data:
                    self._save_cache(data)
            # In this order: the context before its engine, the engine before its runtime.
            self._context = None
            self._engine = None
            self._runtime = None
            for array in self._pinned.values():
                self._give_back(memory.free_pinned, array)
            self._pinned.clear()
            for address in self._buffers.values():
                self._give_back(memory.free, address)
            self._buffers.clear()
        self._session.leave()

    def _give_back(self, free: Callable[[Any], None], what: Any) -> None:
        """Free one thing; where the device fails, the rest must be freed all the same."""
        try:
            free(what)
        except EngineError as exc:
            logger.warning("engine %r: %s", self._name, exc)


def _nbytes(spec: RowsSpec, shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
