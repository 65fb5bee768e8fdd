from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from calibration.parity import seeded_inputs
from engines.backend import BackendOptions, Engine, open_backend
from engines.bundle import Bundle
from engines.errors import EngineError, TensorMismatchError
from engines.ort import OrtBackend, OrtEngine
from engines.program import Program
from tests.toy import FRONTIERS, toy_outputs

LAST = len(FRONTIERS) - 1
PAIRS = [(start, stop) for start in range(LAST + 1) for stop in range(start, LAST + 1)]
Tensors = dict[str, np.ndarray]


def _threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def _wait_for_half(program: Program, span: tuple[int, int]) -> None:
    until = time.monotonic() + 30
    while span not in program._halves.spans:
        assert time.monotonic() < until, f"half {span} was never loaded"
        time.sleep(0.005)


class SlowBackend(OrtBackend):
    """Loads fused halves only when it is let."""

    def __init__(self, halves: bool = True) -> None:
        super().__init__(BackendOptions(threads=1))
        self.gate = threading.Event()
        self.loads: list[int] = []
        self.broken = not halves

    def load(self, plan: bytes, *, folder: Path) -> Engine:
        self.loads.append(len(plan))
        if len(self.loads) > LAST:
            assert self.gate.wait(30)
            if self.broken:
                raise EngineError("out of memory")
        return super().load(plan, folder=folder)


@pytest.mark.parametrize("backend", ["ort", "reference"])
@pytest.mark.parametrize("fused", [False, True])
def test_every_two_cuts_give_what_numpy_gives(
    toy: Bundle, inputs: Tensors, expected: Tensors, backend: str, fused: bool
) -> None:
    with Program(toy, open_backend(backend), fuse=False, max_halves=99) as program:
        if fused:
            for start, stop in PAIRS:
                program.load_half(start, stop)
        for start, stop in PAIRS:
            env = program.run(inputs, 0, start)
            middle = program.run(env, start, stop)
            assert set(middle) >= set(FRONTIERS[stop])
            assert set(middle) <= set(FRONTIERS[stop]) | {"pooled", "logits"}
            outputs = program.outputs(program.run(middle, stop, LAST))
            assert list(outputs) == ["pooled", "logits"]
            for name, array in expected.items():
                np.testing.assert_allclose(outputs[name], array, atol=1e-5, err_msg=str(start))


def test_chain_and_fused_half_agree_at_every_cut(toy: Bundle, inputs: Tensors) -> None:
    backend = open_backend("ort")
    with Program(toy, backend, fuse=False) as chain, Program(toy, backend, fuse=False) as fused:
        for start, stop in PAIRS:
            env = chain.run(inputs, 0, start)
            if not fused.load_half(start, stop):
                continue
            a, b = chain.run(env, start, stop), fused.run(env, start, stop)
            assert set(a) == set(b), (start, stop)
            for name in a:
                np.testing.assert_allclose(a[name], b[name], atol=1e-5)


def test_a_wrong_chain_would_be_noticed(program: Program, inputs: Tensors) -> None:
    """The negative control of the tests above: another input gives another output."""
    other = program.outputs(program.run({"x": inputs["x"] + 0.1}))
    expected = toy_outputs(inputs)
    assert np.abs(other["logits"] - expected["logits"]).max() > 1e-3


def test_a_run_between_one_cut_and_itself_returns_the_same_arrays(
    program: Program, inputs: Tensors
) -> None:
    assert program.run(inputs, 0, 0)["x"] is inputs["x"]


def test_known_outputs_are_passed_on(program: Program, inputs: Tensors) -> None:
    env = program.run(inputs, 0, 6)
    assert set(env) == {"flat", "pooled"}
    assert program.run(env, 6, LAST)["pooled"] is env["pooled"]


def test_wrong_frontiers_are_refused_by_the_cuts_name(
    toy: Bundle, program: Program, inputs: Tensors
) -> None:
    env = program.run(inputs, 0, 3)
    cut = toy.manifest.cuts[3].id
    with pytest.raises(TensorMismatchError, match=f"cut {cut}: 'm': expected bool.*nothing"):
        program.run({"b": env["b"]}, 3)
    with pytest.raises(TensorMismatchError, match=r"'m': expected bool .* given uint8"):
        program.run({**env, "m": env["m"].astype(np.uint8)}, 3)
    with pytest.raises(TensorMismatchError, match="'x': not an input here"):
        program.run({**env, **inputs}, 3)
    with pytest.raises(TensorMismatchError, match="'x': expected float32"):
        program.run({"x": inputs["x"][:, :, :8]})


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, LAST + 1)])
def test_a_span_outside_the_model_is_a_bug(
    program: Program, inputs: Tensors, span: tuple[int, int]
) -> None:
    with pytest.raises(AssertionError):
        program.run(inputs, *span)


def test_one_segment_runs_by_itself(program: Program, inputs: Tensors) -> None:
    env = program.run(inputs, 0, 3)
    assert set(program.run_segment(3, {**env, **inputs})) == {"z"}


def test_progress_is_told_for_every_segment(toy: Bundle) -> None:
    told: list[tuple[int, int]] = []
    with Program(toy, open_backend("ort"), progress=lambda *at: told.append(at)):
        assert told == [(i, LAST) for i in range(1, LAST + 1)]


class TestFusing:
    def test_the_chain_answers_while_the_half_loads_then_the_half_does(
        self, toy: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        backend = SlowBackend()
        with Program(toy, backend) as program:
            try:
                for _ in range(3):
                    outputs = program.outputs(program.run(inputs))
                    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)
                assert not program._halves.spans
            finally:
                backend.gate.set()
            _wait_for_half(program, (0, LAST))
            assert len(backend.loads) == LAST + 1, "asked for once, loaded once"
            used: list[object] = []
            half = program._halves._halves[0, LAST].engine
            run = half.run
            half.run = lambda tensors: (used.append(1), run(tensors))[1]  # type: ignore[method-assign]
            outputs = program.outputs(program.run(inputs))
            np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)
            assert used

    def test_a_half_that_cannot_be_loaded_stays_a_chain_and_is_asked_for_once(
        self, toy: Bundle, inputs: Tensors, expected: Tensors, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = SlowBackend(halves=False)
        backend.gate.set()
        with Program(toy, backend) as program:
            program.run(inputs)
            until = time.monotonic() + 30
            while "stays a chain" not in caplog.text:
                assert time.monotonic() < until
                time.sleep(0.005)
            for _ in range(3):
                outputs = program.outputs(program.run(inputs))
                np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)
            assert len(backend.loads) == LAST + 1

    def test_without_fusing_nothing_is_loaded(self, toy: Bundle, inputs: Tensors) -> None:
        with Program(toy, open_backend("ort"), fuse=False) as program:
            program.run(inputs)
            assert program._halves._loader is None

    def test_the_half_unused_for_longest_goes_first(self, toy: Bundle, inputs: Tensors) -> None:
        with Program(toy, open_backend("ort"), fuse=False, max_halves=2) as program:
            assert program.load_half(0, 2)
            assert program.load_half(0, 3)
            program.run(inputs, 0, 2)
            assert program.load_half(0, 4)
            assert program._halves.spans == ((0, 2), (0, 4))

    def test_an_evicted_half_finishes_its_run_and_is_closed_then(
        self, toy: Bundle, inputs: Tensors
    ) -> None:
        with Program(toy, open_backend("ort"), fuse=False, max_halves=1) as program:
            program.load_half(0, 3)
            with program._halves.borrow((0, 3), fused=None) as half:
                assert isinstance(half, OrtEngine)
                assert program.load_half(0, 4)
                assert program._halves.spans == ((0, 4),)
                assert set(half.run(inputs)) == {"b", "m"}
            with pytest.raises(EngineError, match="closed"):
                half.run(inputs)

    def test_an_evicted_half_that_nobody_uses_is_closed_at_once(self, toy: Bundle) -> None:
        with Program(toy, open_backend("ort"), fuse=False, max_halves=1) as program:
            program.load_half(0, 3)
            half = program._halves._halves[0, 3].engine
            program.load_half(0, 4)
            assert "closed" in repr(half)

    def test_a_half_that_does_not_pay_stays_a_chain_and_is_freed(
        self, toy: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        with Program(toy, open_backend("ort")) as program:
            program.load_half(0, LAST)
            half = program._halves._halves[0, LAST].engine
            program.keep_chained([(0, LAST), (0, 3)])
            assert "closed" in repr(half)
            outputs = program.outputs(program.run(inputs))
            np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)
            program.prepare(0, LAST)
            program.prepare(0, 3)
            assert program._halves.spans == ()
            assert program._halves._loader is None
            program.keep_chained([])
            program.prepare(0, 3)
            assert program._halves.spans == ((0, 3),)

    def test_a_half_that_was_measured_not_to_pay_while_it_loaded_is_not_kept(
        self, toy: Bundle, inputs: Tensors
    ) -> None:
        backend = SlowBackend()
        with Program(toy, backend) as program:
            program.run(inputs)
            program.keep_chained([(0, LAST)])
            backend.gate.set()
            program._halves.stop()
            assert program._halves.spans == ()

    def test_a_half_that_cannot_run_stays_a_chain(
        self, toy: Bundle, inputs: Tensors, caplog: pytest.LogCaptureFixture
    ) -> None:
        made: list[Engine] = []

        class Failing(OrtBackend):
            def load(self, plan: bytes, *, folder: Path) -> Engine:
                engine = super().load(plan, folder=folder)
                if threading.current_thread().name == "splitrt-load-halves":
                    made.append(engine)
                    engine._session = None
                return engine

        with Program(toy, Failing()) as program:
            program.run(inputs)
            until = time.monotonic() + 30
            while "stays a chain" not in caplog.text:
                assert time.monotonic() < until
                time.sleep(0.005)
            assert program._halves.spans == ()
            assert "closed" in repr(made[0])
            assert set(program.outputs(program.run(inputs))) == {"pooled", "logits"}
        assert len(made) == 1

    def test_either_way_can_be_asked_for(
        self, toy: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        with Program(toy, open_backend("ort")) as program:
            with pytest.raises(AssertionError, match="not loaded"):
                program.run(inputs, fused=True)
            program.run(inputs, fused=False)
            assert program._halves._loader is None
            program.load_half(0, LAST)
            program.keep_chained([(0, 3)])
            used: list[object] = []
            half = program._halves._halves[0, LAST].engine
            run = half.run
            half.run = lambda tensors: (used.append(1), run(tensors))[1]  # type: ignore[method-assign]
            for fused, runs in ((True, 1), (False, 1), (None, 2)):
                outputs = program.outputs(program.run(inputs, fused=fused))
                np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)
                assert len(used) == runs

    def test_a_half_loaded_in_the_background_has_run_before_it_is_used(
        self, toy: Bundle, inputs: Tensors
    ) -> None:
        ran: list[int] = []

        class Counting(OrtBackend):
            def load(self, plan: bytes, *, folder: Path) -> Engine:
                engine = super().load(plan, folder=folder)
                if threading.current_thread().name == "splitrt-load-halves":
                    run = engine.run
                    engine.run = lambda given: (ran.append(len(given)), run(given))[1]  # type: ignore[method-assign]
                return engine

        with Program(toy, Counting()) as program:
            program.run(inputs)
            _wait_for_half(program, (0, LAST))
            assert ran == [1]

    @pytest.mark.parametrize("span", [(0, 0), (3, 3), (0, 1), (2, 3), (1, 4), (LAST - 1, LAST)])
    def test_single_segments_and_inner_spans_have_no_half(
        self, program: Program, span: tuple[int, int]
    ) -> None:
        assert not program.load_half(*span)


class TestClosing:
    def test_a_closed_program_refuses_to_run_and_leaves_no_thread(
        self, toy: Bundle, inputs: Tensors
    ) -> None:
        program = Program(toy, open_backend("ort"))
        program.run(inputs)
        program.close()
        program.close()
        for _ in range(3):
            with pytest.raises(EngineError, match="closed"):
                program.run(inputs)
        with pytest.raises(EngineError, match="closed"):
            program.load_half(0, 3)
        assert not _threads("splitrt-load-halves")

    def test_closing_while_a_half_loads_waits_for_that_one_only(
        self, toy: Bundle, inputs: Tensors, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = SlowBackend()
        program = Program(toy, backend)
        for stop in range(2, LAST + 1):
            program.run(inputs, 0, stop)
        threading.Timer(0.1, backend.gate.set).start()
        program.close()
        assert len(backend.loads) <= LAST + 1
        assert caplog.text == "", "nothing went wrong"
        assert not _threads("splitrt-load-halves")

    def test_closing_during_runs_gives_answers_or_engine_errors(
        self, toy: Bundle, inputs: Tensors, expected: Tensors
    ) -> None:
        program = Program(toy, open_backend("ort", BackendOptions(threads=1)))
        trouble: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    outputs = program.outputs(program.run(inputs))
                    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)
            except EngineError:
                pass
            except BaseException as exc:  # noqa: BLE001 (shown below)
                trouble.append(exc)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        program.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert not trouble
        assert not _threads("splitrt-load-halves")


def test_eight_threads_at_once_each_get_their_own_answer(toy: Bundle) -> None:
    with Program(toy, open_backend("ort", BackendOptions(threads=1)), max_halves=2) as program:

        def work(seed: int) -> float:
            inputs = seeded_inputs(toy.manifest.inputs, seed)
            expected = toy_outputs(inputs)
            worst = 0.0
            for turn in range(15):
                cut = (seed + turn) % (LAST + 1)
                env = program.run(program.run(inputs, 0, cut), cut)
                outputs = program.outputs(env)
                for name, array in expected.items():
                    worst = max(worst, float(np.abs(outputs[name] - array).max()))
            return worst

        with ThreadPoolExecutor(8) as pool:
            assert max(pool.map(work, range(8))) < 1e-5


def test_a_segment_that_cannot_be_loaded_is_named(toy: Bundle) -> None:
    class Refusing(OrtBackend):
        def load(self, plan: bytes, *, folder: Path) -> Engine:
            raise EngineError("no")

    with pytest.raises(EngineError, match=r"segment_0000\.onnx: no"):
        Program(toy, Refusing())
