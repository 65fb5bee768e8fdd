from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from calibration.choosing import AS_GOOD
from calibration.latency_table import LatencyTable, Timing
from calibration.objectives import Constraints, parse_objective
from calibration.plan_text import plan_text
from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes
from engines.bundle import Bundle
from engines.fingerprint import Fingerprint
from runtime.cli import main
from runtime.decision import KnownLink, Situation, decision_text
from runtime.explain import Explanation, SpreadLink, explain
from runtime.selector import open_selector, selector_names
from tests.hand_tables import LAST, MODEL, PLANS, Steps
from tests.striped import Layer, chain

STRIPED = chain(
    [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(300, 4, 2)], whole=[1000, 10], input_row_bytes=600
)
ALL = PreparedPlans(STRIPED, SegmentTimes((0.1,) * 5), SegmentTimes((0.03,) * 5))
UNSTEADY = Steps(1e6, 100e6, 0.2)
OBJECTIVES = ("latency", "latency:p95", "energy", "deadline=300ms", "deadline=1ms",
              "energy-budget=2J", "energy-budget=1mJ")  # fmt: skip


def _explain(text: str, link: Steps | KnownLink = UNSTEADY, **more: object) -> Explanation:
    return explain(Situation(PLANS, link, 0.0, parse_objective(text), **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", OBJECTIVES)
@pytest.mark.parametrize("link", [KnownLink(2e6, 0.002), SpreadLink(1e6, 8e6, 0.002)])
def test_every_candidate_appears_once_with_a_reason(
    text: str, link: KnownLink | SpreadLink
) -> None:
    situation = Situation(ALL, link, 0.001, parse_objective(text))
    found = explain(situation)
    expected = sorted(decision_text(STRIPED, c.cut, c.plan) for c in ALL.choices)
    assert sorted(candidate.name for candidate in found.candidates) == expected
    assert len(set(expected)) == len(ALL.choices)
    assert all(candidate.reason for candidate in found.candidates)
    assert [candidate.chosen for candidate in found.candidates].count(True) == 1
    chosen, decision = found.candidates[0], open_selector("splitrt", STRIPED).decide(situation)
    assert chosen.chosen
    assert chosen.name == decision_text(STRIPED, decision.cut, decision.plan)
    assert chosen.reason == found.rule == decision.reason
    json.dumps([candidate.record() for candidate in found.candidates], allow_nan=False)


def test_parts_add_up_to_the_expected_latency_of_a_serial_choice() -> None:
    link = Steps(1e6, 100e6, 0.2, rtt_s=0.01)
    found = explain(Situation(PLANS, link, 0.02, promised=False))
    assert found.bound is None
    for candidate in found.candidates:
        p = candidate.predicted
        whole_s = p.robot_s + p.link_s + p.server_s + p.queue_s
        assert candidate.latency_s == pytest.approx(whole_s)
        assert candidate.energy_j == pytest.approx(p.energy_j)


def test_a_gain_too_small_for_stripes_is_told() -> None:
    plans = PreparedPlans(STRIPED, SegmentTimes((0.4,) * 5), SegmentTimes((0.001,) * 5))
    told = 0
    for mbps in range(5, 200):
        found = explain(Situation(plans, KnownLink(mbps * 1e5, 0.002), 0.0))
        chosen = found.candidates[0]
        small = [c for c in found.candidates if c.reason.endswith("a gain too small to tell")]
        assert all(c.latency_s < chosen.latency_s for c in small)
        for candidate in small:
            if candidate.latency_s * (1 + AS_GOOD) < chosen.latency_s:
                assert candidate.predicted.plan is not None
                assert chosen.predicted.plan is None
                told += 1
    assert told


def test_the_bound_and_what_the_robot_spends_for_it_are_told() -> None:
    found = explain(Situation(PLANS, KnownLink(1e6), 0.0))
    assert found.bound is not None
    assert found.bound.latency_s == pytest.approx(1.2)
    # Cut 4 takes .86 s; the robot begins the .6 s that are left at 1.2 - 1.1 x .6.
    beside_s = 0.86 - 0.54
    assert found.bound.hedge_s == pytest.approx(0.54)
    chosen, extra_w = found.candidates[0], 13.35 - 4.04
    assert chosen.energy_j == pytest.approx(chosen.predicted.energy_j + extra_w * beside_s)


def test_reasons_say_by_how_much_it_lost() -> None:
    by_name = {c.name: c.reason for c in _explain("latency", KnownLink(1e6)).candidates}
    # Cut 4 takes .86 s, alone 1 s.
    assert by_name[f"split at {MODEL.cuts[4].id}"] == "least predicted latency"
    assert by_name["robot alone"] == "140.00 ms more (+16.3%)"
    by_name = {c.name: c.reason for c in _explain("energy", KnownLink(1e6)).candidates}
    assert by_name["robot alone"] == "6.0676 J more (+83.3%)"  # 13.35 against 7.2824
    by_name = {c.name: c.reason for c in _explain("deadline=900ms").candidates}
    assert by_name["robot alone"].startswith("1000.00 ms at the goodput that 99% exceed")
    by_name = {c.name: c.reason for c in _explain("deadline=500ms").candidates}
    assert by_name["coded frame"] == "needs 20.00 Mbps to keep it, 10.00 more"
    assert by_name["robot alone"] == "too slow at any goodput"
    by_name = {c.name: c.reason for c in _explain("energy-budget=5J", KnownLink(20e6)).candidates}
    assert by_name[f"split at {MODEL.cuts[4].id}"] == "5.667 J: over the budget"


def test_what_may_not_be_used_says_why_and_stands_last() -> None:
    bound = Constraints(keep_local=MODEL.cuts[3].id)
    found = _explain("latency", constraints=bound)
    assert [MODEL.cuts[3].id in c.reason for c in found.candidates] == [False] * 5 + [True] * 3
    serial = explain(Situation(ALL, KnownLink(2e6), 0.0, serial=True))
    plans = [c for c in serial.candidates if c.predicted.plan is not None]
    assert {c.reason for c in plans} == {"no plan can be carried out now"}


def test_it_says_what_the_other_selectors_would_take() -> None:
    found = _explain("latency", KnownLink(1e9, 5.0))
    assert tuple(found.others) == selector_names()
    assert found.others["splitrt"] == "robot alone"
    assert found.others["dads"] == "coded frame"


def test_a_spread_link_has_the_quantiles_that_it_is_given() -> None:
    link = SpreadLink(20e6, 60e6)
    assert link.quantile(0.1) == pytest.approx(20e6)
    assert link.quantile(0.9) == pytest.approx(60e6)
    assert link.quantile(0.5) == pytest.approx((20e6 * 60e6) ** 0.5)
    assert link.goodput_bps == pytest.approx(link.quantile(0.5))
    assert link.quantile(0.01) < 20e6
    assert SpreadLink(5e6, 5e6).quantile(0.01) == 5e6


# -- the command -------------------------------------------------------------------------------


def _run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["explain", *(str(a) for a in arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def tables(toy: Bundle, tmp_path: Path) -> list[object]:
    """Give the options that name a table of each side: 10 and 1 ms for every segment."""
    options: list[object] = []
    for side, seconds in (("robot", 0.01), ("server", 0.001)):
        table = LatencyTable(
            bundle=toy.digest,
            fingerprint=Fingerprint(backend="ort", fields={"cpu": side}),
            runs=30,
            segments=(Timing(seconds, seconds),) * len(toy.manifest.segments),
            whole=Timing(seconds * 7, seconds * 7),
        )
        path = tmp_path / f"{side}.json"
        path.write_bytes(msgspec.json.encode(table))
        options += [f"--{side}-table", path]
    return options


def test_the_command_explains_a_bundle(toy: Bundle, tables: list[object]) -> None:
    code, out, err = _run(toy.folder, "--goodput", "20-60", "--rtt", 5, *tables)
    assert code == 0, err
    assert "least predicted latency" in out
    for name in selector_names():
        assert name in out
    code, out, err = _run(
        toy.folder, "--goodput", 40, "--rtt", 5, "--objective", "deadline=80ms", "--json", *tables
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["objective"] == "deadline=80ms"
    assert told["goodput_mbps"] == [40, 40]
    assert len(told["candidates"]) == len(toy.manifest.cuts)
    assert told["candidates"][0]["chosen"]
    assert "robot" in told["robot"]


def test_the_command_refuses_a_table_of_another_bundle(toy: Bundle, tables: list[object]) -> None:
    path = Path(str(tables[1]))
    path.write_bytes(path.read_bytes().replace(toy.digest.encode(), b"0" * 64))
    code, _, err = _run(toy.folder, "--goodput", 40, *tables)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "runtime profile" in err


def test_without_times_it_says_what_to_give(toy: Bundle) -> None:
    code, _, err = _run(toy.folder, "--goodput", 40)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "--robot-table" in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--goodput", "0"], "--goodput '0'"),
        (["--goodput", "60-20"], "as in 20-60"),
        (["--goodput", "fast"], "expected Mbps above 0"),
        (["--goodput", "40", "--objective", "quick"], "objective 'quick'"),
        (["--goodput", "40", "--keep-local", "ffffffff"], "split-bundle inspect"),
    ],
)
def test_the_command_refuses_in_one_line(toy: Bundle, arguments: list[str], part: str) -> None:
    code, _, err = _run(toy.folder, *arguments)
    assert code == 1
    assert len(err.splitlines()) == 1, err
    assert part in err


def test_names_are_those_that_a_user_may_type() -> None:
    for choice in ALL.choices:
        name = decision_text(STRIPED, choice.cut, choice.plan)
        if choice.plan is not None:
            assert name.endswith(plan_text(choice.plan, STRIPED))
    assert decision_text(MODEL, LAST, None) == "robot alone"
