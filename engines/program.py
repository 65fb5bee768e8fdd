"""A bundle's model loaded on one backend, runnable between any two of its cuts.

How a run from cut ``a`` to cut ``b`` is carried out:

1. Every segment has an engine, loaded at the start, so that every cut works at once.
2. A run chains the segments from ``a`` to ``b``. It keeps an environment of tensors by name;
   after segment ``i`` only the frontier of cut ``i + 1`` and the model's outputs stay in it.
3. A fused half (head, tail or the whole graph in one engine) is faster than its chain, since a
   backend fuses and lays out operators across segments. The first run of a half loads the fused
   engine in the background and uses the chain meanwhile: a new cut never waits for a load.
4. At most ``max_halves`` fused engines are kept; the one unused for longest goes first. A run
   that is using it finishes with it.

Invariant: ``run`` gives the same tensors, up to the backend's rounding, whichever way it went.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple

from engines.backend import Backend, Engine
from engines.bundle import Bundle
from engines.errors import EngineError
from engines.tensors import Array, check_tensors

__all__ = ["Program"]

logger = logging.getLogger(__name__)

Span = Tuple[int, int]
"""Indices of the first and the last cut of a run."""


class Program:
    """Runs a bundle's model, or the part of it between two cuts. Safe across threads.

    Args:
        bundle: An opened bundle.
        backend: What the engines run on.
        fuse: Load fused halves in the background once a cut is used; else always chain.
        max_halves: Fused engines kept at once.
        progress: Called with (segments loaded, segments in all) while loading.

    Raises:
        EngineError: A segment cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        fuse: bool = True,
        max_halves: int = 6,
        progress: Optional[Callable[[int, int], None]] = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.last = len(bundle.manifest.cuts) - 1
        self._fuse = fuse
        self._max_halves = max_halves
        self._lock = threading.Lock()
        self._halves: "OrderedDict[Span, Engine]" = OrderedDict()
        self._refused: Set[Span] = set()
        self._wanted: "queue.Queue[Optional[Span]]" = queue.Queue()
        self._pending: Set[Span] = set()
        self._loader: Optional[threading.Thread] = None
        self._closed = False
        self._outputs = {spec.name for spec in bundle.manifest.outputs}
        self._keep: List[Set[str]] = [
            set(cut.tensors) | self._outputs for cut in bundle.manifest.cuts
        ]
        segments = bundle.manifest.segments
        self._segments: List[Engine] = []
        for segment in segments:
            self._segments.append(self._load(segment.file))
            if progress is not None:
                progress(len(self._segments), len(segments))

    def __repr__(self) -> str:
        return (
            f"<Program {self.bundle.manifest.name} on {self.backend.name}: "
            f"{len(self._segments)} segments, {len(self._halves)} fused halves>"
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, tensors: Mapping[str, Array], start: int = 0, stop: Optional[int] = None
    ) -> Dict[str, Array]:
        """Compute from cut ``start`` to cut ``stop``.

        Args:
            tensors: The frontier of cut ``start`` (the model's inputs for 0) by name; the model's
                outputs that were computed before it may be there too and are passed on.
            start: Index of the first cut.
            stop: Index of the last cut; none for the end of the model.

        Returns:
            The frontier of cut ``stop``, and every output of the model known by then. The
            caller owns the arrays; those that were passed in are the same objects.

        Raises:
            TensorMismatchError: A tensor of the frontier does not fit.
            EngineError: The backend failed.
        """
        stop = self.last if stop is None else stop
        if not 0 <= start <= stop <= self.last:
            raise AssertionError(f"run from cut {start} to cut {stop} of {self.last}")
        env = self._checked(tensors, start)
        if start == stop:
            return env
        half = self._half((start, stop))
        if half is not None:
            env.update(half.run({spec.name: env[spec.name] for spec in half.inputs}))
        else:
            for index in range(start, stop):
                engine = self._segments[index]
                env.update(engine.run({spec.name: env[spec.name] for spec in engine.inputs}))
                env = {n: a for n, a in env.items() if n in self._keep[index + 1]}
        return {name: array for name, array in env.items() if name in self._keep[stop]}

    def run_segment(self, index: int, tensors: Mapping[str, Array]) -> Dict[str, Array]:
        """Run one segment by itself; ``tensors`` may hold more than it takes."""
        engine = self._segments[index]
        return engine.run({spec.name: tensors[spec.name] for spec in engine.inputs})

    def outputs(self, env: Mapping[str, Array]) -> Dict[str, Array]:
        """Pick the model's outputs out of what ``run`` gave, in the model's order."""
        return {spec.name: env[spec.name] for spec in self.bundle.manifest.outputs}

    def load_half(self, start: int, stop: int) -> bool:
        """Load the fused engine of a half now. Returns whether there is such a half.

        Raises:
            EngineError: The backend refused it, or the program is closed.
        """
        span = (start, stop)
        file = self._half_file(span)
        if file is None:
            return False
        with self._lock:
            self._check_open()
            if span in self._halves:
                return True
        engine = self._load(file)
        with self._lock:
            self._check_open()
            self._halves[span] = engine
            self._halves.move_to_end(span)
            while len(self._halves) > self._max_halves:
                self._halves.popitem(last=False)
        return True

    def close(self) -> None:
        """Stop loading in the background and free every engine; safe to call again."""
        with self._lock:
            self._closed = True
            loader, self._loader = self._loader, None
        if loader is not None:
            self._wanted.put(None)
            loader.join()
        with self._lock:
            engines = [*self._segments, *self._halves.values()]
            self._halves.clear()
        for engine in engines:
            engine.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"model {self.bundle.manifest.name!r} is closed")

    def _checked(self, tensors: Mapping[str, Array], start: int) -> Dict[str, Array]:
        cut = self.bundle.manifest.cuts[start]
        passed_on = {n: a for n, a in tensors.items() if n in self._outputs - set(cut.tensors)}
        frontier = {n: a for n, a in tensors.items() if n not in passed_on}
        specs = self.bundle.manifest.specs(cut.tensors)
        where = f"model {self.bundle.manifest.name!r}, cut {cut.id}"
        env = check_tensors(specs, frontier, where=where)
        env.update(passed_on)
        return env

    def _half(self, span: Span) -> Optional[Engine]:
        """Return the fused engine of a span if it is loaded; else ask for it."""
        with self._lock:
            engine = self._halves.get(span)
            if engine is not None:
                self._halves.move_to_end(span)
                return engine
            skip = span in self._refused or span in self._pending
            skip = skip or self._closed or not self._fuse
            if skip or self._half_file(span) is None:
                return None
            self._pending.add(span)
            if self._loader is None:
                self._loader = threading.Thread(
                    target=self._load_wanted, name="splitrt-load-halves", daemon=True
                )
                self._loader.start()
        self._wanted.put(span)
        return None

    def _half_file(self, span: Span) -> Optional[str]:
        manifest = self.bundle.manifest
        start, stop = span
        if stop - start < 2:  # a single segment is its own fused half
            return None
        if span == (0, self.last):
            return manifest.graph
        if start == 0:
            return manifest.cuts[stop].head
        return manifest.cuts[start].tail if stop == self.last else None

    def _load_wanted(self) -> None:
        while True:
            span = self._wanted.get()
            if span is None:
                return
            try:
                self.load_half(*span)
            except EngineError as exc:
                if self._closed:
                    return
                logger.warning("half %s stays a chain of segments: %s", span, exc)
                with self._lock:
                    self._refused.add(span)
            finally:
                with self._lock:
                    self._pending.discard(span)

    def _load(self, file: str) -> Engine:
        path = self.bundle.path(file)
        try:
            return self.backend.load(self.backend.build(path), folder=path.parent)
        except EngineError as exc:
            raise type(exc)(f"{PurePosixPath(file).name}: {exc}") from exc
