"""Striped inference over loopback: every mode right, and right again when the link fails."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from calibration.plan_text import plan_text
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import DeadlineError, EngineError, ManifestError, SplitError
from engines.program import Program
from engines.stripe_plans import Plan, RowPlan, StripePlan, mode_of, sent
from engines.stripe_runs import HeadRun
from runtime import Result, Robot, Server
from runtime.selector import Decision, Situation
from runtime.transport import Stream
from runtime.wire import Error, Kind, Part, Prepared, Welcome
from runtime.wire import Result as WireResult
from tests.runtime.helpers import FakeServer, Message, Peer, address, eventually
from tests.striped_toy import ROWS, striped_inputs, whole_outputs

Tensors = dict[str, np.ndarray]

BOUNDS = (16, 24, 32, 40, ROWS)
PLANS: dict[str, Plan] = {
    "streamed-head": StripePlan(cut=3, until=3, bounds=BOUNDS, robot=5),
    "streamed-head, striped tail": StripePlan(cut=1, until=4, bounds=BOUNDS, robot=5),
    "streamed-raw": StripePlan(cut=0, until=2, bounds=BOUNDS, robot=5),
    "two-sided": StripePlan(cut=2, until=4, bounds=BOUNDS, robot=3),
    "two-sided, one raw": StripePlan(cut=2, until=2, bounds=BOUNDS, robot=4),
    "rows": RowPlan(cut=0, bound=24),
    "rows, a common part": RowPlan(cut=3, bound=10),
}


def _same(result: Result, expected: Tensors) -> None:
    assert set(result.outputs) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(result.outputs[name], array, err_msg=name)


@pytest.fixture
def server(dense: Bundle) -> Iterator[Server]:
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(dense, backend) as program, Server([program]) as running:
        yield running


@pytest.mark.parametrize("name", PLANS)
def test_every_mode_answers_as_the_whole_model_does(
    dense: Bundle, server: Server, name: str
) -> None:
    plan = PLANS[name]
    with Robot(dense, server=address(server), threads=1) as robot:
        text = plan_text(plan, dense.manifest)
        assert robot.prepare(text)
        for seed in range(5):
            inputs = striped_inputs(seed)
            result = robot.infer(inputs, cut=text)
            _same(result, whole_outputs(dense, inputs))
            assert result.answered_by == "remote", result.reason
            assert result.mode == mode_of(plan)
            assert result.stripes == (1 if isinstance(plan, RowPlan) else 5)
            assert result.bytes_up == _bytes_up(plan, dense)
            assert result.plan == text
            assert result.predicted is None or result.predicted.plan == plan
            assert result.age_s >= result.latency_s >= result.robot_s


def _bytes_up(plan: Plan, bundle: Bundle) -> int:
    """Add up the messages: headers, metadata and rows."""
    from runtime.wire import Infer, message_bytes

    order = (0,) if isinstance(plan, RowPlan) else plan.wire_order()
    total = 0
    for place, stripe in enumerate(order):
        sizes = [spec.nbytes for spec in sent(plan, bundle.manifest, stripe)]
        meta = Infer(tuple(Part(0, size) for size in sizes), None if place else plan)
        total += message_bytes(meta, sum(sizes))
    return total


def test_two_robots_at_once_200_striped_inferences_each(dense: Bundle, server: Server) -> None:
    texts = [plan_text(plan, dense.manifest) for plan in PLANS.values()]
    expected = [whole_outputs(dense, striped_inputs(seed)) for seed in range(5)]

    def work(first: int) -> int:
        with Robot(dense, server=address(server), threads=1) as robot:
            for text in texts:
                assert robot.prepare(text)
            for turn in range(200):
                result = robot.infer(striped_inputs(turn % 5), cut=texts[(first + turn) % 7])
                assert result.answered_by == "remote", result.reason
                assert result.plan == texts[(first + turn) % 7], result.reason
                _same(result, expected[turn % 5])
        return turn + 1

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [0, 3])) == [200, 200]
    assert server.served == 400


def test_a_plan_is_prepared_in_the_background_and_then_used(dense: Bundle, server: Server) -> None:
    text = plan_text(PLANS["two-sided"], dense.manifest)
    inputs = striped_inputs()
    expected = whole_outputs(dense, inputs)
    with Robot(dense, server=address(server), cut=text, threads=1) as robot:
        first = robot.infer(inputs)
        _same(first, expected)
        assert (first.answered_by, first.mode, first.plan) == ("remote", "split", "")
        assert first.reason == "named by the user; stripes are being prepared"
        assert first.predicted is None

        def striped() -> bool:
            result = robot.infer(inputs)
            _same(result, expected)
            return result.mode == "two-sided"

        eventually(striped, "a striped inference")


def test_without_a_server_a_plan_is_a_fallback(dense: Bundle) -> None:
    text = plan_text(PLANS["rows"], dense.manifest)
    with FakeServer(lambda _: None) as fake:
        free = fake.address
    with Robot(dense, server=free, cut=text, threads=1) as robot:
        result = robot.infer(striped_inputs())
        assert not robot.prepare(text, timeout_s=0.05)
    assert (result.answered_by, result.mode, result.stripes) == ("fallback", "local", 0)
    with Robot(dense, cut=text, threads=1) as robot:
        assert robot.infer(striped_inputs()).answered_by == "local"
        assert not robot.prepare(text)


def test_a_plan_of_another_bundle_is_refused(dense: Bundle) -> None:
    with Robot(dense, threads=1) as robot:
        for text in ("offload/1000", "rows:nope@8", "nope/4"):
            with pytest.raises(ManifestError):
                robot.infer(striped_inputs(), cut=text)
            with pytest.raises(ManifestError):
                robot.prepare(text)
        assert robot.infer(striped_inputs()).answered_by == "local", "its turn came back"


def _ready(
    on_infer: Any, *, stripes: bool = True, prepared: str = "", log: list[Message] | None = None
) -> Any:
    """Behave as a server that takes plans; treat each stripe as ``on_infer`` says."""

    def handle(peer: Peer) -> None:
        peer.hear()
        peer.send(Kind.WELCOME, Welcome("fake", None, 4, stripes))
        while True:
            message = peer.hear()
            number = message.header.request
            if log is not None:
                log.append(message)
            if message.header.kind is Kind.PING:
                peer.send(Kind.PONG, request=number)
            elif message.header.kind is Kind.PREPARE:
                peer.send(Kind.PREPARED, Prepared(prepared), request=number)
            elif message.header.kind is Kind.INFER:
                on_infer(peer, message)
            elif message.header.kind is Kind.GOODBYE:
                return

    return handle


def _at(stripe: int, act: Any) -> Any:
    """Act on one stripe, counted as they arrive, of each connection."""
    count = itertools.count()

    def on_infer(peer: Peer, message: Message) -> None:
        if next(count) % 5 == stripe:
            act(peer, message)

    return on_infer


CUTS = {
    "closes": lambda p, m: p.sock.shutdown(socket.SHUT_RDWR),
    "garbage": lambda p, m: p.say(b"\xff" * 200),
    "fails": lambda p, m: p.send(Kind.ERROR, Error("engine", "no"), request=m.header.request),
    "goodbye": lambda p, m: p.send(Kind.GOODBYE),
    "answers early": lambda p, m: p.send(
        Kind.RESULT, WireResult((), 0, 0, 0), request=m.header.request, cut=m.header.cut
    ),
    "prepared unasked": lambda p, m: p.send(Kind.PREPARED, Prepared(""), request=2**40),
    "half a result": lambda p, m: (p.say(b"SPRT\x01\x04"), p.sock.shutdown(socket.SHUT_RDWR)),
}


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.parametrize("stripe", [0, 2, 4])
@pytest.mark.parametrize("name", ["streamed-head", "streamed-raw", "two-sided"])
def test_a_link_that_breaks_at_any_stripe(
    dense: Bundle, fault: str, stripe: int, name: str
) -> None:
    """The robot carries on from where it is, answers right, and can be striped again."""
    text = plan_text(PLANS[name], dense.manifest)
    inputs = striped_inputs()
    expected = whole_outputs(dense, inputs)
    handle = _ready(_at(stripe, CUTS[fault]))
    with (
        FakeServer(handle) as fake,
        Robot(dense, server=fake.address, cut=text, threads=1, patience_s=0.5) as robot,
    ):
        assert robot.link is not None
        for _ in range(2):
            eventually(lambda: robot.link.up, "the link, again")
            eventually(lambda: robot.prepare(text), "prepared again")
            result = robot.infer(inputs)
            _same(result, expected)
            assert result.answered_by == "fallback", result.reason
        assert robot.infer(inputs, cut="local").answered_by == "local"


@pytest.mark.parametrize("name", ["rows", "rows, a common part"])
@pytest.mark.parametrize("fault", [f for f in CUTS if f != "answers early"])
def test_a_link_that_breaks_a_row_plan(dense: Bundle, fault: str, name: str) -> None:
    text = plan_text(PLANS[name], dense.manifest)
    inputs = striped_inputs()
    with (
        FakeServer(_ready(CUTS[fault])) as fake,
        Robot(dense, server=fake.address, cut=text, threads=1, patience_s=0.5) as robot,
    ):
        assert robot.prepare(text)
        result = robot.infer(inputs)
        _same(result, whole_outputs(dense, inputs))
        assert (result.answered_by, result.mode) == ("fallback", "rows"), result.reason


@pytest.mark.parametrize("name", PLANS)
def test_a_frozen_server_costs_no_more_than_the_patience_and_nothing_twice(
    dense: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PLANS[name]
    text = plan_text(plan, dense.manifest)
    inputs = striped_inputs()
    with (
        FakeServer(_ready(lambda *_: None)) as fake,
        Robot(dense, server=fake.address, cut=text, threads=1, patience_s=0.3) as robot,
    ):
        assert robot.prepare(text)
        spans: list[tuple[int, int]] = []
        run = robot.program.run

        def watched(tensors: Any, start: int = 0, stop: int | None = None) -> Any:
            spans.append((start, robot.program.last if stop is None else stop))
            return run(tensors, start, stop)

        monkeypatch.setattr(robot.program, "run", watched)
        result = robot.infer(inputs)
        _same(result, whole_outputs(dense, inputs))
        assert result.answered_by == "fallback"
        assert "no answer within 300 ms" in result.reason
        again = {(0, plan.cut)} if isinstance(plan, RowPlan) else {(plan.cut, 5)}
        assert set(spans) == again, "the head was not run whole, nor anything twice"
        assert len(spans) == 1
        assert robot.link is not None
        eventually(lambda: robot.link.under_way == 0, "nothing under way")


@pytest.mark.parametrize("stripe", [0, 1, 4])
@pytest.mark.parametrize("name", ["streamed-head", "two-sided"])
def test_a_link_that_stalls_within_a_stripe(
    dense: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch, name: str, stripe: int
) -> None:
    """Half of the bytes leave, then the deadline comes: the peer must see no other message."""
    text = plan_text(PLANS[name], dense.manifest)
    inputs = striped_inputs()
    expected = whole_outputs(dense, inputs)
    with Robot(dense, server=address(server), cut=text, threads=1) as robot:
        assert robot.prepare(text)
        write = Stream.write
        count = itertools.count()

        def stalling(stream: Stream, buffers: Any, **more: Any) -> None:
            if threading.current_thread().name == "splitrt-send" and next(count) == stripe:
                data = b"".join(buffers)
                write(stream, [data[: len(data) // 2]], **more)
                raise DeadlineError("no progress in the time given")
            write(stream, buffers, **more)

        with monkeypatch.context() as patched:
            patched.setattr(Stream, "write", stalling)
            result = robot.infer(inputs)
        _same(result, expected)
        assert result.answered_by == "fallback"

        def again() -> bool:
            result = robot.infer(inputs)
            _same(result, expected)
            return result.mode == mode_of(PLANS[name]) and result.answered_by == "remote"

        eventually(again, "a striped answer on a new connection")


def test_a_server_that_fails_early_is_sent_no_more_and_told(dense: Bundle) -> None:
    """What is left of the request is cancelled, so that the server need not wait for it."""
    log: list[Message] = []
    text = plan_text(PLANS["streamed-head"], dense.manifest)
    failing = _ready(_at(0, CUTS["fails"]), log=log)
    gate = threading.Event()
    with (
        FakeServer(failing) as fake,
        Robot(dense, server=fake.address, cut=text, threads=1) as robot,
    ):
        assert robot.prepare(text)
        head = HeadRun.step

        def waiting(run: HeadRun) -> Any:
            if run.done == 2:
                eventually(lambda: robot.link.under_way == 0, "the error")
            return head(run)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(HeadRun, "step", waiting)
            result = robot.infer(striped_inputs())
        assert result.reason.endswith("the server failed: no")
        eventually(lambda: any(m.header.kind is Kind.CANCEL for m in log), "a cancel")
        gate.set()
        sent_ = [m.header.stripe for m in log if m.header.kind is Kind.INFER]
        assert 1 <= len(sent_) < 5
        assert robot.link is not None
        assert robot.link.up, "the connection goes on"


def test_a_head_that_fails_on_the_robot_is_its_error_and_the_server_is_told(
    dense: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = plan_text(PLANS["streamed-head"], dense.manifest)
    inputs = striped_inputs()
    with Robot(dense, server=address(server), cut=text, threads=1) as robot:
        assert robot.prepare(text)
        step = HeadRun.step

        def fail(run: HeadRun) -> Any:
            if run.done == 2:
                raise EngineError("out of memory")
            return step(run)

        for _ in range(6):  # more often than a server holds requests
            with monkeypatch.context() as patched:
                patched.setattr(HeadRun, "step", fail)
                with pytest.raises(EngineError, match="out of memory"):
                    robot.infer(inputs)
        result = robot.infer(inputs)
        assert result.answered_by == "remote", result.reason
        _same(result, whole_outputs(dense, inputs))
        eventually(
            lambda: all(not s._jobs for s in server._sessions), "no request left at the server"
        )


@pytest.mark.parametrize(
    ("stripes", "prepared", "says"),
    [(False, "", "the server takes none"), (True, "no memory", "being prepared")],
)
def test_a_server_that_cannot_serve_stripes_gets_whole_requests(
    dense: Bundle, stripes: bool, prepared: str, says: str
) -> None:
    text = plan_text(PLANS["streamed-head"], dense.manifest)
    inputs = striped_inputs()
    expected = whole_outputs(dense, inputs)

    def whole(peer: Peer, message: Message) -> None:
        assert message.header.stripes == 1
        assert message.meta.plan is None
        y = expected["y"]
        answer = WireResult((Part(0, y.nbytes),), 0, 0, 0)
        fields = {"request": message.header.request, "cut": message.header.cut}
        peer.send(Kind.RESULT, answer, y.tobytes(), tensors=1, **fields)

    with (
        FakeServer(_ready(whole, stripes=stripes, prepared=prepared)) as fake,
        Robot(dense, server=fake.address, cut=text, threads=1) as robot,
    ):
        assert not robot.prepare(text, timeout_s=0.3)
        for _ in range(3):
            result = robot.infer(inputs)
            assert result.answered_by == "remote", result.reason
            assert says in result.reason
            _same(result, expected)


class TestInFlight:
    @pytest.mark.parametrize("name", [*PLANS, "split", "local"])
    def test_results_come_in_order_each_its_own(
        self, dense: Bundle, server: Server, name: str
    ) -> None:
        plan = PLANS.get(name)
        text = dense.manifest.cuts[2].id if name == "split" else name
        text = text if plan is None else plan_text(plan, dense.manifest)
        seeds = [0, 1, 2, 3, 4] * 4
        expected = [whole_outputs(dense, striped_inputs(seed)) for seed in range(5)]
        with Robot(dense, server=address(server), cut=text, threads=1) as robot:
            if name != "local":
                assert robot.prepare(text)
            frames = (striped_inputs(seed) for seed in seeds)
            results = list(robot.stream(frames, in_flight=3))
        assert [result.seq for result in results] == list(range(20))
        for seed, result in zip(seeds, results, strict=True):
            _same(result, expected[seed])
            assert result.answered_by == ("local" if name == "local" else "remote"), result.reason
            assert result.age_s >= result.latency_s

    @pytest.mark.parametrize("in_flight", [1, 2, 4])
    def test_frames_are_under_way_together_and_no_more_are_taken(
        self, dense: Bundle, in_flight: int
    ) -> None:
        """The server answers only once as many requests as may be are there."""
        waiting: list[Message] = []
        most = []

        def on_infer(peer: Peer, message: Message) -> None:
            waiting.append(message)
            most.append(len(waiting))
            if len(waiting) == in_flight:
                for each in waiting:
                    peer.send(Kind.ERROR, Error("engine", "no"), request=each.header.request)
                waiting.clear()

        taken = [0]

        def frames() -> Iterator[Tensors]:
            for seed in range(8):
                taken[0] += 1
                yield striped_inputs(seed)

        cut = dense.manifest.cuts[2].id
        given = 0
        with (
            FakeServer(_ready(on_infer)) as fake,
            Robot(dense, server=fake.address, cut=cut, threads=1) as robot,
        ):
            stream = robot.stream(frames(), in_flight=in_flight)
            assert taken == [0], "nothing is taken before it is asked for"
            for given, result in enumerate(stream):
                assert taken[0] <= given + in_flight
                assert result.answered_by == "fallback"
                assert result.seq == given
                _same(result, whole_outputs(dense, striped_inputs(given)))
                if given + 1 == 8 - 8 % in_flight:
                    waiting.clear()
        assert given == 7
        assert max(most) == in_flight

    def test_the_robot_computes_one_at_a_time_the_oldest_first(
        self, dense: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = plan_text(PLANS["streamed-head"], dense.manifest)
        order: list[int] = []
        inside = threading.Lock()
        stream_ = HeadRun.step
        ids: dict[int, int] = {}

        def watched(run: HeadRun) -> Any:
            assert inside.acquire(blocking=False), "two at a time"
            try:
                order.append(ids.setdefault(id(run._inputs["x"]), len(ids)))
                return stream_(run)
            finally:
                inside.release()

        monkeypatch.setattr(HeadRun, "step", watched)
        frames = [striped_inputs(seed) for seed in range(9)]
        with Robot(dense, server=address(server), cut=text, threads=1) as robot:
            assert robot.prepare(text)
            for _ in robot.stream(frames, in_flight=4):
                pass
        assert order == [frame for frame in range(9) for _ in range(5)]

    def test_each_frame_falls_back_by_itself(self, dense: Bundle) -> None:
        text = plan_text(PLANS["streamed-head"], dense.manifest)
        handle = _ready(_at(2, CUTS["fails"]))
        with (
            FakeServer(handle) as fake,
            Robot(dense, server=fake.address, cut=text, threads=1) as robot,
        ):
            assert robot.prepare(text)
            frames = [striped_inputs(seed) for seed in range(6)]
            for seed, result in enumerate(robot.stream(frames[:1], in_flight=3)):
                assert result.answered_by == "fallback"
                _same(result, whole_outputs(dense, frames[seed]))

    def test_a_frozen_server_breaks_all_frames_under_way_at_once(self, dense: Bundle) -> None:
        cut = dense.manifest.cuts[2].id
        with (
            FakeServer(_ready(lambda *_: None)) as fake,
            Robot(dense, server=fake.address, cut=cut, threads=1, patience_s=0.3) as robot,
        ):
            results = list(robot.stream([striped_inputs(s) for s in range(3)], in_flight=3))
        for seed, result in enumerate(results):
            assert result.answered_by == "fallback"
            _same(result, whole_outputs(dense, striped_inputs(seed)))

    def test_a_bad_frame_raises_in_its_turn_and_the_others_are_had(
        self, dense: Bundle, server: Server
    ) -> None:
        frames: list[Any] = [striped_inputs(0), {"y": 1}, striped_inputs(2)]
        with Robot(dense, server=address(server), cut="offload", threads=1) as robot:
            stream = robot.stream(frames, in_flight=2)
            assert next(stream).seq == 0
            with pytest.raises(SplitError, match="'x'"):
                next(stream)
            assert next(stream).seq == 2
            with pytest.raises(StopIteration):
                next(stream)
            with pytest.raises(StopIteration):
                next(stream)

    def test_a_source_that_fails_does_so_after_the_frames_before_it(
        self, dense: Bundle, server: Server
    ) -> None:
        def frames() -> Iterator[Tensors]:
            yield striped_inputs(0)
            yield striped_inputs(1)
            raise OSError("the camera is gone")

        with Robot(dense, server=address(server), cut="offload", threads=1) as robot:
            stream = robot.stream(frames(), in_flight=4)
            assert [next(stream).seq, next(stream).seq] == [0, 1]
            with pytest.raises(OSError, match="camera"):
                next(stream)

    def test_one_that_is_left_early_leaves_nothing_behind(
        self, dense: Bundle, server: Server
    ) -> None:
        with Robot(dense, server=address(server), cut="offload", threads=1) as robot:
            with robot.stream((striped_inputs(s) for s in itertools.count()), in_flight=4) as some:
                assert next(some).seq == 0
            assert robot.infer(striped_inputs()).answered_by == "remote"

    @pytest.mark.parametrize("in_flight", [0, -1, 9])
    def test_numbers_that_cannot_be_are_refused(self, dense: Bundle, in_flight: int) -> None:
        with Robot(dense, threads=1) as robot, pytest.raises(SplitError, match="expected 1 to 8"):
            robot.stream([], in_flight=in_flight)


def test_until_a_plan_is_prepared_the_best_serial_cut_is_taken(
    dense: Bundle, server: Server
) -> None:
    plan, other = PLANS["two-sided"], 3
    assert other != plan.cut

    class Striping:
        def decide(self, situation: Situation) -> Decision:
            if situation.serial:
                return Decision(other, "best serial cut", None)
            return Decision(plan.cut, "best of all", None, plan)

    inputs = striped_inputs()
    with Robot(dense, server=address(server), threads=1) as robot:
        robot._selector = Striping()
        first = robot.infer(inputs)
        assert first.cut == dense.manifest.cuts[other].id
        assert first.reason == "best of all; stripes are being prepared"
        assert robot.prepare(plan_text(plan, dense.manifest))
        assert robot.infer(inputs).mode == "two-sided"
