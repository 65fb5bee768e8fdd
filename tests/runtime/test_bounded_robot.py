"""Bounded divisions over loopback: only where allowed, marked lossy, exact when the link fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from calibration.parity import error_of, seeded_inputs
from calibration.plan_text import plan_text
from compiler import CompileOptions, compile_model
from engines.backend import BackendOptions, open_backend
from engines.bounded_runs import BoundedHeadRun
from engines.bundle import Bundle
from engines.errors import ManifestError, SplitError
from engines.program import Program
from engines.stripe_plans import BoundedPlan, Plan, sent
from engines.striped import StripedProgram
from runtime import Robot, Server
from runtime.cli import main
from runtime.payload import pack_tensors
from runtime.wire import Error, Infer, Kind, Prepare, Prepared
from tests.runtime.helpers import FakeServer, Peer, address, eventually
from tests.runtime.test_striped_robot import CUTS, _ready
from tests.striped_toy import whole_outputs

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for place in range(6):
        layers += [nn.Conv2d(8 if place else 3, 8, 3, 2 if place == 1 else 1, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    options = CompileOptions(name="deep", cuts="all", halo=(4, 8, 64))
    out = tmp_path_factory.mktemp("bounded") / "deep.bundle"
    return compile_model((model, (torch.randn(1, 3, 60, 16),)), out, options=options)[0]


@pytest.fixture
def server(bundle: Bundle) -> Iterator[Server]:
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(bundle, backend) as program, Server([program]) as running:
        yield running


def _plan(bundle: Bundle, halo: int) -> BoundedPlan:
    striping = bundle.manifest.striping
    assert striping is not None
    bounded = [b for b in striping.bounded if b.halo >= min(halo, b.needed)]
    deepest = min((b for b in bounded), key=lambda b: (-b.cut, b.halo))
    return BoundedPlan(cut=deepest.cut, bound=32, halo=deepest.halo)


def _inputs(bundle: Bundle, seed: int = 0) -> Tensors:
    return seeded_inputs(bundle.manifest.inputs, seed)


def _error(outputs: Tensors, bundle: Bundle, inputs: Tensors) -> float:
    expected = whole_outputs(bundle, inputs)
    return max(error_of(outputs[name], expected[name]) for name in expected)


def test_an_allowed_plan_is_carried_out_and_marked(bundle: Bundle, server: Server) -> None:
    with Robot(bundle, server=address(server), threads=1, allow_halo=4) as robot:
        for halo in (4, 8, 64):
            plan = _plan(bundle, halo)
            text = plan_text(plan, bundle.manifest)
            assert robot.prepare(text)
            for seed in range(3):
                inputs = _inputs(bundle, seed)
                result = robot.infer(inputs, cut=text)
                assert (result.answered_by, result.mode) == ("remote", "bounded"), result.reason
                assert (result.plan, result.stripes, result.lossy) == (text, 2, True)
                assert result.record()["lossy"] is True
                assert result.predicted is None or result.predicted.lossy
                error = _error(result.outputs, bundle, inputs)
                assert error < 1e-5 if halo == 64 else 1e-7 < error < 0.1
        exact = robot.infer(_inputs(bundle), cut="offload")
        assert not exact.lossy
        assert _error(exact.outputs, bundle, _inputs(bundle)) < 1e-6


def test_auto_takes_lossy_plans_only_where_they_are_allowed(bundle: Bundle) -> None:
    from calibration.prepared import PreparedPlans
    from calibration.segment_times import SegmentTimes, estimated_times

    manifest = bundle.manifest
    count = len(manifest.segments)
    times = estimated_times(manifest, SegmentTimes((0.01,) * count))
    for least in (None, 8):
        plans = PreparedPlans(manifest, times, times, least_halo=least)
        modes = {choice.mode for choice in plans.choices}
        assert ("bounded" in modes) == (least is not None)
        best = [plans.best(bps, 0.001) for bps in np.geomspace(1e5, 1e9, 30)]
        assert least is not None or not any(found.lossy for found in best)
        for found in best:
            assert found.lossy == (found.mode == "bounded")
            assert not isinstance(found.plan, BoundedPlan) or found.plan.halo >= 8


@pytest.mark.parametrize(
    ("allowed", "says"), [(None, "expected leave for it"), (32, "the 32 rows of halo that are")]
)
def test_a_plan_that_is_not_allowed_is_refused(
    bundle: Bundle, allowed: int | None, says: str
) -> None:
    text = plan_text(_plan(bundle, 4), bundle.manifest)
    with pytest.raises(ManifestError, match=says):
        Robot(bundle, cut=text, threads=1, allow_halo=allowed)
    with Robot(bundle, threads=1, allow_halo=allowed) as robot:
        with pytest.raises(ManifestError, match=says):
            robot.infer(_inputs(bundle), cut=text)
        with pytest.raises(ManifestError, match=says):
            robot.prepare(text)
        assert robot.infer(_inputs(bundle)).answered_by == "local"
    with pytest.raises(SplitError, match="expected rows from 0, given -1"):
        Robot(bundle, allow_halo=-1)


@pytest.mark.parametrize("fault", [f for f in CUTS if f != "answers early"])
def test_when_the_link_fails_the_robot_answers_exactly(bundle: Bundle, fault: str) -> None:
    text = plan_text(_plan(bundle, 4), bundle.manifest)
    with (
        FakeServer(_ready(CUTS[fault])) as fake,
        Robot(
            bundle, server=fake.address, cut=text, threads=1, patience_s=0.5, allow_halo=0
        ) as robot,
    ):
        assert robot.prepare(text)
        result = robot.infer(_inputs(bundle))
        assert (result.answered_by, result.lossy) == ("fallback", False), result.reason
        assert _error(result.outputs, bundle, _inputs(bundle)) < 1e-6


def test_the_command_marks_it(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    text = plan_text(_plan(bundle, 4), bundle.manifest)
    asked = ["infer", str(bundle.folder), "--server", address(server), "--source", "random:3",
             "--threads", "1", "--cut", text]  # fmt: skip
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 1
    assert "--allow-lossy-halo 4" in refused.stderr
    out = tmp_path / "out.jsonl"
    asked += ["--allow-lossy-halo", "4", "--out", str(out)]
    given = CliRunner().invoke(main, asked)
    assert given.exit_code == 0, given.stderr
    assert given.stdout.count("bounded LOSSY in 2 halo:") == 3
    assert "3 remote, 3 LOSSY" in given.stdout
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["lossy"] for line in lines[:-1]] == [True] * 3
    assert lines[-1]["summary"]["lossy"] == 3


class TestAtTheServer:
    def _send(self, peer: Peer, bundle: Bundle, plan: Plan, stripe: int, rows: Tensors,
              *, first: bool = False, **fields: int) -> None:  # fmt: skip
        parts, buffers = pack_tensors(sent(plan, bundle.manifest, stripe), rows)
        cut = int(bundle.manifest.cuts[plan.cut].id, 16)
        header = {"cut": cut, "stripe": stripe, "stripes": 2, "tensors": len(parts), **fields}
        meta = Infer(parts, plan if first else None)
        peer.send(Kind.INFER, meta, b"".join(buffers), request=1, **header)

    def test_a_request(self, bundle: Bundle, server: Server) -> None:
        plan, inputs = _plan(bundle, 64), _inputs(bundle)
        with Program(bundle, open_backend("ort"), fuse=False) as program:
            forms = StripedProgram(program)
            head = BoundedHeadRun(forms, plan, inputs)
            raw, rows = head.raw(), head.run()
            forms.close()
        with Peer.of(server) as peer:
            peer.greet(bundle)
            self._send(peer, bundle, plan, 1, raw, first=True)
            self._send(peer, bundle, plan, 0, rows)
            message = peer.hear()
            assert message.header.kind is Kind.RESULT
            [expected] = whole_outputs(bundle, inputs).values()
            given = np.frombuffer(message.payload, np.float32).reshape(expected.shape)
            assert error_of(given, expected) < 1e-5

    @pytest.mark.parametrize(
        ("changes", "header", "says"),
        [
            ({"halo": 5}, {}, "no bounded division of 5 rows"),
            ({"cut": 0}, {}, "no bounded division of 4 rows at cut 0; compile with --halo"),
            ({"cut": 2**40}, {}, "no bounded division"),
            ({"bound": 0}, {}, "bound 0: expected a multiple"),
            ({"bound": 33}, {}, "bound 33: expected a multiple"),
            ({"bound": -32}, {}, "expected a multiple"),
            ({"bound": 2**62}, {}, "expected a multiple"),
            ({}, {"stripes": 1, "stripe": 0}, "and 2 stripes"),
            ({}, {"stripe": 0}, "expected stripe 1 by its plan"),
            ({}, {"cut": 1}, "expected cut"),
        ],
    )
    def test_a_malformed_plan(
        self, bundle: Bundle, server: Server, changes: Any, header: dict[str, int], says: str
    ) -> None:
        good = _plan(bundle, 4)
        plan = msgspec.structs.replace(good, **changes)
        cut = int(bundle.manifest.cuts[good.cut].id, 16)
        fields = {"cut": cut, "stripe": 1, "stripes": 2, **header}
        with Peer.of(server) as peer:
            peer.greet(bundle)
            peer.send(Kind.INFER, Infer((), plan), request=1, **fields)
            message = peer.hear()
            assert message.header.kind is Kind.ERROR
            assert isinstance(message.meta, Error)
            assert message.meta.code == "protocol"
            assert says in message.meta.message

    def test_it_is_prepared(self, bundle: Bundle, server: Server) -> None:
        with Peer.of(server) as peer:
            peer.greet(bundle)
            peer.send(Kind.PREPARE, Prepare(_plan(bundle, 4)), request=9)
            message = peer.hear()
            assert message.header.kind is Kind.PREPARED
            assert message.meta == Prepared("")

    def test_in_flight(self, bundle: Bundle, server: Server) -> None:
        text = plan_text(_plan(bundle, 8), bundle.manifest)
        with Robot(bundle, server=address(server), cut=text, threads=1, allow_halo=8) as robot:
            assert robot.prepare(text)
            frames = [_inputs(bundle, seed) for seed in range(12)]
            with robot.stream(frames, in_flight=3) as stream:
                results = list(stream)
            assert len(results) == 12
            for result, inputs in zip(results, frames, strict=True):
                assert _error(result.outputs, bundle, inputs) < 0.1
            assert robot.link is not None
            eventually(lambda: robot.link.under_way == 0, "nothing under way")


def test_its_forms_are_built_for_tensorrt_without_a_gpu(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from runtime.build import build_plans

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    options = CompileOptions(
        name="small", cuts="all", halo=(2,), targets=("tensorrt-rtx:sm86",), halves="none"
    )
    out = tmp_path / "small.bundle"
    made, _ = compile_model((model, (torch.randn(1, 3, 40, 16),)), out, options=options)
    striping = made.manifest.striping
    assert striping is not None
    cut = next(c for c in striping.cuts if c.entry is not None)
    name = made.manifest.cuts[cut.cut].id
    bounded = striping.bounded[-1]
    lossy = f"halo:{made.manifest.cuts[bounded.cut].id}@20~{bounded.halo}"
    count = len(made.manifest.segments)
    plans = build_plans(made, stripes=(f"{name}/4:2", lossy))
    assert len(plans) > count
    assert Path(bounded.plain).name in {plan.header.onnx for plan in plans}
    assert all(plan.found for plan in build_plans(made, stripes=(lossy, f"{name}/4:2")))
    command = ["build", str(out), "--stripes", lossy, "--json"]
    told = json.loads(CliRunner().invoke(main, command).stdout)
    assert [plan["part"] for plan in told] == ["segment"] * count + ["form"]
    refused = CliRunner().invoke(main, ["build", str(out), "--stripes", "nope/4"])
    assert refused.exit_code == 1
    assert "nope" in refused.stderr
