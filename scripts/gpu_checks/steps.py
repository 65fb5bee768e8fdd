"""The steps of a check, what each is done for, and how one is carried out in this process.

A step is done for subjects one after another, and each gives a row. The caller may stop after any
row and carry on with the other subjects in another process: a step keeps nothing but the bundles
and plans in the check's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from engines.errors import IncompatibleError
from engines.tensorrt.memory import PROVIDERS
from scripts.gpu_checks import bundles, capability, machine, parity, speed
from scripts.gpu_checks.kit import BACKENDS, Budget, Kit, guarded
from scripts.gpu_checks.records import Line, Listed, Row

__all__ = ["INSTALLED", "ONLY", "Step", "carry_out", "list_subjects", "look", "plan_steps"]

ONLY = ("copies", "capability", "models", "demo", "fx")
"""Parts that can be asked for alone; ``bundles`` comes with ``--bundle``."""

RTX = "tensorrt-rtx"
TENSORRT = "tensorrt"

FX_MODELS = ("residual", "branches", "voxels")
"""Small models that map to fx nodes whole."""

_GPU = "GPU"
_SUBJECTS = "models and targets"

Work = Callable[[Kit, str, str, str], Row]


class Step(msgspec.Struct, frozen=True):
    """Something to be done for several subjects.

    Attributes:
        name: Its name, in the table.
        backend: Backend, or provider of device memory; empty where there is none.
        subjects: What it is done for, in order.
        seconds: Its budget.
    """

    name: str
    backend: str
    subjects: tuple[str, ...]
    seconds: float


INSTALLED = Step("installed", "", (*machine.PACKAGES, _GPU, _SUBJECTS), 120.0)
"""The first step: its lines are no rows, but what :class:`Machine` is put together from."""


def list_subjects() -> Listed:
    """Find what there is to be tried, where the libraries for it are installed."""
    return Listed(
        models=_found(bundles.small_models, "small models"),
        targets=_found(lambda: capability.targets_of(Kit(Path(), Budget(0))), "every target"),
    )


def plan_steps(
    only: Sequence[str], given: Sequence[str], budget_s: float, listed: Listed
) -> list[Step]:
    """Return the steps of a check.

    Args:
        only: Parts of :data:`ONLY`; empty for all of them.
        given: Paths of bundles to check; without ``only``, nothing else is checked then.
        budget_s: Seconds for each step.
        listed: What there is to be tried.
    """
    parts = only or (() if given else ONLY)
    steps: list[Step] = []

    def add(name: str, backends: Sequence[str], *subjects: str) -> None:
        steps.extend(Step(name, backend, subjects, budget_s) for backend in backends)

    if "copies" in parts:
        add("copies", tuple(PROVIDERS), "pinned memory")
    if "capability" in parts:
        add("capability", (RTX,), *listed.targets)
    if "models" in parts:
        add("models", tuple(BACKENDS), *listed.models)
        add("speed", tuple(BACKENDS), bundles.TIMED)
    if "demo" in parts:
        add("demo", tuple(BACKENDS), bundles.DEMO)
        add("speed", tuple(BACKENDS), bundles.DEMO)
    if "fx" in parts:
        add("fx", (TENSORRT,), *FX_MODELS)
    if given:
        add("bundles", tuple(BACKENDS), *given)
        add("speed", tuple(BACKENDS), *given)
    return steps


def look(subject: str) -> Line:
    """Look at one of the subjects of :data:`INSTALLED`."""
    if subject == _GPU:
        return machine.find_gpus()
    return list_subjects() if subject == _SUBJECTS else machine.look_at(subject)


def carry_out(kit: Kit, step: Step) -> Iterator[Row]:
    """Do a step for each of its subjects, until its budget is spent.

    The last row of a process that has lost its GPU is the one that lost it: see ``Kit.lost``.
    """
    for subject in step.subjects:
        if kit.budget.left_s <= 0:
            yield Row(
                step=step.name,
                subject=subject,
                backend=step.backend,
                status="out of time",
                said=f"the budget of {step.seconds:g} s is spent",
            )
            continue
        yield guarded(step.name, subject, step.backend, _work(kit, step, subject))


def _work(kit: Kit, step: Step, subject: str) -> Callable[[], Row]:
    compared: dict[str, Work] = {
        "models": parity.compare_bundle,
        "demo": parity.compare_bundle,
        "bundles": parity.compare_bundle,
        "fx": parity.compare_from_fx,
        "speed": speed.time_bundle,
    }
    if step.name in compared:
        return lambda: compared[step.name](kit, step.name, subject, step.backend)
    if step.name == "capability":
        return lambda: capability.try_target(kit, step.name, subject)
    return lambda: speed.time_copies(kit, step.name, machine.open_provider(step.backend))


def _found(find: Callable[[], list[str]], otherwise: str) -> tuple[str, ...]:
    """Return what is found, or one subject that stands for all where nothing can be found."""
    try:
        return tuple(find())
    except (ImportError, IncompatibleError):
        return (otherwise,)
