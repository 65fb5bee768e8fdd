from __future__ import annotations

import itertools

import pytest

from engines.errors import LocalProtocolError, RemoteProtocolError
from runtime.protocol import Protocol, Role, State
from runtime.wire import Kind

R, S = Role.ROBOT, Role.SERVER
MAY = {
    (State.START, R, Kind.HELLO): State.GREETED,
    (State.START, S, Kind.ERROR): State.CLOSED,
    (State.GREETED, S, Kind.WELCOME): State.OPEN,
    (State.GREETED, S, Kind.ERROR): State.CLOSED,
    (State.OPEN, R, Kind.INFER): State.OPEN,
    (State.OPEN, R, Kind.CANCEL): State.OPEN,
    (State.OPEN, R, Kind.PREPARE): State.OPEN,
    (State.OPEN, S, Kind.PREPARED): State.OPEN,
    (State.OPEN, S, Kind.RESULT): State.OPEN,
    (State.OPEN, S, Kind.ERROR): State.OPEN,
    (State.OPEN, R, Kind.PING): State.OPEN,
    (State.OPEN, S, Kind.PING): State.OPEN,
    (State.OPEN, R, Kind.PONG): State.OPEN,
    (State.OPEN, S, Kind.PONG): State.OPEN,
    (State.OPEN, R, Kind.GOODBYE): State.CLOSED,
    (State.OPEN, S, Kind.GOODBYE): State.CLOSED,
}
"""Written out again on purpose: a slip in the table must show."""


@pytest.mark.parametrize(("state", "speaker", "kind"), [*itertools.product(State, Role, Kind)])
def test_every_state_speaker_and_kind(state: State, speaker: Role, kind: Kind) -> None:
    sender, receiver = Protocol(speaker), Protocol(speaker.peer)
    sender.state = receiver.state = state
    after = MAY.get((state, speaker, kind))
    if after is not None:
        sender.sent(kind)
        receiver.received(kind)
        assert sender.state is receiver.state is after
        return
    with pytest.raises(LocalProtocolError, match=f"{speaker.value} sends {kind.name}"):
        sender.sent(kind)
    with pytest.raises(RemoteProtocolError, match=f"the {speaker.value} sent {kind.name}"):
        receiver.received(kind)
    assert sender.state is receiver.state is state, "an error changes nothing"


def test_a_whole_conversation() -> None:
    robot, server = Protocol(Role.ROBOT), Protocol(Role.SERVER)
    talk = [
        (robot, server, Kind.HELLO),
        (server, robot, Kind.WELCOME),
        (robot, server, Kind.PREPARE),
        (robot, server, Kind.INFER),
        (server, robot, Kind.PREPARED),
        (robot, server, Kind.INFER),
        (robot, server, Kind.PING),
        (server, robot, Kind.RESULT),
        (server, robot, Kind.PONG),
        (robot, server, Kind.CANCEL),
        (server, robot, Kind.ERROR),
        (server, robot, Kind.GOODBYE),
    ]
    for speaker, listener, kind in talk:
        speaker.sent(kind)
        listener.received(kind)
    assert robot.state is server.state is State.CLOSED
    assert repr(robot) == "<Protocol robot closed>"


def test_each_role_is_the_others_peer() -> None:
    assert (R.peer, S.peer) == (S, R)
