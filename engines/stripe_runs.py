"""One inference stripe by stripe: what the robot runs of it, and what the server runs.

Theory of operation:

1. A ``_Chain`` runs segments in their order on the new rows of one stripe, by the forms of its
   place (first, middle, last), and keeps for each segment what its next stripe needs.
2. ``HeadRun`` gives the frontier's rows stripe by stripe, and holds them: without an answer it
   goes on from where it is (``finish``), and nothing is computed twice.
3. ``TailRun`` takes stripes in the order of the wire. A raw one passes the head first: the first
   of them by a form that starts inside the picture, the others by the head's own forms with what
   that one kept. The segments from the plan's cut to ``until`` then run in the order of the
   stripes, so what came early waits; their rows are put together, and the rest runs whole.

Invariant: what comes out equals what the program gives without stripes.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from engines.abort import check_abort
from engines.errors import EngineError
from engines.manifest import Manifest
from engines.program import Program
from engines.stripe_plans import StripePlan, raw_span
from engines.striped import Forms, Side, StripedProgram
from engines.stripes import RowsOf, Striping, carry_name, kept_name
from engines.tensors import Array, check_tensors

__all__ = ["HeadRun", "TailRun", "rows_between"]

_FIRST, _MIDDLE, _LAST = "first", "middle", "last"


def rows_between(array: Array, rows: RowsOf, low: int, high: int) -> Array:
    """Return rows [low, high) of a tensor, as a view."""
    return array[(slice(None),) * rows.axis + (slice(low, high),)]


class HeadRun:
    """The robot's part of one striped inference. For one thread.

    Args:
        striped: The program's forms; those of the plan are loaded if they are not.
        plan: A valid plan.
        inputs: The model's inputs by name; held until the end.

    Attributes:
        done: Stripes that were computed.
        robot: Stripes that are the robot's.

    Raises:
        TensorMismatchError: An input does not fit.
        EngineError: A form cannot be loaded.
    """

    def __init__(
        self, striped: StripedProgram, plan: StripePlan, inputs: Mapping[str, Array]
    ) -> None:
        manifest = striped.manifest
        self._program: Program = striped.program
        self._plan = plan
        self._striping = _striping(manifest)
        cuts = manifest.cuts
        self._inputs = check_tensors(
            manifest.specs(cuts[0].tensors), inputs, where=f"model {manifest.name!r}"
        )
        head = cuts[plan.cut].robot_segments
        self._chain = _Chain(manifest, head, striped.forms(plan, Side.ROBOT))
        self._frontier = cuts[plan.cut].tensors
        known = {name for index in head for name in manifest.segments[index].outputs}
        outputs = {spec.name for spec in manifest.outputs}
        self._collected = sorted((known & outputs).union(self._frontier))
        self._parts: Dict[str, List[Array]] = {name: [] for name in self._collected}
        self.done = 0
        self.robot = plan.robot

    def raw(self, stripe: int) -> Dict[str, Array]:
        """Return the inputs' rows that a raw stripe consists of, with its halo: views."""
        low, high = raw_span(self._plan, self._striping, stripe)
        found: Dict[str, Array] = {}
        for name, array in self._inputs.items():
            rows = self._striping.tensors[name]
            top = low * rows.num // rows.den
            found[name] = rows_between(array, rows, top, rows.upto(high, self._striping.rows))
        return found

    def step(self) -> Dict[str, Array]:
        """Compute the next stripe and return the frontier's new rows. They are held here too.

        Raises:
            EngineError: The backend failed.
        """
        last = self.done == self._plan.stripes - 1
        place = _FIRST if not self.done else _LAST if last else _MIDDLE
        low, high = self._plan.span(self.done)
        rows = self._run(place, low, high)
        self.done += 1
        return {name: rows[name] for name in self._frontier}

    def finish(self) -> Dict[str, Array]:
        """Compute what is left in one stripe.

        Returns:
            What ``Program.run`` gives for the plan's cut: the frontier, and the outputs known.

        Raises:
            EngineError: The backend failed.
        """
        plan = self._plan
        if not self.done:
            return self._program.run(self._inputs, 0, plan.cut)
        if self.done < plan.stripes:
            self._run(_LAST, plan.bounds[self.done - 1], self._striping.rows)
            self.done = plan.stripes
        return {
            name: np.concatenate(parts, self._striping.tensors[name].axis)
            for name, parts in self._parts.items()
        }

    def alone(self) -> Dict[str, Array]:
        """Finish the head, then run the tail here; returns the outputs.

        Raises:
            EngineError: The backend failed.
        """
        return self._program.run(self.finish(), self._plan.cut, self._program.last)

    def known(self) -> Dict[str, Array]:
        """Return the model's outputs that the head gave, once it is done."""
        if self.done < self._plan.stripes:
            return {}
        outputs = {spec.name for spec in self._program.bundle.manifest.outputs}
        return {
            name: np.concatenate(parts, self._striping.tensors[name].axis)
            for name, parts in self._parts.items()
            if name in outputs
        }

    def _run(self, place: str, low: int, high: int) -> Dict[str, Array]:
        base = self._striping.rows
        env: Dict[str, Array] = {}
        for name, array in self._inputs.items():
            rows = self._striping.tensors[name]
            env[name] = rows_between(array, rows, rows.upto(low, base), rows.upto(high, base))
        self._chain.run(place, env)
        for name in self._collected:
            self._parts[name].append(env[name])
        return env


class TailRun:
    """The server's part of one striped inference. For one thread at a time.

    Args:
        striped: The program's forms; those of the plan are loaded if they are not.
        plan: A valid plan.

    Raises:
        EngineError: A form cannot be loaded.
    """

    def __init__(self, striped: StripedProgram, plan: StripePlan) -> None:
        manifest = striped.manifest
        self._program = striped.program
        self._plan = plan
        self._striping = _striping(manifest)
        cut, until = manifest.cuts[plan.cut], manifest.cuts[plan.until]
        tail = sorted(set(until.robot_segments).difference(cut.robot_segments))
        self._forms = striped.forms(plan, Side.SERVER)
        self._head = _Chain(manifest, cut.robot_segments, self._forms)
        self._tail = _Chain(manifest, tail, self._forms)
        self._frontier = cut.tensors
        given = {name for index in tail for name in manifest.segments[index].outputs}
        # The last cut's frontier is the outputs: those that the robot has stay there.
        wanted = given.union(cut.tensors).intersection(until.tensors)
        wanted |= given.intersection(cut.results)
        self._whole: Dict[str, Array] = {
            spec.name: np.empty(spec.shape, spec.dtype) for spec in manifest.specs(tuple(wanted))
        }
        self._held: Dict[int, Dict[str, Array]] = {}
        self._next = 0
        self._taken = 0

    def take(self, stripe: int, tensors: Mapping[str, Array]) -> Optional[Dict[str, Array]]:
        """Compute what a stripe allows.

        Args:
            stripe: Its number; stripes come in the plan's order of the wire.
            tensors: What ``stripe_plans.sent`` says of it.

        Returns:
            None until the last stripe is in; then the outputs.

        Raises:
            EngineError: The backend failed, or a form gave other rows than the plan says.
        """
        raw = stripe >= self._plan.robot
        rows = self._enter(stripe, tensors) if raw else dict(tensors)
        self._taken += 1
        if self._tail.segments:
            self._held[stripe] = rows
            while self._next in self._held:
                self._advance(self._held.pop(self._next))
        else:
            self._place(stripe, rows)
        if self._taken < self._plan.stripes:
            return None
        if self._plan.until == self._program.last:
            return self._whole
        return self._program.run(self._whole, self._plan.until)

    def _enter(self, stripe: int, tensors: Mapping[str, Array]) -> Dict[str, Array]:
        """Run the head for a raw stripe and return the frontier's rows."""
        plan = self._plan
        last = stripe == plan.stripes - 1
        if stripe > plan.robot:
            env = dict(tensors)
            self._head.run(_LAST if last else _MIDDLE, env)
            return {name: env[name] for name in self._frontier}
        cut = self._striping.cut(plan.cut)
        entry = None if cut is None else (cut.rest if last else cut.entry)
        assert entry is not None, "a two-sided plan at a cut that cannot be divided"
        engine = self._forms[entry]
        given = engine.run({spec.name: tensors[spec.name] for spec in engine.inputs})
        if not last:
            self._head.resume(given)
        # What of the frontier is an input comes with its halo, which is not the frontier's.
        low = plan.span(stripe)[0]
        for name in set(self._frontier).difference(given):
            rows = self._striping.tensors[name]
            halo = (low - raw_span(plan, self._striping, stripe)[0]) * rows.num // rows.den
            given[name] = rows_between(tensors[name], rows, halo, tensors[name].shape[rows.axis])
        return {name: given[name] for name in self._frontier}

    def _advance(self, env: Dict[str, Array]) -> None:
        """Run the segments up to ``until`` for the next stripe, and hold what they give."""
        stripe, last = self._next, self._next == self._plan.stripes - 1
        self._tail.run(_FIRST if not stripe else _LAST if last else _MIDDLE, env)
        self._place(stripe, env)
        self._next += 1

    def _place(self, stripe: int, env: Mapping[str, Array]) -> None:
        """Copy a stripe's rows to their place in the whole tensors."""
        base = self._striping.rows
        low, high = self._plan.span(stripe)
        for name, whole in self._whole.items():
            rows = self._striping.tensors[name]
            place = rows_between(whole, rows, rows.upto(low, base), rows.upto(high, base))
            if place.shape != env[name].shape:
                raise EngineError(
                    f"stripe {stripe} of tensor {name!r}: expected {list(place.shape)}, given "
                    f"{list(env[name].shape)}; compile the model again"
                )
            np.copyto(place, env[name])


class _Chain:
    """Segments run in a chain, stripe by stripe, with what each keeps from one to the next."""

    def __init__(self, manifest: Manifest, segments: Iterable[int], forms: Forms) -> None:
        self.segments: Tuple[int, ...] = tuple(sorted(segments))
        self._striping = _striping(manifest)
        self._forms = forms
        self._kept: Dict[str, Array] = {}

    def run(self, place: str, env: Dict[str, Array]) -> None:
        """Add the new rows of every tensor that the segments give to ``env``."""
        for index in self.segments:
            striped = self._striping.segment(index)
            assert striped is not None, f"segment {index} is not striped"
            check_abort()
            engine = self._forms[getattr(striped, place)]
            feed: Dict[str, Array] = {}
            for spec in engine.inputs:
                kept = self._kept.get(spec.name)
                feed[spec.name] = env[spec.name] if kept is None else kept
            given = engine.run(feed)
            for carry in striped.carries:
                name = carry_name(carry.tensor, index)
                self._kept.pop(name, None)
                if place != _LAST:
                    self._kept[name] = given.pop(kept_name(carry.tensor, index))
            env.update(given)

    def resume(self, given: Dict[str, Array]) -> None:
        """Take over from a form that stands for the whole chain: what it kept is removed."""
        for index in self.segments:
            striped = self._striping.segment(index)
            assert striped is not None, f"segment {index} is not striped"
            for carry in striped.carries:
                kept = given.pop(kept_name(carry.tensor, index))
                self._kept[carry_name(carry.tensor, index)] = kept


def _striping(manifest: Manifest) -> Striping:
    assert manifest.striping is not None, "a plan without stripes"
    return manifest.striping
