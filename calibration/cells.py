"""Cells of links: where in them one choice is as good as any. Pure.

Theory of operation:

1. Links are divided into cells: the least and the most goodput to half octaves, the round trip and
   the wait at the server to two octaves. Which cell a link is in depends on nothing else.
2. What a choice costs is the largest of some sums, each linear in the seconds of a bit, the round
   trip and the wait (``calibration.schedule``); its energy likewise.
3. The one that is the nearest to the best at a few links of a cell is taken on trial. Of every
   rival that sum is picked which is the largest at one of them: the rival costs at least that on
   every link. The one on trial costs as much as the largest of its own sums. The difference of two
   sums is linear, so that the least of it is at a corner of the cell, or of a part of it.
4. Where the robot's own answer ends what would be late, a cost is the less of two. The less of two
   is less than that of a rival if both are.
5. What is as good as any at every goodput of a distribution is so by the mean over it too.
"""

from __future__ import annotations

import math
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np

from calibration.prepared import PreparedPlans
from engines.tensors import Array

__all__ = ["Cell", "as_good_in", "usual_cells"]

_PER_OCTAVE = 2
"""Steps of goodput in an octave."""

_FIRST_S = 2e-4
_OCTAVES = 2
"""Round trips and waits below the first are one step; from there on, so many octaves are one."""

_USUAL_BPS = (2e6, 400e6)
_USUAL_RTT_S = (5e-4, 5e-3)
"""Links as robots have them, mostly, with a server that is not busy."""

_USUAL_WIDTHS = 4
"""Steps that the goodputs of a link reach over, at most so many: it is known well there."""

_PARTS = 2
"""Parts of a cell, by goodput, that are looked at each for itself."""


class Cell(NamedTuple):
    """Some links, as steps: see :meth:`of`."""

    least: int
    most: int
    rtt: int
    queue: int

    @classmethod
    def of(cls, least_bps: float, most_bps: float, rtt_s: float, queue_s: float) -> Cell:
        """Return the cell of a link.

        Args:
            least_bps: Least goodput that it may have, in bits per second.
            most_bps: Most goodput.
            rtt_s: Round trip in seconds.
            queue_s: Wait at the server in seconds.
        """
        return cls(
            math.floor(_PER_OCTAVE * math.log2(least_bps)),
            math.floor(_PER_OCTAVE * math.log2(most_bps)),
            _step(rtt_s),
            _step(queue_s),
        )

    def corners(self) -> Tuple[Array, Array]:
        """Return its best and its worst link: each 1, seconds a bit, round trip and wait."""
        best_bps, worst_bps = (2.0 ** (step / _PER_OCTAVE) for step in (self.most + 1, self.least))
        (least_rtt_s, rtt_s), (least_queue_s, queue_s) = _span_s(self.rtt), _span_s(self.queue)
        best = np.array([1.0, 1.0 / best_bps, least_rtt_s, least_queue_s])
        return best, np.array([1.0, 1.0 / worst_bps, rtt_s, queue_s])


def _step(seconds: float) -> int:
    if seconds < _FIRST_S:
        return 0
    return 1 + math.floor(math.log2(seconds / _FIRST_S) / _OCTAVES)


def _span_s(step: int) -> Tuple[float, float]:
    most_s = _FIRST_S * 2.0 ** (_OCTAVES * step)
    return most_s / 2.0**_OCTAVES if step else 0.0, most_s


def usual_cells(*, single: bool) -> Iterator[Cell]:
    """Return the cells of links as robots have them, mostly.

    Args:
        single: Only those of links with one goodput.
    """
    (first, _, rtt, queue), (last, _, last_rtt, _) = (
        Cell.of(bps, bps, rtt_s, 0.0) for bps, rtt_s in zip(_USUAL_BPS, _USUAL_RTT_S)
    )
    for least in range(first, last + 1):
        for width in range(1 if single else _USUAL_WIDTHS):
            for step in range(rtt, last_rtt + 1):
                yield Cell(least, least + width, step, queue)


def as_good_in(
    cell: Cell,
    plans: PreparedPlans,
    weights: Array,
    allowed: Array,
    *,
    slack: float,
    by_energy: bool = False,
    ends_s: Optional[Array] = None,
) -> Optional[int]:
    """Return the place of a choice that is as good as any on all links of a cell.

    None where none is found, though there may be one.

    Args:
        cell: The links.
        plans: All choices.
        weights: What the cost of every choice counts, above 0.
        allowed: Whether a choice may be taken.
        slack: What counts more than the best by no more than this part of it is as good.
        by_energy: Whether energy counts, and not latency.
        ends_s: When the robot itself has the answer of every choice, which ends its latency; none
            where it does not.
    """
    lines = plans.cost_lines(by_energy=by_energy)
    low, high = cell.corners()
    links = np.linspace(low, high, _PARTS + 1)
    values = links @ lines
    costs = np.maximum.reduceat(values, plans.starts, axis=1)
    if ends_s is not None:
        costs = np.minimum(costs, ends_s)
    costs = np.where(allowed, costs * weights, np.inf)
    least = costs.min(axis=1)
    if not (np.isfinite(least).all() and (least > 0).all()):
        return None
    regrets = (costs / least[:, None]).max(axis=0)
    place = int(np.argmin(regrets))
    if regrets[place] > 1 + slack:
        return None
    is_rival = np.isfinite(costs[0])
    is_rival[place] = False
    if (lines[1:] >= 0).all():  # as then nothing costs less on a worse link
        is_rival &= costs[0] * (1 + slack) < costs[-1, place]
    rivals = np.flatnonzero(is_rival)
    if not len(rivals):
        return place
    enough = weights[rivals] * (1 + slack)
    own = weights[place] * lines[:, plans.ways_of(place)]
    # A row for seconds, bits, round trips and waits; in it one for each rival and own sum.
    ahead = [
        _signs((lines[:, plans.largest_ways(some)[rivals]] * enough)[:, :, None] - own[:, None, :])
        for some in values
    ]
    for part in range(_PARTS):
        best, worst = links[part].copy(), links[part + 1].copy()
        best[2:], worst[2:] = low[2:], high[2:]
        least_ahead = [best @ rises + worst @ falls for rises, falls in ahead[part : part + 2]]
        if np.maximum(*least_ahead).min() < 0:
            return None
        if ends_s is not None:
            own_s = min(float((worst @ own).max()), float(ends_s[place] * weights[place]))
            if (ends_s[rivals] * enough).min() < own_s:
                return None
    return place


def _signs(lines: Array) -> Tuple[Array, Array]:
    """Return what of some lines rises with what a link is, and what falls, flat.

    The least of a line between two links is that of the first at the better one, and that of the
    second at the worse one.
    """
    flat = lines.reshape(len(lines), -1)
    rises: Array = np.maximum(flat, 0.0)
    return rises, flat - rises
