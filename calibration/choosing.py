"""Chooses the best of all choices, with a table of where one is as good as any.

``calibration.ranking`` compares hundreds of choices. That takes a robot's processor some tenths of
a millisecond where its caches have gone cold, and it decides before every inference. So for each
cell of links (``calibration.cells``) it is worked out once whether one choice is as good as any in
all of it. Then that one is taken. Elsewhere, as near the goodput at which two choices change
places, all are ranked.

As good is what costs no more than the best by a part that no prediction can tell. So a choice
depends on the situation alone, whatever came before it, and is the best but for that part.

Only objectives ``latency``, with a quantile or without, and ``energy`` have such tables: what the
others judge by is more than one sum. Nor have plans for which it was learned what messages take,
as that changes with every striped inference.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import numpy as np

from calibration.cells import Cell, as_good_in, usual_cells
from calibration.objectives import Objective
from calibration.prepared import PreparedPlans
from calibration.ranking import EXPECTED_AT, WORTHWHILE, GoodputAt, Rules, rank, rule_of, ruled_out
from calibration.schedule import NO_HANDLING

__all__ = ["AS_GOOD", "BestTable", "Chosen", "best_table"]

AS_GOOD = 0.005
"""A choice that costs so much more than the best, as a part, is as good: predictions are further
off than that. So a striped plan is taken from 0.975 to 0.985 times the best serial choice on."""

_LEAST_BPS, _MOST_BPS, _MOST_S = 1.0, 1e15, 1e5
"""Links beyond these are no links, and in no cell."""

_MOST_TABLES = 64
"""Rules that tables are kept of: each quantile that a caller gives is one."""

_MOST_CELLS = 4096


class Chosen(NamedTuple):
    """The choice.

    Attributes:
        place: Its place; none where nothing may be used.
        rule: What it is the best by, in a few words.
    """

    place: Optional[int]
    rule: str


class BestTable:
    """The best choice, or one that is as good, for any link. See :func:`best_table`.

    Safe across threads: what two of them work out at a time is the same.

    Args:
        rules: What is to be best, and what may be taken.
        several: Whether several inferences are under way at a time.
        cells: Whether there is a table; else all choices are ranked.
    """

    def __init__(self, rules: Rules, *, several: bool, cells: bool = True) -> None:
        self.rules, self.several = rules, several
        self._has_cells = cells
        self._cells: Dict[Cell, Optional[Chosen]] = {}

    def __repr__(self) -> str:
        return f"<BestTable {self.rules.objective} {len(self._cells)} cells>"

    def choose(
        self,
        plans: PreparedPlans,
        goodput_at: GoodputAt,
        *,
        rtt_s: float,
        queue_s: float = 0.0,
        in_flight: Optional[int] = None,
    ) -> Chosen:
        """Return the choice for a link; see :func:`calibration.ranking.rank`.

        Args:
            plans: All choices, those that this is the table of.
            goodput_at: The goodput's quantiles.
            rtt_s: Round trip in seconds.
            queue_s: Expected wait at the server in seconds.
            in_flight: Inferences under way at a time, where the caller says so.
        """
        if self._has_cells:
            least_bps, most_bps = _goodputs(self.rules.objective, goodput_at)
            if least_bps >= _LEAST_BPS and most_bps <= _MOST_BPS and rtt_s + queue_s <= _MOST_S:
                chosen = self._as_good(plans, Cell.of(least_bps, most_bps, rtt_s, queue_s))
                if chosen is not None:
                    return chosen
        objective, constraints, serial, promised = self.rules
        found = rank(
            plans,
            objective,
            goodput_at,
            rtt_s=rtt_s,
            queue_s=queue_s,
            constraints=constraints,
            serial=serial,
            in_flight=in_flight,
            promised=promised,
        )
        return Chosen(found.best, found.rule)

    def prepare(self, plans: PreparedPlans) -> None:
        """Work out now what holds on usual links; takes some tens of milliseconds."""
        if self._has_cells:
            for cell in usual_cells(single=self.rules.objective.quantile is not None):
                self._as_good(plans, cell)

    def _as_good(self, plans: PreparedPlans, cell: Cell) -> Optional[Chosen]:
        """Return what is as good as any in all of a cell; none where nothing is."""
        cells = self._cells
        if cell not in cells:
            if len(cells) >= _MOST_CELLS:
                cells = self._cells = {}
            cells[cell] = self._worked_out(plans, cell)
        return cells[cell]

    def _worked_out(self, plans: PreparedPlans, cell: Cell) -> Optional[Chosen]:
        objective = self.rules.objective
        _, forbidden, own_s = ruled_out(plans, self.rules)
        latency = objective.kind == "latency"
        place = as_good_in(
            cell,
            plans,
            # Stripes have to be so much better than what is serial: see ``calibration.ranking``.
            np.where(plans.striped, 1.0, WORTHWHILE),
            ~forbidden,
            slack=AS_GOOD,
            by_energy=not latency,
            ends_s=own_s if latency and not self.several else None,
        )
        return None if place is None else Chosen(place, rule_of(objective))


_tables: "WeakKeyDictionary[PreparedPlans, Dict[Tuple[Rules, bool], BestTable]]" = (
    WeakKeyDictionary()
)


def best_table(
    plans: PreparedPlans, rules: Rules, in_flight: Optional[int] = None, *, exact: bool = False
) -> BestTable:
    """Return the table of some plans and rules: most often, one that is there already.

    Args:
        plans: All choices.
        rules: What is to be best, and what may be taken.
        in_flight: Inferences under way at a time, where the caller says so.
        exact: Whether what is as good as the best is not good enough: all are ranked then.
    """
    several = in_flight is not None and in_flight > 1
    kind = rules.objective.kind
    if exact or kind not in ("latency", "energy") or plans.handling != NO_HANDLING:
        return BestTable(rules, several=several, cells=False)
    tables = _tables.setdefault(plans, {})
    table = tables.get((rules, several))
    if table is None:
        if len(tables) >= _MOST_TABLES:
            tables.clear()
        table = tables.setdefault((rules, several), BestTable(rules, several=several))
    return table


def _goodputs(objective: Objective, goodput_at: GoodputAt) -> Tuple[float, float]:
    """Return the least and the most goodput that an objective is judged at."""
    if objective.quantile is not None:
        goodput_bps = goodput_at(1 - objective.quantile)
        return goodput_bps, goodput_bps
    return goodput_at(EXPECTED_AT[0]), goodput_at(EXPECTED_AT[-1])
