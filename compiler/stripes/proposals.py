"""Cuts that are worth having because stripes can flow through them.

Proposers beside those of ``compiler.selection``. They score boundaries of the order with a
schedule of equal stripes, in closed form: rougher than ``calibration``'s predictor, which knows
segments only, and quick enough to score every boundary.

- ``striped``: the boundary at which a streamed head, or a head divided between both sides, is
  quickest for some goodput and speed ratio, lag and halo counted; and where the striped part ends.
- ``bounded``: where a bounded halo is asked for, the boundary at which a head divided in two with
  it is quickest.
- ``rows``: the boundary from which on the outputs are best divided by rows.

Each needs to beat the robot alone and the whole input sent, streamed or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from compiler.cuts import frontiers
from compiler.selection import Choice, Proposer, Setting
from compiler.stripes.emit import SplitFound, Streams, mean_rows, split_rows
from compiler.stripes.extents import Extents
from engines.codecs import default_codec

__all__ = ["striped_proposers"]

_GOODPUTS_BPS = tuple(np.geomspace(2e6, 1e9, 14))
_RATIOS = (0.5, 1.0, 2.0)
"""The server's time is taken this many times as long as estimated."""

_STRIPES = (2, 4, 8)
_SHARES = (0.5, 0.65, 0.8, 0.9)
"""Parts of the rows that the robot computes, where both sides compute the head."""

_GAIN = 0.01
"""A cut must beat what can be done without it by as much, as a part."""

_MOST = 4
"""Cuts that each proposer brings forward."""

_MOST_BOUNDARIES = 48
"""Boundaries at which row splits are looked for."""

Floats = NDArray[np.float64]


def striped_proposers(
    streams: Streams, model: ModelProto, halos: Sequence[int] = ()
) -> tuple[Proposer, ...]:
    """Return the proposers for a model's stripes, and for divisions with a bounded halo."""

    def propose_striped(setting: Setting) -> Iterable[Choice]:
        """Boundaries that win where stripes flow through them."""
        return _striped(setting, streams)

    def propose_rows(setting: Setting) -> Iterable[Choice]:
        """Boundaries behind which the outputs are divided by rows."""
        return _rows(setting, streams, model)

    def propose_bounded(setting: Setting) -> Iterable[Choice]:
        """Boundaries that win where the head is divided with a bounded halo."""
        return _bounded(setting, streams, min(halos))

    return (propose_striped, propose_rows, *((propose_bounded,) if halos else ()))


@dataclass(frozen=True, slots=True)
class _Costs:
    """Costs of boundaries 0 to n, seconds and bytes; the last is everything on the robot."""

    robot: Floats
    server: Floats
    bytes_up: Floats
    bytes_down: float

    @classmethod
    def of(cls, setting: Setting) -> _Costs:
        """Sum up the operators' costs before every boundary."""
        specs = setting.graph.values.specs

        def size(names: Iterable[str]) -> float:
            known = [specs.get(name) for name in names]
            if any(spec is None for spec in known):
                return np.inf
            return float(
                sum(default_codec(s).max_encoded_bytes(s) for s in known if s is not None)
            )

        return cls(
            np.concatenate([[0.0], np.cumsum(setting.robot.seconds)]),
            np.concatenate([[0.0], np.cumsum(setting.server.seconds)]),
            np.asarray([size(names) for names in frontiers(setting.graph)]),
            size(setting.graph.outputs),
        )


def _striped(setting: Setting, streams: Streams) -> Iterable[Choice]:
    extents = streams.extents
    if extents is None:
        return
    sets = frontiers(setting.graph)
    usable, end = _usable(setting, extents)
    if len(usable) < 2:
        return
    places = np.asarray(usable)
    lag = np.asarray(
        [max(extents.flows[n].lag / extents.flows[n].scale for n in sets[p]) for p in usable],
        float,
    )
    costs = _Costs.of(setting)
    lag = np.clip(lag / extents.rows, 0.0, 1.0)
    wins: Counter[int] = Counter()
    cases = 0
    for goodput in _GOODPUTS_BPS:
        for ratio in _RATIOS:
            cases += 1
            times = _best_times(costs, places, lag, end, 8.0 / goodput, ratio)
            alone = min(costs.robot[-1], times[places == 0].min(initial=np.inf))
            best = int(np.argmin(times))
            if places[best] and times[best] < (1 - _GAIN) * alone:
                wins[int(places[best])] += 1
    for place, count in wins.most_common(_MOST):
        yield Choice(frozenset(range(place)), "striped", count / cases)
    last = usable[-1]
    if last:
        yield Choice(frozenset(range(last)), "striped")


def _usable(setting: Setting, extents: Extents) -> tuple[list[int], int]:
    """Return the boundaries that rows can cross, and where the striped part ends."""
    sets = frontiers(setting.graph)
    end = next(
        (p for p in range(len(setting.order)) if p not in extents.rules), len(setting.order)
    )
    usable = [
        place
        for place in range(end + 1)
        if place < len(setting.order) and all(name in extents.flows for name in sets[place])
    ]
    return usable, end


def _bounded(setting: Setting, streams: Streams, halo: int) -> Iterable[Choice]:
    extents = streams.extents
    if extents is None:
        return
    places = np.asarray([place for place in _usable(setting, extents)[0] if place])
    if not places.size:
        return
    costs = _Costs.of(setting)
    beyond = halo / extents.rows
    wins: Counter[int] = Counter()
    cases = 0
    for goodput in _GOODPUTS_BPS:
        for ratio in _RATIOS:
            cases += 1
            per_byte, server = 8.0 / goodput, costs.server * ratio
            back = costs.bytes_down * per_byte
            frame = costs.bytes_up[0] * per_byte + server[-1] + back
            best = np.full(len(places), np.inf)
            for share in np.linspace(0.1, 0.9, 9):
                raw = min(1.0 - share + beyond, 1.0)
                raw_sent = raw * costs.bytes_up[0] * per_byte
                head = min(share + beyond, 1.0) * costs.robot[places]
                here = np.maximum(head, raw_sent) + share * costs.bytes_up[places] * per_byte
                there = raw_sent + raw * server[places]
                both = np.maximum(here, there) + server[-1] - server[places] + back
                best = np.minimum(best, both)
            place = int(np.argmin(best))
            if best[place] < (1 - _GAIN) * min(costs.robot[-1], frame):
                wins[int(places[place])] += 1
    for place, count in wins.most_common(_MOST):
        yield Choice(frozenset(range(place)), "bounded", count / cases)


def _best_times(
    costs: _Costs, places: NDArray[np.int_], lag: Floats, end: int, per_byte: float, ratio: float
) -> Floats:
    """Return the quickest striped time through each boundary."""
    head = costs.robot[places]
    sent = costs.bytes_up[places] * per_byte
    server = costs.server * ratio
    tail, rest = server[end] - server[places], server[-1] - server[end]
    back = costs.bytes_down * per_byte
    best = head + sent + tail + rest + back
    for stripes in _STRIPES:
        done = np.zeros((stripes + 1, len(places)))
        done[1:] = np.clip(np.arange(1, stripes + 1)[:, None] / stripes - lag, 0.0, 1.0)
        done[-1] = 1.0
        parts = np.diff(done, axis=0)
        for share in (*_SHARES, 1.0):
            # Rows that the server takes raw: those that the robot leaves, and the halo.
            raw = 0.0 if share == 1.0 else np.clip(1.0 - share + 2 * lag, 0.0, 1.0)
            link = raw * costs.bytes_up[0] * per_byte
            busy = link + raw * server[places]
            for stripe, part in enumerate(parts):
                link = (
                    np.maximum(link, head * share * (stripe + 1) / stripes) + part * share * sent
                )
                busy = np.maximum(busy, link) + part * share * tail
            best = np.minimum(best, busy + (1 - share) * tail + rest + back)
    return np.asarray(best, np.float64)


def _rows(setting: Setting, streams: Streams, model: ModelProto) -> Iterable[Choice]:
    graph, order = setting.graph, setting.order
    shapes = streams.facts.shapes
    if setting.pinned or not all(len(shapes.get(name, ())) >= 3 for name in graph.outputs):
        return
    sets = frontiers(graph)
    narrow = [p for p in range(len(order)) if 0 < len(sets[p]) <= 2]
    step = max(1, -(-len(narrow) // _MOST_BOUNDARIES))
    costs = _Costs.of(setting)
    found: dict[int, SplitFound] = {}
    for place in narrow[::step]:
        made = split_rows(
            model,
            graph,
            order,
            streams.facts,
            nodes=frozenset(range(place)),
            frontier=sorted(sets[place]),
            results=[n for n in graph.outputs if n not in _given(setting, place)],
        )
        if made is not None:
            found[place] = made
    wins: Counter[int] = Counter()
    cases = 0
    for goodput in _GOODPUTS_BPS:
        for ratio in _RATIOS:
            cases += 1
            per_byte = 8.0 / goodput
            times = {p: _row_time(costs, p, s, order, per_byte, ratio) for p, s in found.items()}
            offload = costs.bytes_up[0] * per_byte + costs.server[-1] * ratio
            alone = min(costs.robot[-1], offload + costs.bytes_down * per_byte)
            best = min(times, key=lambda place: times[place], default=0)
            if best and times[best] < (1 - _GAIN) * alone:
                wins[best] += 1
    for place, count in wins.most_common(_MOST):
        yield Choice(frozenset(range(place)), "rows", count / cases)


def _given(setting: Setting, place: int) -> set[str]:
    return {name for node in setting.order[:place] for name in node.outputs}


def _row_time(
    costs: _Costs,
    place: int,
    split: SplitFound,
    order: tuple[object, ...],
    per_byte: float,
    ratio: float,
) -> float:
    """Return the quickest time with the outputs divided by rows after a boundary."""
    rows = split.extents.rows
    nodes = order
    lag = mean_rows(split.places, nodes, split.extents, None) / rows  # type: ignore[arg-type]
    extra = mean_rows(split.places, nodes, split.extents, split.starts) / rows  # type: ignore[arg-type]
    bounds = np.linspace(split.least / rows, split.most / rows, 16)
    top = costs.robot[place] + (costs.robot[-1] - costs.robot[place]) * np.clip(bounds - lag, 0, 1)
    below = np.clip(1 - bounds + lag + extra, 0, 1)
    sent = costs.bytes_up[0] * (1.0 if place else below) * per_byte
    server = costs.server * ratio
    bottom = sent + server[place] + (server[-1] - server[place]) * below
    return float(np.min(np.maximum(top, bottom + (1 - bounds) * costs.bytes_down * per_byte)))
