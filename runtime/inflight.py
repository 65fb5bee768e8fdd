"""Frames in flight: the next one begins while link and server still have the ones before.

Each frame under way has a thread of its own, so whichever is stuck holds up nobody; their
computing takes turns (``runtime.turns``). Results are given in the order of the frames. No frame
is taken before there is room for it, so nothing piles up: neither frames nor results that nobody
has asked for.
"""

from __future__ import annotations

import collections
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Deque, Iterable, Iterator, Mapping, Optional, Tuple

from engines.tensors import Array
from runtime.result import Result

__all__ = ["Frames"]

Start = Callable[[Mapping[str, Array]], Tuple[Callable[[], Result], Callable[[], None]]]
"""Takes a frame; returns what runs it, and what gives it up before it has run."""


class Frames:
    """Results of a stream of frames, in order. An iterator, and a context manager.

    Unlike a generator it goes on after a frame that raised an error.

    Args:
        frames: The frames; asked for the next one only when there is room.
        start: See :data:`Start`.
        in_flight: Frames under way at a time.
    """

    def __init__(
        self, frames: Iterable[Mapping[str, Array]], start: Start, in_flight: int
    ) -> None:
        self._frames = iter(frames)
        self._start = start
        self._room = in_flight
        self._under_way: "Deque[Tuple[Future[Result], Callable[[], None]]]" = collections.deque()
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="splitrt-frame")
        self._ended = False
        self._trouble: Optional[Exception] = None

    def __repr__(self) -> str:
        return f"<Frames {len(self._under_way)} of {self._room} under way>"

    def __iter__(self) -> Iterator[Result]:
        return self

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Result:
        """Take frames while there is room, then wait for the oldest."""
        while not self._ended and len(self._under_way) < self._room:
            try:
                frame = next(self._frames)
            except StopIteration:
                self._ended = True
                break
            except Exception as exc:  # noqa: BLE001 (told below, after the frames before it)
                self._ended, self._trouble = True, exc
                break
            run, give_up = self._start(frame)
            self._under_way.append((self._pool.submit(run), give_up))
        if not self._under_way:
            self.close()
            trouble, self._trouble = self._trouble, None
            raise trouble or StopIteration
        return self._under_way.popleft()[0].result()

    def close(self) -> None:
        """Take no more frames and wait for those under way; safe to call again."""
        self._ended = True
        for future, give_up in self._under_way:
            if future.cancel():
                give_up()
        self._pool.shutdown()
        self._under_way.clear()
