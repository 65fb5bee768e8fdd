"""What a source is."""

from __future__ import annotations

import itertools
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional

from engines.tensors import Array

__all__ = ["Sample", "Source"]


class Sample(NamedTuple):
    """One inference's inputs.

    Attributes:
        name: Where they come from, for people.
        inputs: Arrays by name; of a live source a :class:`runtime.frames.Frame`.
    """

    name: str
    inputs: Dict[str, Array]


class Source:
    """Recorded samples, in order, none of them dropped. A context manager.

    Args:
        once: Goes through the samples from the first to the last; at least one.
        size: How many they are, where that is known before.

    Attributes:
        size: See above.
        dropped: Frames that nobody was ready for; 0 for a recorded source.
        unreadable: Files that were left out because they could not be read.
    """

    dropped = 0

    def __init__(
        self, once: Callable[[], Iterator[Sample]], *, size: Optional[int] = None
    ) -> None:
        self.size = size
        self.unreadable = 0
        self._once = once

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def samples(self) -> Iterator[Sample]:
        """All of them, over and over."""
        return itertools.chain.from_iterable(self._once() for _ in itertools.count())

    def take(self, count: Optional[int] = None) -> Iterator[Sample]:
        """Return ``count`` samples, over and over; without a count, each of them once."""
        return self._once() if count is None else itertools.islice(self.samples, count)

    def close(self) -> None:
        """Let go of it; safe to call again."""


def repeated(*samples: Sample) -> Source:
    """Return a source of samples that are there already."""
    return Source(lambda: iter(samples), size=len(samples))


Fit = Callable[[Any], Dict[str, Array]]
"""Turns a picture (of Pillow) into a model's inputs."""
