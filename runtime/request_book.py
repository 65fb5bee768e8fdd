"""The requests of one connection that the server may still answer.

Not safe across threads: its owner's lock guards it.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from runtime.requests import Request

__all__ = ["RequestBook"]

_SILENT_S = 1.0
_SILENT_FACTOR = 4.0
"""A server that says nothing for so long, and for so many times as long as a request should take,
is taken to be dead or frozen."""


class RequestBook:
    """Keeps requests by number: those that are waited for, and those that were given up.

    Its length is the number of those that are waited for.
    """

    def __init__(self) -> None:
        self._waited_for: Dict[int, Request] = {}
        self._given_up: Dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._waited_for)

    def __repr__(self) -> str:
        return f"<RequestBook {len(self)} waited for, {len(self._given_up)} given up>"

    def add(self, request: Request) -> None:
        """Note a new request; whoever shares the connection with others is told."""
        request.alone = not self._waited_for
        for other in self._waited_for.values():
            other.alone = False
        self._waited_for[request.number] = request

    def find(self, number: int) -> Optional[Request]:
        """Return the request of which an answer may come; none if there is no such."""
        return self._waited_for.get(number) or self._given_up.get(number)

    def forget(self, number: int) -> Optional[Request]:
        """Expect no answer any more; returns the request if it was waited for."""
        self._given_up.pop(number, None)
        return self._waited_for.pop(number, None)

    def stop_waiting(self, number: int) -> bool:
        """Wait for a request no longer; returns whether it was waited for."""
        return self._waited_for.pop(number, None) is not None

    def give_up(self, request: Request) -> None:
        """Note that an answer may still come to a request that is not waited for."""
        self._given_up[request.number] = request

    def clear(self) -> List[Request]:
        """Forget all; returns those that were waited for."""
        waited_for = list(self._waited_for.values())
        self._waited_for.clear()
        self._given_up.clear()
        return waited_for

    def silent_s(self, now_s: float, heard_s: float) -> float:
        """Return for how long the server has said nothing, where it should have; else 0.

        A request, given up or not, should have been answered a while after it was expected.

        Args:
            now_s: Time.
            heard_s: When the server last said anything.
        """
        for request in (*self._waited_for.values(), *self._given_up.values()):
            if request.expected_s is None:
                continue
            since_s = now_s - max(request.begin_s, heard_s)
            if since_s > max(_SILENT_S, _SILENT_FACTOR * request.expected_s):
                return since_s
        return 0.0
