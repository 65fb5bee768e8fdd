from __future__ import annotations

from runtime.evidence import Reading
from runtime.link_state import DEGRADED_S, DOWN_S, HOLD_S, LinkState, States

UP, DEGRADED, DOWN = LinkState.UP, LinkState.DEGRADED, LinkState.DOWN


def connected() -> States:
    states = States()
    states.connected()
    return states


def stall(
    states: States, begin_s: float, seconds: float, *, acked: int = 0, **more: bool
) -> float:
    """Read every 10 ms without progress; returns the time of the last reading."""
    for i in range(int(seconds * 100) + 1):
        states.reading(Reading(begin_s + i / 100, acked, 0, 50_000, **more))
    return begin_s + int(seconds * 100) / 100


def test_it_is_down_until_connected() -> None:
    states = States()
    assert (states.state, states.why) == (DOWN, "not connected yet")
    states.reading(Reading(0.0, 1000, 0, 0))
    assert states.state is DOWN
    states.connected()
    assert states.state is UP


def test_a_lost_connection_is_down_with_its_reason() -> None:
    states = connected()
    states.lost("the server closed the connection")
    assert (states.state, states.why) == (DOWN, "the server closed the connection")
    states.goodput(1.0, 80e6)
    assert states.state is DOWN
    states.connected()
    assert states.state is UP


def test_silence_is_no_evidence() -> None:
    states = connected()
    states.reading(Reading(0.0, 0, 0, 0))
    states.reading(Reading(100.0, 0, 0, 0))
    assert states.state is UP
    states.reading(Reading(100.1, 0, 0, 50_000))
    assert states.state is UP, "bytes have just become outstanding"


def test_no_progress_degrades_and_then_is_down() -> None:
    states = connected()
    stall(states, 1.0, DEGRADED_S - 0.02)
    assert states.state is UP
    stall(states, 1.0 + DEGRADED_S, 0.0)
    assert states.state is DEGRADED
    assert "none of 50000 bytes acknowledged for 0.2 s" in states.why
    stall(states, 1.0 + DEGRADED_S, DOWN_S - DEGRADED_S - 0.02)
    assert states.state is DEGRADED
    stall(states, 1.0 + DOWN_S + 0.01, 0.0)
    assert states.state is DOWN
    assert "for 1.0 s" in states.why


def test_from_down_it_comes_back_by_way_of_degraded_after_a_hold() -> None:
    states = connected()
    at_s = stall(states, 1.0, DOWN_S + 0.1)
    assert states.state is DOWN
    states.reading(Reading(at_s + 0.01, 10_000, 0, 40_000))
    assert (states.state, states.why) == (DEGRADED, "bytes get through again")
    states.reading(Reading(at_s + 0.02, 20_000, 0, 30_000))
    assert states.state is DEGRADED
    states.reading(Reading(at_s + 0.02 + HOLD_S, 30_000, 0, 20_000))
    assert states.state is UP


def test_a_short_stall_after_each_burst_keeps_it_degraded() -> None:
    states = connected()
    at_s, acked = 1.0, 0
    seen = []
    for _ in range(5):
        at_s = stall(states, at_s, DEGRADED_S + 0.02, acked=acked) + 0.01
        acked += 5_000
        states.reading(Reading(at_s, acked, 0, 50_000))
        seen.append(states.state)
    assert seen == [DEGRADED] * 5


def test_a_peer_that_takes_nothing_degrades_but_is_not_a_dead_link() -> None:
    states = connected()
    stall(states, 1.0, DOWN_S * 3, blocked=True)
    assert states.state is DEGRADED
    assert "the server takes none of 50000 bytes" in states.why


def test_an_answer_that_stops_in_the_middle() -> None:
    states = connected()
    for i in range(150):
        states.reading(Reading(1.0 + i / 100, 0, 7_000, 0, receiving=True))
    assert states.state is DOWN
    assert "in the middle of a message" in states.why


def test_low_goodput_degrades_with_hysteresis() -> None:
    states = connected()
    for i in range(20):
        states.goodput(i * 0.1, 80e6)
    states.goodput(2.0, 40e6)
    assert states.state is UP, "half is not low"
    states.goodput(2.1, 10e6)
    assert states.state is DEGRADED
    assert "goodput fell to 10.0 Mbps" in states.why
    states.goodput(2.2, 35e6)
    assert states.state is DEGRADED, "not low any more, not recovered either"
    states.goodput(2.3, 70e6)
    assert states.state is DEGRADED, "recovered, but not for long"
    states.goodput(2.2 + HOLD_S + 0.1, 70e6)
    assert states.state is UP


def test_progress_alone_does_not_lift_a_link_that_is_slow() -> None:
    states = connected()
    states.goodput(0.0, 80e6)
    states.goodput(0.1, 5e6)
    assert states.state is DEGRADED
    for i in range(100):
        states.reading(Reading(0.2 + i * 0.01, i * 1000, 0, 500_000))
    assert states.state is DEGRADED


def test_what_stays_low_becomes_what_is_usual() -> None:
    states = connected()
    states.goodput(0.0, 80e6)
    for i in range(1, 60):
        states.goodput(i * 0.1, 8e6)
    assert states.state is UP
