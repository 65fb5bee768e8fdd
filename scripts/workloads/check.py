"""Check the workloads against the published profiles, operator by operator.

    SPLITRT_TESTBED=FOLDER python -m scripts.workloads.check
    python -m scripts.workloads.check FOLDER [WORKLOAD ...]

A workload runs once on PyTorch's meta device, which computes shapes only, while every call of a
PyTorch function is noted down, as the published profiler noted them. Of both sequences those
operators are compared that do the work or give the graph its form (convolutions, pooling,
linears, additions, concatenations), by name and by the shape of the output, in the order of
execution. A tensor that is written piece by piece in place counts as one concatenation, which
is what a graph without side effects has there. Where a profile goes on to select objects, which
depends on the data and cannot be part of a graph, its operators are left out from there on.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.overrides import TorchFunctionMode

from engines.errors import SplitError

from . import WORKLOADS, Workload
from .profiles import Operator, ProfileError, profiles_folder, read_profile

__all__ = ["Match", "Step", "check", "main", "match", "profile_steps", "workload_steps"]

COMPARED = ("conv", "pool", "linear", "add", "cat")
"""Parts of the names of the operators that are compared."""

DATA_DEPENDENT = frozenset({"masked_select", "nms", "nonzero", "unique"})
"""Operators whose output's shape depends on the data."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A compared operator.

    Attributes:
        op: Its name; in place or not is the same.
        shape: Of its first output.
    """

    op: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.op} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Match:
    """How far a workload is its profile.

    Attributes:
        profile: Operators compared in the profile.
        model: Operators compared in the workload.
        matched: Operators of both, in order, of the same name and output shape.
        first_difference: Where they first part, in words; none where they are the same.
    """

    profile: int
    model: int
    matched: int
    first_difference: str | None


def match(profile: Sequence[Step], model: Sequence[Step]) -> Match:
    """Match two sequences, keeping their order."""
    matcher = difflib.SequenceMatcher(None, profile, model, autojunk=False)
    matched = sum(block.size for block in matcher.get_matching_blocks())
    difference = None
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag != "equal":
            here = ", ".join(map(str, profile[i:i_end][:2])) or "nothing"
            there = ", ".join(map(str, model[j:j_end][:2])) or "nothing"
            difference = f"at {i} of the profile: expected {here}; the model has {there}"
            break
    return Match(len(profile), len(model), matched, difference)


def profile_steps(operators: Sequence[Operator]) -> list[Step]:
    """Return the compared operators of a profile, up to the first that depends on the data."""
    steps: list[Step] = []
    again = {i for o in operators if o.op == "__setitem__" for i in o.inputs}
    for operator in operators:
        if operator.op in DATA_DEPENDENT:
            break
        if operator.op == "__setitem__" and operator.index not in again:
            steps += _step("cat", _written(operator, operators))
        elif operator.shapes:
            steps += _step(operator.op, operator.shapes[0])
    return steps


def workload_steps(workload: Workload) -> list[Step]:
    """Return the compared operators of a workload, in the order in which they run."""
    with torch.device("meta"):
        module, examples = workload.build()
        with torch.no_grad(), _Recorder() as recorder:
            module(*examples)
    return recorder.steps


def check(name: str, folder: Path) -> Match:
    """Match the workload called ``name`` with its profile in ``folder``.

    Raises:
        ProfileError: There is no such workload, it has no profile, or that cannot be read.
    """
    workload = WORKLOADS.get(name)
    if workload is None or workload.profile is None:
        profiled = ", ".join(n for n, w in WORKLOADS.items() if w.profile is not None)
        raise ProfileError(f"{name}: expected a workload with a profile: {profiled}")
    profile = read_profile(folder / f"{workload.profile}.json")
    return match(profile_steps(profile.robot_ops), workload_steps(workload))


def _written(operator: Operator, operators: Sequence[Operator]) -> Shape:
    """Return the shape of the tensor into which ``__setitem__`` wrote."""
    while operator.op == "__setitem__":
        before = [operators[i] for i in operator.inputs]
        operator = next((o for o in before if o.op == "__setitem__"), before[0])
    return operator.shapes[0] if operator.shapes else ()


class _Recorder(TorchFunctionMode):
    """Notes down what PyTorch functions are called, and the shapes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.steps += _step(getattr(func, "__name__", ""), tuple(result.shape))
        return result


def _step(op: str, shape: Shape) -> list[Step]:
    """Return the step, or nothing where such operators are not compared."""
    plain = op.strip("_")
    return [Step(plain, shape)] if any(part in plain for part in COMPARED) else []


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
def main(folder: Path | None, names: tuple[str, ...]) -> None:
    """Check the WORKLOADs (default: all) against the profiles in FOLDER."""
    try:
        profiles = profiles_folder(folder)
        table = Table("workload", "operators", "in model", "matched", "first difference")
        same = True
        for name in names or [n for n, w in WORKLOADS.items() if w.profile is not None]:
            result = check(name, profiles)
            same = same and result.first_difference is None
            counts = (str(n) for n in (result.profile, result.model, result.matched))
            table.add_row(name, *counts, result.first_difference or "none")
    except SplitError as exc:
        print(f"error: {exc}", file=sys.stderr)
        raise SystemExit(1) from exc
    Console().print(table)
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
