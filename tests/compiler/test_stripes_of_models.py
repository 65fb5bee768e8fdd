"""Compiled models in stripes: every plan that is considered, on both sides, against the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration.parity import error_of, seeded_inputs
from calibration.plans import candidate_plans
from compiler import CompileOptions, compile_model
from compiler.stripes.proof import prove_stripes
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.errors import EmitError
from engines.manifest import Manifest
from engines.program import Program
from engines.row_runs import BottomRun, TopRun
from engines.stripe_plans import Plan, RowPlan, StripePlan, mode_of, trouble
from engines.stripe_runs import HeadRun, TailRun
from engines.striped import StripedProgram
from engines.tensors import Array

LIMIT = 1e-5


class Classifier(nn.Module):
    """Convolutions with a residual block, then something that needs every row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.MaxPool2d(2)
        self.end = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down((x + self.second(self.first(x).relu())).relu())
        return self.end(x.mean((2, 3)))


class Segmenter(nn.Module):
    """As many labels as pixels; a wide part in the middle, joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.label = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        wide = self.up(self.down(x).relu())
        return self.label(torch.cat([x, wide], 1)).argmax(1).to(torch.uint8)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "classifier": lambda: (Classifier().eval(), (torch.randn(1, 3, 64, 24),)),
    "segmenter": lambda: (Segmenter().eval(), (torch.randn(1, 1, 48, 16),)),
}


@pytest.fixture(scope="module", params=MODELS)
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("striped") / "model.bundle"
    options = CompileOptions(name=request.param, cuts="all")
    bundle, _ = compile_model(MODELS[request.param](), out, options=options)
    with Program(bundle, open_backend("ort"), fuse=False) as opened:
        yield opened


def whole_of(program: Program) -> tuple[dict[str, Array], dict[str, Array]]:
    inputs = seeded_inputs(program.bundle.manifest.inputs, 5)
    return inputs, program.outputs(program.run(inputs))


def plans_of(manifest: Manifest) -> dict[str, list[Plan]]:
    found: dict[str, list[Plan]] = {}
    for plan in candidate_plans(manifest):
        found.setdefault(mode_of(plan), []).append(plan)
    return found


def assert_whole(given: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert set(given) == set(wanted)
    assert max(error_of(given[name], wanted[name]) for name in wanted) <= LIMIT


def run_stripes(striped: StripedProgram, plan: StripePlan, inputs: dict[str, Array]):
    """Run both sides of a plan, in the order of the wire."""
    head, tail = HeadRun(striped, plan, inputs), TailRun(striped, plan)
    answer = None
    for stripe in plan.wire_order():
        assert answer is None
        answer = tail.take(stripe, head.raw(stripe) if stripe >= plan.robot else head.step())
    assert answer is not None
    return {**head.known(), **answer}


def test_every_mode_is_offered_where_it_can_be(program: Program) -> None:
    modes = set(plans_of(program.bundle.manifest))
    wanted = {"streamed-head", "streamed-raw", "two-sided"}
    if program.bundle.manifest.name == "segmenter":
        wanted.add("rows")
    assert modes == wanted


def test_every_plan_gives_what_the_whole_gives(program: Program) -> None:
    manifest = program.bundle.manifest
    inputs, wanted = whole_of(program)
    striped = StripedProgram(program)
    ran = 0
    for plans in plans_of(manifest).values():
        for plan in plans[:: max(1, len(plans) // 12)]:
            assert not trouble(plan, manifest)
            if isinstance(plan, RowPlan):
                top, bottom = TopRun(striped, plan, inputs), BottomRun(striped, plan)
                top.run()
                given = top.joined(bottom.take(0, top.sent()))
            else:
                given = run_stripes(striped, plan, inputs)
            assert_whole(program.outputs(given), wanted)
            ran += 1
    assert ran > 20
    striped.close()


def test_a_robot_left_alone_goes_on_from_any_stripe(program: Program) -> None:
    inputs, wanted = whole_of(program)
    striped = StripedProgram(program)
    modes = plans_of(program.bundle.manifest)
    for plan in [*modes["streamed-head"][::9], *modes["two-sided"][::9]]:
        assert isinstance(plan, StripePlan)
        for done in range(plan.robot + 1):
            head = HeadRun(striped, plan, inputs)
            for _ in range(done):
                head.step()
            assert_whole(program.outputs(program.run(head.finish(), plan.cut)), wanted)
    for plan in modes.get("rows", ())[::7]:
        assert isinstance(plan, RowPlan)
        top = TopRun(striped, plan, inputs)
        top.run()
        assert_whole(program.outputs(top.finish()), wanted)
    striped.close()


def test_a_form_that_computes_something_else_is_found(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend("ort")

    class Wrong:
        name = "ort"

        def load_rows(self, path: Path):
            engine = backend.load_rows(path)  # type: ignore[attr-defined]
            right = engine.run

            def run(inputs):
                given = right(inputs)
                spoil = {n: np.zeros_like(a) for n, a in given.items() if n.startswith("kept:")}
                return {**given, **spoil}

            engine.run = run
            return engine

    inputs, _ = whole_of(program)
    monkeypatch.setattr("compiler.stripes.proof.open_backend", lambda name: Wrong())
    with pytest.raises(EmitError, match="--stripes none"):
        prove_stripes(program, inputs, progress=lambda *at: None)


def test_stripes_can_be_left_out(tmp_path: Path) -> None:
    out = tmp_path / "none.bundle"
    bundle, _ = compile_model(MODELS["classifier"](), out, options=CompileOptions(stripes="none"))
    assert Bundle.open(bundle.folder).manifest.striping is None
    assert candidate_plans(bundle.manifest) == ()
    names = [path.name for path in (bundle.folder / "graph").iterdir()]
    assert not [name for name in names if "first" in name or "rest" in name]


def test_the_manifest_says_where_stripes_end_and_what_they_look_at(program: Program) -> None:
    manifest = program.bundle.manifest
    striping = manifest.striping
    assert striping is not None
    if manifest.name == "segmenter":
        assert striping.ended_by == ()
        assert striping.rows == 48
        return
    assert [end.operator for end in striping.ended_by] == ["ReduceMean"]
    first, deepest = striping.cuts[0], striping.cuts[-1]
    assert (first.lag, first.halo, striping.rows) == (0, 0, 64)
    # Stride 2 then two 3x3 kernels: the deepest lags by 0 + 2 + 2 rows, and pooling adds 2 more
    # rows of the grid that are not full.
    assert 4 <= deepest.lag <= 8
    assert deepest.halo >= deepest.lag
    lags = [cut.lag for cut in striping.cuts]
    assert lags == sorted(lags)
