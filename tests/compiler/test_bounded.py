"""Bounded divisions: exact where the halo is enough, near where it is not, absent unless asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from calibration.bundle_cli import main as bundle_main
from calibration.parity import error_of, seeded_inputs
from calibration.plan_text import parse_plan, plan_text
from calibration.plans import bounded_plans, candidate_plans
from compiler import CompileOptions, compile_model
from compiler.cuts import Boundary
from compiler.options import parse_halos
from compiler.stripes.bounded import divisions
from compiler.stripes.emit import find_streams
from compiler.stripes.forms import Former
from compiler.whole import plain_session
from engines.backend import open_backend
from engines.bounded_runs import BoundedHeadRun, BoundedTailRun
from engines.bundle import Bundle
from engines.errors import CutError, TraceError
from engines.form_rows import form_rows
from engines.program import Program
from engines.replay_forms import Bands, Kind, forms_of
from engines.stripe_plans import BoundedPlan, is_lossy, mode_of, returned, sent, trouble
from engines.striped import Side, StripedProgram, form_files
from tests.compiler.striped_graphs import graph_of
from tests.compiler.test_stripes import CASES, assert_same, graphs

HALOS = (0, 2, 5, 10**6)


def _check(nodes, shape, weights) -> int:
    """Divide a graph of one output everywhere; returns how many divisions there were."""
    model, graph = graph_of(nodes, shape, weights)
    streams = find_streams(model, graph, {})
    extents = streams.extents
    if extents is None or extents.ended_by or len(extents.rules) < len(streams.order):
        return 0
    former = Former(model, graph, streams.order, extents)
    places = list(range(len(streams.order)))
    out = graph.outputs[0]
    cut = Boundary("0" * 8, frozenset(places), (out,), (out,), 0, 0, "", ())
    found = divisions(former, cut, 0, extents, HALOS)
    if not found:
        return 0
    owners = dict.fromkeys(places, None)
    form = former.form(places, [out], top="first", bottom="last", owners=owners, kept={})
    session = plain_session(form.SerializeToString())
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole = plain_session(model.SerializeToString()).run([out], {"x": x})[0]
    flow, base = extents.flows[out], extents.flows["x"]
    for bounded in found:
        for bound in range(bounded.least, bounded.most + 1, bounded.band):
            kept = int(bound * flow.scale)
            rows = range(bounded.top(bound, extents.rows))
            above = session.run([out], {"x": np.take(x, rows, base.axis)})[0]
            rows = range(bounded.bottom(bound), extents.rows)
            below = session.run([out], {"x": np.take(x, rows, base.axis)})[0]
            skip = int(bounded.halo * flow.scale)
            above = np.take(above, range(kept), flow.axis)
            below = np.take(below, range(skip, below.shape[flow.axis]), flow.axis)
            joined = np.concatenate([above, below], flow.axis)
            assert joined.shape == whole.shape, (bounded, bound)
            if bounded.halo >= bounded.needed:
                assert_same(joined, whole)
    assert [b.halo for b in found] == sorted({b.halo for b in found})
    return len(found)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("height", [48, 49, 53])
def test_every_kind_of_operator_has_the_rows_it_should(name: str, height: int) -> None:
    nodes, weights = CASES[name][:2]
    if name in ("nearest by sizes", "reshape", "space to depth") and height != 48:
        pytest.skip("made for one height")
    try:
        _check(nodes, (1, 4, height, 8), weights)
    except Exception as exc:
        if "ShapeInferenceError" in str(exc) or "Inference" in type(exc).__name__:
            pytest.skip("made for another height")
        raise


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_random_graphs_with_halo_enough_equal_the_whole(built) -> None:
    nodes, shape, weights = built
    _check(nodes, shape, weights)


class Stack(nn.Module):
    """Convolutions whose halo is as high as the picture, then a classifier."""

    def __init__(self, depth: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for place in range(depth):
            stride = 2 if place in (1, 4) else 1
            layers += [nn.Conv2d(channels, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU6()]
            channels = 8
        self.features = nn.Sequential(*layers)
        self.end = nn.Linear(8, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.features(x).mean((2, 3)))


def _compile(out: Path, **options: object) -> Bundle:
    torch.manual_seed(0)
    model = (Stack().eval(), (torch.randn(1, 3, 100, 20),))
    return compile_model(model, out, options=CompileOptions(name="stack", cuts="all", **options))[
        0
    ]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _compile(tmp_path_factory.mktemp("bounded") / "b.bundle", halo=(0, 4, 8, 16, 24, 64))


@pytest.fixture(scope="module")
def forms(bundle: Bundle) -> Iterator[StripedProgram]:
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        striped = StripedProgram(program)
        yield striped
        striped.close()


def _carry_out(forms: StripedProgram, plan: BoundedPlan, inputs) -> dict[str, np.ndarray]:
    manifest = forms.manifest
    assert trouble(plan, manifest) == ""
    assert is_lossy(plan)
    assert mode_of(plan) == "bounded"
    assert form_files(plan, manifest, Side.ROBOT) == form_files(plan, manifest, Side.SERVER)
    head, tail = BoundedHeadRun(forms, plan, inputs), BoundedTailRun(forms, plan)
    raw, rows = head.raw(), head.run()
    for stripe, tensors in ((1, raw), (0, rows)):
        assert not any(s.mismatch(tensors[s.name]) for s in sent(plan, manifest, stripe))
    assert tail.take(1, raw) is None
    outputs = tail.take(0, rows)
    assert outputs is not None
    assert {spec.name for spec in returned(plan, manifest)} <= set(outputs)
    return outputs


def test_halo_enough_is_exact_and_less_errs_less_the_more_there_is(
    bundle: Bundle, forms: StripedProgram
) -> None:
    manifest, striping = bundle.manifest, bundle.manifest.striping
    assert striping is not None
    deepest = max(b.cut for b in striping.bounded)
    found = [b for b in striping.bounded if b.cut == deepest]
    assert [b.halo for b in found] == [0, 4, 8, 16, 24, 28]
    assert 24 < found[-1].needed <= 28, "no more rows than are needed, in whole bands"
    errors = dict.fromkeys((b.halo for b in found), 0.0)
    for seed in range(6):
        inputs = seeded_inputs(manifest.inputs, seed)
        whole = forms.program.outputs(forms.program.run(inputs))
        for bounded in found:
            bound = 48
            plan = BoundedPlan(cut=deepest, bound=bound, halo=bounded.halo)
            outputs = _carry_out(forms, plan, inputs)
            error = max(error_of(outputs[name], whole[name]) for name in whole)
            errors[bounded.halo] += error / 6
    assert errors[28] <= 1e-6
    falling = list(errors.values())
    assert falling[0] > 3 * falling[2] > 9 * falling[4] > 0, errors
    assert all(a > b for a, b in itertools.pairwise(falling)), errors
    assert [b.error > 1e-6 for b in found] == [True] * 5 + [False]


def test_every_bound_of_every_cut(bundle: Bundle, forms: StripedProgram) -> None:
    inputs = seeded_inputs(bundle.manifest.inputs, 1)
    whole = forms.program.outputs(forms.program.run(inputs))
    for bounded in bundle.manifest.striping.bounded:
        for bound in {bounded.least, bounded.most}:
            plan = BoundedPlan(cut=bounded.cut, bound=bound, halo=bounded.halo)
            outputs = _carry_out(forms, plan, inputs)
            error = max(error_of(outputs[name], whole[name]) for name in whole)
            assert error < (1e-6 if bounded.halo >= bounded.needed else 1.0)


def test_lossy_plans_are_candidates_only_where_they_are_allowed(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert not any(map(is_lossy, candidate_plans(manifest)))
    for least in (0, 9, 10**6):
        plans = [plan for plan in candidate_plans(manifest, least_halo=least) if is_lossy(plan)]
        assert plans
        for plan in plans:
            bounded = manifest.striping.bounded_cut(plan.cut, plan.halo)
            assert bounded.halo >= least or bounded.halo >= bounded.needed
            assert parse_plan(plan_text(plan, manifest), manifest) == plan
        assert len({(plan.cut, plan.halo) for plan in plans}) == len({p.cut for p in plans})


def test_malformed_plans(bundle: Bundle) -> None:
    manifest = bundle.manifest
    bounded = next(b for b in manifest.striping.bounded if b.band == 4 and b.halo == 8)
    good = next(iter(bounded_plans(bounded)))
    for changes, says in (
        ({"halo": 7}, "no bounded division of 7 rows"),
        ({"halo": -1}, "no bounded division"),
        ({"cut": 0}, "compile with --halo"),
        ({"cut": 10**6}, "no bounded division"),
        ({"bound": bounded.least - bounded.band}, "expected a multiple of 4"),
        ({"bound": bounded.most + bounded.band}, "expected a multiple of 4"),
        ({"bound": good.bound + 1}, "expected a multiple of 4"),
        ({"bound": -(2**70)}, "expected a multiple of 4"),
    ):
        fields = {"cut": good.cut, "bound": good.bound, "halo": good.halo, **changes}
        assert says in trouble(BoundedPlan(**fields), manifest)


def test_without_the_option_there_is_nothing_of_it(tmp_path: Path) -> None:
    bundle = _compile(tmp_path / "plain.bundle")
    assert bundle.manifest.striping.bounded == ()
    assert not any("plain_" in name for name in bundle.manifest.files)
    assert not any(map(is_lossy, candidate_plans(bundle.manifest, least_halo=0)))
    assert "ossy" not in (bundle.folder / "report.html").read_text()


def test_it_is_told_as_lossy(bundle: Bundle) -> None:
    from click.testing import CliRunner

    page = (bundle.folder / "report.html").read_text()
    assert "<h2>Bounded halo: lossy</h2>" in page
    verdicts = page[: page.index("<h2>")]
    assert "lossy" not in verdicts
    printed = CliRunner().invoke(bundle_main, ["inspect", str(bundle.folder)]).output
    assert "LOSSY    " in printed
    assert "used only with --allow-lossy-halo ROWS" in printed


def test_options() -> None:
    assert parse_halos(("16,8", "64", "8")) == (8, 16, 64)
    for text in ("x", "-1", "8,,9", ""):
        with pytest.raises(CutError, match="expected rows from 0"):
            parse_halos((text,))
    with pytest.raises(TraceError, match="expected with --stripes auto"):
        CompileOptions(halo=(8,), stripes="none")
    with pytest.raises(TraceError, match="expected rows from 0, given -1"):
        CompileOptions(halo=(8, -1))


def test_what_a_replayed_form_gives_at_every_height(bundle: Bundle) -> None:
    striping = bundle.manifest.striping
    for bounded in striping.bounded:
        form = forms_of(bundle.manifest)[bounded.plain]
        assert form.kind is Kind.PLAIN
        bands = Bands(bundle.manifest, form, ["x"])
        [(least, _, most)] = form_rows(bundle, bounded.plain).values()
        for bound in (bounded.least, bounded.most):
            above, below = bounded.top(bound, striping.rows), bounded.bottom(bound)
            assert least <= min(above, striping.rows - below)
            assert max(above, striping.rows - below) <= most
            top = bands.bounds({"x": above}, lambda *_: 0)
            bottom = bands.bounds({"x": striping.rows - below}, lambda *_, at=below: at)
            assert (top, bottom) == ((0, above), (below, striping.rows))
            for name in bundle.manifest.cuts[bounded.cut].tensors:
                rows = striping.tensors[name]
                assert bands.span(name, bottom) == (below * rows.num // rows.den, rows.rows)
                assert bands.span(name, top)[0] == 0
                assert bands.span(name, top)[1] >= bound * rows.num // rows.den
            share = above / striping.rows
            assert bands.shares(top) == [(i, (share, share)) for i in form.segments]
