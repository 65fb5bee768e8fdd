"""Who may say what when: the state machine of one connection, without any I/O.

Rule 1: everything that affects whether a message is allowed lives in the table below.
Rule 2: a message that the table lacks is an error, and it is always clear whose: sending it is
``LocalProtocolError`` (this program's fault), receiving it ``RemoteProtocolError`` (the peer's).

    robot                 server
      | ---- HELLO ------> |      START -> GREETED
      | <--- WELCOME ----- |      GREETED -> OPEN       (or ERROR: -> CLOSED)
      | ---- PREPARE ----> |      OPEN; answered by PREPARED
      | <--- PREPARED ---- |
      | ---- INFER ------> |      any number of requests may be under way; one with a plan
      | ---- INFER ------> |      has a message for each stripe
      | ---- CANCEL -----> |
      | <--- RESULT ------ |      or ERROR with the request's id
      | ---- PING -------> |      either side's PING is answered by PONG
      | <--- PONG -------- |
      | <--- GOODBYE ----- |      OPEN -> CLOSED, from either side
"""

from __future__ import annotations

import enum
from typing import Dict, Tuple

from engines.errors import LocalProtocolError, RemoteProtocolError
from runtime.wire import Kind

__all__ = ["Protocol", "Role", "State"]


class Role(enum.Enum):
    """Which end of the connection one is."""

    ROBOT = "robot"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.SERVER if self is Role.ROBOT else Role.ROBOT


class State(enum.Enum):
    """How far a connection has come."""

    START = "start"
    GREETED = "greeted"
    OPEN = "open"
    CLOSED = "closed"


_ALLOWED: Dict[Tuple[State, Role, Kind], State] = {
    (State.START, Role.ROBOT, Kind.HELLO): State.GREETED,
    (State.START, Role.SERVER, Kind.ERROR): State.CLOSED,
    (State.GREETED, Role.SERVER, Kind.WELCOME): State.OPEN,
    (State.GREETED, Role.SERVER, Kind.ERROR): State.CLOSED,
    (State.OPEN, Role.ROBOT, Kind.INFER): State.OPEN,
    (State.OPEN, Role.ROBOT, Kind.CANCEL): State.OPEN,
    (State.OPEN, Role.ROBOT, Kind.PREPARE): State.OPEN,
    (State.OPEN, Role.SERVER, Kind.PREPARED): State.OPEN,
    (State.OPEN, Role.SERVER, Kind.RESULT): State.OPEN,
    (State.OPEN, Role.SERVER, Kind.ERROR): State.OPEN,
    (State.OPEN, Role.ROBOT, Kind.PING): State.OPEN,
    (State.OPEN, Role.SERVER, Kind.PING): State.OPEN,
    (State.OPEN, Role.ROBOT, Kind.PONG): State.OPEN,
    (State.OPEN, Role.SERVER, Kind.PONG): State.OPEN,
    (State.OPEN, Role.ROBOT, Kind.GOODBYE): State.CLOSED,
    (State.OPEN, Role.SERVER, Kind.GOODBYE): State.CLOSED,
}
"""(state, who speaks, what) -> next state."""


class Protocol:
    """The state of one connection, as one of its ends sees it. Not safe across threads.

    The caller must call :meth:`sent` before it writes a message, and :meth:`received` for each
    header it reads, before it acts on it.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.START

    def __repr__(self) -> str:
        return f"<Protocol {self.role.value} {self.state.value}>"

    def sent(self, kind: Kind) -> None:
        """Note that this end sends a message.

        Raises:
            LocalProtocolError: It may not, now.
        """
        after = _ALLOWED.get((self.state, self.role, kind))
        if after is None:
            raise LocalProtocolError(
                f"{self.role.value} sends {kind.name} when {self.state.value}"
            )
        self.state = after

    def received(self, kind: Kind) -> None:
        """Note that the peer sent a message.

        Raises:
            RemoteProtocolError: It may not, now. The connection must be closed.
        """
        after = _ALLOWED.get((self.state, self.role.peer, kind))
        if after is None:
            raise RemoteProtocolError(
                f"the {self.role.peer.value} sent {kind.name} when the connection was "
                f"{self.state.value}; is the other end SplitRT?"
            )
        self.state = after
