"""What a server was asked to prepare on this connection, and what it said."""

from __future__ import annotations

import logging
import threading
from typing import Dict, Optional, Tuple

from engines.errors import RemoteProtocolError

__all__ = ["Preparations"]

logger = logging.getLogger(__name__)

Key = Tuple[str, ...]
"""The same for all plans that need the same of the server."""


class Preparations:
    """Keeps track of PREPARE and PREPARED. Safe across threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: Dict[Key, Optional[str]] = {}
        self._under_way: Dict[int, Key] = {}

    def __repr__(self) -> str:
        return f"<Preparations {len(self._said)} asked for, {len(self._under_way)} under way>"

    def done(self, key: Key) -> bool:
        """Whether the server has what plans of this kind need."""
        with self._lock:
            return self._said.get(key) == ""

    def begin(self, key: Key, number: int) -> bool:
        """Note that it is asked, as request ``number``; false where it is not to be asked now.

        It is asked for one thing at a time, and for each once: an inference that still needs it
        asks again.
        """
        with self._lock:
            if key in self._said or self._under_way:
                return False
            self._said[key] = None
            self._under_way[number] = key
            return True

    def end(self, number: int, trouble: str) -> None:
        """Note what it answered.

        Raises:
            RemoteProtocolError: To what was not asked.
        """
        with self._lock:
            key = self._under_way.pop(number, None)
            if key is not None:
                self._said[key] = trouble
        if key is None:
            raise RemoteProtocolError(f"PREPARED {number}, which was not asked for")
        if trouble:
            logger.warning("the server cannot serve stripes: %s", trouble)

    def forget(self) -> None:
        """Begin anew: the connection is lost."""
        with self._lock:
            self._said.clear()
            self._under_way.clear()
