"""Striped forms on TensorRT: profiles, runs of any height on the fake GPU, plans in a bundle."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backend import open_backend
from engines.bundle import Bundle
from engines.bundle_plans import BundlePlans, RowsBundlePlans, device_store
from engines.errors import BuildError, EngineError, MissingPlanError, TensorMismatchError
from engines.form_rows import form_rows
from engines.plans import ROWS
from engines.program import Program
from engines.rows import rows_backend
from engines.stripe_plans import RowPlan, StripePlan
from engines.striped import Side, StripedProgram, form_files
from engines.tensorrt.api import Api
from engines.tensorrt.backend import TensorRTBackend, TensorRTOptions, TensorRTRTXBackend
from engines.tensorrt.builder import BuildOptions
from engines.tensorrt.rows_engine import TensorRTRowsEngine
from tests.engines.fakes.bundle import write_fake_bundle
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.trt import GENERATIONS, fake_tensorrt, write_graph
from tests.striped_toy import ROWS as HEIGHT
from tests.striped_toy import write_striped_bundle

INPUTS = [["x", "float32", [1, -1, 3]], ["c", "float32", [1, 1, 3]]]
OUTPUTS = [["y", "float32", [1, -1, 3], "add", ["x", "c"]], ["p", "bool", [1, -1, 3], "positive",
           ["x"]]]  # fmt: skip
PROFILE = {"x": (2, 4, 8)}


class Bench:
    def __init__(self, generation: str, folder: Path) -> None:
        self.memory = FakeMemory()
        self.trt = fake_tensorrt(generation, self.memory)
        kind = TensorRTRTXBackend if generation == "rtx" else TensorRTBackend
        self.backend = kind(TensorRTOptions(), api=Api(self.trt), memory=lambda: self.memory)
        self.folder = folder

    def load(self, rows: Any = PROFILE, **more: Any) -> TensorRTRowsEngine:
        path = write_graph(self.folder / "form.onnx", INPUTS, OUTPUTS, **more)
        return self.backend.load_rows_plan(self.backend.with_rows(rows).build_plan(path).data)


@pytest.fixture(params=GENERATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


def _feed(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "x": draw.standard_normal((1, rows, 3)).astype(np.float32),
        "c": draw.standard_normal((1, 1, 3)).astype(np.float32),
    }


def test_any_height_within_the_profile(bench: Bench) -> None:
    engine = bench.load()
    assert [spec.shape for spec in engine.inputs] == [(1, None, 3), (1, 1, 3)]
    results = []
    for rows in (8, 2, 5, 8, 3):
        feed = _feed(rows, rows)
        results.append((feed, engine.run(feed)))
    engine.close()
    for feed, given in results:
        np.testing.assert_array_equal(given["y"], feed["x"] + feed["c"])
        np.testing.assert_array_equal(given["p"], feed["x"] > 0)
    assert bench.memory.leaked == 0
    assert bench.memory.overlaps == 0
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(_feed(4))


@pytest.mark.parametrize("rows", [1, 9])
def test_another_height_is_refused_and_the_next_run_is_right(bench: Bench, rows: int) -> None:
    engine = bench.load()
    with pytest.raises(EngineError, match=r"expected from \[1, 2, 3\] to \[1, 8, 3\], given"):
        engine.run(_feed(rows))
    feed = _feed(4)
    np.testing.assert_array_equal(engine.run(feed)["y"], feed["x"] + feed["c"])
    with pytest.raises(TensorMismatchError):
        engine.run({"x": feed["x"]})
    with pytest.raises(TensorMismatchError):
        engine.run({**feed, "x": feed["x"][..., :2]})
    engine.close()


def test_threads_take_turns(bench: Bench) -> None:
    engine = bench.load()
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(20):
            feed = _feed(2 + (seed + turn) % 7, turn)
            if not np.array_equal(engine.run(feed)["y"], feed["x"] + feed["c"]):
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    engine.close()
    assert bench.memory.leaked == 0


def test_a_device_that_fails_leaves_nothing(bench: Bench) -> None:
    bench.memory.faults.add("pinned")
    with pytest.raises(EngineError, match="pinned: out of luck"):
        bench.load()
    bench.memory.faults.clear()
    assert bench.memory.leaked == 0
    engine = bench.load(fails=True)
    with pytest.raises(EngineError, match="illegal memory access"):
        engine.run(_feed(3))
    engine.close()
    assert bench.memory.leaked == 0


def test_what_cannot_be_built(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"input 'x' has the shape \[1, -1, 3\]"):
        bench.load({})
    path = write_graph(tmp_path / "two.onnx", [["x", "float32", [-1, -1]]], [])
    with pytest.raises(BuildError, match="expected one open extent"):
        bench.backend.with_rows(PROFILE).build_plan(path)
    fixed = write_graph(tmp_path / "fixed.onnx", [["x", "float32", [2]]],
                        [["y", "float32", [2], "double", ["x"]]])  # fmt: skip
    with pytest.raises(EngineError, match="expected a plan of a striped form"):
        bench.backend.load_rows_plan(bench.backend.build(fixed))
    assert bench.memory.leaked == 0


def test_the_rows_are_part_of_the_key(bench: Bench) -> None:
    keys = [bench.backend.with_rows({"x": (1, 2, most)}).plan_options() for most in (8, 16)]
    assert [key[ROWS] for key in keys] == ["x=1:2:8", "x=1:2:16"]
    assert ROWS not in bench.backend.plan_options()


def test_plans_of_a_bundle(tmp_path: Path) -> None:
    bench = Bench("10", tmp_path)
    bundle = write_fake_bundle(tmp_path / "fake.bundle")
    form = write_graph(tmp_path / "form.onnx", INPUTS, OUTPUTS)
    other = write_graph(tmp_path / "other.onnx", INPUTS, OUTPUTS[:1])
    assert not BundlePlans(bundle, bench.backend).striped
    builder = bench.backend.with_rows(PROFILE)
    made = device_store(bundle).build(builder, form, weights_sha256="")
    assert not made.found
    assert device_store(bundle).build(builder, form, weights_sha256="").found
    assert BundlePlans(bundle, bench.backend).striped
    plans = RowsBundlePlans(bundle, bench.backend)
    assert rows_backend(plans) is plans
    assert rows_backend(BundlePlans(bundle, bench.backend)) is None
    assert plans.holds(form)
    assert not plans.holds(other)
    engine = plans.load_rows(form)
    feed = _feed(6)
    np.testing.assert_array_equal(engine.run(feed)["y"], feed["x"] + feed["c"])
    engine.close()
    with pytest.raises(MissingPlanError, match="expected a plan for"):
        plans.load_rows(other)


def test_every_form_has_the_rows_that_plans_give_it(dense: Bundle) -> None:
    """Of each form, the shapes of its profile run, and lie where runs of plans are."""
    backend = rows_backend(open_backend("ort"))
    assert backend is not None
    striping = dense.manifest.striping
    assert striping is not None
    for file in striping.files():
        rows = form_rows(dense, file)
        engine = backend.load_rows(dense.path(file))
        assert {s.name for s in engine.inputs if None in s.shape} == set(rows)
        for least, typical, most in rows.values():
            assert 1 <= least <= typical <= most <= HEIGHT
        for point in range(3):
            feed = {
                spec.name: np.zeros(
                    [rows[spec.name][point] if e is None else e for e in spec.shape], np.float32
                )
                for spec in engine.inputs
            }
            engine.run(feed)
        engine.close()
    with pytest.raises(BuildError, match="expected a striped form"):
        form_rows(dense, "graph/nope.onnx")


def test_forms_build_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = write_striped_bundle(tmp_path / "dense.bundle")
    options = TensorRTOptions(build=BuildOptions(compute_capabilities=("sm86",)))
    backend = TensorRTRTXBackend(options)
    plan = StripePlan(cut=2, until=4, bounds=(16, 24, 32, 40, HEIGHT), robot=3)
    files = {f for side in Side for f in form_files(plan, bundle.manifest, side)}
    store = device_store(bundle)
    for file in files:
        made = store.build(backend.with_rows(form_rows(bundle, file)), bundle.path(file))
        assert made.header.size > 1000
        assert ROWS in made.header.options
    plans = RowsBundlePlans(bundle, backend)
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        program.backend = plans  # type: ignore[assignment]
        forms = StripedProgram(program)
        assert forms.offered
        assert forms.loadable(plan, Side.ROBOT)
        assert forms.loadable(plan, Side.SERVER)
        assert not forms.loadable(RowPlan(cut=0, bound=24), Side.ROBOT)
        forms.close()
