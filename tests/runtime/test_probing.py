from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.probing import (
    DEPTH_BYTES,
    LARGEST_BYTES,
    LEAST_BYTES,
    MOST_BYTES_PER_S,
    SHARE,
    ProbeBudget,
)

OVERHEAD = 40


def test_the_first_probe_takes_all_that_an_unknown_link_may_have() -> None:
    budget = ProbeBudget(OVERHEAD)
    assert budget.probe(5.0, None) == LARGEST_BYTES - OVERHEAD
    assert budget.spent_bytes == LARGEST_BYTES
    while budget.probe(5.0, None) == 0:
        assert budget.spent_bytes <= DEPTH_BYTES, "headers alone, out of what is left"
    assert budget.probe(5.0, None) is None


def test_the_size_follows_the_link() -> None:
    sizes = {mbps: ProbeBudget(OVERHEAD).probe(0.0, mbps * 1e6) for mbps in (1, 16, 24, 1000)}
    assert sizes == {1: LEAST_BYTES, 16: LEAST_BYTES, 24: 24_000, 1000: LARGEST_BYTES - OVERHEAD}


def test_a_slow_link_is_probed_seldom() -> None:
    """1% of 1 Mbps is 1250 bytes a second, so 8 kB take over 6 s; in between, the round trip."""
    budget = ProbeBudget(OVERHEAD)
    budget.probe(0.0, None)
    sizes = [budget.probe(float(second), 1e6) for second in range(1, 41)]
    assert sum(size == LEAST_BYTES for size in sizes if size) <= 5
    assert sizes.count(0) > 20
    assert budget.spent_bytes <= DEPTH_BYTES + 40 * 1250


def test_a_probe_without_payload_can_be_asked_for() -> None:
    assert ProbeBudget(OVERHEAD).probe(0.0, 80e6, payload=False) == 0


def test_two_of_the_least_fit_at_once() -> None:
    budget = ProbeBudget(OVERHEAD)
    given_ = [budget.probe(1.0, bps, least=True) for bps in (None, 80e6, 80e6)]
    assert given_ == [LEAST_BYTES, LEAST_BYTES, 0]


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 5.0),
        st.one_of(st.none(), st.floats(1e3, 1e9)),
        st.booleans(),
    ),
    max_size=200,
)


@given(STEPS)
def test_no_stretch_of_time_takes_more_than_the_budget(
    steps: list[tuple[float, float | None, bool]],
) -> None:
    budget, now_s = ProbeBudget(OVERHEAD), 0.0
    spent: list[tuple[float, int, float]] = []
    flowed = 0.0
    for seconds, goodput_bps, payload in steps:
        now_s += seconds
        capacity = 1e6 if goodput_bps is None else goodput_bps
        flowed += seconds * min(SHARE * capacity / 8, MOST_BYTES_PER_S)
        before = budget.spent_bytes
        size = budget.probe(now_s, goodput_bps, payload=payload)
        cost = budget.spent_bytes - before
        assert cost == (0 if size is None else size + OVERHEAD)
        spent.append((now_s, cost, flowed))
    for first in range(len(spent)):
        for last in range(first, len(spent)):
            cost = sum(bytes_ for _, bytes_, _ in spent[first : last + 1])
            assert cost <= DEPTH_BYTES + spent[last][2] - spent[first][2] + 1e-3
            if last - first > 20:
                break


def test_what_a_good_link_saved_up_is_there_when_it_is_bad() -> None:
    budget = ProbeBudget(OVERHEAD)
    budget.probe(0.0, None)
    budget.fill(0.0, 90e6)
    budget.fill(5.0, 90e6)
    assert budget.probe(6.0, 0.09e6) == LEAST_BYTES
