"""One robot's connection, at the server.

1. The reader (the session's own thread) takes ``HELLO``, answers ``WELCOME``, then reads
   requests. A request's cut fixes the tensors it may carry; their sizes are checked before
   anything is allocated. At most ``PENDING`` requests of one robot are held at a time: the
   reader stops reading until an answer has left, and TCP slows the robot down.
2. The scheduler's thread computes. It hands the answer to the session's writer and goes on, so
   a robot that reads slowly holds up nobody else.
3. The writer sends answers. A robot that takes none for ``STALL_S`` is disconnected.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from engines.errors import CodecError, LinkError, RemoteProtocolError, SplitError
from engines.manifest import Cut
from engines.program import Program
from engines.tensors import Array, TensorSpec
from runtime.messages import STALL_S, Channel, Message
from runtime.payload import check_parts, pack_tensors, read_tensors
from runtime.protocol import Role, State
from runtime.scheduler import Job, Scheduler
from runtime.transport import Deadline, Stream
from runtime.wire import Error, Hello, Infer, Kind, Nothing, Part, Result, Table, Welcome

__all__ = ["PENDING", "Session", "Served"]

logger = logging.getLogger(__name__)

PENDING = 4
"""Requests of one robot that are held at a time; bounds the memory a client can take."""

PAYLOAD_S = 60.0
"""Time for the whole payload of a request: who trickles must not hold a slot for ever."""

HANDSHAKE_S = 5.0
"""Time for a new connection to say HELLO."""


class Served(NamedTuple):
    """A loaded bundle and this server's latency table for it."""

    program: Program
    table: Optional[Table]


class _Answer(NamedTuple):
    """What the writer sends for one request."""

    request: int
    cut: int
    meta: "Result | Error"
    payload: List[memoryview]


class Session:
    """Serves one connection until it ends.

    Args:
        stream: The accepted connection; owned by the session.
        bundles: What this server serves, by bundle digest.
        scheduler: What runs the requests.
        software: This program's name and version, for the peer's logs.
    """

    def __init__(
        self,
        stream: Stream,
        bundles: Mapping[str, Served],
        scheduler: Scheduler,
        *,
        software: str,
    ) -> None:
        self._channel = Channel(stream, Role.SERVER)
        self._bundles = bundles
        self._scheduler = scheduler
        self._software = software
        self._slots = threading.Semaphore(PENDING)
        self._jobs: Dict[int, Job] = {}
        self._jobs_lock = threading.Lock()
        self._answers: "queue.Queue[Optional[_Answer]]" = queue.Queue()
        self._closed = False
        self._ending = False

    def __repr__(self) -> str:
        return f"<Session {self._channel!r} {len(self._jobs)} requests>"

    def run(self) -> None:
        """Serve until the robot leaves or breaks the protocol. Never raises ``LinkError``."""
        peer = self._channel.stream.peer
        writer = threading.Thread(target=self._write, name=f"splitrt-write-{peer}", daemon=True)
        writer.start()
        try:
            served = self._greet()
            logger.info("%s: connected, bundle %s", peer, served.program.bundle.manifest.name)
            while self._channel.state is State.OPEN:
                self._take(served, self._channel.receive())
        except RemoteProtocolError as exc:
            logger.warning("%s: refused: %s", peer, exc)
            self._refuse("protocol", str(exc))
        except LinkError as exc:
            logger.info("%s: %s", peer, exc)
        finally:
            self._closed = True
            with self._jobs_lock:
                for job in self._jobs.values():
                    job.cancelled.set()
            self._answers.put(None)
            writer.join(STALL_S * 2)
            self._channel.stream.close()
            logger.info("%s: disconnected", peer)

    def say_goodbye(self) -> None:
        """Tell the robot that the server stops, once every queued answer has been sent."""
        self._answers.put(None)

    def abort(self) -> None:
        """Break the connection off, from any thread."""
        self._channel.stream.abort()

    def _greet(self) -> Served:
        message = self._channel.receive(deadline=Deadline(HANDSHAKE_S))
        hello = message.meta
        assert isinstance(hello, Hello)  # the state machine lets nothing else through
        served = self._bundles.get(hello.bundle)
        if served is None:
            here = ", ".join(digest[:12] for digest in self._bundles)
            reason = (
                f"the robot's bundle is {hello.bundle[:12]!r}, this server serves {here}; "
                "give both ends the same bundle (copy it; compiling again makes another)"
            )
            self._refuse("bundle", reason)
            raise LinkError(f"refused: {reason}")
        self._channel.send(Kind.WELCOME, Welcome(self._software, served.table, PENDING))
        return served

    def _take(self, served: Served, message: Message) -> None:
        """Act on one message."""
        kind = message.header.kind
        if kind is Kind.INFER:
            self._take_request(served, message)
        elif kind is Kind.PING:
            self._channel.answer_ping(message)
        elif kind is Kind.CANCEL:
            with self._jobs_lock:
                job = self._jobs.get(message.header.request)
            if job is not None:
                job.cancelled.set()

    def _take_request(self, served: Served, message: Message) -> None:
        header, meta = message
        assert isinstance(meta, Infer)  # as decoded for this kind
        if header.stripes != 1:
            raise RemoteProtocolError(f"INFER: {header.stripes} stripes; this server takes 1")
        manifest = served.program.bundle.manifest
        cut = _cut_by_number(manifest.cuts, header.cut)
        specs = manifest.specs(cut.tensors)
        check_parts(specs, meta.parts)
        with self._jobs_lock:
            if header.request in self._jobs:
                raise RemoteProtocolError(f"INFER: request {header.request} is under way already")
        self._slots.acquire()
        if self._ending:
            self._slots.release()
            raise LinkError("the server is shutting down")
        begin = time.monotonic()
        error: Optional[CodecError] = None
        tensors: Dict[str, Array] = {}
        try:
            tensors = read_tensors(
                self._channel.stream,
                specs,
                meta.parts,
                deadline=Deadline(PAYLOAD_S),
                stall_s=STALL_S,
            )
        except CodecError as exc:
            error = exc
        received_s = time.monotonic() - begin
        results = manifest.specs(cut.results)
        done = self._answerer(header.request, header.cut, results, received_s)
        job = Job(served.program, cut.index, tensors, done)
        with self._jobs_lock:
            self._jobs[header.request] = job
        if error is not None:
            done(None, error, 0.0, 0.0)
        else:
            self._scheduler.submit(job)

    def _answerer(
        self, request: int, cut: int, results: Tuple[TensorSpec, ...], received_s: float
    ) -> "Callable[[Optional[Dict[str, Array]], Optional[SplitError], float, float], None]":
        def done(
            outputs: Optional[Dict[str, Array]],
            error: Optional[SplitError],
            queue_s: float,
            compute_s: float,
        ) -> None:
            payload: List[memoryview] = []
            meta: "Result | Error"
            if outputs is None:
                code = "request" if isinstance(error, CodecError) else "engine"
                meta = Error(code, str(error)[:1000])
            else:
                parts: Tuple[Part, ...]
                begin = time.monotonic()
                parts, payload = pack_tensors(results, outputs)
                compute_s += time.monotonic() - begin
                meta = Result(parts, received_s, queue_s, compute_s)
            self._answers.put(_Answer(request, cut, meta, payload))

        return done

    def _write(self) -> None:
        """Send answers until told to stop; the channel breaks off on the first that fails."""
        broken = False
        while True:
            answer = self._answers.get()
            if answer is None:
                if not broken and not self._closed and self._channel.state is State.OPEN:
                    self._try_send(Kind.GOODBYE, Nothing())
                    self._channel.stream.abort()
                # Nobody takes answers from now on: a reader that waits for a slot must know.
                self._ending = True
                self._slots.release()
                return
            if not broken:
                broken = not self._send_answer(answer)
            with self._jobs_lock:
                self._jobs.pop(answer.request, None)
            self._slots.release()

    def _send_answer(self, answer: _Answer) -> bool:
        kind = Kind.RESULT if isinstance(answer.meta, Result) else Kind.ERROR
        try:
            self._channel.send(
                kind,
                answer.meta,
                request=answer.request,
                cut=answer.cut,
                tensors=len(answer.payload),
                payload=answer.payload,
                deadline=Deadline(None),
            )
        except LinkError as exc:
            if not self._closed:
                logger.info("%s: answer not sent: %s", self._channel.stream.peer, exc)
            return False
        return True

    def _refuse(self, code: str, message: str) -> None:
        self._try_send(Kind.ERROR, Error(code, message[:1000]))

    def _try_send(self, kind: Kind, meta: "Error | Nothing") -> None:
        """Send a last word to a peer that may not be there to hear it."""
        try:
            self._channel.send(kind, meta)
        except LinkError as exc:
            logger.debug("%s: %s not sent: %s", self._channel.stream.peer, kind.name, exc)


def _cut_by_number(cuts: Tuple[Cut, ...], number: int) -> Cut:
    for cut in cuts[:-1]:
        if int(cut.id, 16) == number and not cut.refused:
            return cut
    raise RemoteProtocolError(f"INFER: no cut {number:08x} in this bundle")
