"""How the trace table judges, what its oracle knows, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trace_table
from click.testing import CliRunner
from estimator_sim import Trace
from rich.console import Console
from robot_end import LEAST_MBPS, TraceOracle, trace_of
from trace_runs import Outcome, Run, joined, objective_of
from trace_table import as_json, checks, table_of

from runtime.decision import KnownLink, Situation
from runtime.selector import SplitRT
from tests.hand_tables import LAST, MODEL, PLANS


def outcome(
    selector: str,
    mean_ms: float,
    *,
    objective: str = "latency",
    joules: float = 1.0,
    kept: float | None = None,
    slowest_ms: float | None = None,
    wrong: int = 0,
) -> Outcome:
    run = Run("vgg19_bn", objective, selector, Path("indoors_10hz.csv"), 100.0, 100)
    slow_s = (slowest_ms or mean_ms) * 1e-3
    return Outcome(
        run=run,
        objective=objective,
        local_s=0.1,
        latencies_s=(*[mean_ms * 1e-3] * 90, *[slow_s] * 10),
        energies_j=(joules,) * 100,
        parts={"remote": 1.0, "local": 0.0, "fallback": 0.0, "hedged": 0.0},
        kept=kept,
        wrong=wrong,
        goodput_bps=80e6,
        seconds=10.0,
    )


def verdicts(*outcomes: Outcome) -> dict[str, bool | None]:
    return {row.reference: row.met for row in checks(outcomes)}


def test_latency_against_oracle_rivals_and_the_tail() -> None:
    others = [outcome("oracle", 50), outcome("dads", 55), outcome("local", 100)]
    assert verdicts(outcome("splitrt", 52), *others) == {
        "the oracle's mean 50.00 ms": True,
        "the best rival's mean, dads 55.00 ms": True,
        "p99 of the robot alone 100.00 ms": True,
    }
    assert verdicts(outcome("splitrt", 56), *others) == {
        "the oracle's mean 50.00 ms": False,
        "the best rival's mean, dads 55.00 ms": False,
        "p99 of the robot alone 100.00 ms": True,
    }
    late = outcome("splitrt", 30, slowest_ms=121)
    assert verdicts(late, *others)["p99 of the robot alone 100.00 ms"] is False


def test_energy_is_judged_by_energy() -> None:
    some = [
        outcome("splitrt", 90, objective="energy", joules=1.04),
        outcome("oracle", 50, objective="energy", joules=1.0),
        outcome("spso_ga", 50, objective="energy", joules=1.02),
    ]
    assert verdicts(*some) == {
        "the oracle's mean 1.00 J": True,
        "the best rival's mean, spso_ga 1.02 J": False,
    }


def test_a_deadline_is_judged_by_what_is_kept_and_by_energy() -> None:
    alone = outcome("local", 100, objective="deadline", joules=1.3, kept=1.0)
    some = [outcome("splitrt", 90, objective="deadline", joules=0.4, kept=0.99), alone]
    assert list(verdicts(*some).values()) == [True, True]
    some[0] = replace(some[0], kept=0.98, energies_j=(1.4,) * 100)
    assert list(verdicts(*some).values()) == [False, False]
    # Where the robot alone is the choice, the two differ by noise.
    some[0] = replace(some[0], kept=1.0, energies_j=(1.305,) * 100)
    assert list(verdicts(*some).values()) == [True, False]
    some[0] = replace(some[0], parts={"remote": 0.1, "local": 0.9, "fallback": 0, "hedged": 0})
    assert list(verdicts(*some).values()) == [True, True]


def test_a_wrong_answer_fails_whoever_gave_it() -> None:
    rows = checks([outcome("dads", 50, wrong=2)])
    assert [(row.reference, row.met) for row in rows] == [("dads 2", False)]


def test_objectives_and_traces_are_judged_apart() -> None:
    other = outcome("oracle", 1.0)
    other = replace(other, run=replace(other.run, trace=Path("outdoors_10hz.csv")))
    assert checks([outcome("splitrt", 50), other]) == []


def test_quantiles_are_of_the_sample() -> None:
    found = outcome("splitrt", 50, slowest_ms=80)
    assert found.quantile_s(0.9) == pytest.approx(0.05)
    assert found.quantile_s(0.91) == found.quantile_s(0.99) == pytest.approx(0.08)


def test_rounds_count_as_one_run() -> None:
    one = outcome("splitrt", 40, joules=1.0, kept=1.0)
    other = replace(
        outcome("splitrt", 60, joules=2.0, kept=0.5, wrong=1),
        parts={"remote": 0.0, "local": 1.0, "fallback": 0.0, "hedged": 0.5},
        goodput_bps=40e6,
    )
    both = joined([one, other])
    assert (len(both.latencies_s), both.mean_s, both.mean_j) == (200, pytest.approx(0.05), 1.5)
    assert both.parts == {"remote": 0.5, "local": 0.5, "fallback": 0.0, "hedged": 0.25}
    assert (both.kept, both.wrong, both.goodput_bps, both.seconds) == (0.75, 1, 60e6, 20.0)
    assert joined([outcome("splitrt", 40)]) == outcome("splitrt", 40)


def test_in_each_round_all_take_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def replay_all(runs: list[Run], _: object, **__: object) -> list[Outcome]:
        order.extend(run.selector for run in runs)
        made = [outcome(run.selector, 10 * len(order)) for run in runs]
        return [replace(one, records=({"seq": 7},)) for one in made]

    monkeypatch.setattr(trace_table, "replay_all", replay_all)
    runs = [outcome(name, 1).run for name in ("splitrt", "dads")]
    found, _ = trace_table.measure(runs, {}, 1, Console(quiet=True), rounds=2)
    assert order == ["splitrt", "dads"] * 2
    assert [record["round"] for record in found[0].records] == [1, 2]
    assert [(one.run.selector, one.mean_s) for one in found] == [
        ("splitrt", pytest.approx(0.03)),
        ("dads", pytest.approx(0.03)),
    ]


def test_its_table_and_its_json() -> None:
    console = Console(width=200, record=True)
    console.print(table_of([outcome("splitrt", 50), outcome("local", 100, kept=0.5)]))
    text = console.export_text()
    assert "50.0%" in text
    assert "indoors" in text
    told = json.loads(json.dumps(as_json(outcome("splitrt", 50))))
    assert told["run"]["trace"] == "indoors_10hz.csv"
    assert told["mean_s"] == pytest.approx(0.05)
    assert len(told["latencies_s"]) == 100


def test_a_deadline_of_the_workloads_own() -> None:
    assert str(objective_of("deadline", 0.1)) == "deadline=125ms"
    assert str(objective_of("deadline=80ms", 0.1)) == "deadline=80ms"


def test_a_trace_that_a_shaper_can_follow(tmp_path: Path) -> None:
    path = tmp_path / "yard_10hz.csv"
    path.write_text("t_s,mbps\n" + "".join(f"{i / 10:.1f},{i}\n" for i in range(3)))
    assert trace_of(path, 0.0).mbps == (LEAST_MBPS, 1.0, 2.0)
    assert trace_of(path, 0.1).mbps == (1.0, 2.0)


# The best of ``hand_tables``: the frame above 21.1 Mbps, alone below 0.74 Mbps.
FALLS = Trace(0.1, (*[100.0] * 50, *[0.5] * 50))


def test_the_oracle_knows_what_the_link_will_be() -> None:
    now_s = [0.0]
    oracle = TraceOracle(MODEL, FALLS, lambda: now_s[0])
    slow, fast = (Situation(PLANS, KnownLink(bps), 0.0) for bps in (0.4e6, 1e9))
    splitrt = SplitRT(MODEL)
    assert (splitrt.decide(slow).cut, splitrt.decide(fast).cut) == (LAST, 0), "what it would do"
    assert oracle.decide(slow).cut == 0
    now_s[0] = 6.0
    assert oracle.decide(fast).cut == LAST
    now_s[0] = 4.99
    assert oracle.decide(fast).cut != 0, "most of what it would send comes after the fall"


def test_without_a_link_the_oracle_is_alone() -> None:
    oracle = TraceOracle(MODEL, FALLS, lambda: 0.0)
    assert oracle.decide(Situation(PLANS, None, 0.0)).reason == "no connection"


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITRT_TESTBED", raising=False)
    for words, status, message in [
        (["vgg19_bn"], 2, "SPLITRT_TESTBED"),
        (["vgg19_bn", "--testbed", str(tmp_path)], 2, "no trace at"),
        (["vgg19_bn", "--objective", "speed"], 1, "'speed'"),
        (["vgg19_bn", "--every", "often"], 2, "'often'"),
        (["lenet"], 2, "'lenet'"),
    ]:
        done = CliRunner().invoke(trace_table.main, words)
        assert (done.exit_code, message in done.output) == (status, True), done.output
