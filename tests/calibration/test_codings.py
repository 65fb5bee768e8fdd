from __future__ import annotations

import msgspec
import pytest

from calibration.codings import CodecCost, CodecOffer, Codings, is_lossy_coding
from calibration.plan_tasks import Pricer
from calibration.plans import candidate_plans
from calibration.prepared import PreparedPlans
from calibration.schedule import LINK, ROBOT_CODEC, SERVER_CODEC
from calibration.segment_times import SegmentTimes
from engines.codecs import CODECS, open_codec
from engines.stripe_plans import RowPlan, StripePlan
from tests.striped import Layer, chain

SPLIT = chain([Layer(400, 1, 1), Layer(200, 2, 2)], whole=[1000, 100])
LAST = len(SPLIT.cuts) - 1
TIMES = SegmentTimes((0.01,) * len(SPLIT.segments))
ALL = tuple(name for name, _ in CODECS.values())
PER_BYTE_S = 1e-8


def _frontier(cut: int) -> str:
    (name,) = SPLIT.cuts[cut].tensors
    return name


def _nbytes(name: str) -> int:
    return SPLIT.specs((name,))[0].nbytes


def _costs(codec: str = "zstd", ratio: float = 0.25, seconds: float = PER_BYTE_S
           ) -> tuple[CodecCost, ...]:  # fmt: skip
    names = sorted({n for cut in SPLIT.cuts[:-1] for n in (*cut.tensors, *cut.results)})
    return tuple(CodecCost(name, codec, ratio, seconds, seconds) for name in names)


def _codings(*costs: CodecCost, **changes: object) -> Codings:
    offer = CodecOffer(usable=ALL, robot=costs)
    return Codings(SPLIT, msgspec.structs.replace(offer, **changes))


def _best_codec(plans: PreparedPlans, bps: float, cut: int = 1) -> dict[str, str]:
    return dict(plans.predict(cut, goodput_bps=bps, rtt_s=0.0).coding)


def test_a_codec_is_used_up_to_the_link_rate_at_which_it_stops_paying() -> None:
    """It saves 6 bits of 8 a byte and takes 20 ns: up to 6 / 20 ns, which is 300 Mbps."""
    plans = PreparedPlans(SPLIT, TIMES, TIMES, codings=_codings(*_costs()))
    for bps in (1e6, 299e6):
        assert _best_codec(plans, bps)[_frontier(1)] == "zstd"
    for bps in (301e6, 1e9):
        assert _best_codec(plans, bps) == {}


def test_the_prediction_counts_bytes_and_both_ends(  # robot, link, decode, server, and back
) -> None:
    plans = PreparedPlans(SPLIT, TIMES, TIMES, codings=_codings(*_costs(), server=_costs(
        seconds=PER_BYTE_S / 10)))  # fmt: skip
    found = plans.predict(1, goodput_bps=1e6, rtt_s=0.0)
    up, down = _nbytes(_frontier(1)), _nbytes(SPLIT.outputs[0].name)
    coded = [-(-up // 4), -(-down // 4)]
    coding_s = (up + down) * PER_BYTE_S * 1.1
    assert (found.bytes_up, found.bytes_down) == tuple(coded)
    expected = sum(TIMES.segments_s) + 8 * sum(coded) / 1e6 + coding_s
    assert found.latency_s == pytest.approx(expected)


def test_coding_is_work_of_the_codecs_at_both_ends() -> None:
    codings = _codings(*_costs())
    work = Pricer(SPLIT, TIMES, TIMES, codings=codings).serial(1, {_frontier(1): "zstd"})
    up = _nbytes(_frontier(1))
    assert work.busy_s(ROBOT_CODEC) == pytest.approx(up * PER_BYTE_S)
    assert work.busy_s(SERVER_CODEC) == pytest.approx(up * PER_BYTE_S)
    assert work.bytes_up == -(-up // 4)
    assert next(task.resource for task in work.tasks if task.bits) == LINK


def test_stripes_are_coded_one_by_one() -> None:
    (plan, *_) = [
        plan
        for plan in candidate_plans(SPLIT)
        if isinstance(plan, StripePlan) and plan.cut == 1 and plan.stripes == 4
        and not plan.two_sided
    ]  # fmt: skip
    pricer = Pricer(SPLIT, TIMES, TIMES, codings=_codings(*_costs()))
    whole, coded = pricer.plan(plan), pricer.plan(plan, {_frontier(1): "zstd"})
    assert coded.bytes_up == pytest.approx(whole.bytes_up / 4, abs=4)
    assert sum(task.resource == ROBOT_CODEC for task in coded.tasks) == 4


def test_every_choice_is_there_by_default_first_and_coded_ones_behind_them() -> None:
    plain = PreparedPlans(SPLIT, TIMES, TIMES)
    coded = PreparedPlans(SPLIT, TIMES, TIMES, codings=_codings(*_costs()))
    count = len(plain.choices)
    assert [(c.cut, c.plan, c.coding) for c in coded.choices[:count]] == [
        (c.cut, c.plan, ()) for c in plain.choices
    ]
    others = coded.choices[count:]
    assert len(others) >= LAST
    assert all(choice.coding for choice in others)
    assert {choice.mode for choice in others} == {c.mode for c in plain.choices} - {"local"}
    for bps in (1e6, 1e8, 1e10):
        assert coded.best(bps, 0.0).latency_s <= plain.best(bps, 0.0).latency_s
    assert coded.costs(1e6, 0.0).shape == (len(coded.choices),)


def test_a_choice_can_be_predicted_with_its_own_codecs() -> None:
    plans = PreparedPlans(SPLIT, TIMES, TIMES, codings=_codings(*_costs()))
    for place, choice in enumerate(plans.choices):
        found = plans.predict(
            choice.cut, choice.plan, goodput_bps=2e7, rtt_s=0.001, coding=choice.coding
        )
        assert found.coding == choice.coding
        assert found.latency_s == pytest.approx(plans.costs(2e7, 0.001)[place])


def test_the_robot_alone_codes_nothing() -> None:
    assert _codings(*_costs()).proposals(LAST) == [()]


def test_a_codec_that_one_end_lacks_is_not_proposed() -> None:
    assert _codings(*_costs(), usable=("identity", "lz4")).proposals(1) == [()]


def test_what_never_wins_by_much_is_not_proposed() -> None:
    assert _codings(*_costs(ratio=0.99)).proposals(1) == [()]
    assert _codings(*_costs(ratio=0.5, seconds=1e-3)).proposals(1) == [()]


def test_each_link_has_its_codec() -> None:
    quick, small = _costs("lz4", 0.6, 1e-9), _costs("zstd", 0.3, 5e-8)
    plans = PreparedPlans(SPLIT, TIMES, TIMES, codings=_codings(*quick, *small))
    name = _frontier(1)
    assert [_best_codec(plans, bps).get(name) for bps in (1e6, 1e8, 1e10)] == ["zstd", "lz4", None]


class TestLossy:
    def test_it_is_proposed_only_where_it_is_admitted(self) -> None:
        cut = SPLIT.cuts[1].id
        codings = _codings(*_costs("int8", 0.25, 1e-9), admitted=((cut, "int8"),))
        assert [dict(c) for c in codings.proposals(1)] == [{}, {_frontier(1): "int8"}]
        for other in (0, 2):
            assert codings.proposals(other) == [()]
        assert _codings(*_costs("int8", 0.25, 1e-9)).proposals(1) == [()]

    def test_two_lossy_codecs_are_never_mixed(self) -> None:
        cut = SPLIT.cuts[1].id
        costs = (*_costs("int8", 0.25, 1e-8), *_costs("fp16", 0.5, 1e-9))
        codings = _codings(*costs, admitted=((cut, "int8"), (cut, "fp16")))
        for coding in codings.proposals(1):
            assert len({codec for _, codec in coding if not open_codec(codec).lossless}) <= 1

    def test_raw_rows_and_results_are_never_lossy(self) -> None:
        admitted = tuple((cut.id, "int8") for cut in SPLIT.cuts)
        codings = _codings(*_costs("int8", 0.25, 1e-9), admitted=admitted)
        two_sided = StripePlan(cut=1, until=1, bounds=(96, 224), robot=1)
        assert codings.proposals(1, two_sided) == [()]
        assert codings.proposals(0, RowPlan(cut=0, bound=96)) == [()]
        for coding in codings.proposals(1):
            assert SPLIT.outputs[0].name not in dict(coding)

    def test_predictions_say_so(self) -> None:
        admitted = ((SPLIT.cuts[1].id, "int8"),)
        codings = _codings(*_costs("int8", 0.25, 1e-9), admitted=admitted)
        plans = PreparedPlans(SPLIT, TIMES, TIMES, codings=codings)
        assert plans.predict(1, goodput_bps=1e6, rtt_s=0).lossy
        assert not plans.predict(0, goodput_bps=1e6, rtt_s=0).lossy
        assert is_lossy_coding((("a", "int8"),))
        assert not is_lossy_coding((("a", "zstd"),))


class TestNamed:
    def test_it_is_used_whatever_it_costs_and_nothing_else(self) -> None:
        codings = _codings(*_costs(seconds=1e-3), policy="zstd")
        plans = PreparedPlans(SPLIT, TIMES, TIMES, codings=codings)
        assert len({(choice.cut, choice.plan) for choice in plans.choices}) == len(plans.choices)
        for bps in (1e6, 1e9, None):
            found = plans.predict(1, goodput_bps=bps, rtt_s=0.0)
            assert set(dict(found.coding).values()) == {"zstd"}
            assert _frontier(1) in dict(found.coding)

    def test_without_a_measurement_it_is_taken_to_save_what_it_must(self) -> None:
        plans = PreparedPlans(SPLIT, TIMES, TIMES, codings=_codings(policy="fp16",
                              admitted=((SPLIT.cuts[1].id, "fp16"),)))  # fmt: skip
        spec = SPLIT.specs((_frontier(1),))[0]
        expected = spec.nbytes if not open_codec("fp16").applies(spec) else spec.size * 2
        assert plans.predict(1, goodput_bps=1e6, rtt_s=0.0).bytes_up == expected

    def test_a_lossy_one_is_used_where_it_is_admitted_alone(self) -> None:
        codings = _codings(*_costs("int8"), policy="int8", admitted=((SPLIT.cuts[1].id, "int8"),))
        assert codings.proposals(0) == [()]
        assert codings.proposals(1, StripePlan(cut=1, until=1, bounds=(96, 224), robot=1)) == [()]


@pytest.mark.parametrize(
    "change", [{"ratio": -1.0}, {"encode_s": float("nan")}, {"decode_s": 2.0}, {"ratio": 1e9}]
)
def test_costs_that_nobody_measures_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a ratio"):
        msgspec.structs.replace(CodecCost("t", "lz4", 0.5, 1e-9, 1e-9), **change)
