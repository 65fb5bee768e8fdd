"""Published operators find their segments."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from calibration.latency_table import load_table
from compiler import CompileOptions, compile_model, parse_input
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.replay_table import ReplayTable, read_replay_table
from scripts.workloads import WORKLOADS, Workload
from scripts.workloads import replay_tables as module
from scripts.workloads.profiles import TESTBED, Operator, Profile, ProfileError
from scripts.workloads.replay_tables import (
    assign,
    floor_ms,
    latency_table,
    main,
    operator_times,
    profile_of,
    replay_table,
    write_tables,
)


class Small(nn.Module):
    """A convolution with batch norm and a SiLU, twice; a sum; a linear with a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.SiLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4, 5)
        self.gelu = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.first(x)))
        x = x + self.act(self.second(x))
        return self.gelu(self.linear(torch.flatten(self.pool(x), 1)))


PLANE, CLASSES = (1, 4, 8, 8), (1, 5)

# As the profiler would have noted it down, with a selection at the end.
OPERATORS = [
    ("_start", (), (1, 3, 8, 8), 0.0),
    ("conv2d", (0,), PLANE, 8.0),
    ("dim", (1,), None, 0.25),
    ("batch_norm", (1,), PLANE, 1.0),
    ("silu", (3,), PLANE, 0.5),
    ("conv2d", (4,), PLANE, 4.0),
    ("silu", (5,), PLANE, 0.75),
    ("add", (4, 6), PLANE, 0.125),
    ("adaptive_avg_pool2d", (7,), (1, 4, 1, 1), 0.0625),
    ("flatten", (8,), (1, 4), 0.03),
    ("linear", (9,), CLASSES, 2.0),
    ("gelu", (10,), CLASSES, 0.02),
    ("nms", (11,), (3,), 16.0),
    ("add", (12,), (3,), 32.0),
    ("_end", (13,), (3,), 0.0),
]


def operators(scale: float = 1.0) -> tuple[Operator, ...]:
    return tuple(
        Operator(i, op, inputs, () if shape is None else (shape,), None, ms * scale)
        for i, (op, inputs, shape, ms) in enumerate(OPERATORS)
    )


PROFILE = Profile("small", "a robot", "a server", operators(), operators(0.1))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    program = torch.export.export(Small().eval(), (torch.randn(1, 3, 8, 8),))
    torch.export.save(program, folder / "small.pt2")
    options = CompileOptions(inputs=(parse_input("x=float32[1,3,8,8]"),), cuts="all")
    made, _ = compile_model(str(folder / "small.pt2"), folder / "small.bundle", options=options)
    return made


def by_operator(bundle: Bundle) -> dict[int, str]:
    """Return the ONNX operators of the segment that each profiled operator went to."""
    found = assign(bundle, PROFILE.robot_ops)
    segments = bundle.manifest.segments
    return {
        index: "+".join(segments[place].operators)
        for place, indices in enumerate(found.segments)
        for index in indices
    }


def test_operators_find_their_nodes(bundle: Bundle) -> None:
    found = by_operator(bundle)
    convolutions = [s.index for s in bundle.manifest.segments if "Conv" in s.operators]
    assignment = assign(bundle, PROFILE.robot_ops)
    # The batch norm is folded into its convolution, and so is what was asked of its input.
    assert assignment.segments[convolutions[0]] == (1, 2, 3)
    assert assignment.segments[convolutions[1]] == (5,)
    assert "Mul" in found[4]
    assert "Mul" in found[6]
    assert "Add" in found[7]
    assert "Gemm" in found[10]
    assert "Mul" in found[11]
    assert set(assignment.matched) >= {1, 4, 5, 6, 7, 8, 10, 11}
    assert set(assignment.joined) >= {2, 3}
    assert assignment.lost == (12, 13), "what depends on the data, and what follows it"


def test_every_operator_goes_to_one_segment_in_order(bundle: Bundle) -> None:
    found = assign(bundle, PROFILE.robot_ops)
    listed = [index for segment in found.segments for index in segment]
    assert sorted(listed) == list(range(1, 12))
    assert sorted((*found.matched, *found.joined)) == sorted(listed)
    assert all(list(segment) == sorted(segment) for segment in found.segments)
    total = sum(
        found.share(p, PROFILE.robot_ops) for p in (found.matched, found.joined, found.lost)
    )
    assert total == pytest.approx(1)


def test_the_compiler_gets_every_time_at_the_operators_own_node(bundle: Bundle) -> None:
    found = assign(bundle, PROFILE.robot_ops)
    times = operator_times(PROFILE, "robot", found)
    assert times.device == PROFILE.robot
    assert len(times.seconds) == len(set(found.tensors.values()))
    placed = [PROFILE.robot_ops[i].ms for segment in found.segments for i in segment]
    assert sum(times.seconds.values()) == pytest.approx(1e-3 * sum(placed))
    # The first convolution with what was folded into it.
    assert times.seconds[found.tensors[1]] == pytest.approx((8.0 + 0.25 + 1.0) * 1e-3)


def test_another_model_is_refused(toy: Bundle) -> None:
    with pytest.raises(ProfileError, match="a bundle of another model"):
        assign(toy, PROFILE.robot_ops)


def test_a_launch_is_the_median_of_the_smallest_elementwise_operators() -> None:
    some = [
        Operator(i, op, (), ((size,),), None, ms)
        for i, (op, size, ms) in enumerate(
            [("relu", 10, 0.3), ("add_", 20, 0.1), ("mul", 30, 0.2), ("conv2d", 1, 9.0)]
            + [("relu", 5, 0.0)]  # too short to be seen
            + [("relu", 1000 + i, 5.0) for i in range(9)]
        )
    ]
    assert floor_ms(some) == 0.2
    assert floor_ms([]) == 0.0


def test_tables_of_both_sides(bundle: Bundle, tmp_path: Path) -> None:
    paths = write_tables(bundle, PROFILE, tmp_path / "tables", values="../values.npz")
    assert sorted(path.name for path in paths.values()) == sorted(
        f"{side}-x{floor}.json" for side in ("robot", "server") for floor in (0, 1, 2)
    )
    robot = read_replay_table(paths["robot", 1.0])
    assert robot.bundle == bundle.digest
    assert robot.device == "a robot"
    assert robot.values == "../values.npz"
    inside = sum(ms for op, _, _, ms in OPERATORS if op not in ("nms", "_end")) - 32.0
    assert sum(map(sum, robot.segments_ms)) == pytest.approx(inside)
    server = read_replay_table(paths["server", 2.0])
    assert server.floor_ms == pytest.approx(0.2 * robot.floor_ms)
    assert read_replay_table(paths["server", 0.0]).floor_ms == 0


def test_its_latencies_are_where_the_runtime_looks(bundle: Bundle, tmp_path: Path) -> None:
    paths = write_tables(bundle, PROFILE, tmp_path / "tables")
    path = paths["robot", 1.0]
    table = load_table(bundle, open_backend(f"replay:{path}").fingerprint())
    assert table == latency_table(bundle, path)
    assert table is not None
    assert table.fused_ratio == 1.0
    assert (0, len(bundle.manifest.cuts) - 1) in table.chained, "fusing gains nothing here"
    assert table.whole.p50_s == pytest.approx(sum(t.p50_s for t in table.segments))


def test_stripes_have_latencies_too(dense: Bundle, tmp_path: Path) -> None:
    count = len(dense.manifest.segments)
    made = ReplayTable(
        bundle=dense.digest, device="", floor_ms=2.0, segments_ms=((16.0, 1.0),) * count
    )
    path = tmp_path / "robot.json"
    path.write_bytes(msgspec.json.encode(made))
    table = latency_table(dense, path)
    ms = [1e3 * timing.p50_s for timing in table.striped[0]]
    assert ms == pytest.approx([3.0, 3.0, 5.0, 9.0, 17.0])
    striping = dense.manifest.striping
    assert striping is not None
    behind = [count - split.cut for split in striping.row_splits]
    assert [1e3 * points[-1].p50_s for points in table.row_splits] == pytest.approx(
        [17.0 * number for number in behind]
    )


def test_the_program_says_how_well_it_maps(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_json(ops: tuple[Operator, ...]) -> list[dict[str, object]]:
        return [
            {
                "index": o.index,
                "op": o.op,
                "inputs": list(o.inputs),
                "shapes": [list(shape) for shape in o.shapes],
                "local_dim": None,
                "ms": o.ms,
            }
            for o in ops
        ]

    content = {"model": "small", "robot": "a robot", "server": "a server"}
    lists = {"robot_ops": as_json(PROFILE.robot_ops), "server_ops": as_json(PROFILE.server_ops)}
    (tmp_path / "agrnav.json").write_text(json.dumps({**content, **lists}))
    command = [
        str(bundle.folder),
        "agrnav",
        "-o",
        str(tmp_path / "out"),
        "--testbed",
        str(tmp_path),
    ]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "no place: 1 add (32.00 ms), 1 nms (16.00 ms)" in shown.output
    assert (tmp_path / "out" / "server-x2.json").exists()
    shown = CliRunner().invoke(main, [*command[:-1], str(tmp_path / "none")])
    assert shown.exit_code == 1
    assert shown.output.count("\n") == 1


@pytest.mark.parametrize("name", ["nope", "vgg19"])
def test_a_workload_without_a_profile_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="expected a workload with a profile"):
        profile_of(name, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(TESTBED not in os.environ, reason=f"{TESTBED} names no testbed data")
def test_nearly_all_of_a_published_profile_has_a_place(tmp_path: Path) -> None:
    """Of the voxel network, whose weights are few: convolutions in order, and no time lost."""
    workload: Workload = WORKLOADS["agrnav"]
    factory = Path(module.__file__).parent / f"{workload.module}.py"
    options = CompileOptions(cuts="8")
    bundle, _ = compile_model(
        f"{factory}:{workload.factory}", tmp_path / "agrnav.bundle", options=options
    )
    profile = profile_of("agrnav")
    found = assign(bundle, profile.robot_ops)
    assert found.lost == ()
    assert found.share(found.matched, profile.robot_ops) > 0.95
    for side in ("robot", "server"):
        table = replay_table(bundle, profile, side, found)
        ops = profile.robot_ops if side == "robot" else profile.server_ops
        assert sum(map(sum, table.segments_ms)) == pytest.approx(sum(o.ms for o in ops))
    # Each segment has as many profiled convolutions as it has nodes of that kind.
    for segment, indices in zip(bundle.manifest.segments, found.segments, strict=True):
        graph = onnx.load(str(bundle.path(segment.file)), load_external_data=False).graph
        nodes = sum(node.op_type in ("Conv", "ConvTranspose") for node in graph.node)
        assert sum("conv" in profile.robot_ops[i].op for i in indices) == nodes
