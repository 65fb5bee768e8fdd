"""Requests that come in stripes, at the server: right, in any hostile order, and cut short."""

from __future__ import annotations

import contextlib
import gc
import struct
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.errors import EngineError
from engines.program import Program
from engines.stripe_plans import Plan, RowPlan, StripePlan, sent
from engines.stripe_runs import HeadRun, TailRun
from engines.striped import StripedProgram
from runtime import Robot, Server, striped_request
from runtime.payload import pack_tensors
from runtime.striped_request import Receipt
from runtime.wire import Error, Infer, Kind, Part, Prepare, Prepared, Result, Welcome
from tests.runtime.helpers import PATIENCE_S, Message, Peer, address, eventually
from tests.striped_toy import ROWS, striped_inputs, whole_outputs

Tensors = dict[str, np.ndarray]

BOUNDS = (16, 24, 32, 40, ROWS)
HEAD = StripePlan(cut=1, until=4, bounds=BOUNDS, robot=5)
TWO = StripePlan(cut=2, until=4, bounds=BOUNDS, robot=3)


@pytest.fixture
def program(dense: Bundle) -> Iterator[Program]:
    with Program(dense, open_backend("ort", BackendOptions(threads=1)), fuse=False) as loaded:
        yield loaded


@pytest.fixture
def server(program: Program) -> Iterator[Server]:
    with Server([program]) as running:
        yield running


@pytest.fixture
def striped(program: Program) -> Iterator[StripedProgram]:
    forms = StripedProgram(program)
    yield forms
    forms.close()


def _stripes(striped: StripedProgram, plan: StripePlan, inputs: Tensors) -> dict[int, Tensors]:
    head = HeadRun(striped, plan, inputs)
    rows = {stripe: head.raw(stripe) for stripe in range(plan.robot, plan.stripes)}
    return {**rows, **{stripe: head.step() for stripe in range(plan.robot)}}


def _send(
    peer: Peer, bundle: Bundle, plan: Plan, stripe: int, rows: Tensors, *, request: int = 1,
    first: bool = False, **fields: int,
) -> None:  # fmt: skip
    parts, buffers = pack_tensors(sent(plan, bundle.manifest, stripe), rows)
    stripes = 1 if isinstance(plan, RowPlan) else plan.stripes
    whole = {
        "cut": int(bundle.manifest.cuts[plan.cut].id, 16),
        "stripe": stripe,
        "stripes": stripes,
        "tensors": len(parts),
        **fields,
    }
    meta = Infer(parts, plan if first else None)
    peer.send(Kind.INFER, meta, b"".join(buffers), request=request, **whole)


def _check(message: Message, bundle: Bundle, inputs: Tensors, request: int = 1) -> None:
    assert (message.header.kind, message.header.request) == (Kind.RESULT, request), message
    expected = whole_outputs(bundle, inputs)
    specs = bundle.manifest.outputs
    assert message.payload == b"".join(expected[spec.name].tobytes() for spec in specs)


@pytest.mark.parametrize("plan", [HEAD, TWO], ids=["head", "two-sided"])
def test_a_request_stripe_by_stripe(
    dense: Bundle, server: Server, striped: StripedProgram, plan: StripePlan
) -> None:
    inputs = striped_inputs()
    rows = _stripes(striped, plan, inputs)
    with Peer.of(server) as peer:
        welcome = peer.greet(dense).meta
        assert isinstance(welcome, Welcome)
        assert welcome.stripes
        for request in (1, 2):
            for place, stripe in enumerate(plan.wire_order()):
                _send(peer, dense, plan, stripe, rows[stripe], request=request, first=not place)
            message = peer.hear()
            _check(message, dense, inputs, request)
            assert isinstance(message.meta, Result)
            assert message.meta.compute_s > 0
            assert message.meta.receive_s > 0
    assert server.served == 2


class TestAsTheyCome:
    def test_a_stripe_is_computed_when_it_arrives_and_robots_take_turns(
        self, dense: Bundle, server: Server, striped: StripedProgram,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        taken: list[tuple[int, int]] = []
        runs: list[TailRun] = []

        class Watched(TailRun):
            def take(self, stripe: int, tensors: Any) -> Any:
                if self not in runs:
                    runs.append(self)
                taken.append((runs.index(self), stripe))
                return super().take(stripe, tensors)

        monkeypatch.setattr(striped_request, "TailRun", Watched)
        inputs = [striped_inputs(seed) for seed in (1, 2)]
        rows = [_stripes(striped, TWO, each) for each in inputs]
        with Peer.of(server) as one, Peer.of(server) as two:
            peers = (one, two)
            for peer in peers:
                peer.greet(dense)
            due = []
            for place, stripe in enumerate(TWO.wire_order()):
                for robot, peer in enumerate(peers):
                    _send(peer, dense, TWO, stripe, rows[robot][stripe], first=not place)
                    due.append((robot, stripe))
                    eventually(lambda: taken == due, f"stripe {stripe} of robot {robot}")
            for robot, peer in enumerate(peers):
                _check(peer.hear(), dense, inputs[robot])


def _infer_bytes(plan: Any, stripe: int = 0, stripes: int = 5, cut: int = 0) -> bytes:
    """Write a first message that ``encode`` would refuse to write, with no payload."""
    meta = msgspec.msgpack.encode({"parts": [], "plan": plan})
    fixed = (b"SPRT", 1, 3, 0, 1, cut, stripe, stripes, 0, 0, len(meta), 0)
    return struct.pack("<4sBBHQIHHHHIQ", *fixed) + meta


GOOD = {"type": "stripes", "cut": 2, "until": 4, "bounds": list(BOUNDS), "robot": 3}
HOSTILE_PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "huge bounds": ({"bounds": [16, 2**62]}, "bounds must ascend to 48"),
    "negative bounds": ({"bounds": [-16, 48]}, "bounds must ascend"),
    "bounds that fall": ({"bounds": [32, 16, 48]}, "bounds must ascend"),
    "no bounds": ({"bounds": []}, "expected 2 to 64 stripes"),
    "too many bounds": ({"bounds": list(range(1, 1000))}, "expected 2 to 64 stripes"),
    "bounds off the band": ({"bounds": [17, 48]}, "expected multiples of 2"),
    "a bound too low": ({"bounds": [2, 48]}, "from 8 to 40"),
    "a cut that is not there": ({"cut": 99}, "no striped forms up to cut 99"),
    "a negative cut": ({"cut": -1}, "no striped forms up to cut -1"),
    "until before the cut": ({"until": 1}, "does not follow"),
    "until nowhere": ({"until": 2**40}, "no striped forms"),
    "nothing on the robot": ({"robot": 0}, "expected 1 to 5 stripes on the robot"),
    "more on the robot": ({"robot": 6}, "expected 1 to 5 stripes on the robot"),
    "the server's rows begin too high": (
        {"cut": 4, "robot": 1, "bounds": [8, 48]}, "keeps rows of ['r']"
    ),
    "the last cut": ({"cut": 5, "until": 5, "robot": 5}, "nothing is left to compute"),
    "NaN": ({"cut": float("nan")}, "malformed metadata"),
    "text": ({"bounds": "all"}, "malformed metadata"),
    "no type": ({"type": None}, "malformed metadata"),
    "rows beyond": ({"type": "rows", "bound": 2**61}, "bound 2305843009213693952: expected"),
    "rows below": ({"type": "rows", "bound": -8}, "bound -8: expected"),
    "rows of a cut without": ({"type": "rows", "bound": 8, "cut": 1}, "no row split after cut 1"),
    "another cut in the header": ({}, "expected cut"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PLANS)
def test_a_hostile_plan_is_refused_before_anything_is_allocated(
    dense: Bundle, server: Server, name: str
) -> None:
    change, says = HOSTILE_PLANS[name]
    plan = {**GOOD, **change}
    cut = plan["cut"] if plan["cut"] in range(6) and change else 0
    number = int(dense.manifest.cuts[cut].id, 16)
    with Robot(dense, server=address(server), cut="offload", threads=1) as robot:
        tracemalloc.start()
        try:
            with Peer.of(server) as bad:
                bad.greet(dense)
                bad.say(_infer_bytes(plan, stripes=len(plan["bounds"]) or 1, cut=number))
                message = bad.hear()
                assert bad.hangs_up()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 << 20
        assert (message.header.kind, message.header.request) == (Kind.ERROR, 0)
        assert message.meta.code == "protocol"
        assert says in message.meta.message
        assert "\n" not in message.meta.message
        assert robot.infer(striped_inputs()).answered_by == "remote"


class TestOutOfOrder:
    """Each breaks a rule in the middle of a request: the connection ends, and says why."""

    @pytest.fixture
    def rows(self, striped: StripedProgram) -> dict[int, Tensors]:
        return _stripes(striped, TWO, striped_inputs())

    def _refused(self, peer: Peer, says: str) -> None:
        message = peer.hear()
        while message.header.kind is Kind.ERROR and message.header.request:
            message = peer.hear()
        assert (message.header.kind, message.header.request) == (Kind.ERROR, 0), message
        assert message.meta.code == "protocol"
        assert says in message.meta.message
        assert peer.hangs_up()

    @pytest.mark.parametrize(
        ("first", "second", "says"),
        [
            (0, None, "stripe 0 of request 1: expected stripe 3 by its plan"),
            (4, None, "expected stripe 3"),
            (3, 3, "stripe 3 of request 1: expected stripe 4"),
            (3, 0, "expected stripe 4"),
        ],
    )
    def test_another_stripe_than_is_due(
        self, dense: Bundle, server: Server, rows: Any, first: int, second: int, says: str
    ) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            _send(peer, dense, TWO, first, rows[first], first=True)
            if second is not None:
                _send(peer, dense, TWO, second, rows[second])
            self._refused(peer, says)

    def test_no_plan(self, dense: Bundle, server: Server, rows: Any) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            _send(peer, dense, TWO, 3, rows[3])
            self._refused(peer, "stripe 3 of 5 of request 1, which is not under way")

    def test_a_second_plan(self, dense: Bundle, server: Server, rows: Any) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            for stripe in (3, 4):
                _send(peer, dense, TWO, stripe, rows[stripe], first=True)
            self._refused(peer, "only the first message has")

    @pytest.mark.parametrize("change", [{"cut": 1}, {"stripes": 9}])
    def test_another_header(
        self, dense: Bundle, server: Server, rows: Any, change: dict[str, int]
    ) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            _send(peer, dense, TWO, 3, rows[3], first=True)
            _send(peer, dense, TWO, 4, rows[4], **change)
            self._refused(peer, "and 5 stripes, given")

    def test_one_stripe_too_many(
        self, dense: Bundle, server: Server, rows: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = threading.Event()

        class Slow(TailRun):
            def take(self, stripe: int, tensors: Any) -> Any:
                gate.wait(PATIENCE_S)
                return super().take(stripe, tensors)

        monkeypatch.setattr(striped_request, "TailRun", Slow)
        with Peer.of(server) as peer:
            peer.greet(dense)
            for place, stripe in enumerate((*TWO.wire_order(), 2)):
                _send(peer, dense, TWO, stripe, rows[stripe], first=not place)
            self._refused(peer, "of which all 5 stripes came")
            gate.set()

    def test_a_stripe_after_cancel(self, dense: Bundle, server: Server, rows: Any) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            _send(peer, dense, TWO, 3, rows[3], first=True)
            peer.send(Kind.CANCEL, request=1)
            _send(peer, dense, TWO, 4, rows[4])
            self._refused(peer, "stripe 4")

    @pytest.mark.parametrize("size", [0, 1, 10**9, 2**40])
    def test_a_stripe_of_another_size(
        self, dense: Bundle, server: Server, rows: Any, size: int
    ) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            _send(peer, dense, TWO, 3, rows[3], first=True)
            meta = msgspec.msgpack.encode({"parts": [[0, size]]})
            cut = int(dense.manifest.cuts[2].id, 16)
            fixed = (b"SPRT", 1, 3, 0, 1, cut, 4, 5, 1, 0, len(meta), size)
            peer.say(struct.pack("<4sBBHQIHHHHIQ", *fixed) + meta + bytes(min(size, 9)))
            message = peer.hear()
            assert message.header.kind is Kind.ERROR
            if size <= 1:  # it cannot be decoded: this request's fault alone
                assert (message.header.request, message.meta.code) == (1, "request")
            else:
                assert message.header.request == 0
                assert peer.hangs_up()

    def test_five_requests_that_lack_stripes(
        self, dense: Bundle, server: Server, rows: Any
    ) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            for request in range(1, 6):
                _send(peer, dense, TWO, 3, rows[3], request=request, first=True)
            self._refused(peer, "request 5 began while 4 others lack stripes")


class TestCutShort:
    @pytest.fixture
    def rows(self, striped: StripedProgram) -> dict[int, Tensors]:
        return _stripes(striped, TWO, striped_inputs())

    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Give weak references to every run that the server begins."""
        begun: list[Any] = []

        class Watched(TailRun):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                begun.append(weakref.ref(self))

        monkeypatch.setattr(striped_request, "TailRun", Watched)
        return begun

    def _freed(self, runs: list[Any]) -> bool:
        gc.collect()
        return bool(runs) and all(ref() is None for ref in runs)

    def test_cancelled(self, dense: Bundle, server: Server, rows: Any, runs: Any) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            for request in range(1, 12):  # more than are held at a time: each gives its place back
                for place, stripe in enumerate((3, 4, 0)):
                    _send(peer, dense, TWO, stripe, rows[stripe], request=request, first=not place)
                peer.send(Kind.CANCEL, request=request)
                message = peer.hear()
                assert (message.header.kind, message.header.request) == (Kind.ERROR, request)
                assert message.meta == Error("engine", "cancelled")
            eventually(lambda: self._freed(runs), "no state kept")
            for place, stripe in enumerate(TWO.wire_order()):
                _send(peer, dense, TWO, stripe, rows[stripe], request=50, first=not place)
            _check(peer.hear(), dense, striped_inputs(), 50)

    def test_the_robot_leaves(self, dense: Bundle, server: Server, rows: Any, runs: Any) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            for place, stripe in enumerate((3, 4, 0)):
                _send(peer, dense, TWO, stripe, rows[stripe], first=not place)
            eventually(lambda: runs, "a run")
        eventually(lambda: server.clients == 0, "no client")
        eventually(lambda: self._freed(runs), "no state kept")

    def test_the_connection_is_lost_within_a_stripe(
        self, dense: Bundle, server: Server, rows: Any, runs: Any
    ) -> None:
        meta = msgspec.msgpack.encode({"parts": [[0, rows[4]["x"].nbytes]]})
        cut = int(dense.manifest.cuts[2].id, 16)
        fixed = (b"SPRT", 1, 3, 0, 1, cut, 4, 5, 1, 0, len(meta), rows[4]["x"].nbytes)
        message = struct.pack("<4sBBHQIHHHHIQ", *fixed) + meta + rows[4]["x"].tobytes()
        for end in (20, 40, 45, 40 + len(meta), 40 + len(meta) + 1, len(message) - 1):
            with Peer.of(server) as peer:
                peer.greet(dense)
                _send(peer, dense, TWO, 3, rows[3], first=True)
                peer.say(message[:end])
                eventually(lambda: runs, "a run")
            eventually(lambda: server.clients == 0, "no client")
            eventually(lambda: self._freed(runs), "no state kept")
            runs.clear()

    def test_a_stripe_that_fails_is_answered_once_and_the_rest_is_dropped(
        self, dense: Bundle, server: Server, rows: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Failing(TailRun):
            def take(self, stripe: int, tensors: Any) -> Any:
                raise EngineError("out of memory")

        with Peer.of(server) as peer:
            peer.greet(dense)
            with monkeypatch.context() as patched:
                patched.setattr(striped_request, "TailRun", Failing)
                _send(peer, dense, TWO, 3, rows[3], first=True)
                message = peer.hear()
            assert message.header.request == 1
            assert message.meta == Error("engine", "out of memory")
            for stripe in (4, 0, 1, 2):
                _send(peer, dense, TWO, stripe, rows[stripe])
            for place, stripe in enumerate(TWO.wire_order()):  # the same id, once it is over
                _send(peer, dense, TWO, stripe, rows[stripe], first=not place)
            _check(peer.hear(), dense, striped_inputs())
            _send(peer, dense, TWO, 3, rows[3], request=2, first=True)
            peer.send(Kind.CANCEL, request=2)
            assert peer.hear().meta == Error("engine", "cancelled")

    def test_what_failed_and_is_then_cancelled_is_forgotten(
        self, dense: Bundle, server: Server, rows: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Failing(TailRun):
            def __init__(self, *args: Any) -> None:
                raise EngineError("no such form")

        monkeypatch.setattr(striped_request, "TailRun", Failing)
        with Peer.of(server) as peer:
            peer.greet(dense)
            for request in range(1, 10):
                _send(peer, dense, TWO, 3, rows[3], request=request, first=True)
                assert peer.hear().meta == Error("engine", "no such form")
                peer.send(Kind.CANCEL, request=request)
            peer.send(Kind.PING, request=3)
            assert peer.hear().header.kind is Kind.PONG
            (session,) = server._sessions
            assert session._jobs == {}


class TestPrepare:
    def test_it_is_answered_when_all_is_loaded(self, dense: Bundle, server: Server) -> None:
        with Peer.of(server) as peer:
            peer.greet(dense)
            for number, plan in enumerate((HEAD, TWO, RowPlan(cut=0, bound=24), TWO)):
                peer.send(Kind.PREPARE, Prepare(plan), request=number)
            for number in range(4):
                message = peer.hear()
                assert (message.header.kind, message.header.request) == (Kind.PREPARED, number)
                assert message.meta == Prepared("")

    @pytest.mark.parametrize("name", HOSTILE_PLANS)
    def test_hostile_plans(self, dense: Bundle, server: Server, name: str) -> None:
        change, _ = HOSTILE_PLANS[name]
        if not change or name == "the last cut":
            pytest.skip("nothing is wrong with it here")
        with Peer.of(server) as peer:
            peer.greet(dense)
            meta = msgspec.msgpack.encode({"plan": {**GOOD, **change}})
            header = b"SPRT\x01\x0a" + bytes(14) + b"\0\0\1\0" + bytes(4)
            peer.say(header + len(meta).to_bytes(4, "little") + bytes(8) + meta)
            message = peer.hear()
            assert (message.header.kind, message.meta.code) == (Kind.ERROR, "protocol")
            assert peer.hangs_up()

    def test_a_flood_is_refused(
        self, dense: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = threading.Event()
        load = StripedProgram._load
        monkeypatch.setattr(
            StripedProgram, "_load", lambda *a: (gate.wait(PATIENCE_S), load(*a))[1]
        )
        with Peer.of(server) as peer:
            peer.greet(dense)
            with contextlib.suppress(OSError):
                for number in range(6):
                    peer.send(Kind.PREPARE, Prepare(HEAD), request=number)
            message = peer.hear()
            gate.set()
            assert "PREPARE: 4 others are not answered yet" in message.meta.message


def test_a_server_whose_backend_runs_no_stripes_says_so(dense: Bundle) -> None:
    with (
        Program(dense, open_backend("reference"), fuse=False) as program,
        Server([program]) as server,
        Peer.of(server) as peer,
    ):
        welcome = peer.greet(dense).meta
        assert not welcome.stripes
        _send(peer, dense, TWO, 3, {"x": np.zeros((1, 3, 30, 10), np.float32)}, first=True)
        assert "no striped requests" in peer.hear().meta.message


def test_the_parts_of_a_stripe_are_those_of_its_rows(dense: Bundle, server: Server) -> None:
    with Peer.of(server) as peer:
        peer.greet(dense)
        spec = sent(HEAD, dense.manifest, 0)[0]
        cut = int(dense.manifest.cuts[1].id, 16)
        parts = (Part(0, spec.nbytes + 4),)
        fields = {"request": 1, "cut": cut, "stripes": 5, "tensors": 1}
        peer.send(Kind.INFER, Infer(parts, HEAD), bytes(spec.nbytes + 4), **fields)
        assert f"at most {spec.nbytes} bytes" in peer.hear().meta.message


def test_a_receipt_counts_what_was_there_early_at_the_pace_of_the_rest() -> None:
    whole = Receipt(1000, 200, 0.8).plus(Receipt(1000, 1000, 0.0))
    assert whole == Receipt(2000, 1200, 0.8)
    assert whole.whole_s == 2.0
    assert Receipt(1000, 1000, 0.1).whole_s == 0.1
    assert Receipt().whole_s == 0.0
