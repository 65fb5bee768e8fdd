from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.schedule import LINK, ROBOT, SERVER, Span, Task, Way, finish, timeline


def _longest(ways: tuple[Way, ...], bps: float, rtt_s: float, queue_s: float) -> float:
    return max(
        way.seconds + way.bits / bps + way.round_trips * rtt_s + way.queues * queue_s
        for way in ways
    )


def test_a_serial_inference_is_the_sum_of_its_parts() -> None:
    tasks = [
        Task(ROBOT, 0.1),
        Task(LINK, 0.0, 1000.0, (0,)),
        Task(SERVER, 0.02, 0.0, (1,), queued=True),
        Task(LINK, 0.0, 10.0, (2,)),
    ]
    assert finish(tasks) == (Way(pytest.approx(0.12), 1010.0, 1.0, 1.0),)
    spans, end_s = timeline(tasks, goodput_bps=1e4, rtt_s=0.004, queue_s=0.01)
    assert spans == (
        Span(0.0, 0.1),
        Span(0.1, pytest.approx(0.2)),
        Span(pytest.approx(0.212), pytest.approx(0.232)),
        Span(pytest.approx(0.232), pytest.approx(0.233)),
    )
    assert end_s == pytest.approx(0.235)


def test_two_stripes_overlap_computing_and_sending() -> None:
    tasks = [
        Task(ROBOT, 2.0),
        Task(ROBOT, 2.0),
        Task(LINK, 0.0, 30.0, (0,)),
        Task(LINK, 0.0, 30.0, (1,)),
        Task(SERVER, 1.0, 0.0, (2,), queued=True),
        Task(SERVER, 1.0, 0.0, (3,)),
    ]
    # Sent faster than computed: 2 + 2 + 30 / 30 + 1. Slower: 2 + 60 / 10 + 1.
    assert timeline(tasks, goodput_bps=30.0, rtt_s=0.0)[1] == pytest.approx(6.0)
    assert timeline(tasks, goodput_bps=10.0, rtt_s=0.0)[1] == pytest.approx(9.0)
    # A server that is taken for long makes the first stripe wait, and the second behind it.
    assert timeline(tasks, goodput_bps=30.0, rtt_s=0.0, queue_s=7.0)[1] == pytest.approx(12.0)


def test_nothing_to_do_takes_no_time() -> None:
    assert timeline([], goodput_bps=1.0, rtt_s=1.0) == ((), 0.0)
    assert finish([]) == (Way(0.0, 0.0, 0.0, 0.0),)


def test_ways_that_are_never_the_longest_are_dropped() -> None:
    # Of three robots' ways, 3 + 0x, 1 + 1x and 0 + 2x, the middle one is never above the others.
    tasks = [
        Task("a", 3.0),
        Task("b", 1.0, 1.0),
        Task("c", 0.0, 2.0),
        Task("d", 0.0, 0.0, (0, 1, 2)),
    ]
    assert set(finish(tasks)) == {Way(3.0, 0.0, 0.0, 0.0), Way(0.0, 2.0, 0.0, 0.0)}


@st.composite
def _graphs(draw: st.DrawFn) -> list[Task]:
    tasks: list[Task] = []
    for place in range(draw(st.integers(1, 12))):
        resource = draw(st.sampled_from([ROBOT, LINK, SERVER]))
        after = draw(st.sets(st.integers(0, place - 1), max_size=3)) if place else set()
        size = draw(st.sampled_from([0.0, 1.0, 2.5, 7.0, 40.0]))
        seconds, bits = (0.0, size) if resource == LINK else (size, 0.0)
        tasks.append(Task(resource, seconds, bits, tuple(sorted(after)), draw(st.booleans())))
    return tasks


@given(
    _graphs(),
    st.sampled_from([0.01, 0.5, 1.0, 3.0, 1000.0]),
    st.sampled_from([0.0, 0.3, 5.0]),
    st.sampled_from([0.0, 0.7, 20.0]),
)
def test_the_longest_way_is_when_the_schedule_ends(
    tasks: list[Task], bps: float, rtt_s: float, queue_s: float
) -> None:
    _, end_s = timeline(tasks, goodput_bps=bps, rtt_s=rtt_s, queue_s=queue_s)
    assert _longest(finish(tasks), bps, rtt_s, queue_s) == pytest.approx(end_s)
