"""What every engine of a TensorRT library holds: the plan, and memory for its tensors.

Not safe across threads: whoever calls holds the session (``Session.use``).
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional

from engines.errors import EngineError
from engines.tensorrt.api import Api, Context, one_line
from engines.tensorrt.session import Session
from engines.tensors import Array

__all__ = ["LoadedPlan"]

logger = logging.getLogger(__name__)


class LoadedPlan:
    """A deserialised plan with its context, device memory and pinned memory.

    Args:
        name: Name for messages.
        api: The library.
        session: What the engines of a backend share; joined.
        runtime: The library's runtime, kept alive.
        engine: The deserialised engine.
        context: What to run it with.
        save_cache: Given the library's runtime cache when all is freed after a run.

    Attributes:
        buffers: Device memory by tensor; freed with the plan.
        pinned: Pinned host memory by tensor; freed with the plan.
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
        save_cache: Optional[Callable[[bytes], None]],
    ) -> None:
        self.api, self.session = api, session
        self.buffers: Dict[str, int] = {}
        self.pinned: Dict[str, Array] = {}
        self._name = name
        self._runtime = runtime
        self._engine = engine
        self._context: Optional[Context] = context
        self._save_cache = save_cache
        self._ran = False
        session.join()

    def __repr__(self) -> str:
        return f"<LoadedPlan {self._name} of {self.api.library}>"

    @property
    def engine(self) -> Any:
        """The deserialised engine."""
        return self._engine

    @property
    def execution(self) -> Any:
        """The library's context."""
        if self._context is None:
            raise AssertionError("a closed engine was run")
        return self._context.execution

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Give errors the engine's name."""
        try:
            yield
        except EngineError as exc:
            raise EngineError(f"engine {self._name!r}: {exc}") from exc
        except Exception as exc:  # TensorRT and CUDA bindings raise errors of every kind
            raise EngineError(f"engine {self._name!r} failed: {one_line(exc)}") from exc

    def bind(self, tensor: str, address: int, *, called: str) -> None:
        """Tell the library where a tensor is.

        Args:
            tensor: The library's name of it.
            address: Where it is.
            called: Its name for messages.
        """
        if not self.execution.set_tensor_address(tensor, address):
            raise EngineError(f"{self.api.library} refused the address of {called!r}")

    def execute(self, stream: int) -> None:
        """Put the computation on the stream."""
        self._ran = True
        with self.api.errors() as errors:
            if not self.execution.execute_async_v3(stream):
                reason = "; ".join(errors) or "it gave no reason"
                raise EngineError(f"{self.api.library} failed: {reason}")

    def give_back(self, free: Callable[[Any], None], what: Any) -> None:
        """Free one thing; where the device fails, the rest must be freed all the same."""
        try:
            free(what)
        except EngineError as exc:
            logger.warning("engine %r: %s", self._name, exc)

    def free(self, stream: int) -> None:
        """Wait for the device, keep the library's cache, and free all but the session."""
        self.give_back(self.session.memory.synchronize, stream)
        if self._save_cache is not None and self._context is not None and self._ran:
            data = self.api.save_cache(self._context)
            if data:
                self._save_cache(data)
        # In this order: the context before its engine, the engine before its runtime.
        self._context = None
        self._engine = None
        self._runtime = None
        for array in self.pinned.values():
            self.give_back(self.session.memory.free_pinned, array)
        self.pinned.clear()
        for address in self.buffers.values():
            self.give_back(self.session.memory.free, address)
        self.buffers.clear()
