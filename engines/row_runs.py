"""One inference divided by rows of its outputs: the robot's rows, and the server's.

Both run what comes before the plan's cut, or nothing where that is the first. The robot then
computes the rows above the bound and keeps what is needed to carry on below it; the server
computes the rows below, from a few rows above the bound on, and needs no state of the robot's.
"""

from __future__ import annotations

from typing import Dict, Mapping

import numpy as np

from engines.errors import EngineError
from engines.program import Program
from engines.stripe_plans import RowPlan
from engines.stripe_runs import rows_between
from engines.striped import Side, StripedProgram
from engines.stripes import RowSplit, carry_name, kept_name
from engines.tensors import Array, check_tensors

__all__ = ["BottomRun", "TopRun"]


class TopRun:
    """The robot's part. For one thread.

    Args:
        striped: The program's forms; those of the plan are loaded if they are not.
        plan: A valid plan.
        inputs: The model's inputs by name; held until the end.

    Raises:
        TensorMismatchError: An input does not fit.
        EngineError: A form cannot be loaded.
    """

    def __init__(
        self, striped: StripedProgram, plan: RowPlan, inputs: Mapping[str, Array]
    ) -> None:
        manifest = striped.manifest
        self._program: Program = striped.program
        self._plan = plan
        self._split = _split(striped, plan)
        self._inputs = check_tensors(
            manifest.specs(manifest.cuts[0].tensors), inputs, where=f"model {manifest.name!r}"
        )
        self._forms = striped.forms(plan, Side.ROBOT)
        self._results = manifest.cuts[plan.cut].results
        self._env: Dict[str, Array] = {}
        self._above: Dict[str, Array] = {}

    def sent(self) -> Dict[str, Array]:
        """Return what the server gets: the inputs, or the rows of them that it needs."""
        if self._plan.cut:
            return self._inputs
        return _below(self._inputs, self._split, self._plan)

    def run(self) -> None:
        """Compute up to the cut, and the rows above the bound.

        Raises:
            EngineError: The backend failed.
        """
        self._env = self._program.run(self._inputs, 0, self._plan.cut)
        engine = self._forms[self._split.top]
        feed: Dict[str, Array] = {}
        for spec in engine.inputs:
            rows = self._split.tensors[spec.name]
            top = self._plan.bound * rows.num // rows.den
            feed[spec.name] = rows_between(self._env[spec.name], rows, 0, top)
        self._above = engine.run(feed)

    def finish(self) -> Dict[str, Array]:
        """Compute the rows below the bound too, carrying on; returns every output.

        Raises:
            EngineError: The backend failed.
        """
        engine = self._forms[self._split.last]
        feed: Dict[str, Array] = {}
        for carry in self._split.carries:
            kept = self._above[kept_name(carry.tensor, None)]
            feed[carry_name(carry.tensor, None)] = kept
        for spec in engine.inputs:
            if spec.name not in feed:
                rows = self._split.tensors[spec.name]
                top = self._plan.bound * rows.num // rows.den
                feed[spec.name] = rows_between(self._env[spec.name], rows, top, rows.rows)
        return self.joined(engine.run(feed))

    def joined(self, below: Mapping[str, Array]) -> Dict[str, Array]:
        """Put the robot's rows and those below together; returns every output."""
        outputs = {
            spec.name: self._env[spec.name]
            for spec in self._program.bundle.manifest.outputs
            if spec.name in self._env
        }
        for name in self._results:
            rows = self._split.tensors[name]
            whole = np.concatenate([self._above[name], below[name]], rows.axis)
            if whole.shape[rows.axis] != rows.rows:
                raise EngineError(
                    f"output {name!r}: expected {rows.rows} rows, given "
                    f"{whole.shape[rows.axis]}; compile the model again"
                )
            outputs[name] = whole
        return outputs


class BottomRun:
    """The server's part.

    Args:
        striped: The program's forms; those of the plan are loaded if they are not.
        plan: A valid plan.

    Raises:
        EngineError: A form cannot be loaded.
    """

    def __init__(self, striped: StripedProgram, plan: RowPlan) -> None:
        self._program = striped.program
        self._plan = plan
        self._split = _split(striped, plan)
        self._engine = striped.forms(plan, Side.SERVER)[self._split.bottom]

    def take(self, stripe: int, tensors: Mapping[str, Array]) -> Dict[str, Array]:
        """Compute the rows below the bound.

        Args:
            stripe: 0; there is one message.
            tensors: What ``stripe_plans.sent`` says of it.

        Raises:
            EngineError: The backend failed.
        """
        feed: Mapping[str, Array] = tensors
        if self._plan.cut:
            env = self._program.run(tensors, 0, self._plan.cut)
            feed = _below(env, self._split, self._plan)
        return self._engine.run({spec.name: feed[spec.name] for spec in self._engine.inputs})


def _below(env: Mapping[str, Array], split: RowSplit, plan: RowPlan) -> Dict[str, Array]:
    """Return the rows of the frontier from which the bottom is computed: views."""
    return {
        name: rows_between(
            env[name], split.tensors[name], split.start(name, plan.bound), split.tensors[name].rows
        )
        for name in split.starts
    }


def _split(striped: StripedProgram, plan: RowPlan) -> RowSplit:
    striping = striped.manifest.striping
    split = None if striping is None else striping.row_split(plan.cut)
    assert split is not None, "a plan without a row split"
    return split
