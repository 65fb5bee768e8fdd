"""Chooses the best of all choices, with a table of where one is as good as any.

``calibration.ranking`` compares hundreds of choices. That takes a robot's processor some tenths of
a millisecond where its caches have gone cold, and it decides before every inference. So for each
cell of links (``calibration.cells``) it is worked out once whether one choice is as good as any in
all of it. Then that one is taken. Elsewhere, as near the goodput at which two choices change
places, all are ranked.

As good is what costs no more than the best by a part that no prediction can tell. So a choice
depends on the situation alone, whatever came before it, and is the best but for that part.

Only objectives ``latency``, with a quantile or without, and ``energy`` have such tables: what the
others judge by is more than one sum.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import numpy as np

from calibration.cells import Cell, as_good_in
from calibration.objectives import UNCONSTRAINED, Constraints, Objective
from calibration.prepared import PreparedPlans
from calibration.ranking import EXPECTED_AT, WORTHWHILE, GoodputAt, Rules, rank, rule_of, ruled_out

__all__ = ["AS_GOOD", "Chosen", "choose"]

AS_GOOD = 0.005
"""A choice that costs so much more than the best, as a part, is as good: predictions are further
off than that."""

_MOST_TABLES = 64
"""Rules that tables are kept of: each deadline that a caller gives is one."""

_MOST_CELLS = 4096


class Chosen(NamedTuple):
    """The choice.

    Attributes:
        place: Its place; none where nothing may be used.
        rule: What it is the best by, in a few words.
    """

    place: Optional[int]
    rule: str


def choose(
    plans: PreparedPlans,
    objective: Objective,
    goodput_at: GoodputAt,
    *,
    rtt_s: float,
    queue_s: float = 0.0,
    constraints: Constraints = UNCONSTRAINED,
    serial: bool = False,
    in_flight: Optional[int] = None,
    promised: bool = True,
) -> Chosen:
    """Return the best choice, or one that is as good: see :func:`calibration.ranking.rank`."""
    if objective.kind in ("latency", "energy"):
        rules = Rules(objective, constraints, serial, promised)
        several = in_flight is not None and in_flight > 1
        cell = Cell.of(*_goodputs(objective, goodput_at), rtt_s, queue_s)
        table = _table(plans, rules, several=several)
        if cell not in table:
            if len(table) >= _MOST_CELLS:
                table.clear()
            table[cell] = _as_good(plans, rules, cell, several=several)
        chosen = table[cell]
        if chosen is not None:
            return chosen
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


_Table = Dict[Cell, Optional[Chosen]]

_tables: "WeakKeyDictionary[PreparedPlans, Dict[Tuple[Rules, bool], _Table]]" = WeakKeyDictionary()


def _table(plans: PreparedPlans, rules: Rules, *, several: bool) -> _Table:
    """Return what is known of cells; the same for two threads, or one of them works it out again.

    Args:
        plans: All choices.
        rules: What says which of them may be taken.
        several: Whether several inferences are under way at a time.
    """
    tables = _tables.setdefault(plans, {})
    table = tables.get((rules, several))
    if table is None:
        if len(tables) >= _MOST_TABLES:
            tables.clear()
        table = tables[rules, several] = {}
    return table


def _goodputs(objective: Objective, goodput_at: GoodputAt) -> Tuple[float, float]:
    """Return the least and the most goodput that an objective is judged at."""
    if objective.quantile is not None:
        goodput_bps = goodput_at(1 - objective.quantile)
        return goodput_bps, goodput_bps
    return goodput_at(EXPECTED_AT[0]), goodput_at(EXPECTED_AT[-1])


def _as_good(plans: PreparedPlans, rules: Rules, cell: Cell, *, several: bool) -> Optional[Chosen]:
    """Return what is as good as any in all of a cell; none where nothing is."""
    _, forbidden, own_s = ruled_out(plans, rules)
    latency = rules.objective.kind == "latency"
    # Stripes have to be so much better than what is serial: see ``calibration.ranking``.
    weights = np.where(plans.striped, 1.0, WORTHWHILE)
    place = as_good_in(
        cell,
        plans,
        np.where(forbidden, np.inf, weights),
        slack=AS_GOOD,
        by_energy=not latency,
        ends_s=own_s if latency and not several else None,
    )
    return None if place is None else Chosen(place, rule_of(rules.objective))
