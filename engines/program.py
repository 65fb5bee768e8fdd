"""A bundle's model loaded on one backend, runnable between any two of its cuts.

How a run from cut ``a`` to cut ``b`` is carried out:

1. Every segment has an engine, loaded at the start, so that every cut works at once.
2. A run from ``a`` to ``b`` chains the segments that ``b`` has on the robot and ``a`` has not, in
   their order. (Cuts need not be nested; a run that would go back is an error.) It keeps an
   environment of tensors by name, and drops each after the last segment that takes it. Engines
   that know how to (``run_chain``) keep what is between them where it is, as on a GPU.
3. A fused half (head, tail or the whole graph in one engine) is mostly faster than its chain,
   since a backend fuses and lays out operators across segments. The first run of a half loads
   the fused engine in the background, runs it once, and uses the chain meanwhile: a new cut never
   waits for a load. Halves of which a measurement says that they do not pay (``keep_chained``),
   and those that have no plan, stay chains.
4. At most ``max_halves`` fused engines are kept; the one unused for longest goes first, and is
   closed when the last run that uses it is done.

Invariant: ``run`` gives the same tensors, up to the backend's rounding, whichever way it went.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Tuple,
)

from engines.abort import check_abort
from engines.backend import Backend, Engine
from engines.bundle import Bundle
from engines.errors import EngineError
from engines.fused import FusedHalves
from engines.halves import Span, half_file
from engines.tensors import Array, check_tensors

__all__ = ["Program"]

Step = Tuple[int, Tuple[str, ...]]
"""Index of a segment, and the tensors that nothing takes after it."""


class Program:
    """Runs a bundle's model, or the part of it between two cuts. Safe across threads.

    Args:
        bundle: An opened bundle.
        backend: What the engines run on.
        fuse: Load fused halves in the background once a cut is used; else always chain.
        max_halves: Fused engines kept at once.
        only: Indices of the segments to load, with all that they depend on, where memory does not
            allow for more; a run that needs another fails. All by default.
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
        only: Optional[Collection[int]] = None,
        progress: Optional[Callable[[int, int], None]] = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.last = len(bundle.manifest.cuts) - 1
        self._outputs = {spec.name for spec in bundle.manifest.outputs}
        self._before = [set(cut.robot_segments) for cut in bundle.manifest.cuts]
        self._steps: Dict[Span, List[Step]] = {}
        wanted = set(range(len(bundle.manifest.segments)) if only is None else only)
        self._segments: Dict[int, Engine] = {}
        for segment in bundle.manifest.segments:
            if segment.index in wanted:
                self._segments[segment.index] = self._load(segment.file)
                if progress is not None:
                    progress(len(self._segments), len(wanted))
        self._halves = FusedHalves(
            bundle.manifest.name,
            lambda span: self._half_file(span) is not None,
            lambda span: self._load(self._half_file(span) or ""),
            fuse=fuse,
            most=max_halves,
        )

    @property
    def loaded(self) -> Tuple[int, ...]:
        """Indices of the segments that can run here, ascending."""
        return tuple(self._segments)

    def __repr__(self) -> str:
        return (
            f"<Program {self.bundle.manifest.name} on {self.backend.name}: "
            f"{len(self._segments)} segments, {len(self._halves.spans)} fused halves>"
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        tensors: Mapping[str, Array],
        start: int = 0,
        stop: Optional[int] = None,
        *,
        fused: Optional[bool] = None,
    ) -> Dict[str, Array]:
        """Compute from cut ``start`` to cut ``stop``.

        Args:
            tensors: The frontier of cut ``start`` (the model's inputs for 0) by name; the model's
                outputs that were computed before it may be there too and are passed on.
            start: Index of the first cut.
            stop: Index of the last cut; none for the end of the model.
            fused: Run on the fused half, which ``load_half`` has loaded, or on the chain; by
                default on the half where it is loaded and pays.

        Returns:
            The frontier of cut ``stop``, and every output of the model known by then. The
            caller owns the arrays; those that were passed in are the same objects.

        Raises:
            TensorMismatchError: A tensor of the frontier does not fit.
            EngineError: The backend failed.
            Aborted: It was given up (``engines.abort``).
        """
        stop = self.last if stop is None else stop
        steps = self._steps_of((start, stop))
        env = self._checked(tensors, start)
        if start == stop:
            return env
        keep = self._outputs.union(self.bundle.manifest.cuts[stop].tensors)
        with self._halves.borrow((start, stop), fused) as half:
            if half is not None:
                env.update(half.run({spec.name: env[spec.name] for spec in half.inputs}))
            else:
                self._run_steps(steps, env, keep)
        return {name: array for name, array in env.items() if name in keep}

    def frontiers(self, inputs: Mapping[str, Array]) -> Iterator[Tuple[int, Dict[str, Array]]]:
        """Run the chain once and yield every cut's index with what the robot has there.

        Cuts come in the order in which their last segment runs. What is yielded holds the
        frontier of the cut and the outputs known by then, as ``run`` from 0 would give it.

        Raises:
            TensorMismatchError: An input does not fit.
            EngineError: The backend failed.
        """
        cuts = self.bundle.manifest.cuts
        env = self._checked(inputs, 0)
        due = sorted(cuts, key=lambda cut: (max(cut.robot_segments, default=-1), cut.index))
        ran = -1
        for place, cut in enumerate(due):
            for index in range(ran + 1, max(cut.robot_segments, default=-1) + 1):
                env.update(self.run_segment(index, env))
                ran = index
            wanted = self._outputs.difference(cut.results).union(cut.tensors)
            yield cut.index, {name: env[name] for name in wanted if name in env}
            later = {name for other in due[place + 1 :] for name in other.tensors}
            for segment in self.bundle.manifest.segments[ran + 1 :]:
                later.update(segment.inputs)
            env = {n: a for n, a in env.items() if n in later or n in self._outputs}

    def run_segment(self, index: int, tensors: Mapping[str, Array]) -> Dict[str, Array]:
        """Run one segment by itself; ``tensors`` may hold more than it takes."""
        engine = self._engine(index)
        return engine.run({spec.name: tensors[spec.name] for spec in engine.inputs})

    def outputs(self, env: Mapping[str, Array]) -> Dict[str, Array]:
        """Pick the model's outputs out of what ``run`` gave, in the model's order."""
        return {spec.name: env[spec.name] for spec in self.bundle.manifest.outputs}

    def load_half(self, start: int, stop: int) -> bool:
        """Load the fused engine of a half now, whether it pays or not.

        Returns:
            Whether there is such a half, with a plan where the backend takes plans.

        Raises:
            EngineError: The backend refused it, or the program is closed.
            DigestError: Its plan is damaged.
        """
        return self._halves.load((start, stop), warm=False)

    def prepare(self, start: int, stop: int) -> None:
        """Load the fused engine of a half now, if runs are to use it. See :meth:`load_half`."""
        if self._halves.pays((start, stop)):
            self._halves.load((start, stop), warm=True)

    def keep_chained(self, spans: Iterable[Span]) -> None:
        """Run these halves as chains from now on: their fused engines were measured not to pay.

        What is loaded of them is freed. It replaces what was said before.
        """
        self._halves.keep_chained(spans)

    def close(self) -> None:
        """Stop loading in the background and free every engine; safe to call again."""
        self._halves.stop()
        for engine in self._segments.values():
            engine.close()
        self._halves.close()

    def _checked(self, tensors: Mapping[str, Array], start: int) -> Dict[str, Array]:
        cut = self.bundle.manifest.cuts[start]
        passed_on = {n: a for n, a in tensors.items() if n in self._outputs - set(cut.tensors)}
        frontier = {n: a for n, a in tensors.items() if n not in passed_on}
        specs = self.bundle.manifest.specs(cut.tensors)
        where = f"model {self.bundle.manifest.name!r}, cut {cut.id}"
        env = check_tensors(specs, frontier, where=where)
        env.update(passed_on)
        return env

    def _engine(self, index: int) -> Engine:
        engine = self._segments.get(index)
        if engine is None:
            raise EngineError(
                f"segment {index} of model {self.bundle.manifest.name!r} is not loaded here: the "
                "bundle was compiled for a robot whose memory does not hold the whole model"
            )
        return engine

    def _steps_of(self, span: Span) -> List[Step]:
        """Return the segments of a span, each with the tensors that are spent after it."""
        known = self._steps.get(span)
        if known is not None:
            return known
        start, stop = span
        in_range = 0 <= start <= self.last and 0 <= stop <= self.last
        if not in_range or not self._before[start] <= self._before[stop]:
            raise AssertionError(f"run from cut {start} to cut {stop} of {self.last}")
        manifest = self.bundle.manifest
        order = sorted(self._before[stop] - self._before[start])
        needed = self._outputs.union(manifest.cuts[stop].tensors)
        steps: List[Step] = []
        for index in reversed(order):
            segment = manifest.segments[index]
            touched = set(segment.inputs + segment.outputs)
            steps.append((index, tuple(sorted(touched - needed))))
            needed |= set(segment.inputs)
        self._steps[span] = steps[::-1]
        return self._steps[span]

    def _run_steps(self, steps: List[Step], env: Dict[str, Array], keep: Collection[str]) -> None:
        """Run a chain of segments on ``env`` and put what is to be kept into it."""
        engines = [self._engine(index) for index, _ in steps]
        run_chain: Any = getattr(engines[0], "run_chain", None)
        if run_chain is not None and len(engines) > 1:
            made = [spec.name for engine in engines for spec in engine.outputs]
            env.update(run_chain(engines[1:], env, [name for name in made if name in keep]))
            return
        for engine, (_, spent) in zip(engines, steps):
            check_abort()
            env.update(engine.run({spec.name: env[spec.name] for spec in engine.inputs}))
            for name in spent:
                env.pop(name, None)

    def _half_file(self, span: Span) -> Optional[str]:
        if any(index not in self._segments for index, _ in self._steps_of(span)):
            return None
        return half_file(self.bundle.manifest, span)

    def _load(self, file: str) -> Engine:
        path = self.bundle.path(file)
        try:
            return self.backend.load(self.backend.build(path), folder=path.parent)
        except EngineError as exc:
            raise type(exc)(f"{PurePosixPath(file).name}: {exc}") from exc
