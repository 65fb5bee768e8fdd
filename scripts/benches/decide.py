"""Deciding: what one decision takes, for every objective, with some 400 candidates."""

from __future__ import annotations

from benches.row import Row, medians
from benches.workloads import ChainNet, model_bundle

from calibration.choosing import BestTable, Chosen, best_table
from calibration.objectives import UNCONSTRAINED, Objective, parse_objective
from calibration.prepared import OBJECTIVES, PreparedPlans
from calibration.ranking import Rules
from calibration.segment_times import SegmentTimes, estimated_times
from runtime.decision import Situation
from runtime.explain import SpreadLink
from runtime.selector import open_selector, selector_names

TARGET_S = 200e-6
TEXTS = ("latency", "latency:p95", "energy", "deadline=30ms", "deadline=1ms",
         "energy-budget=0.1J", "energy-budget=0.001J", "rate")  # fmt: skip
LINK = SpreadLink(20e6, 60e6, 0.005)
QUEUE_S = 0.001


def run() -> list[Row]:
    """Time decisions with prepared tables: ``splitrt`` by objective, then the other selectors.

    Then the choice alone: where a table says which is the best, where it is worked out for a cell
    of links that was not met before, and where all candidates are ranked.
    """
    manifest = model_bundle(ChainNet(), ChainNet.INPUT).manifest
    sides = [
        estimated_times(manifest, SegmentTimes(manifest.estimates[side].segments_s))
        for side in ("robot", "server")
    ]
    plans = PreparedPlans(manifest, *sides)
    what = f"{manifest.name}, {len(plans.choices)} candidates"
    cases: list[tuple[str, Objective]] = [
        ("splitrt", parse_objective(text))
        for text in TEXTS
        if text != "rate" or "rate" in OBJECTIVES
    ]
    cases += [(name, parse_objective("latency")) for name in selector_names() if name != "splitrt"]
    rows = []
    for name, objective in cases:
        selector = open_selector(name, manifest)
        situation = Situation(plans, LINK, QUEUE_S, objective)
        (took_s,) = medians(lambda: selector.decide(situation), runs=300, warmup=20)  # noqa: B023
        rows.append(_row(f"{what}: {name}, {objective}", took_s, ours=name == "splitrt"))
    for text in ("latency", "energy"):
        rules = Rules(parse_objective(text), UNCONSTRAINED, serial=False, promised=True)
        how = {
            "met before": best_table(plans, rules),
            "a cell that is new": None,
            "ranking all": best_table(plans, rules, exact=True),
        }
        for name, table in how.items():
            (took_s,) = medians(lambda: _choose(plans, rules, table), runs=300, warmup=20)  # noqa: B023
            rows.append(_row(f"{what}: the choice alone, {text}, {name}", took_s, ours=True))
    return rows


def _choose(plans: PreparedPlans, rules: Rules, table: BestTable | None) -> Chosen:
    table = table or BestTable(rules, several=False)
    return table.choose(plans, LINK.quantile, rtt_s=LINK.rtt_s, queue_s=QUEUE_S)


def _row(what: str, took_s: float, *, ours: bool) -> Row:
    return Row(
        "decide",
        what,
        took_s * 1e6,
        "us",
        f"{TARGET_S * 1e6:.0f} us",
        took_s / TARGET_S,
        "at most 200 us" if ours else "",
        took_s <= TARGET_S if ours else None,
    )
