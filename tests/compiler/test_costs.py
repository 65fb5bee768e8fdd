"""What operators cost on a side: by roofline, out of an earlier bundle's table, measured here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from calibration.latency_table import LatencyTable, store_table
from calibration.measure import measure_latency
from calibration.parity import seeded_inputs
from calibration.roofline import operator_s, preset
from compiler import CompileOptions, compile_model
from compiler.costs import OperatorTimes, SideCosts, measure_here, side_costs
from compiler.graph import ValueGraph
from compiler.options import THIS
from engines.backend import BackendOptions, open_backend
from engines.bundle import MANIFEST, MANIFEST_DIGEST, Bundle
from engines.errors import CompileError, SplitError
from engines.program import Program
from tests.models import branching, onnx_models
from tests.models.branching import SIZE, graph_of, order_of

BY_THEMSELVES = [
    build for name, build in onnx_models.MODELS.items() if name not in ("functions", "dynamic")
]
"""Models that are a graph of plain operators before the passes."""


def unmeasured() -> np.ndarray:
    raise AssertionError("nothing is to be measured")


def costs_of(side: str, graph: ValueGraph) -> SideCosts:
    return side_costs(side, graph, order_of(graph), unmeasured)


def whole(bundle: Bundle) -> ValueGraph:
    return graph_of(onnx.load(bundle.path(bundle.manifest.graph), load_external_data=False))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("earlier")
    onnx.save(branching.fork(), folder / "fork.onnx")
    return compile_model(
        str(folder / "fork.onnx"), folder / "fork.bundle", options=CompileOptions(cuts="all")
    )[0]


@pytest.fixture(scope="module")
def table(earlier: Bundle) -> Path:
    with Program(earlier, open_backend("ort", BackendOptions(threads=1))) as program:
        return store_table(earlier, measure_latency(program, runs=3, warmup=1))


def changed(path: Path, **changes: object) -> str:
    old = msgspec.json.decode(path.read_bytes(), type=LatencyTable)
    new = path.with_name("latency-changed.json")
    new.write_bytes(msgspec.json.encode(msgspec.structs.replace(old, **changes)))
    return str(new)


# Roofline


def test_a_preset_counts_operations_and_all_that_is_moved() -> None:
    graph = graph_of(branching.fork())
    costs = costs_of("orin-nx", graph)
    assert (costs.source, costs.device) == ("roofline", "NVIDIA Jetson Orin NX 16 GB")
    moved = (SIZE * SIZE + 2 * SIZE) * 4
    expected = operator_s(preset("orin-nx"), flops=2 * SIZE * SIZE, moved_bytes=moved)
    assert costs.seconds[0] == pytest.approx(expected)
    assert np.all(costs.seconds > 0)
    assert len(costs.seconds) == 6


# A table of an earlier bundle


def test_a_table_gives_each_segments_time_to_its_operators(earlier: Bundle, table: Path) -> None:
    graph = whole(earlier)
    costs = costs_of(str(table), graph)
    measured = msgspec.json.decode(table.read_bytes(), type=LatencyTable)
    total = sum(timing.p50_s for timing in measured.segments) * measured.fused_ratio
    assert costs.seconds.sum() == pytest.approx(total)
    assert costs.source == "measured"
    assert costs.device == str(measured.fingerprint)
    assert np.all(costs.seconds > 0)
    where = {name: place for place, node in enumerate(order_of(graph)) for name in node.outputs}
    for segment, timing in zip(earlier.manifest.segments, measured.segments, strict=True):
        piece = onnx.load(earlier.path(segment.file), load_external_data=False)
        places = [where[name] for node in piece.graph.node for name in node.output]
        share = timing.p50_s * measured.fused_ratio
        assert costs.seconds[places].sum() == pytest.approx(share)


def test_a_table_is_found_from_its_own_folder(
    earlier: Bundle, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(table.parent)
    expected = costs_of(str(table), whole(earlier)).seconds
    np.testing.assert_array_equal(costs_of(table.name, whole(earlier)).seconds, expected)


def test_a_bundle_is_compiled_for_what_was_measured(earlier: Bundle, table: Path) -> None:
    options = CompileOptions(robot=str(table), server="rtx3080")
    folder = earlier.folder.parent
    bundle, _ = compile_model(str(folder / "fork.onnx"), folder / "next.bundle", options=options)
    estimate = bundle.manifest.estimates["robot"]
    assert estimate.source == "measured"
    total = costs_of(str(table), whole(earlier)).seconds.sum()
    assert sum(estimate.segments_s) == pytest.approx(total)
    assert bundle.manifest.estimates["server"].source == "roofline"


def test_what_a_robot_had_no_memory_for_is_estimated_at_the_pace_of_the_rest(
    earlier: Bundle, table: Path
) -> None:
    old = msgspec.json.decode(table.read_bytes(), type=LatencyTable)
    none = msgspec.structs.replace(old.segments[-1], p50_s=0.0, p95_s=0.0)
    costs = costs_of(changed(table, segments=(*old.segments[:-1], none)), whole(earlier))
    assert np.all(costs.seconds > 0)
    pace = costs.seconds / costs_of("cpu", whole(earlier)).seconds
    last = order_of(whole(earlier))[-1]
    assert last.op == "MatMul"
    assert pace[:-1].min() <= pace[-1] <= pace[:-1].max()


def test_a_table_of_another_bundle_is_refused(earlier: Bundle, table: Path) -> None:
    graph = whole(earlier)
    with pytest.raises(CompileError, match=r"measured on bundle 000000000000, beside it lies"):
        costs_of(changed(table, bundle="0" * 64), graph)
    old = msgspec.json.decode(table.read_bytes(), type=LatencyTable)
    short = changed(table, segments=old.segments[:1])
    with pytest.raises(
        CompileError, match=r"expected \d segments, given 1; run `runtime profile`"
    ):
        costs_of(short, graph)


def test_a_table_of_another_model_is_refused(table: Path) -> None:
    with pytest.raises(CompileError, match=r"7 of 8 operators are not in .*, n_a the first"):
        costs_of(str(table), graph_of(branching.ladder()))
    larger = branching.fork()
    for tensor in (*larger.graph.input[1:], *larger.graph.value_info):
        tensor.type.tensor_type.shape.dim[1].dim_value *= 2
    with pytest.raises(CompileError, match=r"measured on another model: .*8192.* was .*4096"):
        costs_of(str(table), graph_of(larger))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_what_is_no_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latency-0.json"
    with pytest.raises(SplitError, match="No such file"):
        costs_of(str(path), graph_of(branching.deep()))
    path.write_bytes(content)
    with pytest.raises(SplitError, match=r"latency-0\.json: not a latency table"):
        costs_of(str(path), graph_of(branching.deep()))


# Measured here


def test_operators_take_what_a_profiler_saw(tmp_path: Path) -> None:
    graph = graph_of(branching.fork())
    order = order_of(graph)
    path = tmp_path / "operators-robot.json"
    seconds = {order[0].outputs[0]: 0.25, order[-1].outputs[0]: 0.5}
    path.write_bytes(msgspec.json.encode(OperatorTimes(device="a robot", seconds=seconds)))
    costs = costs_of(str(path), graph)
    assert (costs.source, costs.device) == ("measured", "a robot")
    assert costs.seconds.tolist() == [0.25, *[0.0] * (len(order) - 2), 0.5]


def test_operators_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "operators-robot.json"
    path.write_bytes(msgspec.json.encode(OperatorTimes(device="a robot", seconds={"else": 1.0})))
    with pytest.raises(CompileError, match=r"1 of 1 operators are not in the model.*'else'"):
        costs_of(str(path), graph_of(branching.fork()))


@pytest.mark.parametrize("seconds", ["-1", '"long"'])
def test_operator_times_that_are_none(seconds: str, tmp_path: Path) -> None:
    path = tmp_path / "operators-robot.json"
    path.write_text(f'{{"device": "a robot", "seconds": {{"x": {seconds}}}}}')
    with pytest.raises(SplitError, match="operator times"):
        costs_of(str(path), graph_of(branching.fork()))


def test_this_machine_is_asked_for_its_times() -> None:
    graph = graph_of(branching.deep())
    seconds = np.arange(6.0) + 1
    costs = side_costs(THIS, graph, order_of(graph), lambda: seconds)
    assert (costs.source, costs.device) == ("measured", "this machine")
    np.testing.assert_array_equal(costs.seconds, seconds)


@pytest.mark.parametrize(
    "build", [branching.ladder, *BY_THEMSELVES], ids=lambda build: build.__name__
)
def test_every_operator_is_measured_and_no_file_stays(
    tmp_path: Path, build: Callable[[], onnx.ModelProto]
) -> None:
    model = build()
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    before = {path.name for path in tmp_path.iterdir()}
    graph = graph_of(model)
    order = order_of(graph)
    specs = [graph.values.specs[name] for name in graph.inputs]
    inputs = seeded_inputs(specs, 0)
    advanced: list[tuple[int, int]] = []
    seconds = measure_here(
        model, tmp_path, graph, order, inputs, progress=lambda *done: advanced.append(done)
    )
    assert seconds.shape == (len(order),)
    assert np.all(seconds > 0)
    assert advanced[-1] == (len(order), len(order))
    assert advanced == sorted(advanced)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_measuring_compiles_a_bundle_without_files_of_its_own(tmp_path: Path) -> None:
    onnx.save(onnx_models.sequences(), tmp_path / "m.onnx")
    options = CompileOptions(robot=THIS, server=THIS)
    bundle, _ = compile_model(str(tmp_path / "m.onnx"), tmp_path / "m.bundle", options=options)
    assert {e.source for e in bundle.manifest.estimates.values()} == {"measured"}
    files = {p.relative_to(bundle.folder).as_posix() for p in bundle.folder.rglob("*.*")}
    assert files == {*bundle.manifest.files, MANIFEST, MANIFEST_DIGEST}
    assert not any("tmp" in name for name in files)
