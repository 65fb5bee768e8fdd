from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import BuildError, EngineError, IncompatibleError
from engines.program import Program
from engines.replay import ReplayBackend
from engines.replay_table import ReplayTable
from engines.row_runs import BottomRun, TopRun
from engines.rows import rows_backend
from engines.stripe_plans import RowPlan, StripePlan, trouble
from engines.stripe_runs import HeadRun, TailRun
from engines.striped import StripedProgram
from engines.stripes import even_bounds
from tests.striped_toy import ROWS, striped_inputs

Tensors = dict[str, np.ndarray]


class FakeClock:
    """Time passes by waiting only."""

    def __init__(self) -> None:
        self.now = 100.0

    def now_s(self) -> float:
        return self.now

    def sleep_until(self, deadline_s: float) -> None:
        self.now = max(self.now, deadline_s)


def table_of(bundle: Bundle, **changes: object) -> ReplayTable:
    """Give each segment i two operators: of 10 (i + 1) and of 1 ms."""
    count = len(bundle.manifest.segments)
    made = ReplayTable(
        bundle=bundle.digest,
        device="a robot",
        floor_ms=2.0,
        segments_ms=tuple((10.0 * (i + 1), 1.0) for i in range(count)),
    )
    return msgspec.structs.replace(made, **changes)


def replay(bundle: Bundle, folder: Path, **changes: object) -> tuple[ReplayBackend, FakeClock]:
    path = folder / "table.json"
    path.write_bytes(msgspec.json.encode(table_of(bundle, **changes)))
    clock = FakeClock()
    return ReplayBackend(BackendOptions(table=str(path)), clock=clock), clock


def record(bundle: Bundle, inputs: Tensors, path: Path) -> Tensors:
    """Store every tensor between segments, as a real run gives them."""
    stored = dict(inputs)
    with Program(bundle, open_backend("ort", BackendOptions(threads=1)), fuse=False) as program:
        for segment in bundle.manifest.segments:
            stored |= program.run_segment(segment.index, stored)
    np.savez(path, **stored)
    return stored


def test_a_chain_takes_its_operators_and_gives_what_is_stored(
    toy: Bundle, inputs: Tensors, tmp_path: Path
) -> None:
    stored = record(toy, inputs, tmp_path / "values.npz")
    backend, clock = replay(toy, tmp_path, values="values.npz")
    with Program(toy, backend, fuse=False) as program:
        given = program.run(inputs, 0, 3)
        assert clock.now == pytest.approx(100 + (10 + 20 + 30 + 3) * 1e-3)
        for name in ("b", "m"):
            np.testing.assert_array_equal(given[name], stored[name])
        assert program.load_half(0, program.last)
        before = clock.now
        outputs = program.outputs(program.run(inputs))
        assert clock.now - before == pytest.approx((280 + 7) * 1e-3)
    for name in ("pooled", "logits"):
        np.testing.assert_array_equal(outputs[name], stored[name])
        assert not outputs[name].flags.writeable, "shared by all runs"


def test_without_stored_tensors_there_are_zeros(
    toy: Bundle, inputs: Tensors, tmp_path: Path
) -> None:
    backend, _ = replay(toy, tmp_path)
    with Program(toy, backend, fuse=False) as program:
        given = program.run(inputs)
    assert given["logits"].shape == (1, 5)
    assert not given["logits"].any()


def test_a_run_waits_to_a_point_in_time(toy: Bundle, inputs: Tensors, tmp_path: Path) -> None:
    """What comes before the wait is part of it, even where it takes too long."""
    backend, clock = replay(toy, tmp_path)
    engine = backend.load(backend.build(toy.path("graph/segment_0000.onnx")), folder=_graph(toy))
    deadlines: list[float] = []

    def late(deadline_s: float) -> None:
        deadlines.append(deadline_s)
        clock.now += 5.0

    clock.sleep_until = late  # type: ignore[method-assign]
    engine.run(inputs)
    engine.run(inputs)
    assert deadlines == pytest.approx([100.011, 105.011])


def test_a_device_that_is_too_fast_is_warned_of_once(
    toy: Bundle, inputs: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend, clock = replay(toy, tmp_path)
    engine = backend.load(backend.build(toy.path("graph/segment_0000.onnx")), folder=_graph(toy))
    engine.run(inputs)
    assert caplog.text == ""
    ticking = clock.now_s

    def slow() -> float:
        clock.now += 0.0123
        return ticking()

    clock.now_s = slow  # type: ignore[method-assign]
    for _ in range(3):
        engine.run(inputs)
    assert caplog.text.count("a robot cannot be replayed here") == 1
    assert "1.3 ms longer than the run should" in caplog.text


def test_noise_is_that_of_the_seed(toy: Bundle, inputs: Tensors, tmp_path: Path) -> None:
    def times(seed: int) -> list[float]:
        backend, clock = replay(toy, tmp_path, jitter=0.1, seed=seed)
        path = toy.path("graph/segment_0000.onnx")
        engine = backend.load(backend.build(path), folder=path.parent)
        found = []
        for _ in range(200):
            before = clock.now
            engine.run(inputs)
            found.append(clock.now - before)
        return found

    assert times(1) == times(1) != times(2)
    assert np.mean(times(1)) == pytest.approx(0.011, rel=0.03)
    assert np.std(np.log(times(1))) == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("stripes", [2, 3, 5])
@pytest.mark.parametrize("which", ["dense", "classes"])
def test_stripes_of_stored_tensors_are_the_stored_tensors(
    which: str, stripes: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """For every plan; and all stripes together never take less than the whole."""
    bundle: Bundle = request.getfixturevalue(which)
    inputs = striped_inputs()
    stored = record(bundle, inputs, tmp_path / "values.npz")
    backend, clock = replay(bundle, tmp_path, values="values.npz", floor_ms=0.0)
    manifest, striping = bundle.manifest, bundle.manifest.striping
    assert striping is not None
    tried = 0
    with Program(bundle, backend, fuse=False) as program:
        forms = StripedProgram(program)
        assert forms.offered
        for cut, until in itertools.product(striping.cuts, striping.cuts):
            bounds = even_bounds(ROWS, stripes, band=2, least=8, most=ROWS - 8)
            for robot in range(1, len(bounds) + 1):
                plan = StripePlan(cut=cut.cut, until=until.cut, bounds=bounds, robot=robot)
                if trouble(plan, manifest):
                    continue
                tried += 1
                before = clock.now
                head, tail = HeadRun(forms, plan, inputs), TailRun(forms, plan)
                outputs = None
                for stripe in plan.wire_order():
                    raw = stripe >= plan.robot
                    outputs = tail.take(stripe, head.raw(stripe) if raw else head.step())
                assert outputs is not None
                for name in manifest.cuts[plan.cut].results:
                    np.testing.assert_array_equal(outputs[name], stored[name], err_msg=name)
                seconds, whole = clock.now - before, sum(map(sum, table_of(bundle).segments_ms))
                if plan.robot == plan.stripes:
                    assert seconds * 1e3 == pytest.approx(whole)
                else:
                    assert seconds * 1e3 >= whole - 1e-6
        forms.close()
    assert tried > 5


def test_rows_of_stored_tensors_are_the_stored_tensors(dense: Bundle, tmp_path: Path) -> None:
    inputs = striped_inputs()
    stored = record(dense, inputs, tmp_path / "values.npz")
    backend, clock = replay(dense, tmp_path, values="values.npz", floor_ms=0.0)
    striping = dense.manifest.striping
    assert striping is not None
    assert striping.row_splits
    with Program(dense, backend, fuse=False) as program:
        forms = StripedProgram(program)
        for split in striping.row_splits:
            for bound in range(0, split.most + 1, split.band):
                plan = RowPlan(cut=split.cut, bound=bound)
                if trouble(plan, dense.manifest):
                    continue
                top, bottom = TopRun(forms, plan, inputs), BottomRun(forms, plan)
                before = clock.now
                top.run()
                robot_s = clock.now - before
                outputs = top.joined(bottom.take(0, top.sent()))
                alone = top.finish()
                for name in dense.manifest.cuts[split.cut].results:
                    np.testing.assert_array_equal(outputs[name], stored[name])
                    np.testing.assert_array_equal(alone[name], stored[name])
                ahead = sum(map(sum, (table_of(dense).segments_ms[i] for i in range(split.cut))))
                share = (bound - split.mean_lag) / split.rows
                behind = sum(map(sum, table_of(dense).segments_ms)) - ahead
                assert robot_s * 1e3 == pytest.approx(ahead + share * behind)
        forms.close()


def test_an_operator_of_a_stripe_takes_a_launch_at_least() -> None:
    table = ReplayTable(
        bundle="", device="", floor_ms=1.0, segments_ms=((8.0, 0.5, 4.0), (), (100.0,))
    )
    assert table.segment_s(0) == pytest.approx(0.0125)
    # Half of 8 ms; no less than all of the second, which is below a launch; half of 4 ms.
    assert table.segment_s(0, (0.5, 0.5)) == pytest.approx(0.0065)
    assert table.segment_s(0, (0.05, 0.05)) == pytest.approx(0.0025)
    # From 0.2 of the rows that go in to 0.5 of those that come out, in three steps.
    expected = 8 * 0.3 + 0.5 + 4 * 0.5
    assert table.segment_s(0, (0.2, 0.5)) == pytest.approx(expected * 1e-3)
    assert table.segment_s(1, (0.5, 0.5)) == 0
    assert table.segment_s(2, (1.1, 1.1)) == pytest.approx(0.11)  # rows computed twice


def test_unknown_rows_lie_in_the_middle(dense: Bundle, tmp_path: Path) -> None:
    """With other values than the stored ones the shapes are right all the same."""
    stored = record(dense, striped_inputs(), tmp_path / "values.npz")
    backend, _ = replay(dense, tmp_path, values="values.npz")
    striping = dense.manifest.striping
    assert striping is not None
    engine = backend.load_rows(dense.path(striping.segments[0].middle))
    feed = {
        spec.name: np.full([8 if e is None else e for e in spec.shape], 0.25, spec.dtype)
        for spec in engine.inputs
    }
    given = engine.run(feed)["a"]
    assert given.shape[2] == 8
    rows = [stored["a"][:, :, i : i + 8] for i in range(ROWS - 7)]
    assert sum(np.array_equal(given, some) for some in rows) == 1


def test_impossible_rows_are_refused(dense: Bundle, tmp_path: Path) -> None:
    backend, _ = replay(dense, tmp_path)
    striping = dense.manifest.striping
    assert striping is not None
    engine = backend.load_rows(dense.path(striping.segments[0].first))
    feed = {
        spec.name: np.zeros([ROWS + 1 if e is None else e for e in spec.shape], spec.dtype)
        for spec in engine.inputs
    }
    with pytest.raises(EngineError, match=r"'first' of segments \[0\]: no stripe takes .*49"):
        engine.run(feed)
    with pytest.raises(EngineError, match="expected a striped form"):
        backend.load_rows(dense.path(dense.manifest.graph))


def _graph(bundle: Bundle) -> Path:
    return bundle.path(bundle.manifest.graph).parent


class TestOpening:
    def test_a_name_may_carry_the_table(self, toy: Bundle, tmp_path: Path) -> None:
        replay(toy, tmp_path)
        backend = open_backend(f"replay:{tmp_path / 'table.json'}")
        assert backend.name == "replay"
        assert rows_backend(backend) is not None
        fields = backend.fingerprint().fields
        assert fields["device"] == "a robot, replayed"
        assert len(fields["table"]) == 12

    def test_the_table_is_part_of_what_a_time_is_valid_for(
        self, toy: Bundle, tmp_path: Path
    ) -> None:
        one = replay(toy, tmp_path)[0].fingerprint()
        other = replay(toy, tmp_path, floor_ms=3.0)[0].fingerprint()
        assert one.key != other.key

    def test_without_a_table_it_says_what_it_needs(self, toy: Bundle) -> None:
        backend = open_backend("replay")
        assert backend.fingerprint().backend == "replay"
        with pytest.raises(BuildError, match=r"name it as replay:TABLE\.json"):
            backend.build(toy.path(toy.manifest.graph))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a replay table"),
            ('{"bundle": ""}', "not a replay table: .*device"),
            (None, "No such file"),
        ],
    )
    def test_what_is_no_table_is_refused(
        self, text: str | None, message: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "some.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(IncompatibleError, match=message):
            open_backend(f"replay:{path}")

    def test_values_that_are_not_there_are_refused(self, toy: Bundle, tmp_path: Path) -> None:
        with pytest.raises(IncompatibleError, match=r"gone\.npz: values .* cannot be read"):
            Program(toy, replay(toy, tmp_path, values="gone.npz")[0])

    @pytest.mark.parametrize("field", ["floor_ms", "jitter"])
    def test_impossible_times_are_refused(self, field: str, toy: Bundle) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            table_of(toy, **{field: -1.0}).__post_init__()
        with pytest.raises(ValueError, match="0 or more"):
            ReplayTable(bundle="", device="", floor_ms=0, segments_ms=((float("nan"),),))

    def test_a_table_of_another_bundle_is_refused(
        self, toy: Bundle, dense: Bundle, tmp_path: Path
    ) -> None:
        backend, _ = replay(dense, tmp_path)
        with pytest.raises(BuildError, match="make the table again for this bundle"):
            backend.build(toy.path(toy.manifest.graph))
        backend, _ = replay(toy, tmp_path, segments_ms=((1.0,),))
        with pytest.raises(BuildError, match="expected 7 segments, given 1"):
            backend.build(toy.path(toy.manifest.graph))

    def test_what_is_no_file_of_the_bundle_is_refused(self, toy: Bundle, tmp_path: Path) -> None:
        backend, _ = replay(toy, tmp_path)
        loose = tmp_path / "loose.onnx"
        loose.write_bytes(toy.path(toy.manifest.graph).read_bytes())
        with pytest.raises(BuildError, match="not in a bundle"):
            backend.build(loose)
        with pytest.raises(BuildError, match=r"gone\.onnx"):
            backend.build(tmp_path / "gone.onnx")
        with pytest.raises(EngineError, match="refused a plan"):
            backend.load(b"\xff not a plan", folder=tmp_path)
