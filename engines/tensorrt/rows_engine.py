"""Runs the plan of a striped form: any number of rows within its profile.

Every tensor has device and pinned memory for the most rows that the profile allows, from loading
to ``close``. A run says how many rows its inputs have, copies these over, computes, asks how many
rows came out, and copies those back. Everything is on the session's stream and waited for before
the run returns, so nothing of a run is left on the device. CUDA graphs are not made: they hold for
one height only.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import numpy as np

from engines.errors import EngineError
from engines.rows import RowsEngine, RowsSpec
from engines.tensorrt.api import Api, Context
from engines.tensorrt.loaded_plan import LoadedPlan
from engines.tensorrt.session import Session
from engines.tensors import Array

__all__ = ["TensorRTRowsEngine"]

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
        self._session = session
        self._plan = LoadedPlan(
            *(name, api, session),
            runtime=runtime,
            engine=engine,
            context=context,
            save_cache=save_cache,
        )
        try:
            with self._plan.failures():
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
        memory, plan = self._session.memory, self._plan
        with self._session.use() as stream, plan.failures():
            self._set_shapes({name: array.shape for name, array in inputs.items()})
            shapes = {spec.name: self._shape_of(spec) for spec in self.outputs}
            for name, array in inputs.items():
                place = plan.pinned[name][: array.nbytes]
                place.view(array.dtype).reshape(array.shape)[...] = array
                if array.nbytes:
                    memory.to_device(plan.buffers[name], place, stream)
            plan.execute(stream)
            given: Dict[str, Array] = {}
            for spec in self.outputs:
                given[spec.name] = self._view(spec, shapes[spec.name])
                if given[spec.name].nbytes:
                    place = plan.pinned[spec.name][: given[spec.name].nbytes]
                    memory.to_host(place, plan.buffers[spec.name], stream)
            self._session.wait(stream)
            return {name: view.copy() for name, view in given.items()}

    def _allocate(self) -> None:
        """Take memory for the most rows, and tell the library where it is."""
        most: Dict[str, Shape] = {}
        for spec in self.inputs:
            extents: Any = spec.shape
            if None in spec.shape:
                extents = self._plan.engine.get_tensor_profile_shape(spec.name, 0)[2]
            most[spec.name] = tuple(int(extent) for extent in extents)
        self._set_shapes(most)
        most.update({spec.name: self._shape_of(spec) for spec in self.outputs})
        memory = self._session.memory
        with self._session.use():
            for spec in (*self.inputs, *self.outputs):
                nbytes = _nbytes(spec, most[spec.name])
                self._plan.buffers[spec.name] = memory.allocate(nbytes)
                self._plan.pinned[spec.name] = memory.pinned(nbytes)
                self._plan.bind(spec.name, self._plan.buffers[spec.name], called=spec.name)

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        for spec in self.inputs:
            if None not in spec.shape:
                continue
            shape = shapes[spec.name]
            with self._plan.api.errors() as errors:
                if not self._plan.execution.set_input_shape(spec.name, shape):
                    least, _, most = self._plan.engine.get_tensor_profile_shape(spec.name, 0)
                    reason = f": {'; '.join(errors)}" if errors else ""
                    raise EngineError(
                        f"{spec.name!r}: expected from {list(least)} to {list(most)}, given "
                        f"{list(shape)}{reason}"
                    )

    def _shape_of(self, spec: RowsSpec) -> Shape:
        shape = tuple(int(e) for e in self._plan.execution.get_tensor_shape(spec.name))
        if min(shape, default=0) < 0:
            raise EngineError(
                f"{spec.name!r}: its shape does not follow from the inputs': {shape}"
            )
        return shape

    def _view(self, spec: RowsSpec, shape: Shape) -> Array:
        place = self._plan.pinned[spec.name][: _nbytes(spec, shape)]
        return place.view(np.dtype(spec.dtype)).reshape(shape)

    def _free(self) -> None:
        with self._session.use() as stream:
            self._plan.free(stream)
        self._session.leave()


def _nbytes(spec: RowsSpec, shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
