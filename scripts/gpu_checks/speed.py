"""Steps ``speed`` and ``copies``: what segments, chains, fused halves and copies take.

Every time is a median over up to 200 runs after 5 others, in this process, of one inference at a
time, with the host waiting for the stream after each run. ``copies`` is a transfer between pinned
memory and the device; ``segments`` have their inputs on the device, and leave their outputs there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.backend import Engine
from engines.bundle import Bundle
from engines.errors import EngineError, IncompatibleError
from engines.manifest import Cut
from engines.tensorrt.backend import TensorRTBackend
from engines.tensorrt.engine import TensorRTEngine, run_chain
from engines.tensorrt.memory import DeviceMemory
from engines.tensors import Array
from scripts.gpu_checks.bundles import bundle_of
from scripts.gpu_checks.kit import NO_GPU, Kit, OutOfTimeError
from scripts.gpu_checks.parity import build_plan, expected_tensors, loaded_chain
from scripts.gpu_checks.records import Row, Timing

__all__ = ["COPIES", "measure", "time_bundle", "time_copies"]

COPIES = (1 << 16, 1 << 20, 1 << 24)
"""Bytes of the copies: an activation late in a network, one early in it, and a batch of images."""

_WARMUP = 5
_LEAST_RUNS = 5
_SECONDS = 1.0
"""Longest that one time is taken over, once it has its least runs."""

_HALVES = 2
"""Cuts between the ends at which chain and fused half are compared."""


def time_bundle(kit: Kit, step: str, subject: str, backend_name: str) -> Row:
    """Time a model's segments, and chain against fused halves, with CUDA graphs and without."""
    backend = kit.backend(backend_name)
    if kit.no_gpu:
        raise IncompatibleError(f"nothing is timed: {NO_GPU}")
    bundle = bundle_of(subject, kit.work)
    tensors = expected_tensors(bundle)
    timings: list[Timing] = []
    said: list[str] = []
    with loaded_chain(bundle, _loader(kit, backend, backend_name)) as loaded:
        engines = [_on_gpu(engine) for engine in loaded]
        segments = _segments(kit, bundle, engines, tensors)
        timings += segments
        slowest = max(segments, key=lambda t: t.p50_ms)
        said.append(
            f"{len(segments)} segments, sum {sum(t.p50_ms for t in segments):.3f} ms, slowest "
            f"{slowest.what} {slowest.p50_ms:.3f} ms"
        )
        for title, cut, side, file in _halves(bundle):
            if kit.budget.left_s <= 0:
                raise OutOfTimeError(f"timed so far: {'; '.join(said)}")
            chain = _time_chain(kit, f"{title}, chain", bundle, engines, cut, side, tensors)
            fused = _time_fused(kit, f"{title}, fused", backend, backend_name, file, tensors)
            timings += [chain, fused]
            said.append(f"{title}: chain {chain.p50_ms:.3f} ms, fused {fused.p50_ms:.3f} ms")
    plain = kit.backend(backend_name, cuda_graphs=False)
    whole = bundle.path(bundle.manifest.graph)
    without = _time_fused(kit, "whole, no CUDA graph", plain, backend_name, whole, tensors)
    with_graph = next(t for t in timings if t.what == "whole, fused")
    timings.append(without)
    said.append(
        f"whole: with CUDA graph {with_graph.p50_ms:.3f} ms, without {without.p50_ms:.3f} ms"
        + ("" if kit.memory().graphs or backend.api.is_rtx else " (the provider has no graphs)")
    )
    return Row(
        step=step,
        subject=subject,
        backend=backend_name,
        status="ok",
        said="; ".join(said),
        timings=tuple(timings),
    )


def time_copies(kit: Kit, step: str, memory: DeviceMemory) -> Row:
    """Time copies both ways through a provider of device memory, and check what arrives."""
    timings: list[Timing] = []
    said: list[str] = []
    for size in COPIES:
        with _transfer(memory, size) as (up, down):
            there = measure(f"{size} bytes to the device", up, kit, until="stream", nbytes=size)
            back = measure(f"{size} bytes to the host", down, kit, until="stream", nbytes=size)
        timings += [there, back]
        rates = [size / max(t.p50_ms, 1e-6) / 1e6 for t in (there, back)]
        said.append(
            f"{size >> 10} KiB: there {there.p50_ms:.3f} ms ({rates[0]:.1f} GB/s), "
            f"back {back.p50_ms:.3f} ms ({rates[1]:.1f} GB/s)"
        )
    return Row(
        step=step,
        subject="pinned memory",
        backend=memory.name,
        status="ok",
        said="; ".join(said),
        timings=tuple(timings),
    )


def measure(
    what: str, call: Callable[[], Any], kit: Kit, *, until: str, nbytes: int = 0
) -> Timing:
    """Time a call that returns when its work is done.

    Args:
        what: For the record.
        call: What to time.
        kit: Its number of runs and its budget bound the time.
        until: What the call waits with, for the record.
        nbytes: Bytes that it copies, for the record.
    """
    for _ in range(_WARMUP):
        call()
    samples: list[float] = []
    end = time.perf_counter() + min(_SECONDS, max(kit.budget.left_s, 0.0))
    while len(samples) < kit.runs and (len(samples) < _LEAST_RUNS or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
    p50, p95 = np.percentile(samples, [50, 95])
    return Timing(
        what=what,
        p50_ms=round(float(p50), 4),
        p95_ms=round(float(p95), 4),
        runs=len(samples),
        warmup=_WARMUP,
        until=until,
        bytes=nbytes,
    )


@contextlib.contextmanager
def _transfer(
    memory: DeviceMemory, size: int
) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Give a copy to the device and one back; at the end, check that bytes came back."""
    with memory.current(), contextlib.ExitStack() as held:
        stream = memory.create_stream()
        held.callback(memory.destroy_stream, stream)
        address = memory.allocate(size)
        held.callback(memory.free, address)
        source, target = memory.pinned(size), memory.pinned(size)
        held.callback(memory.free_pinned, source)
        held.callback(memory.free_pinned, target)
        source[:] = np.arange(size, dtype=np.uint32).astype(np.uint8)
        target[:] = 0

        def up() -> None:
            memory.to_device(address, source, stream)
            memory.synchronize(stream)

        def down() -> None:
            memory.to_host(target, address, stream)
            memory.synchronize(stream)

        yield up, down
        if not np.array_equal(source, target):
            raise EngineError(f"{memory.name}: {size} bytes came back changed")


def _segments(
    kit: Kit, bundle: Bundle, engines: Sequence[TensorRTEngine], tensors: dict[str, Array]
) -> list[Timing]:
    """Time each segment by itself, its inputs where the segment before it left them."""
    there: dict[str, Any] = {spec.name: tensors[spec.name] for spec in bundle.manifest.inputs}
    timings: list[Timing] = []
    for segment, engine in zip(bundle.manifest.segments, engines, strict=True):
        if kit.budget.left_s <= 0:
            raise OutOfTimeError(f"{len(timings)} of {len(engines)} segments timed")
        given = {spec.name: there[spec.name] for spec in engine.inputs}

        def run(engine: TensorRTEngine = engine, given: dict[str, Any] = given) -> Any:
            left = engine.run_device(given)
            engine.wait()
            return left

        operators = "+".join(segment.operators[:3]) + ("..." if segment.operators[3:] else "")
        what = f"segment {segment.index} ({operators})"
        timings.append(measure(what, run, kit, until="stream"))
        there.update(run())
    return timings


def _halves(bundle: Bundle) -> Iterator[tuple[str, Cut | None, str, Path]]:
    """Give the whole graph, and head and tail of a few cuts spread over the model."""
    yield "whole", None, "head", bundle.path(bundle.manifest.graph)
    cuts = [cut for cut in bundle.manifest.cuts[1:-1] if cut.head and cut.tail]
    places = {len(cuts) * (n + 1) // (_HALVES + 1) for n in range(_HALVES)} if cuts else set()
    for place in sorted(places):
        cut = cuts[place]
        yield f"head of cut {cut.index}", cut, "head", bundle.path(str(cut.head))
        yield f"tail of cut {cut.index}", cut, "tail", bundle.path(str(cut.tail))


def _time_chain(
    kit: Kit,
    what: str,
    bundle: Bundle,
    engines: Sequence[TensorRTEngine],
    cut: Cut | None,
    side: str,
    tensors: dict[str, Array],
) -> Timing:
    """Time the segments of a half, with nothing but its ends copied."""
    everything = range(len(engines))
    results = tuple(spec.name for spec in bundle.manifest.outputs)
    mine = set(everything if cut is None else cut.robot_segments)
    if cut is not None and side == "tail":
        mine = set(everything) - mine
    if cut is not None:
        results = cut.results if side == "tail" else cut.tensors
    run = [engines[place] for place in sorted(mine)]
    made = {spec.name for engine in run for spec in engine.outputs}
    taken = {spec.name for engine in run for spec in engine.inputs} - made
    given = {name: tensors[name] for name in taken}
    wanted = [name for name in results if name in made]
    return measure(what, lambda: run_chain(run, given, wanted), kit, until="outputs on the host")


def _time_fused(
    kit: Kit,
    what: str,
    backend: TensorRTBackend,
    backend_name: str,
    file: Path,
    tensors: dict[str, Array],
) -> Timing:
    """Time one engine of a whole half."""
    engine = _loader(kit, backend, backend_name)(file)
    try:
        given = {spec.name: tensors[spec.name] for spec in engine.inputs}
        return measure(what, lambda: engine.run(given), kit, until="outputs on the host")
    finally:
        engine.close()


def _loader(kit: Kit, backend: TensorRTBackend, name: str) -> Callable[[Path], Engine]:
    return lambda path: backend.load(build_plan(kit, name, path).data, folder=path.parent)


def _on_gpu(engine: Engine) -> TensorRTEngine:
    if not isinstance(engine, TensorRTEngine):
        raise AssertionError(f"{engine!r} is not on a GPU")
    return engine
