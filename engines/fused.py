"""The fused halves of a program: loaded in the background, lent to runs, evicted, closed.

1. Who runs a span asks with ``borrow``. It gets the fused engine if that is loaded; else it is put
   on the list of what one background thread loads, and the chain must do meanwhile.
2. A half is run once before it is lent: the first run of an engine may compile or allocate.
3. An engine that is evicted is closed when the last run that borrowed it is done.
4. What cannot be loaded, what has no plan and what does not pay stays a chain. The first two are
   said once, and asked for once.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import Callable, FrozenSet, Iterable, Iterator, List, Optional, Set, Tuple

import numpy as np

from engines.backend import Engine
from engines.errors import EngineError, MissingPlanError, SplitError
from engines.halves import Span

__all__ = ["FusedHalves"]

logger = logging.getLogger(__name__)


class _Half:
    """A fused engine, and how many runs are using it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.users = 0
        self.evicted = False


class FusedHalves:
    """Holds fused engines by span. Safe across threads.

    Args:
        name: The model's name, for messages.
        exists: Says whether there is a fused half of a span.
        load: Loads it.
        fuse: Load in the background what runs ask for.
        most: Engines kept at once.
    """

    def __init__(
        self,
        name: str,
        exists: Callable[[Span], bool],
        load: Callable[[Span], Engine],
        *,
        fuse: bool,
        most: int,
    ) -> None:
        self._name = name
        self._exists = exists
        self._load = load
        self._fuse = fuse
        self._most = most
        self._lock = threading.Lock()
        self._halves: "OrderedDict[Span, _Half]" = OrderedDict()
        self._refused: Set[Span] = set()
        self._chained: FrozenSet[Span] = frozenset()
        self._wanted: "queue.Queue[Optional[Span]]" = queue.Queue()
        self._pending: Set[Span] = set()
        self._loader: Optional[threading.Thread] = None
        self._closed = False

    @property
    def spans(self) -> Tuple[Span, ...]:
        """What is loaded, the one unused for longest first."""
        with self._lock:
            return tuple(self._halves)

    def pays(self, span: Span) -> bool:
        """Say whether runs are to use this half, as far as is known."""
        return self._fuse and span not in self._chained

    @contextmanager
    def borrow(self, span: Span, fused: Optional[bool]) -> Iterator[Optional[Engine]]:
        """Give the engine to run a span on, kept open meanwhile; none for the chain.

        Args:
            span: What is run.
            fused: Whether it must be the half, which is loaded, or must not; none to give it if it
                is loaded and pays, and to ask for it if it is not.
        """
        half = None if fused is False else self._take(span, ask=fused is None)
        if half is None:
            if fused:
                raise AssertionError(f"run on the half {span}, which is not loaded")
            yield None
            return
        try:
            yield half.engine
        finally:
            with self._lock:
                half.users -= 1
                done = half.evicted and not half.users
            if done:
                half.engine.close()

    def load(self, span: Span, *, warm: bool) -> bool:
        """Load a half now. See :meth:`engines.program.Program.load_half`.

        Args:
            span: Which.
            warm: Run it once before it is lent.
        """
        if not self._exists(span):
            return False
        with self._lock:
            self._check_open()
            if span in self._halves:
                return True
        try:
            engine = self._load(span)
        except MissingPlanError as exc:
            self._refuse(span, exc, logging.INFO)
            return False
        unused: List[Optional[Engine]] = [engine]
        try:
            if warm:
                engine.run({s.name: np.zeros(s.shape, s.dtype) for s in engine.inputs})
            with self._lock:
                self._check_open()
                if warm and span in self._chained:  # it was measured meanwhile
                    return False
                if span not in self._halves:
                    self._halves[span] = _Half(engine)
                    unused.clear()
                self._halves.move_to_end(span)
                while len(self._halves) > self._most:
                    unused.append(self._evict(next(iter(self._halves))))
        finally:
            _close(unused)
        return True

    def keep_chained(self, spans: Iterable[Span]) -> None:
        """Lend none of these halves from now on, and free what is loaded of them."""
        with self._lock:
            self._chained = frozenset(spans)
            unused = [self._evict(span) for span in self._chained.intersection(self._halves)]
        _close(unused)

    def stop(self) -> None:
        """Load nothing any more, and wait for what is being loaded; safe to call again."""
        with self._lock:
            self._closed = True
            loader, self._loader = self._loader, None
        if loader is not None:
            self._wanted.put(None)
            loader.join()

    def close(self) -> None:
        """Stop, and free every engine; safe to call again."""
        self.stop()
        with self._lock:
            engines = [half.engine for half in self._halves.values()]
            self._halves.clear()
        _close(engines)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"model {self._name!r} is closed")

    def _take(self, span: Span, *, ask: bool) -> Optional[_Half]:
        """Count a run in if the half is loaded; else have it loaded, if it was to be asked for."""
        with self._lock:
            if ask and span in self._chained:
                return None
            half = self._halves.get(span)
            if half is not None:
                self._halves.move_to_end(span)
                half.users += 1
                return half
            skip = span in self._refused or span in self._pending
            if skip or self._closed or not self._fuse or not ask or not self._exists(span):
                return None
            self._pending.add(span)
            if self._loader is None:
                self._loader = threading.Thread(
                    target=self._load_wanted, name="splitrt-load-halves", daemon=True
                )
                self._loader.start()
        self._wanted.put(span)
        return None

    def _evict(self, span: Span) -> Optional[Engine]:
        """Take a half out; returns its engine to be closed, unless a run does so when done."""
        half = self._halves.pop(span)
        half.evicted = True
        return None if half.users else half.engine

    def _refuse(self, span: Span, why: SplitError, level: int) -> None:
        """Note that a half stays a chain, and say so once."""
        with self._lock:
            known = span in self._refused
            self._refused.add(span)
        if not known:
            logger.log(level, "half %s stays a chain of segments: %s", span, why)

    def _load_wanted(self) -> None:
        while True:
            span = self._wanted.get()
            if span is None:
                return
            try:
                if span not in self._chained:
                    self.load(span, warm=True)
            except SplitError as exc:
                if self._closed:
                    return
                self._refuse(span, exc, logging.WARNING)
            finally:
                with self._lock:
                    self._pending.discard(span)


def _close(engines: Iterable[Optional[Engine]]) -> None:
    for engine in engines:
        if engine is not None:
            engine.close()
