"""The run path on a GPU that is lazy and unforgiving. See ``tests/engines/fakes/gpu.py``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineError, TensorMismatchError
from engines.tensorrt.api import Api
from engines.tensorrt.backend import TensorRTBackend, TensorRTOptions, TensorRTRTXBackend
from engines.tensorrt.engine import DeviceTensor, TensorRTEngine, run_chain
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.trt import GENERATIONS, fake_tensorrt, write_graph

X, Y, Z, W = (np.full((2, 3), value, np.float32) for value in (1, 2, 3, 4))
PAIR = [["x", "float32", [2, 3]], ["y", "float32", [2, 3]]]


class Bench:
    """A fake GPU, a fake library and a backend on them."""

    def __init__(self, generation: str, folder: Path, **options: Any) -> None:
        self.memory = FakeMemory(graphs=options.pop("graphs", True))
        self.trt = fake_tensorrt(generation, self.memory)
        kind = TensorRTRTXBackend if generation == "rtx" else TensorRTBackend
        self.backend = kind(
            TensorRTOptions(**options), api=Api(self.trt), memory=lambda: self.memory
        )
        self.folder = folder

    def load(self, inputs: list[Any], outputs: list[Any], **more: Any) -> TensorRTEngine:
        path = write_graph(self.folder / "graph.onnx", inputs, outputs, **more)
        return self.backend.load(self.backend.build(path), folder=self.folder)

    def adder(self, **more: Any) -> TensorRTEngine:
        return self.load(PAIR, [["s", "float32", [2, 3], "add", ["x", "y"]]], **more)

    def doubler(self, source: str = "s", target: str = "d") -> TensorRTEngine:
        return self.load(
            [[source, "float32", [2, 3]]], [[target, "float32", [2, 3], "double", [source]]]
        )

    def count(self, call: str) -> int:
        return self.memory.calls.count(call)


@pytest.fixture(params=GENERATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


@pytest.fixture
def ten(tmp_path: Path) -> Bench:
    return Bench("10", tmp_path)


def test_it_computes_and_the_caller_owns_the_result(bench: Bench) -> None:
    engine = bench.adder()
    assert [str(spec) for spec in engine.inputs] == ["x: float32 [2, 3]", "y: float32 [2, 3]"]
    results = [engine.run({"x": X * i, "y": Y})["s"] for i in range(5)]
    for i, result in enumerate(results):
        assert np.array_equal(result, X * i + Y)
    engine.close()
    assert np.array_equal(results[3], X * 3 + Y)
    assert bench.memory.leaked == 0


def test_booleans_scalars_and_empty_tensors(bench: Bench) -> None:
    engine = bench.load(
        [["x", "float32", []], ["e", "float32", [0, 4]]],
        [["m", "bool", [], "positive", ["x"]], ["f", "float32", [0, 4], "double", ["e"]]],
    )
    given = engine.run({"x": np.asarray(2, np.float32), "e": np.zeros((0, 4), np.float32)})
    assert given["m"].dtype == np.bool_
    assert given["m"].shape == ()
    assert bool(given["m"])
    assert given["f"].shape == (0, 4)
    engine.close()
    assert bench.memory.leaked == 0


def test_one_run_is_two_copies_over_one_execution_one_copy_back_and_one_wait(ten: Bench) -> None:
    engine = ten.adder()
    engine.run({"x": X, "y": Y})
    ten.memory.calls.clear()
    engine.run({"x": X, "y": Y})
    engine.run({"x": X, "y": Y})
    first, second = ten.memory.calls[:7], ten.memory.calls[7:]
    assert first == [
        *("to_device", "to_device", "begin_capture", "end_capture"),
        *("launch", "to_host", "synchronize"),
    ]
    assert second == ["to_device", "to_device", "launch", "to_host", "synchronize"]


def test_buffers_are_allocated_once(bench: Bench) -> None:
    engine = bench.adder()
    engine.run({"x": X, "y": Y})
    before = bench.count("allocate"), bench.count("pinned")
    assert before == (3, 3)
    for _ in range(10):
        engine.run({"x": X, "y": Y})
    assert (bench.count("allocate"), bench.count("pinned")) == before
    assert engine.device_bytes == 3 * 24 + 64


def test_what_does_not_fit_never_reaches_the_device(bench: Bench) -> None:
    engine = bench.adder()
    bench.memory.calls.clear()
    with pytest.raises(
        TensorMismatchError, match=r"'y': expected float32 \[2, 3\], given nothing"
    ):
        engine.run({"x": X})
    with pytest.raises(
        TensorMismatchError, match=r"'y': expected float32 \[2, 3\], given nothing"
    ):
        engine.run_device({"x": X})
    assert bench.memory.calls == []


class TestClosing:
    def test_everything_is_freed_once(self, bench: Bench) -> None:
        engine = bench.adder()
        engine.run({"x": X, "y": Y})
        engine.run({"x": X, "y": Y})
        engine.close()
        engine.close()
        assert bench.memory.leaked == 0
        assert bench.count("free") == 3
        assert bench.count("free_pinned") == 3
        assert bench.count("destroy_stream") == 1

    def test_a_closed_engine_does_not_run(self, bench: Bench) -> None:
        engine = bench.adder()
        engine.close()
        with pytest.raises(EngineError, match="is closed"):
            engine.run({"x": X, "y": Y})
        with pytest.raises(EngineError, match="is closed"):
            engine.run_device({"x": X, "y": Y})

    def test_it_waits_for_what_is_on_the_device(self, bench: Bench) -> None:
        engine = bench.adder()
        engine.run_device({"x": X, "y": Y})
        assert any(bench.memory.streams.values())
        engine.close()  # the fake refuses to free memory that the stream needs
        assert bench.memory.leaked == 0

    def test_the_stream_lives_as_long_as_its_last_engine(self, bench: Bench) -> None:
        first, second = bench.adder(), bench.doubler()
        first.close()
        assert np.array_equal(second.run({"s": X})["d"], X * 2)
        second.close()
        assert bench.memory.leaked == 0
        again = bench.adder()
        assert np.array_equal(again.run({"x": X, "y": Y})["s"], X + Y)
        again.close()

    def test_a_device_that_fails_gets_what_is_left_freed(
        self, ten: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = ten.adder()
        engine.run({"x": X, "y": Y})
        ten.memory.faults = {"free_pinned"}
        engine.close()
        assert "out of luck" in caplog.text
        assert not ten.memory.live
        assert not ten.memory.streams


class TestFailures:
    def test_too_little_memory_leaves_nothing_behind(self, ten: Bench) -> None:
        ten.memory.faults = {"allocate"}
        with pytest.raises(EngineError, match=r"allocate: out of luck"):
            ten.adder()
        assert ten.memory.leaked == 0

    def test_a_context_that_needs_too_much(self, bench: Bench) -> None:
        with pytest.raises(EngineError, match="no memory to run a plan"):
            bench.adder(too_big=True)
        assert bench.memory.leaked == 0

    def test_the_library_fails(self, bench: Bench) -> None:
        engine = bench.adder(fails=True)
        with pytest.raises(EngineError, match=r"engine .*: tensorrt.* failed: illegal memory"):
            engine.run({"x": X, "y": Y})
        engine.close()
        assert bench.memory.leaked == 0

    @pytest.mark.parametrize("call", ["to_device", "to_host", "synchronize", "launch"])
    def test_it_runs_again_after_the_device_failed(self, ten: Bench, call: str) -> None:
        engine = ten.adder()
        for _ in range(2):
            engine.run({"x": X, "y": Y})
        ten.memory.faults = {call}
        with pytest.raises(EngineError, match=f"{call}: out of luck"):
            engine.run({"x": Z, "y": Z})
        ten.memory.faults = set()
        assert np.array_equal(engine.run({"x": X, "y": W})["s"], X + W)
        engine.close()
        assert ten.memory.leaked == 0

    @pytest.mark.parametrize(
        ("inputs", "more", "said"),
        [
            ([["x", "float32", [-1, 3]]], {}, r"'x' has the shape \[-1, 3\]"),
            ([["x", "INT8", [2]]], {"on_host": ["x"]}, "'x' is a shape, read on the host"),
            ([["x", "BF16", [2]]], {}, "'x' has the dtype BF16"),
        ],
    )
    def test_tensors_that_cannot_be_run_with(
        self, ten: Bench, inputs: list[Any], more: dict[str, Any], said: str
    ) -> None:
        plan = b"fakeplan" + _json({"inputs": inputs, "outputs": [], **more})
        with pytest.raises(EngineError, match=said):
            ten.backend.load(plan, folder=ten.folder)
        assert ten.memory.leaked == 0


class TestGraphs:
    def test_the_first_run_is_not_captured_the_second_is(self, ten: Bench) -> None:
        engine = ten.adder()
        for i in range(6):
            assert np.array_equal(engine.run({"x": X * i, "y": Y})["s"], X * i + Y)
        assert ten.count("begin_capture") == 1
        assert ten.count("launch") == 5
        assert len([call for call in ten.trt.calls if call[0] == "execute"]) == 2

    def test_what_cannot_be_captured_runs_without(
        self, ten: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        engine = ten.adder(capturable=False)
        for i in range(4):
            assert np.array_equal(engine.run({"x": X * i, "y": Y})["s"], X * i + Y)
        assert ten.count("begin_capture") == 1
        assert ten.count("launch") == 0
        assert "runs without CUDA graphs" in caplog.text
        engine.close()
        assert ten.memory.leaked == 0

    def test_a_capture_that_the_device_refuses(self, ten: Bench) -> None:
        engine = ten.adder()
        ten.memory.faults = {"end_capture"}
        for i in range(4):
            assert np.array_equal(engine.run({"x": X * i, "y": Y})["s"], X * i + Y)
        assert ten.count("end_capture") == 1

    @pytest.mark.parametrize("options", [{"cuda_graphs": False}, {"graphs": False}])
    def test_they_can_be_off_or_missing(self, tmp_path: Path, options: dict[str, Any]) -> None:
        bench = Bench("11", tmp_path, **options)
        engine = bench.adder()
        for _ in range(3):
            engine.run({"x": X, "y": Y})
        assert bench.count("begin_capture") == 0

    def test_rtx_makes_them_itself(self, tmp_path: Path) -> None:
        bench = Bench("rtx", tmp_path)
        engine = bench.adder()
        for _ in range(3):
            engine.run({"x": X, "y": Y})
        assert bench.count("begin_capture") == 0
        assert engine._plan.execution.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"

    def test_one_graph_for_each_place_of_the_inputs_and_no_more_than_four(
        self, ten: Bench
    ) -> None:
        sources = [ten.adder() for _ in range(6)]
        sink = ten.doubler()
        for round_ in range(4):
            for i, source in enumerate(sources):
                left = source.run_device({"x": X * i, "y": Y * round_})
                given = sink.run_device(left, to_host=["d"])
                assert np.array_equal(given["d"], (X * i + Y * round_) * 2)
        assert len(sink._graphs) == 4
        for engine in [*sources, sink]:
            engine.close()
        assert ten.memory.leaked == 0

    def test_a_graph_that_may_be_running_is_not_destroyed(self, ten: Bench) -> None:
        places = [ten.adder().run_device({"x": X * i, "y": Y}) for i in range(5)]
        sink = ten.doubler()
        for left in places:
            for _ in range(2):  # nothing is waited for
                sink.run_device(left)
        assert len(sink._graphs) == len(sink._warm) == 4
        given = sink.run_device(places[0], to_host=["d"])["d"]
        assert isinstance(given, np.ndarray)
        assert np.array_equal(given, Y * 2)

    def test_places_that_come_once_are_not_remembered_for_ever(self, ten: Bench) -> None:
        sink = ten.doubler()
        for _ in range(150):
            source = ten.adder()
            sink.run_device(source.run_device({"x": X, "y": Y}), to_host=["d"])
            source.close()
        assert len(sink._warm) <= 64


class TestChains:
    def test_only_what_enters_and_leaves_is_copied(self, bench: Bench) -> None:
        add, double, again = bench.adder(), bench.doubler(), bench.doubler("d", "q")
        for i in range(4):
            bench.memory.calls.clear()
            given = run_chain([add, double, again], {"x": X * i, "y": Y}, ["q"])
            assert np.array_equal(given["q"], (X * i + Y) * 4)
            assert bench.count("to_device") == 2
            assert bench.count("to_host") == 1
            assert bench.memory.calls[-1] == "synchronize"
        for engine in (add, double, again):
            engine.close()
        assert bench.memory.leaked == 0

    def test_an_output_in_the_middle_is_given_and_still_used(self, bench: Bench) -> None:
        given = run_chain([bench.adder(), bench.doubler()], {"x": X, "y": Y}, ["s", "d"])
        assert np.array_equal(given["s"], X + Y)
        assert np.array_equal(given["d"], (X + Y) * 2)

    def test_the_results_of_a_chain_equal_those_of_its_engines(self, bench: Bench) -> None:
        add, double = bench.adder(), bench.doubler()
        apart = double.run(add.run({"x": X, "y": Y}))
        together = run_chain([add, double], {"x": X, "y": Y}, ["d"])
        assert np.array_equal(apart["d"], together["d"])

    def test_pinned_memory_is_not_written_before_it_was_read(self, bench: Bench) -> None:
        """Two runs in a row that wait for nothing: the second waits for the first's copies."""
        add, double = bench.adder(), bench.doubler()
        double_again = bench.doubler()
        first = double.run_device(add.run_device({"x": X, "y": Y}))
        second = double_again.run_device(add.run_device({"x": Z, "y": Z}), to_host=["d"])
        assert np.array_equal(second["d"], Z * 4)
        kept = first["d"]
        assert isinstance(kept, DeviceTensor)
        block = bench.memory.read(kept.address, 24).view(np.float32)
        assert np.array_equal(block.reshape(2, 3), (X + Y) * 2)

    def test_a_stale_tensor_is_refused(self, bench: Bench) -> None:
        add, double = bench.adder(), bench.doubler()
        left = add.run_device({"x": X, "y": Y})
        add.run({"x": Z, "y": Z})
        with pytest.raises(EngineError, match="'s' is stale"):
            double.run_device(left)
        left = add.run_device({"x": X, "y": Y})
        add.close()
        with pytest.raises(EngineError, match="'s' is stale"):
            double.run_device(left)

    def test_a_tensor_of_another_backend_is_refused(self, bench: Bench, tmp_path: Path) -> None:
        other = Bench("10", tmp_path)
        with pytest.raises(EngineError, match="another backend"):
            bench.doubler().run_device(other.adder().run_device({"x": X, "y": Y}))

    def test_a_tensor_that_does_not_fit_is_refused(self, bench: Bench) -> None:
        left = bench.load(
            [["x", "float32", [4]]], [["s", "float32", [4], "double", ["x"]]]
        ).run_device({"x": np.ones(4, np.float32)})
        with pytest.raises(EngineError, match=r"'s': expected float32 \[2, 3\], given s: float"):
            bench.doubler().run_device(left)

    def test_an_engine_does_not_read_what_it_writes(self, bench: Bench) -> None:
        engine = bench.doubler("s", "d")
        left = engine.run_device({"s": X})["d"]
        assert isinstance(left, DeviceTensor)
        with pytest.raises(EngineError, match="a buffer that this run writes to"):
            engine.run_device({"s": left})

    def test_an_output_that_nothing_computes(self, bench: Bench) -> None:
        with pytest.raises(EngineError, match=r"does not give \['nothing'\]"):
            run_chain([bench.adder()], {"x": X, "y": Y}, ["s", "nothing"])
        with pytest.raises(EngineError, match=r"no outputs \['nothing'\]"):
            bench.adder().run_device({"x": X, "y": Y}, to_host=["nothing"])

    def test_an_input_that_is_missing(self, bench: Bench) -> None:
        with pytest.raises(TensorMismatchError, match="'y': expected"):
            run_chain([bench.adder()], {"x": X}, ["s"])


class TestThreads:
    def _run_from_many(self, bench: Bench) -> list[str]:
        add, double = bench.adder(), bench.doubler()
        wrong: list[str] = []
        start = threading.Barrier(4)

        def work(number: int) -> None:
            x = np.full((2, 3), number, np.float32)
            start.wait()
            for _ in range(60):
                try:
                    alone = add.run({"x": x, "y": Y})["s"]
                    chained = run_chain([add, double], {"x": x, "y": Y}, ["d"])["d"]
                except Exception as exc:  # noqa: BLE001  whatever a race gives
                    wrong.append(repr(exc))
                    continue
                if not (np.array_equal(alone, x + Y) and np.array_equal(chained, (x + Y) * 2)):
                    wrong.append(f"thread {number} got another's result")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return wrong

    def test_runs_from_several_threads_queue_up(self, bench: Bench) -> None:
        assert self._run_from_many(bench) == []
        assert bench.memory.overlaps == 0

    def test_without_the_lock_the_fake_device_notices(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The test above can fail."""

        class NoLock:
            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None: ...

        bench.adder()
        assert bench.backend._session is not None
        monkeypatch.setattr(bench.backend._session, "lock", NoLock())
        entered, go_on = threading.Event(), threading.Event()
        slow, enqueue = bench.memory.to_device, threading.local()

        def to_device(address: int, host: np.ndarray, stream: int) -> None:
            slow(address, host, stream)
            if getattr(enqueue, "slow", False):
                entered.set()
                go_on.wait(10)

        monkeypatch.setattr(bench.memory, "to_device", to_device)
        engine = bench.adder()
        with contextlib.suppress(EngineError):
            engine.run({"x": X, "y": Y})

        def first() -> None:
            enqueue.slow = True
            with contextlib.suppress(EngineError):
                engine.run({"x": Z, "y": Z})

        thread = threading.Thread(target=first)
        thread.start()
        assert entered.wait(10)
        with contextlib.suppress(EngineError):
            engine.run({"x": X, "y": Y})
        go_on.set()
        thread.join()
        assert bench.memory.overlaps > 0

    def test_a_run_that_has_begun_is_not_closed_under(self, bench: Bench) -> None:
        engine = bench.adder()
        entered, go_on, closed = threading.Event(), threading.Event(), threading.Event()
        given: list[np.ndarray] = []

        class Slow(dict):  # type: ignore[type-arg]
            def get(self, *args: Any) -> Any:
                entered.set()
                go_on.wait(10)
                return super().get(*args)

        def run() -> None:
            given.append(engine.run(Slow(x=X, y=Y))["s"])

        def close() -> None:
            engine.close()
            closed.set()

        threads = [threading.Thread(target=run), threading.Thread(target=close)]
        threads[0].start()
        assert entered.wait(10)
        threads[1].start()
        assert not closed.wait(0.05)
        go_on.set()
        for thread in threads:
            thread.join()
        assert np.array_equal(given[0], X + Y)
        assert bench.memory.leaked == 0

    def test_waiting_queues_up_too(self, bench: Bench) -> None:
        engine = bench.adder()
        engine.run_device({"x": X, "y": Y})
        session = bench.backend._session
        assert session is not None
        with session.lock:
            thread = threading.Thread(target=engine.wait)
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
        thread.join()
        assert not any(bench.memory.streams.values())

    def test_closing_waits_for_a_run(self, bench: Bench) -> None:
        engine = bench.adder()
        session = bench.backend._session
        assert session is not None
        closed = threading.Event()

        def close() -> None:
            engine.close()
            closed.set()

        with session.lock:
            thread = threading.Thread(target=close)
            thread.start()
            assert not closed.wait(0.05)
            assert np.array_equal(engine.run({"x": X, "y": Y})["s"], X + Y)
        thread.join()
        assert bench.memory.leaked == 0


@contextlib.contextmanager
def _without(bench: Bench, call: str) -> Iterator[None]:
    real = getattr(bench.memory, call)
    setattr(bench.memory, call, lambda *_: None)
    try:
        yield
    finally:
        setattr(bench.memory, call, real)


@pytest.mark.parametrize("call", ["to_device", "to_host", "synchronize"])
def test_a_skipped_step_gives_a_wrong_result(bench: Bench, call: str) -> None:
    """The tests above can fail."""
    engine = bench.adder()
    with _without(bench, call):
        given = engine.run({"x": X, "y": Y})["s"]
    assert not np.array_equal(given, X + Y)


def test_memory_that_is_freed_early_is_noticed(bench: Bench) -> None:
    """The tests above can fail."""
    engine = bench.adder()
    engine.run_device({"x": X, "y": Y})
    with bench.memory.current(), pytest.raises(AssertionError, match="while the stream needs it"):
        bench.memory.free(engine._plan.buffers["x"])
    engine.close()
    with bench.memory.current(), pytest.raises(KeyError):
        bench.memory.free(0x1100)


def _json(graph: dict[str, Any]) -> bytes:
    import json

    return json.dumps({"targets": ["sm86"], **graph}).encode()
