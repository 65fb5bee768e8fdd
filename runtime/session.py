"""One robot's connection, at the server.

1. The reader (the session's own thread) takes ``HELLO``, answers ``WELCOME``, then reads
   requests. A request's cut fixes the tensors it may carry; their sizes are checked before
   anything is allocated. At most ``PENDING`` requests of one robot are held at a time: the
   reader stops reading until an answer has left, and TCP slows the robot down. A request with a
   plan comes in several messages, counts once, and has a state of its own. Payloads are decoded
   as they come, cancelled or not: codecs with streams need every frame before.
2. The scheduler's thread computes. It hands the answer to the session's writer and goes on, so
   a robot that reads slowly holds up nobody else.
3. The writer sends answers. A robot that takes none for ``STALL_S`` is disconnected.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from functools import partial
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from engines.codecs.decoders import Decoders
from engines.errors import CodecError, EngineError, LinkError, RemoteProtocolError, SplitError
from engines.manifest import Cut
from engines.program import Program
from engines.stripe_plans import Plan, returned, trouble
from engines.striped import Side, StripedProgram
from engines.tensors import Array, TensorSpec
from runtime.messages import STALL_S, Channel, Message
from runtime.payload import Clock, check_parts, pack_tensors, read_tensors, wished_codecs
from runtime.protocol import Role, State
from runtime.scheduler import Job, Scheduler
from runtime.striped_request import Receipt, StripedRequest, check_plan
from runtime.transport import Deadline, Stream
from runtime.wire import (
    Error,
    Header,
    Hello,
    Infer,
    Kind,
    Nothing,
    Part,
    Prepare,
    Prepared,
    Result,
    Table,
    Welcome,
)

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
    striped: StripedProgram


class _Answer(NamedTuple):
    """What the writer sends for one request, or to ``PREPARE``."""

    request: int
    cut: int
    meta: "Result | Error | Prepared"
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
        self._jobs: Dict[int, Union[Job, StripedRequest]] = {}
        self._jobs_lock = threading.Lock()
        self._answers: "queue.Queue[Optional[_Answer]]" = queue.Queue()
        self._decoders = Decoders()  # the reader's
        self._preparing = 0
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
                    if isinstance(job, StripedRequest):
                        job.drop()
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
        welcome = Welcome(self._software, served.table, PENDING, served.striped.offered)
        self._channel.send(Kind.WELCOME, welcome)
        return served

    def _take(self, served: Served, message: Message) -> None:
        """Act on one message."""
        kind = message.header.kind
        if kind is Kind.INFER:
            self._take_request(served, message)
        elif kind is Kind.PING:
            self._channel.answer_ping(message)
        elif kind is Kind.CANCEL:
            self._cancel(message.header.request)
        elif kind is Kind.PREPARE:
            assert isinstance(message.meta, Prepare)  # as decoded for this kind
            self._prepare(served.striped, message.header.request, message.meta.plan)

    def _cancel(self, number: int) -> None:
        with self._jobs_lock:
            job = self._jobs.get(number)
            if job is not None:
                job.cancelled.set()
            if isinstance(job, StripedRequest) and job.told:  # it had failed already
                del self._jobs[number]
        if isinstance(job, StripedRequest):
            job.settle(None, SplitError("cancelled"))

    def _prepare(self, striped: StripedProgram, number: int, plan: Plan) -> None:
        wrong = _no_stripes(striped) or trouble(plan, striped.manifest)
        if wrong:
            raise RemoteProtocolError(f"PREPARE: {wrong}")
        with self._jobs_lock:
            self._preparing += 1
            if self._preparing > PENDING:
                raise RemoteProtocolError(f"PREPARE: {PENDING} others are not answered yet")
        striped.prepare_soon(
            plan,
            Side.SERVER,
            lambda wrong: self._answers.put(_Answer(number, 0, Prepared(wrong[:1000]), [])),
        )

    def _take_request(self, served: Served, message: Message) -> None:
        header, meta = message
        assert isinstance(meta, Infer)  # as decoded for this kind
        manifest = served.program.bundle.manifest
        with self._jobs_lock:
            known = self._jobs.get(header.request)
        if isinstance(known, StripedRequest):
            self._take_stripe(known, header, meta)
            return
        if known is not None:
            raise RemoteProtocolError(f"INFER: request {header.request} is under way already")
        if meta.plan is not None:
            self._take_stripe(self._begin(served, header, meta.plan, meta.results), header, meta)
            return
        if header.stripes != 1:
            raise RemoteProtocolError(
                f"INFER: stripe {header.stripe} of {header.stripes} of request {header.request}, "
                "which is not under way; the first message of a request has its plan"
            )
        cut = _cut_by_number(manifest.cuts, header.cut)
        specs = manifest.specs(cut.tensors)
        check_parts(specs, meta.parts)
        self._take_slot()
        tensors, error, receipt = self._read(specs, meta.parts)
        results = manifest.specs(cut.results)
        codecs = wished_codecs(results, meta.results)
        answer = partial(self._answer, header.request, header.cut, results, codecs)
        done = partial(answer, receive_s=receipt.whole_s, decoding_s=receipt.decoding_s)
        job = Job(served.program, cut.index, tensors, done)
        with self._jobs_lock:
            self._jobs[header.request] = job
        if error is not None:
            done(None, error, 0.0, 0.0)
        else:
            self._scheduler.submit(job)

    def _begin(
        self, served: Served, header: Header, plan: Plan, wishes: Tuple[str, ...]
    ) -> StripedRequest:
        """Take on a request that comes in stripes."""
        manifest = served.program.bundle.manifest
        wrong = _no_stripes(served.striped)
        if wrong:
            raise RemoteProtocolError(f"INFER: {wrong}")
        check_plan(header, plan, manifest)
        with self._jobs_lock:
            jobs = [job for job in self._jobs.values() if isinstance(job, StripedRequest)]
            unfinished = sum(1 for job in jobs if not (job.complete or job.answered))
        if unfinished >= PENDING:  # none of them can give its slot back before this one is read
            raise RemoteProtocolError(
                f"INFER: request {header.request} began while {PENDING} others lack stripes"
            )
        results = returned(plan, manifest)
        codecs = wished_codecs(results, wishes)
        answer = partial(self._answer, header.request, header.cut, results, codecs)
        request = StripedRequest(header, plan, manifest, answer)
        self._take_slot()
        with self._jobs_lock:
            self._jobs[header.request] = request
        try:
            request.begin(served.striped)
        except EngineError as exc:
            request.settle(None, exc)
        return request

    def _take_stripe(self, request: StripedRequest, header: Header, meta: Infer) -> None:
        specs = request.expect(header, meta)
        check_parts(specs, meta.parts)
        tensors, error, receipt = self._read(specs, meta.parts)
        with self._jobs_lock:
            request.received(receipt)
            if request.complete and request.told:
                del self._jobs[request.number]
        if error is not None:
            request.settle(None, error)
        elif not request.answered:
            self._scheduler.submit(request.job(header.stripe, tensors))

    def _take_slot(self) -> None:
        self._slots.acquire()
        if self._ending:
            self._slots.release()
            raise LinkError("the server is shutting down")

    def _read(
        self, specs: Tuple[TensorSpec, ...], parts: Tuple[Part, ...]
    ) -> "Tuple[Dict[str, Array], Optional[CodecError], Receipt]":
        """Read a payload; returns the tensors or what is wrong with them, and how it came."""
        nbytes = sum(part.nbytes for part in parts)
        # What came together with the header was on its way before the clock started.
        early = min(self._channel.stream.unread_bytes() or 0, nbytes)
        begin = time.monotonic()
        error: Optional[CodecError] = None
        tensors: Dict[str, Array] = {}
        clock = Clock()
        try:
            tensors = read_tensors(
                self._channel.stream,
                specs,
                parts,
                deadline=Deadline(PAYLOAD_S),
                stall_s=STALL_S,
                clock=clock,
                decoders=self._decoders,
            )
        except CodecError as exc:
            error = exc
        elapsed_s = time.monotonic() - begin - clock.decoding_s
        return tensors, error, Receipt(nbytes, early, elapsed_s, clock.decoding_s)

    def _answer(
        self,
        request: int,
        cut: int,
        results: Tuple[TensorSpec, ...],
        codecs: Mapping[str, str],
        outputs: Optional[Dict[str, Array]],
        error: Optional[SplitError],
        queue_s: float,
        compute_s: float,
        *,
        receive_s: float,
        decoding_s: float = 0.0,
    ) -> None:
        """Code a request's outputs, or its error, and hand them to the writer."""
        payload: List[memoryview] = []
        meta: "Result | Error"
        if outputs is None:
            code = "request" if isinstance(error, CodecError) else "engine"
            meta = Error(code, str(error)[:1000])
        else:
            begin = time.monotonic()
            parts, payload = pack_tensors(results, outputs, codecs)
            compute_s += decoding_s + time.monotonic() - begin
            meta = Result(parts, receive_s, queue_s, compute_s)
        self._answers.put(_Answer(request, cut, meta, payload))

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
                broken = not self._send_answer(self._still_wanted(answer))
            with self._jobs_lock:
                if isinstance(answer.meta, Prepared):
                    self._preparing -= 1
                    continue
                self._told(answer.request)
            self._slots.release()

    def _still_wanted(self, answer: _Answer) -> _Answer:
        """Return an answer; a few bytes in its place where the robot has cancelled the request."""
        with self._jobs_lock:
            job = self._jobs.get(answer.request)
        if job is None or not job.cancelled.is_set() or not isinstance(answer.meta, Result):
            return answer
        return answer._replace(meta=Error("engine", "cancelled"), payload=[])

    def _told(self, number: int) -> None:
        """Forget a request that was answered; one that failed, once its last stripe came."""
        job = self._jobs.get(number)
        if isinstance(job, StripedRequest):
            job.told = True
            if not (job.complete or job.cancelled.is_set()):
                return
        self._jobs.pop(number, None)

    def _send_answer(self, answer: _Answer) -> bool:
        kind = _KIND_OF[type(answer.meta)]
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


_KIND_OF = {Result: Kind.RESULT, Error: Kind.ERROR, Prepared: Kind.PREPARED}


def _no_stripes(striped: StripedProgram) -> str:
    if striped.offered:
        return ""
    return f"no striped requests for bundle {striped.manifest.name!r} here, as WELCOME says"


def _cut_by_number(cuts: Tuple[Cut, ...], number: int) -> Cut:
    for cut in cuts[:-1]:
        if int(cut.id, 16) == number and not cut.refused:
            return cut
    raise RemoteProtocolError(f"INFER: no cut {number:08x} in this bundle")
