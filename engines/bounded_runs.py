"""One inference divided in two with a bounded halo: the robot's part, and the server's. Lossy.

Both compute the same head by the same form, each on its own rows and a few beyond the bound, as if
the picture ended there. Each keeps of the frontier what lies on its own side; the server puts the
two parts together and runs the rest of the model.

Where the halo is at least as high as what the operators need, the result is exact.
"""

from __future__ import annotations

from typing import Dict, Mapping, Optional

import numpy as np

from engines.errors import EngineError
from engines.program import Program
from engines.rows import RowsEngine
from engines.stripe_plans import BoundedPlan, bounded_of
from engines.stripe_runs import rows_between
from engines.striped import Side, StripedProgram
from engines.stripes import Striping
from engines.tensors import Array, check_tensors

__all__ = ["BoundedHeadRun", "BoundedTailRun"]


class BoundedHeadRun:
    """The robot's part. For one thread.

    Args:
        striped: The program's forms; that of the plan is loaded if it is not.
        plan: A valid plan.
        inputs: The model's inputs by name; held until the end.

    Raises:
        TensorMismatchError: An input does not fit.
        EngineError: The form cannot be loaded.
    """

    def __init__(
        self, striped: StripedProgram, plan: BoundedPlan, inputs: Mapping[str, Array]
    ) -> None:
        manifest = striped.manifest
        self._program: Program = striped.program
        self._plan = plan
        self._striping = _striping(striped)
        self._bounded = bounded_of(plan, self._striping)
        self._inputs = check_tensors(
            manifest.specs(manifest.cuts[0].tensors), inputs, where=f"model {manifest.name!r}"
        )
        self._frontier = manifest.cuts[plan.cut].tensors
        self._engine = striped.forms(plan, Side.ROBOT)[self._bounded.plain]

    def raw(self) -> Dict[str, Array]:
        """Return the inputs' rows that the server gets: views."""
        begin = self._bounded.bottom(self._plan.bound)
        found: Dict[str, Array] = {}
        for name, array in self._inputs.items():
            rows = self._striping.tensors[name]
            found[name] = rows_between(array, rows, begin * rows.num // rows.den, rows.rows)
        return found

    def run(self) -> Dict[str, Array]:
        """Compute the frontier's rows above the bound.

        Raises:
            EngineError: The backend failed.
        """
        end = self._bounded.top(self._plan.bound, self._striping.rows)
        feed: Dict[str, Array] = {}
        for name, array in self._inputs.items():
            rows = self._striping.tensors[name]
            feed[name] = rows_between(array, rows, 0, end * rows.num // rows.den)
        given = _run(self._engine, feed)
        found: Dict[str, Array] = {}
        for name in self._frontier:
            rows = self._striping.tensors[name]
            kept = self._plan.bound * rows.num // rows.den
            found[name] = rows_between(given[name], rows, 0, kept)
            if found[name].shape[rows.axis] != kept:
                raise _wrong_rows(name, kept, found[name].shape[rows.axis])
        return found

    def alone(self) -> Dict[str, Array]:
        """Run the whole model here, exactly; returns the outputs.

        Raises:
            EngineError: The backend failed.
        """
        return self._program.run(self._inputs, 0, self._program.last)


class BoundedTailRun:
    """The server's part. For one thread at a time.

    Args:
        striped: The program's forms; that of the plan is loaded if it is not.
        plan: A valid plan.

    Raises:
        EngineError: The form cannot be loaded.
    """

    def __init__(self, striped: StripedProgram, plan: BoundedPlan) -> None:
        manifest = striped.manifest
        self._program = striped.program
        self._plan = plan
        self._striping = _striping(striped)
        self._engine = striped.forms(plan, Side.SERVER)[bounded_of(plan, self._striping).plain]
        self._parts: Dict[int, Dict[str, Array]] = {}
        self._frontier = manifest.cuts[plan.cut].tensors

    def take(self, stripe: int, tensors: Mapping[str, Array]) -> Optional[Dict[str, Array]]:
        """Compute what a message allows.

        Args:
            stripe: 1 for raw rows, 0 for the robot's part of the frontier.
            tensors: What ``stripe_plans.sent`` says of it.

        Returns:
            None until both are in; then the outputs.

        Raises:
            EngineError: The backend failed, or the form gave other rows than the plan says.
        """
        self._parts[stripe] = self._below(tensors) if stripe else dict(tensors)
        if len(self._parts) < 2:
            return None
        above, below = self._parts.pop(0), self._parts.pop(1)
        whole = {
            name: np.concatenate([above[name], below[name]], self._striping.tensors[name].axis)
            for name in self._frontier
        }
        return self._program.run(whole, self._plan.cut)

    def _below(self, tensors: Mapping[str, Array]) -> Dict[str, Array]:
        """Compute the frontier's rows from the bound on."""
        given = _run(self._engine, tensors)
        found: Dict[str, Array] = {}
        for name in self._frontier:
            rows = self._striping.tensors[name]
            skip = self._plan.halo * rows.num // rows.den
            found[name] = rows_between(given[name], rows, skip, given[name].shape[rows.axis])
            wanted = rows.rows - self._plan.bound * rows.num // rows.den
            if found[name].shape[rows.axis] != wanted:
                raise _wrong_rows(name, wanted, found[name].shape[rows.axis])
        return found


def _run(engine: RowsEngine, feed: Mapping[str, Array]) -> Dict[str, Array]:
    return engine.run({spec.name: feed[spec.name] for spec in engine.inputs})


def _wrong_rows(name: str, expected: int, given: int) -> EngineError:
    return EngineError(
        f"bounded division: tensor {name!r}: expected {expected} rows, given {given}; compile the "
        "model again"
    )


def _striping(striped: StripedProgram) -> Striping:
    striping = striped.manifest.striping
    assert striping is not None, "a plan without stripes"
    return striping
