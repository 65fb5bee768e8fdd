"""Which cuts a bundle gets: against brute force, under constraints, and as it runs in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from calibration.energy import StatePower
from calibration.parity import largest_error, verify_cuts
from compiler import CompileOptions, compile_model, selection
from compiler.cli import main
from compiler.costs import side_costs
from compiler.cuts import find_cuts, frontier_of
from compiler.graph import ValueGraph
from compiler.options import CutOptions
from compiler.selection import RATIOS, SPREAD, Choice, Setting, choose, kept_local, robot_bytes
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import CutError, EngineError, UnansweredError
from engines.manifest import Cut
from engines.program import Program
from runtime import Robot, Server
from tests.models import branching, onnx_models, torch_models
from tests.models.branching import LARGE, SIZE, closed_sets, graph_of, order_of

GOODPUTS = np.geomspace(0.5e6, 10e9, 23)
SMALL = ["residual", "branches", "two_ends", "passing", "shared_weights", "output_used_later"]
SMALL += ["captures", "decoded_weights", "value_dependent", "sequences"]
WEIGHTS = SIZE * SIZE * 4


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A robot that computes 1000 times slower than its server."""
    folder = tmp_path_factory.mktemp("devices")
    robot = branching.write_device(folder / "robot.json", tflops=1e-4)
    return str(robot), str(branching.write_device(folder / "server.json", tflops=0.1))


@pytest.fixture
def compile_(tmp_path: Path, devices: tuple[str, str]) -> Callable[..., Bundle]:
    def compile_(model: onnx.ModelProto, **options: object) -> Bundle:
        onnx.save(model, tmp_path / "model.onnx")
        sides = dict(zip(("robot", "server"), devices, strict=True))
        given = CompileOptions(**{**sides, **options})
        out = tmp_path / "out.bundle"
        return compile_model(str(tmp_path / "model.onnx"), out, options=given)[0]

    return compile_


def unmeasured() -> np.ndarray:
    raise AssertionError("nothing is to be measured")


def setting_of(graph: ValueGraph, sides: tuple[str, str], **options: object) -> Setting:
    robot, server = (side_costs(side, graph, order_of(graph), unmeasured) for side in sides)
    return Setting(graph, robot, server, CutOptions(**options))


def chosen(graph: ValueGraph, sides: tuple[str, str], **options: object) -> set[frozenset[int]]:
    setting = setting_of(graph, sides, **options)
    return {cut.nodes for cut in find_cuts(graph, choose(setting), max_frontier=4).cuts}


def assert_best_is_among(
    graph: ValueGraph, kept: set[frozenset[int]], sides: tuple[str, str]
) -> set[frozenset[int]]:
    """Compare with every closed set, and return the best ones of the sample."""
    setting = setting_of(graph, sides)
    seconds = (setting.robot.seconds, setting.server.seconds)
    everything = list(closed_sets(graph))
    found = set()
    for ratio in RATIOS:
        for power in (None, StatePower()):
            for goodput in GOODPUTS:
                costs = {
                    nodes: branching.cost(
                        graph, nodes, seconds, goodput_bps=goodput, ratio=ratio, power=power
                    )
                    for nodes in everything
                }
                best = min(costs, key=costs.__getitem__)
                found.add(best)
                ours = min(costs[nodes] for nodes in kept)
                assert ours <= costs[best] * (1 + 1e-6), (ratio, power, goodput, best)
    return found


def nodes_of(bundle: Bundle, graph: ValueGraph, cut: Cut) -> frozenset[int]:
    """Which nodes of the whole graph the robot runs at a cut, by the segments' files."""
    files = [bundle.manifest.segments[index].file for index in cut.robot_segments]
    pieces = [onnx.load(bundle.path(file), load_external_data=False) for file in files]
    given = {name for piece in pieces for node in piece.graph.node for name in node.output}
    return frozenset(
        place for place, node in enumerate(order_of(graph)) if given.issuperset(node.outputs)
    )


# The family on real graphs


@pytest.mark.parametrize("build", [branching.fork, branching.ladder, branching.deep])
def test_the_best_of_all_closed_sets_is_among_the_cuts_at_every_goodput(build, devices):
    graph = graph_of(build())
    assert_best_is_among(graph, chosen(graph, devices), devices)


@pytest.mark.parametrize("name", SMALL)
def test_the_best_of_all_closed_sets_is_in_the_bundle(compiled, name):
    bundle = compiled(name, "auto").bundle
    graph = graph_of(onnx.load(bundle.path(bundle.manifest.graph), load_external_data=False))
    kept = {nodes_of(bundle, graph, cut) for cut in bundle.manifest.cuts}
    assert len(kept) == len(bundle.manifest.cuts)
    assert_best_is_among(graph, kept, ("xavier-nx", "rtx3080"))


def test_the_best_plan_of_a_fork_is_no_prefix_of_the_file(devices):
    graph = graph_of(branching.fork())
    best = assert_best_is_among(graph, chosen(graph, devices), devices)
    shrink = frozenset([3])
    assert order_of(graph)[3].op == "ReduceMax"
    assert shrink in best
    # No prefix comes near it at 20 Mbps: all of them send more, or compute more on the robot.
    setting = setting_of(graph, devices)
    seconds = (setting.robot.seconds, setting.server.seconds)
    costs = {s: branching.cost(graph, s, seconds, goodput_bps=20e6) for s in closed_sets(graph)}
    prefixes = [frozenset(range(count)) for count in range(len(order_of(graph)) + 1)]
    assert costs[shrink] == min(costs.values())
    assert costs[shrink] < 0.7 * min(costs[nodes] for nodes in prefixes)


def test_cuts_that_are_not_nested_make_a_bundle_that_is_proved_and_runs(compile_):
    bundle = compile_(branching.fork(), cuts="all")
    graph = graph_of(onnx.load(bundle.path(bundle.manifest.graph), load_external_data=False))
    cuts = bundle.manifest.cuts
    sets = {nodes_of(bundle, graph, cut): cut.index for cut in cuts}
    heavy, shrink = frozenset([0, 1, 2]), frozenset([3])
    assert {heavy, shrink} <= set(sets)
    for cut in cuts:
        assert nodes_of(bundle, graph, cut) in set(closed_sets(graph))
        there = {spec.name for spec in bundle.manifest.inputs}
        for index in cut.robot_segments:
            assert there.issuperset(bundle.manifest.segments[index].inputs)
            there.update(bundle.manifest.segments[index].outputs)
    inputs, outputs = bundle.parity_vectors()
    nested = 0
    with Program(bundle, open_backend("ort", BackendOptions(threads=1)), fuse=False) as program:
        results = list(verify_cuts(program))
        assert sorted(result.cut.index for result in results) == list(range(len(cuts)))
        assert all(result.ok for result in results)
        for first in cuts:
            env = program.run(inputs, 0, first.index)
            for second in cuts:
                if set(first.robot_segments) <= set(second.robot_segments):
                    middle = program.run(env, first.index, second.index)
                    given = program.outputs(program.run(middle, second.index))
                    assert largest_error(given, outputs) < 1e-5
                    nested += 1
                else:
                    with pytest.raises(AssertionError, match="run from cut"):
                        program.run(env, first.index, second.index)
    assert len(cuts) + 2 < nested < len(cuts) * (len(cuts) + 1) / 2


def test_a_bundle_of_chosen_cuts_has_the_plan_that_is_no_prefix(compile_):
    bundle = compile_(branching.fork())
    graph = graph_of(onnx.load(bundle.path(bundle.manifest.graph), load_external_data=False))
    kept = {nodes_of(bundle, graph, cut): cut for cut in bundle.manifest.cuts}
    assert kept[frozenset([3])].tensors == ("few", "shrunk")
    assert kept[frozenset([3])].bytes == SIZE * 4 + 4


# Who proposed what


def test_every_cut_says_who_proposed_it(devices, compile_):
    bundle = compile_(branching.deep(), cuts="all")
    cuts = bundle.manifest.cuts
    assert "offload" in cuts[0].why
    assert "local" in cuts[-1].why
    assert {why for cut in cuts for why in cut.why} == {
        *("offload", "local", "serial", "spread", "boundary")
    }
    assert all("boundary" in cut.why for cut in cuts[1:-1])
    assert sum("spread" in cut.why for cut in cuts) == SPREAD


def test_spread_takes_the_fewest_bytes_of_each_part_of_the_robots_time(devices):
    # Six equal operators: boundaries after 1/6 to 5/6 of the time, in parts of a fifth.
    graph = graph_of(branching.deep())
    places = [len(c.nodes) for c in selection.propose_spread(setting_of(graph, devices))]
    assert places == [2, 3, 4, 5]
    fork = graph_of(branching.fork())
    spread = list(selection.propose_spread(setting_of(fork, devices)))
    assert all(choice.nodes == set(range(len(choice.nodes))) for choice in spread)
    assert len({len(choice.nodes) for choice in spread}) == len(spread) > 0


def test_a_spread_over_operators_without_any_time_is_empty(devices):
    graph = graph_of(branching.deep())
    setting = setting_of(graph, devices)
    setting.robot.seconds[:] = 0
    assert list(selection.propose_spread(setting)) == []


def test_another_proposer_adds_its_own(devices):
    graph = graph_of(branching.deep())
    wanted = frozenset([0])
    setting = setting_of(graph, devices)
    mine = (*selection.PROPOSERS, lambda _: [Choice(wanted, "striped", 0.9)])
    found = {c.nodes: c for c in choose(setting, mine)}
    assert found[wanted].why[-1] == "striped"


def test_candidates_come_the_most_useful_first(devices):
    setting = setting_of(graph_of(branching.ladder()), devices)
    shares = selection.serial_family(setting.cases())
    candidates = [c.nodes for c in choose(setting)]
    assert {len(nodes) for nodes in candidates[:2]} == {0, 8}
    middle = [shares.get(nodes, 0.0) for nodes in candidates[2:]]
    assert middle == sorted(middle, reverse=True)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_bytes_that_cost_no_energy_are_no_error(tmp_path, devices):
    power = {"compute": 10.0, "communicate": 0.0, "idle": 1.0}
    robot = branching.write_device(tmp_path / "radio.json", tflops=1e-4, power_w=power)
    graph = graph_of(branching.fork())
    assert chosen(graph, (str(robot), devices[1])) >= chosen(graph, devices)


# --cuts N


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_cuts_n_keeps_exactly_so_many(compile_, count):
    manifest = compile_(branching.ladder(), cuts=str(count)).manifest
    assert len(manifest.cuts) == count
    assert not any(cut.refused for cut in manifest.cuts)


def test_cuts_n_keeps_the_most_useful(devices, compile_):
    bundle = compile_(branching.ladder(), cuts="3")
    graph = graph_of(branching.ladder())
    shares = selection.serial_family(setting_of(graph, devices).cases())
    middle = {n: share for n, share in shares.items() if 0 < len(n) < 8}
    kept = nodes_of(bundle, graph, bundle.manifest.cuts[1])
    assert middle[kept] == max(middle.values())


def test_cuts_1_keeps_both_ends_which_every_chain_needs(compile_):
    assert len(compile_(branching.deep(), cuts="1").manifest.cuts) == 2


def test_more_than_there_are_is_all_there_are(compile_):
    few = compile_(branching.deep()).manifest.cuts
    many = compile_(branching.deep(), cuts="99").manifest.cuts
    assert [c.id for c in many] == [c.id for c in few]


def test_refused_cuts_do_not_count(compile_):
    manifest = compile_(branching.deep(), cuts="3", robot_memory=4 * WEIGHTS).manifest
    assert [bool(cut.refused) for cut in manifest.cuts] == [False, False, False, True]


# --keep-local


def test_keep_local_by_number_keeps_what_goes_in_on_the_robot(compile_):
    bundle = compile_(branching.deep(), cuts="all", keep_local=("2",))
    manifest = bundle.manifest
    assert "--keep-local" in manifest.cuts[0].refused
    usable = [cut for cut in manifest.cuts if not cut.refused]
    crossing = {name for cut in usable for name in cut.tensors}
    assert not crossing & {"x", "v0"}
    assert {"v1", "v2", "v3", "v4", "v5"} == crossing
    refused = {r.after: r for r in manifest.refused}
    assert "--keep-local keeps" in refused["n_v0"].reason
    assert refused["n_v0"].nodes == ("n_v1",)
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        assert all(result.ok for result in verify_cuts(program))


def test_keep_local_finds_the_best_of_what_is_allowed(devices):
    graph = graph_of(branching.ladder())
    setting = setting_of(graph, devices, keep_local=("1",))
    kept = {c.nodes for c in choose(setting) if not c.refused}
    seconds = (setting.robot.seconds, setting.server.seconds)
    allowed = [
        nodes
        for nodes in closed_sets(graph)
        if 0 in nodes and "x" not in frontier_of(graph, order_of(graph), nodes)
    ]
    assert kept <= set(allowed)
    for goodput in GOODPUTS:
        costs = {n: branching.cost(graph, n, seconds, goodput_bps=goodput) for n in allowed}
        ours = min(costs[nodes] for nodes in kept)
        assert ours <= min(costs.values()) * (1 + 1e-6)
    assert any(c.why == ("keep-local",) for c in choose(setting))


def test_keep_local_by_module_is_closed_under_dependence(tmp_path):
    options = CompileOptions(name="m", cuts="all", keep_local=("first",), robot="cpu")
    bundle, _ = compile_model(torch_models.residual(), tmp_path / "m.bundle", options=options)
    cuts = bundle.manifest.cuts
    assert "--keep-local" in cuts[0].refused
    # `first` takes what `stem` gives, so that the sum, which takes it as well, stays too.
    usable = [cut for cut in cuts if not cut.refused]
    assert [cut.tensors for cut in usable] == [("add",), ("output",)]
    operators = [bundle.manifest.segments[i].operators for i in usable[0].robot_segments]
    assert sum(operators, ()).count("Conv") == 3
    blamed = {name for refusal in bundle.manifest.refused for name in refusal.nodes}
    assert "conv2d" in blamed
    assert all("--keep-local" in refusal.reason for refusal in bundle.manifest.refused)


def test_keep_local_of_the_last_operator_leaves_the_robot_alone(compile_):
    manifest = compile_(branching.deep(), keep_local=("6",)).manifest
    assert [bool(cut.refused) for cut in manifest.cuts] == [True, False]


def test_keep_local_of_a_module_that_is_not_there_suggests_others(devices):
    order = order_of(graph_of(branching.deep()))
    with pytest.raises(CutError, match=r"--keep-local n_v33: .*did you mean n_v3"):
        kept_local(order, ["n_v33"])
    with pytest.raises(CutError, match=r"did you mean n_v0, n_v1, n_v2\?"):
        kept_local(order, ["quite-another"])
    for count in ("0", "7"):
        with pytest.raises(CutError, match=rf"--keep-local {count}: expected 1 to 6 operators"):
            kept_local(order, [count])
    assert kept_local(order, ["n_v1", "1"]) == {0, 1}
    assert kept_local(order, []) == frozenset()


def test_constraints_that_leave_nothing_say_so(compile_):
    with pytest.raises(CutError, match=r"no cut is allowed \(.*--keep-local.*--robot-memory"):
        compile_(branching.deep(), keep_local=("6",), robot_memory=WEIGHTS)


# --robot-memory


def test_robot_bytes_counts_shared_weights_once_and_decoded_ones_with_their_source():
    deep = graph_of(branching.deep())
    activations = 2 * SIZE * 4
    order = order_of(deep)
    assert robot_bytes(deep, order, frozenset()) == 0
    assert robot_bytes(deep, order, frozenset([0, 1])) == 2 * WEIGHTS + activations
    decoded = graph_of(onnx_models.decoded_weights())
    order = order_of(decoded)
    assert [node.op for node in order] == ["MatMul", "Relu", "MatMul", "Tanh"]
    table = 128 * 128 * (1 + 4) + 4
    assert robot_bytes(decoded, order, frozenset([0])) == table + 2 * 128 * 4
    assert robot_bytes(decoded, order, frozenset([0, 1, 2])) == table + 2 * 128 * 4


def test_robot_memory_refuses_what_is_above_it_and_keeps_what_is_below(compile_):
    limit = 3 * WEIGHTS + 2 * SIZE * 4
    manifest = compile_(branching.deep(), cuts="all", robot_memory=limit).manifest
    assert manifest.cuts[-1].refused == (
        f"the robot would need {6 * WEIGHTS + 2 * SIZE * 4} bytes, --robot-memory allows {limit}"
    )
    assert [len(c.robot_segments) for c in manifest.cuts if not c.refused] == [0, 1, 2, 3]
    assert sum("--robot-memory" in r.reason for r in manifest.refused) == 2


def test_the_search_knows_of_the_memory(devices):
    # Without a limit the robot would run all or nothing here; with one, the best part that fits.
    graph = graph_of(branching.fork())
    setting = setting_of(graph, devices, robot_memory=WEIGHTS + 2 * LARGE * 4)
    kept = [c.nodes for c in choose(setting) if not c.refused]
    order = order_of(graph)
    assert all(robot_bytes(graph, order, n) <= WEIGHTS + 2 * LARGE * 4 for n in kept)
    assert frozenset([3]) in kept
    assert any(c.refused for c in choose(setting))


def test_a_robot_of_little_memory_loads_its_part_and_needs_the_server(compile_):
    limit = 3 * WEIGHTS + 2 * SIZE * 4
    bundle = compile_(branching.deep(), cuts="all", robot_memory=limit)
    cuts = bundle.manifest.cuts
    inputs, outputs = bundle.parity_vectors()
    with Robot(bundle, threads=1) as alone:
        assert alone.program.loaded == (0, 1, 2)
        with pytest.raises(UnansweredError, match="--robot-memory allows"):
            alone.infer(inputs)
        with pytest.raises(EngineError, match="not loaded here"):
            alone.program.run(inputs)
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(bundle, backend) as program, Server([program]) as server:
        where = "{}:{}".format(*server.address)
        with Robot(bundle, server=where, threads=1, patience_s=20) as robot:
            for cut in ("offload", cuts[2].id, cuts[3].id):
                result = robot.infer(inputs, cut=cut)
                assert result.answered_by == "remote"
                assert largest_error(result.outputs, outputs) < 1e-5
            assert robot.program.loaded == (0, 1, 2)


# What the manifest says, and the command


def test_estimates_are_there_for_both_sides_and_add_up(compile_, devices):
    manifest = compile_(branching.fork()).manifest
    graph = graph_of(branching.fork())
    setting = setting_of(graph, devices)
    assert set(manifest.estimates) == {"robot", "server"}
    for side, costs in (("robot", setting.robot), ("server", setting.server)):
        estimate = manifest.estimates[side]
        assert estimate.source == "roofline"
        assert estimate.device == side
        assert len(estimate.segments_s) == len(manifest.segments)
        assert sum(estimate.segments_s) == pytest.approx(costs.seconds.sum())
        assert min(estimate.segments_s) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cuts", "none"], ["--cuts", "'none'"]),
        (["--cuts", "0"], ["--cuts", "from 1"]),
        (["--cuts", "²"], ["--cuts", "'²'"]),
        (["--max-frontier", "0"], ["--max-frontier", "1 or more"]),
        (["--keep-local", "99"], ["--keep-local 99", "expected 1 to 6"]),
        (["--keep-local", "n_v33"], ["no operator", "did you mean n_v3"]),
        (["--robot-memory", "lots"], ["'lots'", "512MB"]),
        (["--robot-memory", "0"], ["--robot-memory", "above 0"]),
        (["--robot", "toaster"], ["'toaster'", "xavier-nx"]),
        (["--server", "gone.json"], ["gone.json", "device file"]),
        (["--robot", "latency-0.json"], ["latency-0.json", "latency table"]),
        (["--keep-local", "6", "--robot-memory", "1kB"], ["no cut is allowed"]),
    ],
)
def test_wrong_options_are_one_line_and_status_1(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    onnx.save(branching.deep(), "model.onnx")
    result = CliRunner().invoke(main, ["model.onnx", "-o", "out.bundle", *arguments])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_command_takes_every_option(tmp_path, monkeypatch, devices):
    monkeypatch.chdir(tmp_path)
    onnx.save(branching.deep(), "model.onnx")
    arguments = ["--cuts", "3", "--keep-local", "1", "--robot-memory", "100kB", "--json"]
    arguments += ["--robot", devices[0], "--server", "rtx4090", "--max-frontier", "2"]
    result = CliRunner().invoke(main, ["model.onnx", "-o", "out.bundle", *arguments])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert sum(not cut["refused"] for cut in report["cuts"]) == 3
    manifest = Bundle.open("out.bundle").manifest
    assert manifest.estimates["robot"].device == "robot"
    assert "4090" in manifest.estimates["server"].device
