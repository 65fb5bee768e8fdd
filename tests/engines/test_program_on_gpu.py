"""A program on the fake GPU: what crosses over, what stays there, and who gets which answer."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from engines.backend import Engine
from engines.bundle import Bundle
from engines.errors import EngineError
from engines.program import Program
from engines.tensorrt.api import Api
from engines.tensorrt.backend import TensorRTBackend, TensorRTOptions, TensorRTRTXBackend
from engines.tensorrt.engine import TensorRTEngine
from tests.engines.fakes.bundle import FACTORS, FRONTIERS, SHAPE, write_fake_bundle
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.trt import GENERATIONS, fake_tensorrt

LAST = len(FRONTIERS) - 1
SPANS = [(a, b) for a in range(LAST + 1) for b in range(a + 1, LAST + 1)]
X = np.arange(6, dtype=np.float32).reshape(SHAPE)


class Gpu:
    """A fake GPU and a backend on it."""

    def __init__(self, generation: str) -> None:
        self.memory = FakeMemory()
        self.trt = fake_tensorrt(generation, self.memory)
        kind = TensorRTRTXBackend if generation == "rtx" else TensorRTBackend
        self.backend = kind(TensorRTOptions(), api=Api(self.trt), memory=lambda: self.memory)

    def count(self, call: str) -> int:
        return self.memory.calls.count(call)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_fake_bundle(tmp_path_factory.mktemp("fake") / "fake.bundle")


@pytest.fixture(params=GENERATIONS)
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return Gpu(request.param)


def right(names: "list[str]", x: np.ndarray = X) -> "dict[str, np.ndarray]":
    return {name: x * FACTORS[name] for name in names}


def same(given: "dict[str, np.ndarray]", wanted: "dict[str, np.ndarray]") -> bool:
    return set(given) == set(wanted) and all(np.array_equal(given[n], wanted[n]) for n in wanted)


def known_at(stop: int) -> "list[str]":
    """The frontier of a cut, and the outputs known by then."""
    return sorted({*FRONTIERS[stop], *(["c"] if stop >= 3 else [])})


@pytest.mark.parametrize("span", SPANS)
def test_only_frontiers_and_outputs_cross_over_each_once(
    fake: Bundle, gpu: Gpu, span: tuple[int, int]
) -> None:
    start, stop = span
    with Program(fake, gpu.backend, fuse=False) as program:
        given = right(known_at(start))
        taken = {name for i in range(start, stop) for name in fake.manifest.segments[i].inputs}
        made = {name for i in range(start, stop) for name in fake.manifest.segments[i].outputs}
        for turn in range(4):
            gpu.memory.calls.clear()
            assert same(program.run(given, start, stop), right(known_at(stop))), turn
            assert gpu.count("to_device") == len(taken & set(given))
            assert gpu.count("to_host") == len(made & set(known_at(stop)))
            assert gpu.count("synchronize") == 1, "one wait, at the end"
            assert gpu.memory.calls[-1] == "synchronize"
    assert gpu.memory.leaked == 0


def test_the_chain_on_the_device_equals_the_chain_through_the_host(
    fake: Bundle, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_spans() -> "dict[tuple[int, int], dict[str, np.ndarray]]":
        with Program(fake, Gpu("10").backend, fuse=False) as program:
            return {span: program.run(right(known_at(span[0])), *span) for span in SPANS}

    there = all_spans()
    monkeypatch.delattr(TensorRTEngine, "run_chain")
    through_host = all_spans()
    for span in SPANS:
        assert same(there[span], through_host[span]), span


def test_a_span_of_one_segment_is_no_chain(
    fake: Bundle, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a chain of one")

    monkeypatch.setattr(TensorRTEngine, "run_chain", refuse)
    with Program(fake, gpu.backend, fuse=False) as program:
        assert same(program.run(right(["x"]), 0, 1), right(["a", "x"]))


def test_the_fused_half_takes_over_and_gives_the_same(fake: Bundle, gpu: Gpu) -> None:
    with Program(fake, gpu.backend) as program:
        chained = program.run(right(["x"]), fused=False)
        assert program.load_half(0, LAST)
        assert same(program.run(right(["x"]), fused=True), chained)


def test_two_threads_running_one_program_get_their_own_answers(fake: Bundle, gpu: Gpu) -> None:
    wrong: list[str] = []
    start = threading.Barrier(2)
    with Program(fake, gpu.backend, fuse=False) as program:

        def work(number: int) -> None:
            start.wait()
            for turn in range(60):
                x = np.full(SHAPE, number * 1000 + turn, np.float32)
                cut = turn % LAST
                try:
                    env = program.run({"x": x}, 0, cut)
                    outputs = program.outputs(program.run(env, cut))
                except Exception as exc:  # noqa: BLE001  whatever a race gives
                    wrong.append(repr(exc))
                    continue
                if not same(outputs, right(["c", "d"], x)):
                    wrong.append(f"thread {number}, turn {turn}: another's answer")

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert gpu.memory.overlaps == 0
    assert gpu.memory.leaked == 0


def test_a_buffer_that_another_run_overwrote_is_found(
    fake: Bundle, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment runs by itself between two of a chain, as it would without the lock."""
    with Program(fake, gpu.backend, fuse=False) as program:
        first, second = (program._segments[i] for i in (0, 1))
        assert isinstance(second, TensorRTEngine)
        put = second._put

        def intrude(*arguments: Any) -> None:
            first.run({"x": X + 1})
            put(*arguments)

        monkeypatch.setattr(second, "_put", intrude)
        with pytest.raises(EngineError, match="'a' is stale"):
            program.run(right(["x"]))
        monkeypatch.undo()
        assert same(program.outputs(program.run(right(["x"]))), right(["c", "d"]))


def test_a_buffer_that_is_freed_under_a_chain_is_found(
    fake: Bundle, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Program(fake, gpu.backend, fuse=False) as program:
        first, second = (program._segments[i] for i in (0, 1))
        assert isinstance(first, TensorRTEngine)
        assert isinstance(second, TensorRTEngine)
        put = second._put

        def free_early(*arguments: Any) -> None:
            put(*arguments)
            gpu.memory.free(first._plan.buffers["a"])

        monkeypatch.setattr(second, "_put", free_early)
        with pytest.raises(AssertionError, match="while the stream needs it"):
            program.run(right(["x"]))
        monkeypatch.undo()
        assert same(program.outputs(program.run(right(["x"]))), right(["c", "d"]))


def test_a_chain_with_a_closed_segment_says_so_and_puts_nothing_on_the_device(
    fake: Bundle, gpu: Gpu
) -> None:
    with Program(fake, gpu.backend, fuse=False) as program:
        program._segments[2].close()
        gpu.memory.calls.clear()
        with pytest.raises(EngineError, match="is closed"):
            program.run(right(["x"]))
        assert gpu.memory.calls == []


def test_a_chain_runs_again_after_the_device_failed_within_it(fake: Bundle, gpu: Gpu) -> None:
    with Program(fake, gpu.backend, fuse=False) as program:
        for call in ("to_device", "to_host", "synchronize"):
            program.run(right(["x"]))
            gpu.memory.faults = {call}
            with pytest.raises(EngineError, match=f"{call}: out of luck"):
                program.run(right(["x"], X + 5))
            gpu.memory.faults = set()
            outputs = program.outputs(program.run(right(["x"])))
            assert same(outputs, right(["c", "d"])), call
    assert gpu.memory.leaked == 0


def test_inference_goes_on_while_a_half_is_deserialised(
    fake: Bundle, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    with Program(fake, gpu.backend) as program:
        create = gpu.backend.api.create_context

        def slow(*arguments: Any, **options: Any) -> Any:
            entered.set()
            assert go_on.wait(30)
            return create(*arguments, **options)

        monkeypatch.setattr(gpu.backend.api, "create_context", slow)
        try:
            program.run(right(["x"]))  # asks for the half
            assert entered.wait(30)
            done: list[bool] = []

            def run() -> None:
                outputs = program.outputs(program.run(right(["x"])))
                done.append(same(outputs, right(["c", "d"])))

            thread = threading.Thread(target=run)
            thread.start()
            thread.join(30)
            assert done == [True], "an inference waited for the half"
        finally:
            go_on.set()
    assert gpu.memory.overlaps == 0
    assert gpu.memory.leaked == 0


def test_an_evicted_half_gives_its_memory_back(fake: Bundle, gpu: Gpu) -> None:
    with Program(fake, gpu.backend, fuse=False) as program:
        before = len(gpu.memory.live)
        program.load_half(0, LAST)
        assert len(gpu.memory.live) > before
        program.keep_chained([(0, LAST)])
        assert len(gpu.memory.live) == before


def test_engines_without_run_chain_pass_arrays_on(fake: Bundle) -> None:
    gpu = Gpu("11")

    class Plain:
        """An engine of some other backend."""

        def __init__(self, engine: Engine) -> None:
            self.inputs, self.outputs = engine.inputs, engine.outputs
            self.run, self.close = engine.run, engine.close

    with Program(fake, gpu.backend, fuse=False) as program:
        program._segments = {i: Plain(e) for i, e in program._segments.items()}  # type: ignore[misc]
        gpu.memory.calls.clear()
        assert same(program.outputs(program.run(right(["x"]))), right(["c", "d"]))
        assert gpu.count("synchronize") == 4
