"""The server: listens, gives each robot a session, and runs their requests on one device."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, List, Sequence, Tuple, Union

from engines.backend import BackendOptions
from engines.bundle import Bundle
from engines.bundle_plans import open_bundle_backend
from engines.codecs import preload_codecs
from engines.errors import SplitError
from engines.program import Program
from engines.striped import StripedProgram
from runtime.scheduler import Scheduler
from runtime.session import Served, Session
from runtime.tables import table_for, wire_table
from runtime.transport import Stream, listen
from runtime.version import SOFTWARE

__all__ = ["Server"]

logger = logging.getLogger(__name__)

Source = Union[str, Path, Bundle, Program]
"""What can be served: the path of a bundle, an opened one, a loaded one."""

MAX_CLIENTS = 64
"""Connections served at a time; one more is closed at once."""

_ACCEPT_PAUSE_S = 0.1
"""Pause after a failed accept: with no descriptors left it fails again at once."""


class Server:
    """Serves bundles to robots. Safe across threads; a context manager; ``close`` drains.

    Args:
        bundles: A bundle or its path, or several of them; loaded programs too, which whoever
            loaded them closes after the server.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        backend: Name of the backend of those that are not loaded yet.
        threads: Threads that it computes with; 0 for its own choice.

    Raises:
        BundleError: A bundle cannot be opened.
        EngineError: It cannot be loaded on the backend.
        ConnectError: The address cannot be listened on.
    """

    def __init__(
        self,
        bundles: "Union[Source, Sequence[Source]]",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        backend: str = "ort",
        threads: int = 0,
    ) -> None:
        given = [bundles] if isinstance(bundles, (str, Path, Bundle, Program)) else bundles
        if not given:
            raise SplitError("serve: expected at least one bundle, given none")
        preload_codecs()
        served: Dict[str, Served] = {}
        with ExitStack() as stack:
            self._socket = listen(host, port)
            stack.callback(self._socket.close)
            for source in given:
                if isinstance(source, (str, Path, Bundle)):
                    program = stack.enter_context(_load(source, backend, threads))
                else:
                    program = source
                table = wire_table(table_for(program))
                striped = StripedProgram(program)
                stack.callback(striped.close)
                served[program.bundle.digest] = Served(program, table, striped)
            self._owned = stack.pop_all()
        self._address: Tuple[str, int] = self._socket.getsockname()[:2]
        self._bundles = served
        self._sessions: Dict[Session, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._scheduler = Scheduler()
        self._acceptor = threading.Thread(target=self._accept, name="splitrt-accept", daemon=True)
        self._acceptor.start()

    def __repr__(self) -> str:
        host, port = self.address
        return f"<Server {host}:{port} {len(self._bundles)} bundles {self.clients} clients>"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> Tuple[str, int]:
        """Host and port that it listens on."""
        return self._address

    @property
    def clients(self) -> int:
        """Robots connected now."""
        with self._lock:
            return len(self._sessions)

    @property
    def served(self) -> int:
        """Requests computed since the start."""
        return self._scheduler.served

    def close(self, *, drain_s: float = 5.0) -> None:
        """Take no more connections, finish what is queued, say goodbye, close. Idempotent.

        Args:
            drain_s: Longest time for queued requests to finish.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        # A closed listening socket does not wake accept(); shutting it down does.
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as exc:
            logger.debug("listening socket: %s", exc)
        self._acceptor.join()
        self._socket.close()
        if not self._scheduler.stop(timeout_s=drain_s):
            logger.warning("requests were still running after %.1f s; left unanswered", drain_s)
        with self._lock:
            sessions: List[Tuple[Session, threading.Thread]] = list(self._sessions.items())
        for session, _ in sessions:
            session.say_goodbye()
        for session, thread in sessions:
            thread.join(1.0)
            if thread.is_alive():
                session.abort()
                thread.join(1.0)
        self._owned.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, address = self._socket.accept()
            except OSError as exc:
                if self._closing.is_set():
                    return
                logger.warning("accept: %s", exc.strerror or exc)
                self._closing.wait(_ACCEPT_PAUSE_S)
                continue
            self._begin(sock, f"{address[0]}:{address[1]}")

    def _begin(self, sock: socket.socket, peer: str) -> None:
        if self.clients >= MAX_CLIENTS:
            logger.warning("%s: turned away, %d clients are connected", peer, MAX_CLIENTS)
            sock.close()
            return
        try:
            stream = Stream(sock, peer)
        except OSError as exc:
            logger.info("%s: gone before it was served: %s", peer, exc)
            sock.close()
            return
        session = Session(stream, self._bundles, self._scheduler, software=SOFTWARE)
        thread = threading.Thread(
            target=self._serve, args=(session,), name=f"splitrt-read-{peer}", daemon=True
        )
        with self._lock:
            self._sessions[session] = thread
        thread.start()

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        except Exception:  # the process loop of one robot: the others go on
            logger.exception("%r ended by a fault of this program", session)
        finally:
            session.abort()
            with self._lock:
                del self._sessions[session]


def _load(source: "Union[str, Path, Bundle]", backend: str, threads: int) -> Program:
    bundle = source if isinstance(source, Bundle) else Bundle.open(source)
    return Program(bundle, open_bundle_backend(bundle, backend, BackendOptions(threads=threads)))
