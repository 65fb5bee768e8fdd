"""The serial family on published operator times, against every topological prefix.

For each profile, each goodput, and the input as float32 and as uint8: the latency of running it
all on the robot, of sending the input, of the best of all prefixes of the execution order (brute
force), and of the best plan of the family (parametric minimum cut over all closed sets of
operators). Serial plans, no round trip, no coding; activations are float32.

    python scripts/published_cuts.py PATH_OF_TESTBED
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from workloads.profiles import Operator, Profile, ProfileError, profiles_folder, read_profile

from compiler.family import Problem, Tensor
from engines.console import command_options

GOODPUTS_MBPS = (93.0, 73.0, 40.0, 16.0)
FLOAT32_BYTES = 4
BYTE_OUTPUTS = ("agrnav",)
"""Models that answer with a byte a value; the others with float32."""


@dataclass(frozen=True)
class Row:
    """One line: times in milliseconds."""

    model: str
    input: str
    goodput_mbps: float
    local_ms: float
    offload_ms: float
    prefix_ms: float
    family_ms: float
    plan: str


def problem_of(profile: Profile, *, input_bytes: int, output_bytes: int) -> Problem:
    """Return the cut problem of a profile, costs in milliseconds.

    Args:
        profile: Operators with their times on both sides.
        input_bytes: Bytes of an element of the model's input.
        output_bytes: Bytes of an element of its outputs.
    """
    nodes = [op for op in profile.robot_ops if op.op not in ("_start", "_end")]
    where = {op.index: place for place, op in enumerate(nodes)}
    consumers: dict[int, list[int]] = {}
    for op in nodes:
        for producer in op.inputs:
            consumers.setdefault(producer, []).append(where[op.index])
    answered = {p for op in profile.robot_ops if op.op == "_end" for p in op.inputs}
    answered = answered or {nodes[-1].index}
    tensors: list[Tensor] = []
    for op in profile.robot_ops:
        if op.op == "_end":
            continue
        start = op.op == "_start"
        up = _size(op) * (input_bytes if start else FLOAT32_BYTES)
        down = _size(op) * output_bytes if op.index in answered else 0
        takers = tuple(sorted(consumers.get(op.index, ())))
        tensors.append(Tensor(-1 if start else where[op.index], takers, up, down))
    server = {op.index: op.ms for op in profile.server_ops}
    return Problem([op.ms for op in nodes], [server[op.index] for op in nodes], tensors)


def rows_of(name: str, profile: Profile) -> list[Row]:
    """Compare family and brute force on one profile."""
    rows: list[Row] = []
    count = sum(1 for op in profile.robot_ops if op.op not in ("_start", "_end"))
    prefixes = [frozenset(range(stop)) for stop in range(count + 1)]
    for title, input_bytes in (("float32", FLOAT32_BYTES), ("uint8", 1)):
        output_bytes = 1 if name in BYTE_OUTPUTS else FLOAT32_BYTES
        problem = problem_of(profile, input_bytes=input_bytes, output_bytes=output_bytes)
        costs = [(problem.compute(nodes), problem.moved(nodes)) for nodes in prefixes]
        # Milliseconds a byte: 8 bits over kilobits a millisecond.
        low, high = (8 / (mbps * 1e3) for mbps in (max(GOODPUTS_MBPS), min(GOODPUTS_MBPS)))
        family = problem.envelope(low, high)
        for mbps in GOODPUTS_MBPS:
            x = 8 / (mbps * 1e3)
            best = min(family, key=lambda win: problem.cost(win.nodes, x))  # noqa: B023 (used now)
            size = len(best.nodes)
            plan = "local" if size == count else "offload" if not size else f"{size} of {count}"
            rows.append(
                Row(
                    name,
                    title,
                    mbps,
                    costs[-1][0] + x * costs[-1][1],
                    costs[0][0] + x * costs[0][1],
                    min(compute + x * moved for compute, moved in costs),
                    problem.cost(best.nodes, x),
                    plan,
                )
            )
    return rows


def _size(op: Operator) -> int:
    return sum(math.prod(shape) for shape in op.shapes)


@click.command()
@click.argument("testbed", required=False)
@command_options
def main(testbed: str | None) -> None:
    """Print the table for every profile below TESTBED (or $SPLITRT_TESTBED)."""
    folder = profiles_folder(testbed)
    paths: list[Path] = sorted(folder.glob("*.json"))
    if not paths:
        raise ProfileError(f"{folder}: no profiles (*.json) there")
    table = Table(box=SIMPLE, title="latency in ms; serial plans", title_justify="left")
    for title in ("model", "input"):
        table.add_column(title, no_wrap=True)
    for title in ("Mbps", "local", "offload", "best prefix", "family", "gain, %", "robot runs"):
        table.add_column(title, justify="right", no_wrap=True)
    worst = 0.0
    gains: list[tuple[float, Row]] = []
    for path in paths:
        for row in rows_of(path.stem, read_profile(path)):
            rival = min(row.local_ms, row.offload_ms)
            gain = 100 * (1 - row.family_ms / rival)
            gains.append((gain, row))
            worst = max(worst, row.family_ms / row.prefix_ms - 1)
            table.add_row(
                row.model,
                row.input,
                f"{row.goodput_mbps:g}",
                f"{row.local_ms:.2f}",
                f"{row.offload_ms:.2f}",
                f"{row.prefix_ms:.2f}",
                f"{row.family_ms:.2f}",
                f"{gain:.2f}",
                row.plan,
            )
    Console(width=110).print(table)
    split = [row for gain, row in gains if row.plan not in ("local", "offload")]
    raw = [row for row in split if row.input == "uint8"]
    click.echo(
        f"family over best prefix, worst case: {100 * worst:+.4f}% (0 or below: nothing missed)\n"
        f"a split beats both ends in {len(split)} of {len(gains)} cases, in {len(raw)} of "
        f"{sum(row.input == 'uint8' for _, row in gains)} where the input is uint8"
    )


if __name__ == "__main__":
    main()
