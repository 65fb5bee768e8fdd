"""Published operator profiles: one JSON file a model, read into frozen records.

A profile holds the operators of one inference in execution order, with the shapes of what they
gave and the time they took, once as the robot and once as the server ran them. The data is not
part of this repository: it is read from a folder that the caller names, or that the environment
variable ``SPLITRT_TESTBED`` does (its sub-folder ``profiles``).

Producers are read without doubles: a consumer of what an in-place operator gave lists both that
operator and what it overwrote, and only the former remains.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import SplitError

__all__ = [
    "TESTBED",
    "Operator",
    "Profile",
    "ProfileError",
    "profiles_folder",
    "read_profile",
]

TESTBED = "SPLITRT_TESTBED"
"""Environment variable that names the folder in which ``profiles/`` lies."""

OVERWRITING = frozenset({"relu", "silu", "dropout", "__setitem__"})
"""Operators without an underscore at the end of the name that overwrite what they take.

Activations ran in place, and dropout in inference gives its own input.
"""


class ProfileError(SplitError):
    """A profile cannot be found or read."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a profile.

    Attributes:
        index: Its place in the order of execution, from 0.
        op: What was called; ``_start`` gives the inputs, ``_end`` takes the outputs.
        inputs: Indices of its producers, in order, each once.
        shapes: Of its outputs; empty where it gave no tensor.
        local_dim: Dimension along which part of the output can be computed from part of the
            input; none where it needs all of it, or was not analysed.
        ms: Time it took, in milliseconds.
    """

    index: int
    op: str
    inputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    local_dim: int | None
    ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """The operators of one model on the two devices.

    Attributes:
        model: Its name.
        robot: What the robot was.
        server: What the server was.
        robot_ops: In order of execution, with the robot's times.
        server_ops: The same operators, with the server's times.
    """

    model: str
    robot: str
    server: str
    robot_ops: tuple[Operator, ...]
    server_ops: tuple[Operator, ...]

    def __post_init__(self) -> None:
        if len(self.robot_ops) != len(self.server_ops):
            raise ProfileError(
                f"expected as many server_ops as robot_ops, given {len(self.server_ops)} and "
                f"{len(self.robot_ops)}"
            )
        for mine, other in zip(self.robot_ops, self.server_ops, strict=True):
            if (mine.op, mine.inputs) != (other.op, other.inputs):
                raise ProfileError(
                    f"server_ops[{mine.index}]: expected {mine.op!r} of {list(mine.inputs)} as in "
                    f"robot_ops, given {other.op!r} of {list(other.inputs)}"
                )


def profiles_folder(path: str | Path | None = None) -> Path:
    """Return the folder of profiles: ``path``, or that in ``SPLITRT_TESTBED``.

    Raises:
        ProfileError: Neither is given, or there is no such folder.
    """
    given = path if path is not None else os.environ.get(TESTBED)
    if not given:
        raise ProfileError(f"no folder of profiles: name one, or set {TESTBED}")
    folder = Path(given)
    if (folder / "profiles").is_dir():
        folder /= "profiles"
    if not folder.is_dir():
        raise ProfileError(f"{folder}: no such folder; expected one with profiles (*.json)")
    return folder


def read_profile(path: str | Path) -> Profile:
    """Read one profile.

    Raises:
        ProfileError: It cannot be read, or is malformed; the message says where, in one line.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as exc:
        raise ProfileError(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ProfileError(f"{path}: expected JSON: {exc}") from exc
    try:
        record = _typed(content, dict, "profile")
        names = {key: _typed(record.get(key), str, key) for key in ("model", "robot", "server")}
        lists = {key: _operators(record.get(key), key) for key in ("robot_ops", "server_ops")}
        return Profile(**names, **lists)
    except ProfileError as exc:
        raise ProfileError(f"{path}: {exc}") from exc


def _operators(given: Any, where: str) -> tuple[Operator, ...]:
    operators: list[Operator] = []
    for index, item in enumerate(_typed(given, list, where)):
        operators.append(_operator(item, index, operators, f"{where}[{index}]"))
    if not operators:
        raise ProfileError(f"{where}: expected operators, given none")
    return tuple(operators)


def _operator(given: Any, index: int, before: list[Operator], where: str) -> Operator:
    item = _typed(given, dict, where)
    if item.get("index") != index:
        raise ProfileError(f"{where}.index: expected {index}, given {item.get('index')!r}")
    shapes = tuple(
        tuple(_natural(size, f"{where}.shapes") for size in _typed(shape, list, f"{where}.shapes"))
        for shape in _typed(item.get("shapes"), list, f"{where}.shapes")
    )
    producers = [
        _natural(producer, f"{where}.inputs")
        for producer in _typed(item.get("inputs"), list, f"{where}.inputs")
    ]
    late = [producer for producer in producers if producer >= index]
    if late:
        raise ProfileError(f"{where}.inputs: expected indices below {index}, given {late}")
    return Operator(
        index=index,
        op=_typed(item.get("op"), str, f"{where}.op"),
        inputs=_without_overwritten(producers, before),
        shapes=shapes,
        local_dim=_local_dim(item.get("local_dim"), shapes, f"{where}.local_dim"),
        ms=_duration(item.get("ms"), f"{where}.ms"),
    )


def _without_overwritten(producers: list[int], before: list[Operator]) -> tuple[int, ...]:
    """Drop doubles, and what an in-place operator of the list overwrote, directly or not."""
    overwritten: set[int] = set()
    for producer in sorted(set(producers), reverse=True):
        operator = before[producer]
        if operator.op in OVERWRITING or _is_in_place(operator.op):
            overwritten.update(
                taken
                for taken in operator.inputs
                if operator.op == "__setitem__" or before[taken].shapes == operator.shapes
            )
    kept = dict.fromkeys(p for p in producers if p not in overwritten)
    return tuple(kept)


def _is_in_place(op: str) -> bool:
    return op.endswith("_") and not op.endswith("__")


def _local_dim(given: Any, shapes: tuple[tuple[int, ...], ...], where: str) -> int | None:
    if given is None:
        return None
    dim = _natural(given, where)
    if shapes and dim >= max(1, len(shapes[0])):
        raise ProfileError(f"{where}: expected a dimension of {list(shapes[0])}, given {dim}")
    return dim


def _duration(given: Any, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ProfileError(f"{where}: expected milliseconds, given {given!r}")
    if not math.isfinite(given) or given < 0:
        raise ProfileError(f"{where}: expected milliseconds from 0 on, given {given}")
    return float(given)


def _natural(given: Any, where: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ProfileError(f"{where}: expected an integer from 0 on, given {given!r}")
    return given


def _typed(given: Any, kind: type, where: str) -> Any:
    if not isinstance(given, kind):
        names = {dict: "an object", list: "a list", str: "a string"}
        shown = "nothing" if given is None else type(given).__name__
        raise ProfileError(f"{where}: expected {names[kind]}, given {shown}")
    return given
