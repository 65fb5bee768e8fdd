"""Giving up a computation that is under way, from another thread.

Whoever computes says ``with abortable(abort)``. Engines that can stop in the middle look the abort
up (``current_abort``); between engines ``check_abort`` looks. Either way :class:`Aborted` is
raised, and what was computed so far is of no use. A thread without an abort is never stopped.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional

__all__ = ["Abort", "Aborted", "abortable", "check_abort", "current_abort"]


class Aborted(Exception):  # noqa: N818 (no error of anyone's)
    """A computation was given up."""


class Abort:
    """Says once, for good, that something is not wanted any more. Safe across threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._watchers: List[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Abort {'set' if self.is_set() else 'not set'}>"

    def set(self) -> None:
        """Give it up; safe to call again, from any thread."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher()

    def is_set(self) -> bool:
        """Whether it was given up."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for it to be given up; returns whether it was."""
        return self._event.wait(timeout_s)

    @contextmanager
    def watched(self, watcher: Callable[[], None]) -> Iterator[None]:
        """Call ``watcher`` when it is given up within the block, or at once if it is already.

        The watcher is called in the thread that gives up, and must not wait.
        """
        with self._lock:
            given_up = self._event.is_set()
            self._watchers.append(watcher)
        try:
            if given_up:
                watcher()
            yield
        finally:
            with self._lock:
                self._watchers.remove(watcher)


class _Here(threading.local):
    abort: Optional[Abort] = None


_here = _Here()


def current_abort() -> Optional[Abort]:
    """Return what may stop this thread's computation; none where nothing does."""
    return _here.abort


def check_abort() -> None:
    """Stop here if this thread's computation was given up.

    Raises:
        Aborted: It was.
    """
    abort = _here.abort
    if abort is not None and abort.is_set():
        raise Aborted


@contextmanager
def abortable(abort: Abort) -> Iterator[None]:
    """Let ``abort`` stop what this thread computes within the block."""
    before, _here.abort = _here.abort, abort
    try:
        check_abort()
        yield
    finally:
        _here.abort = before
