from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import EngineError, TensorMismatchError
from engines.program import Program
from engines.row_runs import BottomRun, TopRun
from engines.stripe_plans import Plan, RowPlan, StripePlan, mode_of, returned, sent, trouble
from engines.stripe_runs import HeadRun, TailRun
from engines.striped import Side, StripedProgram, form_files
from engines.stripes import even_bounds
from tests.striped_toy import ROWS, striped_inputs, whole_outputs, write_striped_bundle

Tensors = dict[str, np.ndarray]


@pytest.fixture
def striped(dense: Bundle):
    yield from _open(dense)


@pytest.fixture
def striped_classes(classes: Bundle):
    yield from _open(classes)


def _open(bundle: Bundle):
    with Program(bundle, open_backend("ort", BackendOptions(threads=1)), fuse=False) as program:
        forms = StripedProgram(program)
        yield forms
        forms.close()


def _plans(bundle: Bundle) -> list[Plan]:
    manifest, striping = bundle.manifest, bundle.manifest.striping
    assert striping is not None
    found: list[Plan] = []
    for cut, until in itertools.product(striping.cuts, striping.cuts):
        for stripes in (2, 3, 5):
            bounds = even_bounds(ROWS, stripes, band=2, least=8, most=ROWS - 8)
            found += [
                StripePlan(cut=cut.cut, until=until.cut, bounds=bounds, robot=robot)
                for robot in range(1, len(bounds) + 1)
            ]
    found += [
        RowPlan(cut=split.cut, bound=bound)
        for split in striping.row_splits
        for bound in range(split.least, split.most + 1, split.band)
    ]
    return [plan for plan in found if not trouble(plan, manifest)]


def _same(given: Tensors, expected: Tensors) -> None:
    assert set(given) >= set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(given[name], array, err_msg=name)


def _carry_out(striped: StripedProgram, plan: Plan, inputs: Tensors) -> Tensors:
    """Do what robot and server do, checking what crosses between them."""
    manifest = striped.manifest
    if isinstance(plan, RowPlan):
        top, bottom = TopRun(striped, plan, inputs), BottomRun(striped, plan)
        crossing = top.sent()
        _fits(sent(plan, manifest), crossing)
        top.run()
        back = bottom.take(0, crossing)
        _fits(returned(plan, manifest), back)
        return top.joined(back)
    head, tail = HeadRun(striped, plan, inputs), TailRun(striped, plan)
    outputs = None
    for stripe in plan.wire_order():
        assert outputs is None
        rows = head.raw(stripe) if stripe >= plan.robot else head.step()
        _fits(sent(plan, manifest, stripe), rows)
        outputs = tail.take(stripe, rows)
    assert outputs is not None
    return {**head.known(), **outputs}


def _fits(specs, tensors: Tensors) -> None:
    for spec in specs:
        assert not spec.mismatch(tensors[spec.name])


def test_every_plan_gives_what_the_whole_model_gives(
    dense: Bundle, classes: Bundle, striped: StripedProgram, striped_classes: StripedProgram
) -> None:
    modes = set()
    for bundle, forms in ((dense, striped), (classes, striped_classes)):
        inputs = striped_inputs()
        expected = whole_outputs(bundle, inputs)
        for plan in _plans(bundle):
            modes.add(mode_of(plan))
            _same(_carry_out(forms, plan, inputs), expected)
    assert modes == {"streamed-head", "streamed-raw", "two-sided", "rows"}


def test_the_robot_goes_on_from_wherever_it_is(
    dense: Bundle, striped: StripedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = striped_inputs()
    expected = whole_outputs(dense, inputs)
    plan = StripePlan(cut=3, until=4, bounds=(8, 16, 24, 36, ROWS), robot=5)
    for steps in range(6):
        head = HeadRun(striped, plan, inputs)
        for _ in range(steps):
            head.step()
        if steps:  # nothing is computed again
            monkeypatch.setattr(striped.program, "run_segment", None)
        env = head.finish()
        assert set(env) == {"p", "r"}
        _same(striped.program.outputs(striped.program.run(env, 3)), expected)
    for row_plan in (RowPlan(cut=0, bound=20), RowPlan(cut=2, bound=12), RowPlan(cut=3, bound=8)):
        top = TopRun(striped, row_plan, inputs)
        top.run()
        _same(top.finish(), expected)


def test_a_wrong_carry_is_seen(tmp_path: Path) -> None:
    """The negative control of all comparisons here."""
    bundle = write_striped_bundle(tmp_path / "wrong", wrong_carry=True)
    inputs = striped_inputs()
    expected = whole_outputs(bundle, inputs)
    for striped in _open(bundle):
        two = StripePlan(cut=2, until=2, bounds=(16, ROWS), robot=2)
        _same(_carry_out(striped, two, inputs), expected)  # no middle form
        three = StripePlan(cut=2, until=2, bounds=(16, 32, ROWS), robot=3)
        with pytest.raises(AssertionError, match="Mismatched elements"):
            _same(_carry_out(striped, three, inputs), expected)


class TestRowsEngine:
    def test_it_takes_any_number_of_rows_and_nothing_else_that_differs(
        self, dense: Bundle, striped: StripedProgram
    ) -> None:
        engine = striped.forms(RowPlan(cut=0, bound=20), Side.ROBOT)["graph/rows_0_top.onnx"]
        for rows in (10, 20, 30):
            x = striped_inputs()["x"][:, :, :rows]
            assert engine.run({"x": x})["y"].shape[2] == rows // 2 - 3
        x = striped_inputs()["x"]
        for wrong in ({}, {"x": x[..., 1:]}, {"x": x.astype(np.float64)}, {"x": x, "z": x},
                      {"x": x[0]}):  # fmt: skip
            with pytest.raises(TensorMismatchError, match=r"'x': expected float32 \[1, 3, rows, "
                               r"10\]|'z': not an input"):  # fmt: skip
                engine.run(wrong)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.run({"x": x})

    def test_a_form_that_cannot_be_loaded_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "no.onnx").write_bytes(b"nothing")
        with pytest.raises(EngineError, match="ONNX Runtime refused"):
            open_backend("ort").load_rows(tmp_path / "no.onnx")  # type: ignore[attr-defined]


class TestLoading:
    PLAN = StripePlan(cut=3, until=4, bounds=(16, 32, ROWS), robot=3)

    def test_only_what_a_side_needs_is_loaded(
        self, dense: Bundle, striped: StripedProgram
    ) -> None:
        assert striped.offered
        assert not striped.ready(self.PLAN, Side.ROBOT)
        striped.forms(self.PLAN, Side.SERVER)
        assert striped.ready(self.PLAN, Side.SERVER)
        assert not striped.ready(self.PLAN, Side.ROBOT)
        assert form_files(self.PLAN, dense.manifest, Side.SERVER) == (
            "graph/segment_3_first.onnx",
            "graph/segment_3_middle.onnx",
            "graph/segment_3_last.onnx",
        )
        two_sided = StripePlan(cut=3, until=3, bounds=(16, 32, ROWS), robot=2)
        assert form_files(two_sided, dense.manifest, Side.SERVER) == ("graph/cut_3_rest.onnx",)

    def test_in_the_background(self, striped: StripedProgram) -> None:
        told: list[str] = []
        there = threading.Event()
        striped.prepare_soon(self.PLAN, Side.ROBOT, lambda t: (told.append(t), there.set()))
        assert there.wait(30)
        assert told == [""]
        assert striped.ready(self.PLAN, Side.ROBOT)

    def test_no_more_than_so_many_stay(self, dense: Bundle) -> None:
        with Program(dense, open_backend("ort"), fuse=False) as program:
            striped = StripedProgram(program, max_forms=2)
            forms = striped.forms(self.PLAN, Side.ROBOT)
            assert len(forms) == 9, "a plan gets all it needs"
            striped.forms(RowPlan(cut=0, bound=20), Side.ROBOT)
            assert not striped.ready(self.PLAN, Side.ROBOT)
            assert len(striped._loaded) == 2
            next(iter(forms.values())).run({"x": striped_inputs()["x"]})
            striped.close()
            with pytest.raises(EngineError, match="closed"):
                striped.forms(self.PLAN, Side.ROBOT)
            striped.prepare_soon(self.PLAN, Side.ROBOT, lambda t: None)

    def test_a_backend_without_rows_says_so(self, dense: Bundle) -> None:
        with Program(dense, open_backend("reference"), fuse=False) as program:
            striped = StripedProgram(program)
            assert not striped.offered
            with pytest.raises(EngineError, match="runs no striped forms"):
                striped.forms(self.PLAN, Side.ROBOT)


def test_rows_of_an_output_that_stay_on_both_sides_are_refused(dense: Bundle) -> None:
    plan = StripePlan(cut=3, until=3, bounds=(16, 32, ROWS), robot=2)
    assert "keeps rows of ['r']" in trouble(plan, dense.manifest)
