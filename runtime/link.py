"""The robot's link to its server: kept up in the background, never in the way of an inference.

1. One thread owns the connection: it connects, shakes hands, then reads. When the connection
   breaks, every request under way fails at once (its robot falls back), and the thread connects
   again, waiting a little longer after each failure.
2. Requests are written by the robot's sender thread (``send_stripe``), whole ones and those in
   stripes, while the inference computes or waits. One that is not waited for any more is
   cancelled: the server is told, and what it may still answer is read and dropped.
3. A connection is broken off where the link's state is down, where a request that should have been
   answered long ago was met with silence, and where an inference gave up its request by its
   patience: the handshake that follows proves whether the server lives.
4. While anything is under way, the meter reads the connection's counters for the estimator.
   Where no transfer has told of goodput for a while, a probe within the budget
   (``runtime.prober``) keeps the estimate fresh and notices a server that froze.
5. A lost link is a state (``up`` is false, ``trouble`` says why), never an exception.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Dict, List, Mapping, Optional, Tuple

from engines.codecs.encoders import NO_RANGES, Encoders, ValueRange
from engines.errors import (
    CodecError,
    DeadlineError,
    LinkError,
    RemoteProtocolError,
    SplitError,
)
from engines.manifest import Manifest
from engines.stripe_plans import Plan, returned, sent
from engines.tensors import Array
from runtime.estimator import LinkEstimate, LinkEstimator
from runtime.evidence import Connected, Lost, QueueTime, RoundTrip, Transfer
from runtime.handshake import HANDSHAKE_S, shake_hands
from runtime.link_state import LinkState
from runtime.messages import STALL_S, Channel, Message
from runtime.meter import Meter
from runtime.payload import (
    NO_CODECS,
    Clock,
    check_parts,
    known_codecs,
    pack_tensors,
    read_tensors,
)
from runtime.preparations import Preparations
from runtime.prober import PROBE_EVERY_S, Prober
from runtime.protocol import Role
from runtime.request_book import RequestBook
from runtime.requests import Answer, Request
from runtime.transport import Deadline, connect
from runtime.version import SOFTWARE
from runtime.wire import (
    HEADER_BYTES,
    Error,
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
    message_bytes,
)

__all__ = ["Link"]

logger = logging.getLogger(__name__)

_QUICK_S = 0.05
"""A request that took the link no longer is a sample as a whole: readings may have been few."""

_WATCH_EVERY_S = PROBE_EVERY_S / 4
"""Time between looks at whether the server lives and whether a probe is due."""

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 0.5
"""Wait before connecting again: doubled after each failure, so that a server that came back is
used again within a second."""

_RECONNECT_S = 0.4
_RECONNECT_TRIPS = 4
"""Time for a connection to a server that was there before: at least, and in round trips."""

_PROVEN_S = 1.0
"""A connection that lived this long has proved itself: the waits begin anew after it."""


class Link:
    """A robot's connection to one server. Safe across threads.

    Args:
        host: Server's host.
        port: Server's port.
        manifest: The bundle's manifest.
        digest: The bundle's digest; the server must have the same bundle.
        table: The robot's latency table, told to the server.
        ranges: Calibrated ranges by tensor and codec, for the codecs that write by those.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        manifest: Manifest,
        digest: str,
        table: Optional[Table] = None,
        ranges: Mapping[Tuple[str, str], ValueRange] = NO_RANGES,
    ) -> None:
        self._ranges = ranges
        self._encoders = Encoders(ranges)
        self.estimator = LinkEstimator()
        self.server_table: Optional[Table] = None
        self.trouble = "not connected yet"
        self.fatal: Optional[SplitError] = None
        self._address = (host, port)
        self._manifest = manifest
        self._hello = Hello(digest, SOFTWARE, table)
        self._lock = threading.Lock()
        self._channel: Optional[Channel] = None
        self._shaking: Optional[Channel] = None
        self._requests = RequestBook()
        self._preparations = Preparations()
        self.takes_stripes = False
        self._next = 1
        self._heard_s = 0.0
        self._why_broken = ""
        self._metered = False
        self._closing = threading.Event()
        self._settled = threading.Event()
        self._prober = Prober(self.estimator, self._settled.set)
        self._meter = Meter(self.estimator)
        self._reader = threading.Thread(target=self._keep_up, name="splitrt-link", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="splitrt-watch", daemon=True)
        self._reader.start()
        self._watcher.start()

    def __repr__(self) -> str:
        state = "up" if self.up else f"down: {self.trouble}"
        return f"<Link {self._address[0]}:{self._address[1]} {state}>"

    @property
    def up(self) -> bool:
        """Whether requests can be sent now."""
        return self._channel is not None

    @property
    def estimate(self) -> LinkEstimate:
        """The link as estimated now."""
        return self.estimator.at(time.monotonic())

    @property
    def probe_bytes(self) -> int:
        """Bytes sent as probes so far."""
        return self._prober.spent_bytes

    def wait_settled(self, timeout_s: float) -> bool:
        """Wait until the first attempt to connect has ended; returns whether the link is up."""
        self._settled.wait(timeout_s)
        return self.up

    def send(
        self,
        cut_index: int,
        tensors: Mapping[str, Array],
        *,
        deadline: Deadline,
        codecs: Mapping[str, str] = NO_CODECS,
    ) -> Request:
        """Send the frontier of a cut.

        Args:
            cut_index: Index of the cut.
            tensors: Its frontier, by name; left alone until this returns.
            deadline: When the last byte must be with the kernel.
            codecs: As for :meth:`begin`.

        Raises:
            LinkError: There is no connection, or it broke.
            DeadlineError: The deadline came first; the connection was broken off.
        """
        request = self.begin(cut_index, codecs=codecs)
        try:
            self._send_message(request, 0, tensors, deadline)
        except LinkError:
            self._forget(request.number)
            raise
        return request

    def begin(
        self,
        cut_index: int,
        plan: Optional[Plan] = None,
        *,
        codecs: Mapping[str, str] = NO_CODECS,
        expected_s: Optional[float] = None,
    ) -> Request:
        """Open a request, of which nothing is sent yet.

        Args:
            cut_index: Index of the cut.
            plan: How it is striped; none for a whole request.
            codecs: Names of codecs by tensor, of what is sent and of the results; those that the
                server does not have are left out.
            expected_s: How long it should take; none where nobody knows.

        Raises:
            LinkError: There is no connection.
        """
        if plan is None:
            results = self._manifest.specs(self._manifest.cuts[cut_index].results)
        else:
            results = returned(plan, self._manifest)
        with self._lock:
            channel = self._channel
            if channel is None:
                raise LinkError(f"no connection: {self.trouble}")
            known = self._known(codecs)
            request = Request(channel, self._next, cut_index, plan, results, known, expected_s)
            self._next += 1
            self._requests.add(request)
        return request

    def send_stripe(self, request: Request, stripe: int, tensors: Mapping[str, Array]) -> None:
        """Code and write one message of a request, in its plan's order of the wire.

        What goes wrong fails the request; a stripe of one that is over is not written.

        Args:
            request: From :meth:`begin`.
            stripe: Its number; 0 for a whole request.
            tensors: What ``stripe_plans.sent`` says of it, or the cut's frontier; left alone until
                this returns.
        """
        if request.over:
            return
        begin = time.monotonic()
        try:
            self._send_message(request, stripe, tensors, Deadline(None))
        except LinkError as exc:
            logger.debug("stripe %d not sent: %s", stripe, exc)
        request.sending_s += time.monotonic() - begin

    def _send_message(
        self, request: Request, stripe: int, tensors: Mapping[str, Array], deadline: Deadline
    ) -> None:
        """Code and write one message. What was coded for a connection that is no more fails."""
        if request.plan is None:
            specs = self._manifest.specs(self._manifest.cuts[request.cut].tensors)
            codecs = request.codecs
        else:
            specs = sent(request.plan, self._manifest, stripe)
            codecs = NO_CODECS  # no stream goes over stripes
        encoders = self._encoders
        with encoders.message(codecs, timeout_s=deadline.remaining_s()):
            parts, payload = pack_tensors(specs, tensors, request.codecs, encoders)
            self._write(request, stripe, parts, payload, deadline=deadline)

    def cancel(self, request: Request) -> None:
        """Tell the server that a request is not waited for any more.

        To be called by whoever calls :meth:`send_stripe`. What the server may have answered before
        it heard of it is dropped.
        """
        with self._lock:
            waiting = self._requests.stop_waiting(request.number)
            if request.channel is not self._channel or request.unsent == request.stripes:
                return  # its connection is gone, or the server does not know it
            if waiting:
                self._requests.give_up(request)
        if not waiting and not request.unsent:
            return  # answered, and nothing more of it will come
        try:
            request.channel.send(Kind.CANCEL, request=request.number)
        except LinkError as exc:
            logger.debug("cancel not sent: %s", exc)

    @property
    def backlog_bytes(self) -> int:
        """Bytes that were written and not acknowledged: what is sent next waits for them."""
        channel = self._channel
        left = None if channel is None else channel.stream.unacknowledged_bytes()
        return left or 0

    @property
    def under_way(self) -> int:
        """Requests that are not answered yet."""
        return len(self._requests)

    def prepared(self, key: Tuple[str, ...]) -> bool:
        """Whether the server has what plans of this kind need; see :meth:`prepare`."""
        return self._preparations.done(key)

    def prepare(self, key: Tuple[str, ...], plan: Plan) -> None:
        """Ask the server, once on each connection, to get ready for plans like this one.

        Args:
            key: The same for all plans that need the same of the server.
            plan: One of them.
        """
        with self._lock:
            channel, number = self._channel, self._next
            if channel is None or not self._preparations.begin(key, number):
                return
            self._next += 1
        try:
            channel.send(Kind.PREPARE, Prepare(plan), request=number)
        except LinkError as exc:
            logger.debug("prepare not sent: %s", exc)

    def _write(
        self,
        request: Request,
        stripe: int,
        parts: Tuple[Part, ...],
        payload: List[memoryview],
        *,
        deadline: Deadline,
    ) -> None:
        """Write one message of a request; the request fails with it."""
        first = request.unsent == request.stripes
        if first:
            request.begin_s = time.monotonic()  # coding is not the link's time
        meta = Infer(parts, request.plan, request.wishes) if first else Infer(parts)
        size = sum(view.nbytes for view in payload)
        # Counted before: the answer may be quicker than the return from the last write.
        request.unsent -= 1
        request.bytes_up += message_bytes(meta, size)
        try:
            with self._meter.sending():
                request.channel.send(
                    Kind.INFER,
                    meta,
                    request=request.number,
                    cut=int(self._manifest.cuts[request.cut].id, 16),
                    stripe=stripe,
                    stripes=request.stripes,
                    tensors=len(parts),
                    payload=payload,
                    deadline=deadline,
                )
        except LinkError as exc:
            self._learn_from_failure(request, size, exc)
            raise

    def abandon(self, request: Request) -> None:
        """Give up a request that missed its deadline, and break its connection off."""
        late = DeadlineError("the server did not answer in the time given")
        self._learn_from_failure(request, request.bytes_up, late)
        request.channel.stream.abort()

    def close(self) -> None:
        """Say goodbye and end the threads; safe to call again."""
        self._closing.set()
        with self._lock:
            channel, shaking = self._channel, self._shaking
        if channel is not None:
            try:
                channel.send(Kind.GOODBYE, deadline=Deadline(0.2))
            except LinkError as exc:
                logger.debug("goodbye not sent: %s", exc)
            channel.stream.abort()
        elif shaking is not None:
            shaking.stream.abort()
        self._reader.join(HANDSHAKE_S * 2 + 1)
        self._watcher.join(_WATCH_EVERY_S + 1)
        self._meter.close()

    # -- the connection's own thread ---------------------------------------------------------

    def _keep_up(self) -> None:
        wait_s = _FIRST_WAIT_S
        host, port = self._address
        while not self._closing.is_set():
            channel: Optional[Channel] = None
            try:
                begin_s = time.monotonic()
                stream = connect(host, port, deadline=Deadline(self._connect_s()))
                channel = Channel(stream, Role.ROBOT)
                self._open(channel)
                opened_s = time.monotonic()
                while True:
                    message = channel.receive()
                    self._heard_s = time.monotonic()
                    self._take(channel, message)
                    if time.monotonic() - opened_s > _PROVEN_S:
                        wait_s = _FIRST_WAIT_S
            except LinkError as exc:
                why, self._why_broken = self._why_broken, ""
                self._down(channel, LinkError(why) if why else exc)
            except Exception as exc:  # the link's process loop: the robot goes on without it
                logger.exception("the link ended by a fault of this program")
                self._down(channel, LinkError(f"internal error: {type(exc).__name__}"))
            # What an attempt took counts as waiting: most of it was.
            if self._closing.wait(max(wait_s - (time.monotonic() - begin_s), 0.0)):
                return
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _connect_s(self) -> float:
        """Return how long to wait for a connection.

        A packet lost just before a link's return is sent again a second later only: by then a new
        attempt would have come through. Where the round trip is not known it may be that long.
        """
        rtt_s = self.estimator.estimate.rtt_s
        return max(_RECONNECT_S, _RECONNECT_TRIPS * rtt_s) if rtt_s else HANDSHAKE_S

    def _open(self, channel: Channel) -> None:
        """Shake hands, let requests through and measure the link once."""
        with self._lock:
            self._shaking = channel
        begin_s = time.monotonic()
        welcome = shake_hands(channel, self._hello)
        greeted_s = time.monotonic() - begin_s
        self.fatal = None if isinstance(welcome, Welcome) else welcome
        if not isinstance(welcome, Welcome):
            raise welcome
        self.server_table = welcome.table
        self.takes_stripes = welcome.stripes
        with self._lock:
            self._shaking = None
            if self._closing.is_set():  # close() may have looked before there was a channel
                raise LinkError("closed by this program")
            self._channel = channel
            self._prober.connecting()
            self._encoders = Encoders(self._ranges)
        # Whatever the last connection's was: this one may lead another way.
        self.estimator.take(Connected(time.monotonic()))
        self.estimator.take(RoundTrip(time.monotonic(), greeted_s))
        self._metered = channel.stream.counters() is not None
        self._meter.attach(channel.stream)
        logger.info("%s: connected to %s", channel.stream.peer, welcome.software)
        self._ping(channel, 0)
        size = self._prober.connected()
        if size is not None:
            self._ping(channel, size)

    def _take(self, channel: Channel, message: Message) -> None:
        """Act on one message."""
        kind, number = message.header.kind, message.header.request
        if kind is Kind.RESULT:
            self._take_result(channel, message)
        elif kind is Kind.ERROR:
            assert isinstance(message.meta, Error)  # as decoded for this kind
            if not number:
                raise LinkError(f"the server gave up: {message.meta.message}")
            self._encoders.restart()  # it may be for want of a frame that the next refers to
            failed = self._forget(number)
            if failed is not None:
                failed.settle(None, LinkError(f"the server failed: {message.meta.message}"))
        elif kind is Kind.PREPARED:
            assert isinstance(message.meta, Prepared)  # as decoded for this kind
            self._preparations.end(number, message.meta.trouble)
        elif kind is Kind.PONG:
            self._take_pong(channel, number)
        elif kind is Kind.PING:
            channel.answer_ping(message)
        elif kind is Kind.GOODBYE:
            raise LinkError("the server said goodbye")

    def _take_result(self, channel: Channel, message: Message) -> None:
        header, result = message
        assert isinstance(result, Result)  # as decoded for this kind
        with self._lock:
            request = self._requests.find(header.request)
        if request is None:
            raise RemoteProtocolError(
                f"RESULT of request {header.request}, which is not under way"
            )
        cut = self._manifest.cuts[request.cut]
        if header.cut != int(cut.id, 16):
            raise RemoteProtocolError(f"RESULT of cut {header.cut:08x}, expected {cut.id}")
        if request.unsent:
            raise RemoteProtocolError(
                f"RESULT of request {header.request}, of which {request.unsent} of "
                f"{request.stripes} stripes were not sent yet"
            )
        specs = request.results
        check_parts(specs, result.parts)
        error: Optional[CodecError] = None
        tensors: Dict[str, Array] = {}
        clock = Clock()
        begin_s = time.monotonic()
        try:
            with self._meter.receiving(header.payload_bytes):
                tensors = read_tensors(
                    channel.stream,
                    specs,
                    result.parts,
                    deadline=Deadline(None),
                    stall_s=STALL_S,
                    clock=clock,
                )
        except CodecError as exc:
            error = exc
        end_s = time.monotonic() - clock.decoding_s
        self._forget(header.request)
        if error is not None:
            request.settle(None, LinkError(f"the server's answer cannot be decoded: {error}"))
            return
        down = HEADER_BYTES + header.meta_bytes + header.payload_bytes
        answer = Answer(
            tensors, result, request.bytes_up, down, end_s - request.begin_s, end_s - begin_s
        )
        if request.settle(answer):
            self._learn(request, answer)

    def _learn(self, request: Request, answer: Answer) -> None:
        """Tell the estimator what the answer says, and what the meter was too slow to see."""
        result, now_s = answer.result, time.monotonic()
        self.estimator.take(QueueTime(now_s, result.queue_s))
        if request.plan is None and request.alone:
            on_link_s = max(answer.elapsed_s - result.queue_s - result.compute_s, 0.0)
            if on_link_s <= _QUICK_S or not self._metered:
                total = request.bytes_up + answer.bytes_down
                self.estimator.take(Transfer(now_s, total, on_link_s))
        elif not self._metered:
            # Its stripes went out while the robot computed, or behind another request's: only
            # the server saw how long they were on their way, each from its header to its last
            # byte.
            on_link_s = result.receive_s + self.estimator.estimate.rtt_s
            self.estimator.take(Transfer(now_s, request.bytes_up, on_link_s))

    def _down(self, channel: Optional[Channel], why: LinkError) -> None:
        """Fail every request under way and note why."""
        with self._lock:
            was_up = self._channel is not None
            self._channel = self._shaking = None
            failed = self._requests.clear()
            self._preparations.forget()
        self._prober.disconnected()
        self._meter.attach(None)
        self.trouble = str(why)
        self.estimator.take(Lost(time.monotonic(), self.trouble))
        if channel is not None:
            channel.stream.close()
        for request in failed:
            request.settle(None, LinkError(f"the connection broke: {why}"))
        if was_up and not self._closing.is_set():
            logger.warning("link down: %s; running on the robot, connecting again", why)
        self._settled.set()

    # -- the watching thread -----------------------------------------------------------------

    def _watch(self) -> None:
        """Break a dead connection off, and send the probes that are due."""
        while not self._closing.wait(_WATCH_EVERY_S):
            now = time.monotonic()
            estimate = self.estimator.at(now)
            with self._lock:
                channel = self._channel
                idle = not len(self._requests)
                silent_s = self._requests.silent_s(now, self._heard_s)
            self._prober.fill(now, estimate)
            if channel is None:
                continue
            trouble = "no answer to a probe" if self._prober.late(now) else ""
            if silent_s > 0:
                trouble = f"the server has not answered for {silent_s:.1f} s"
            if estimate.state is LinkState.DOWN:
                trouble = estimate.why
            if trouble:
                self._break_off(channel, trouble)
                continue
            size = self._prober.due(now, estimate, idle=idle)
            if size is not None:
                try:
                    self._ping(channel, size)
                except LinkError as exc:
                    logger.debug("probe not sent: %s", exc)

    def _break_off(self, channel: Channel, why: str) -> None:
        """Give a connection up; what fails by it is told the reason."""
        logger.info("%s: %s", channel.stream.peer, why)
        self._why_broken = why
        channel.stream.abort()

    def _ping(self, channel: Channel, size: int) -> None:
        with self._lock:
            if self._channel is not channel:
                raise LinkError(f"no connection: {self.trouble}")
            number = self._next
            self._next += 1
            self._prober.sending(number, size)
        payload = [memoryview(bytes(size))] if size else []
        try:
            with self._meter.sending():
                channel.send(Kind.PING, Nothing(), request=number, payload=payload)
        except LinkError:
            self._prober.unsent(number)
            raise

    def _take_pong(self, channel: Channel, number: int) -> None:
        size = self._prober.answered(number)
        if size is not None:
            self._ping(channel, size)

    # -- shared ------------------------------------------------------------------------------

    def _known(self, codecs: Mapping[str, str]) -> Mapping[str, str]:
        table = self.server_table
        return known_codecs(codecs, () if table is None else table.codec_ids) if codecs else codecs

    def _forget(self, number: int) -> Optional[Request]:
        with self._lock:
            return self._requests.forget(number)

    def _learn_from_failure(self, request: Request, sent: int, why: LinkError) -> None:
        """Count what a failed transfer did deliver: a slow link must not look unknown."""
        left = request.channel.stream.unacknowledged_bytes()
        elapsed_s = time.monotonic() - request.begin_s
        if isinstance(why, DeadlineError) and left and not self._metered:
            delivered = Transfer(time.monotonic(), max(sent - left, 0), elapsed_s)
            self.estimator.take(delivered)
        self._forget(request.number)
        request.settle(None, why)
