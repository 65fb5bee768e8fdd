"""The records of a check: what the JSON file holds, and what a child process tells its parent.

A line of a child is a ``Row``, or of the machine a ``Package``, ``Gpus`` or ``Listed``; the file
is one ``Check``. Errors that are not finite are ``null``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "SCHEMA",
    "Check",
    "CutError",
    "Gpu",
    "Gpus",
    "Line",
    "Listed",
    "Machine",
    "Package",
    "Row",
    "Status",
    "Timing",
]

SCHEMA = 1

Status = Literal["ok", "wrong", "built", "refused", "not done", "out of time", "failed"]
"""What became of a step.

ok: done, and right where there is a right. wrong: an error above its tolerance. built: plans were
built and there is no GPU to run them. refused: a library refused it, for the reason that is
given. not done: something is missing here. out of time: its budget was spent. failed: nobody
expected it, such as a crash of the process.
"""


class Package(msgspec.Struct, frozen=True, kw_only=True, tag="package"):
    """A Python package that a GPU is used with.

    Attributes:
        name: As pip calls it.
        version: Its version; none where it is not installed.
        works: Whether it can be imported.
        said: The reason if not, else what it says of this machine.
    """

    name: str
    version: str | None
    works: bool
    said: str


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as one provider of device memory sees it."""

    provider: str
    name: str
    compute_capability: str
    total_bytes: int
    cuda_graphs: bool


class Gpus(msgspec.Struct, frozen=True, kw_only=True, tag="gpus"):
    """What the providers of device memory found.

    Attributes:
        gpus: The first GPU, once for every provider that reaches it; empty without a GPU.
        no_gpu: Why the other providers reach none.
    """

    gpus: tuple[Gpu, ...]
    no_gpu: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the check ran.

    Attributes:
        device: Board or processor.
        system: Operating system and architecture.
        python: Its version.
        packages: What is installed.
        gpus: As in :class:`Gpus`.
        no_gpu: Likewise.
    """

    device: str
    system: str
    python: str
    packages: tuple[Package, ...]
    gpus: tuple[Gpu, ...]
    no_gpu: str


class CutError(msgspec.Struct, frozen=True, kw_only=True):
    """How far one side of a cut is from ONNX Runtime.

    Attributes:
        cut: The cut's id.
        index: Its place in the bundle.
        side: ``head``: the frontier, from the inputs. ``tail``: the model's outputs, from the
            frontier that ONNX Runtime gives.
        tensor: The one that is worst, measured by its tolerance; empty where nothing is computed.
        error: Its error, as :func:`calibration.parity.error_of`; none where it is not finite.
        tolerance: Its tolerance.
        ok: Whether the error is within it.
    """

    cut: str
    index: int
    side: Literal["head", "tail"]
    tensor: str
    error: float | None
    tolerance: float
    ok: bool


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """A time that was measured here.

    Attributes:
        what: What was timed.
        p50_ms: Median.
        p95_ms: 95th percentile.
        runs: Runs that were timed.
        warmup: Runs before them.
        until: What a run was waited for with.
        bytes: What was copied; 0 where it is no copy.
    """

    what: str
    p50_ms: float
    p95_ms: float
    runs: int
    warmup: int
    until: str
    bytes: int = 0


class Row(msgspec.Struct, frozen=True, kw_only=True, tag="row"):
    """What became of one step for one subject.

    Attributes:
        step: The step, such as ``models``.
        subject: What it was done for, such as a model.
        backend: Backend or provider; empty where there is none.
        status: See :data:`Status`.
        said: One line: the library's reason, or what was found.
        seconds: How long it took.
        plans: Plans built or found.
        plan_bytes: Their size.
        cuts: Errors of every cut, both sides.
        timings: Times.
    """

    step: str
    subject: str
    backend: str
    status: Status
    said: str
    seconds: float = 0.0
    plans: int = 0
    plan_bytes: int = 0
    cuts: tuple[CutError, ...] = ()
    timings: tuple[Timing, ...] = ()


class Listed(msgspec.Struct, frozen=True, kw_only=True, tag="listed"):
    """What there is to be tried here.

    Attributes:
        models: Small models.
        targets: What TensorRT for RTX may build for.
    """

    models: tuple[str, ...]
    targets: tuple[str, ...]


Line = Package | Gpus | Listed | Row
"""What a child process writes, one a line."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run found: the JSON file."""

    schema: int
    splitrt: str
    started: str
    seconds: float
    arguments: tuple[str, ...]
    machine: Machine
    rows: tuple[Row, ...]
