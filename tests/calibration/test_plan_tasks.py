from __future__ import annotations

import heapq
import math
from collections import deque

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calibration.plan_tasks import CodecSpeed, Pricer, Work
from calibration.schedule import LINK, ROBOT, SERVER, finish, timeline
from calibration.segment_times import LAUNCH_S, SegmentTimes, estimated_times
from engines.manifest import Manifest
from engines.stripe_plans import Plan, RowPlan, StripePlan, trouble
from engines.stripes import Striping
from tests.striped import Layer, chain

# -- an oracle: events instead of a list, rows counted one by one -----------------------------


class _World:
    """Robot, link and server as processes that react to events; no tasks, no ways."""

    def __init__(self, bps: float, rtt_s: float, queue_s: float) -> None:
        self.bps, self.rtt_s, self.queue_s = bps, rtt_s, queue_s
        self.events: list[tuple[float, int, object]] = []
        self.count = 0
        self.now = 0.0
        self.link_busy = self.server_busy = False
        self.outbox: deque[tuple[float, object]] = deque()
        self.inbox: deque[tuple[float, object]] = deque()
        self.first = True

    def at(self, when: float, what: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what))

    def run(self) -> float:
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()  # type: ignore[operator]
        return self.now

    def send(self, nbytes: float, then: object) -> None:
        self.outbox.append((8 * nbytes / self.bps, then))
        self.pump_link()

    def pump_link(self) -> None:
        if self.link_busy or not self.outbox:
            return
        seconds, then = self.outbox.popleft()
        self.link_busy = True

        def sent() -> None:
            self.link_busy = False
            self.at(self.now + self.rtt_s / 2, then)
            self.pump_link()

        self.at(self.now + seconds, sent)

    def serve(self, seconds: float, then: object) -> None:
        if self.first:
            self.first = False
            self.server_busy = True
            self.at(self.now + self.queue_s, self.free_server)
        self.inbox.append((seconds, then))
        self.pump_server()

    def free_server(self) -> None:
        self.server_busy = False
        self.pump_server()

    def pump_server(self) -> None:
        if self.server_busy or not self.inbox:
            return
        seconds, then = self.inbox.popleft()
        self.server_busy = True

        def served() -> None:
            then()  # type: ignore[operator]
            self.free_server()

        self.at(self.now + seconds, served)


def _new_rows(manifest: Manifest, tensor: str, low: int, high: int) -> int:
    """Count the rows of a tensor that become known between two bounds."""
    striping = manifest.striping
    assert striping is not None
    rows = striping.tensors[tensor]

    def known(bound: int) -> int:
        if bound == striping.rows:
            return rows.rows
        return sum(1 for row in range(rows.rows) if (row + 1 + rows.lag) * rows.den <= bound)

    return known(high) - known(low)


def _stripe(manifest: Manifest, times: list[float], segments: range, plan: StripePlan, s: int,
            extra: float = 0.0) -> float:  # fmt: skip
    low = plan.bounds[s - 1] if s else 0
    total = 0.0
    for index in segments:
        height = manifest.tensors[f"t{index + 1}"].shape[0]
        part = _new_rows(manifest, f"t{index + 1}", low, plan.bounds[s]) / height
        floor = min(times[index], LAUNCH_S)
        total += floor + (part + extra) * (times[index] - floor)
    return total


def _above(striping: Striping, index: int) -> tuple[float, int]:
    cut = striping.cut(index)
    assert cut is not None
    return cut.extra[0] / striping.rows, cut.halo


def _simulate_stripes(
    manifest: Manifest, robot: list[float], server: list[float], plan: StripePlan, world: _World
) -> float:
    striping = manifest.striping
    assert striping is not None
    head, between = range(plan.cut), range(plan.cut, plan.until)
    rest_s = sum(server[plan.until :])
    known: set[int] = set()
    tail_next = 0
    ended: list[float] = []

    def row_bytes(name: str) -> int:
        return manifest.tensors[name].shape[1]

    def have(stripe: int) -> None:
        """The server has a stripe of the frontier; it goes on with it in the order of rows."""
        nonlocal tail_next
        known.add(stripe)
        while tail_next in known:
            s = tail_next
            tail_next += 1
            last = tail_next == plan.stripes
            if between:
                seconds = _stripe(manifest, server, between, plan, s)
                world.serve(seconds, answer if last else lambda: None)
            elif last:
                answer()

    def answer() -> None:
        nbytes = manifest.specs(manifest.cuts[plan.cut].results)[0].nbytes
        world.serve(rest_s, lambda: world.send(nbytes, lambda: ended.append(world.now)))

    frontier = manifest.cuts[plan.cut].tensors[0]
    for stripe in range(plan.robot, plan.stripes):
        low, high = plan.bounds[stripe - 1], plan.bounds[stripe]
        extra, above = _above(striping, plan.cut) if stripe == plan.robot else (0.0, 0)
        seconds = _stripe(manifest, server, head, plan, stripe, extra)

        def arrived(seconds: float = seconds, stripe: int = stripe) -> None:
            world.serve(seconds, lambda: have(stripe))

        world.send((high - low + above) * row_bytes("x"), arrived)

    def compute(stripe: int) -> None:
        if stripe == plan.robot:
            return

        def computed() -> None:
            low = plan.bounds[stripe - 1] if stripe else 0
            rows = _new_rows(manifest, frontier, low, plan.bounds[stripe])
            world.send(rows * row_bytes(frontier), lambda: have(stripe))
            compute(stripe + 1)

        world.at(world.now + _stripe(manifest, robot, head, plan, stripe), computed)

    compute(0)
    end = world.run()
    assert ended == [end]
    return end


def _simulate_rows(
    manifest: Manifest, robot: list[float], server: list[float], plan: RowPlan, world: _World
) -> float:
    striping = manifest.striping
    assert striping is not None
    split = striping.row_splits[0]

    def share(times: list[float], rows: float) -> float:
        floor = min(sum(times), LAUNCH_S)
        return floor + rows / split.rows * (sum(times) - floor)

    world.at(share(robot, plan.bound - split.mean_lag), lambda: None)
    output = manifest.outputs[0]
    own = _new_rows(manifest, output.name, 0, plan.bound)
    back = (output.shape[0] - own) * output.shape[1]
    up = (split.rows - (plan.bound - split.halo)) * manifest.tensors["x"].shape[1]
    seconds = share(server, split.rows - plan.bound + split.mean_extra)
    world.send(up, lambda: world.serve(seconds, lambda: world.send(back, lambda: None)))
    return world.run()


# -- what is compared --------------------------------------------------------------------------

SECONDS = st.sampled_from([0.0, 1e-6, 0.01, 0.1, 0.25, 1.0])


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Manifest, list[float], list[float], StripePlan]:
    layers: list[Layer] = []
    den, lag = 1, 0
    for _ in range(draw(st.integers(1, 4))):
        den *= draw(st.sampled_from([1, 1, 2]))
        lag += draw(st.integers(0, 2))
        layers.append(Layer(draw(st.sampled_from([1, 40, 300])), den, lag))
    manifest = chain(layers, rows=draw(st.sampled_from([32, 64])), extra=draw(st.floats(0, 8)))
    count = len(manifest.segments)
    times = [draw(st.lists(SECONDS, min_size=count, max_size=count)) for _ in range(2)]
    cut = draw(st.integers(0, len(layers)))
    until = draw(st.integers(cut, len(layers)))
    striping = manifest.striping
    assert striping is not None
    band, least, most = striping.limits(range(until))
    fitting = [b for b in range(least, most + 1) if b % band == 0]
    assume(fitting)
    chosen = draw(st.sets(st.sampled_from(fitting), min_size=1, max_size=6))
    bounds = (*sorted(chosen), striping.rows)
    robot = draw(st.integers(1, len(bounds)))
    plan = StripePlan(cut=cut, until=until, bounds=bounds, robot=robot)
    if trouble(plan, manifest):
        plan = StripePlan(cut=cut, until=until, bounds=bounds, robot=len(bounds))
    assume(not trouble(plan, manifest))
    return manifest, times[0], times[1], plan


LINKS = st.tuples(
    st.sampled_from([1e3, 1e5, 1e6, 1e9]),
    st.sampled_from([0.0, 0.002, 0.5]),
    st.sampled_from([0.0, 0.01, 3.0]),
)


def _work(manifest: Manifest, robot: list[float], server: list[float], plan: Plan) -> Work:
    return Pricer(manifest, SegmentTimes(tuple(robot)), SegmentTimes(tuple(server))).plan(plan)


def _latency(work: Work, link: tuple[float, float, float]) -> float:
    bps, rtt_s, queue_s = link
    _, end_s = timeline(work.tasks, goodput_bps=bps, rtt_s=rtt_s, queue_s=queue_s)
    ways = finish(work.tasks)
    by_ways = max(w[0] + w[1] / bps + w[2] * rtt_s + w[3] * queue_s for w in ways)
    assert by_ways == pytest.approx(end_s)
    return end_s


@given(_cases(), LINKS)
def test_stripes_end_when_the_simulated_events_do(
    case: tuple[Manifest, list[float], list[float], StripePlan],
    link: tuple[float, float, float],
) -> None:
    manifest, robot, server, plan = case
    expected = _simulate_stripes(manifest, robot, server, plan, _World(*link))
    assert _latency(_work(manifest, robot, server, plan), link) == pytest.approx(expected)


@given(
    st.lists(SECONDS, min_size=2, max_size=2),
    st.lists(SECONDS, min_size=2, max_size=2),
    st.integers(6, 31),
    LINKS,
)
def test_rows_end_when_the_simulated_events_do(
    robot: list[float], server: list[float], half: int, link: tuple[float, float, float]
) -> None:
    manifest = chain([Layer(40), Layer(300, 2, 1)], whole=[], row_split=True)
    plan = RowPlan(cut=0, bound=2 * half)
    assume(not trouble(plan, manifest))
    expected = _simulate_rows(manifest, robot, server, plan, _World(*link))
    assert _latency(_work(manifest, robot, server, plan), link) == pytest.approx(expected)


@given(_cases(), LINKS)
def test_no_plan_beats_its_resources_nor_is_slower_than_one_after_the_other(
    case: tuple[Manifest, list[float], list[float], StripePlan],
    link: tuple[float, float, float],
) -> None:
    work = _work(*case)
    bps, rtt_s, queue_s = link
    latency = _latency(work, link)
    on_link = 8 * (work.bytes_up + work.bytes_down) / bps
    busy = [work.busy_s(ROBOT), on_link, work.busy_s(SERVER)]
    assert latency >= max(busy) * (1 - 1e-9)
    assert latency <= (sum(busy) + rtt_s + queue_s) * (1 + 1e-9)
    bits = sum(task.bits for task in work.tasks if task.resource == LINK)
    assert bits == 8 * (work.bytes_up + work.bytes_down)


@given(_cases(), LINKS, st.floats(1, 1e4))
def test_more_goodput_is_never_slower(
    case: tuple[Manifest, list[float], list[float], StripePlan],
    link: tuple[float, float, float],
    factor: float,
) -> None:
    work = _work(*case)
    bps, rtt_s, queue_s = link
    assert _latency(work, (bps * factor, rtt_s, queue_s)) <= _latency(work, link) * (1 + 1e-9)


@given(_cases(), LINKS)
def test_one_stripe_is_the_serial_cut(
    case: tuple[Manifest, list[float], list[float], StripePlan],
    link: tuple[float, float, float],
) -> None:
    manifest, robot, server, plan = case
    one = StripePlan(cut=plan.cut, until=plan.until, bounds=plan.bounds[-1:], robot=1)
    pricer = Pricer(manifest, SegmentTimes(tuple(robot)), SegmentTimes(tuple(server)))
    serial = pricer.serial(plan.cut)
    striped = pricer.plan(one)
    assert (striped.bytes_up, striped.bytes_down) == (serial.bytes_up, serial.bytes_down)
    assert _latency(striped, link) == pytest.approx(_latency(serial, link))


@given(_cases(), LINKS, st.floats(0, 0.1))
def test_floors_never_help(
    case: tuple[Manifest, list[float], list[float], StripePlan],
    link: tuple[float, float, float],
    floor: float,
) -> None:
    manifest, robot, server, plan = case
    latencies = []
    for fixed in (0.0, floor):
        sides = []
        for times in (robot, server):
            points = tuple(
                tuple(fixed + share * seconds for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1))
                for seconds in times
            )
            sides.append(SegmentTimes(tuple(times), points))
        latencies.append(_latency(Pricer(manifest, *sides).plan(plan), link))
    assert latencies[0] <= latencies[1] * (1 + 1e-9)


# -- by hand -----------------------------------------------------------------------------------


def test_a_streamed_head_by_hand() -> None:
    manifest = chain([Layer(200, lag=2), Layer(50, 2, 3)], whole=[10])
    plan = StripePlan(cut=1, until=2, bounds=(32, 64), robot=2)
    assert trouble(plan, manifest) == ""
    points = tuple(16.0 * share for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1))
    times = SegmentTimes((16.0, 16.0, 3.0), (points, points, ()))
    work = Pricer(manifest, times, times).plan(plan)
    # 30 of 64 rows are known of t1 at bound 32, of t2 32 / 2 - 3 = 13 of 32.
    assert [t for t in work.tasks if t.resource == ROBOT] == [
        (ROBOT, 7.5, 0.0, (), False, 0),
        (ROBOT, 8.5, 0.0, (), False, 1),  # the first stripe is sent meanwhile
    ]
    assert [t.bits for t in work.tasks if t.resource == LINK] == [
        8 * 30 * 200,
        8 * 34 * 200,
        8 * 10,
    ]
    assert [t.seconds for t in work.tasks if t.resource == SERVER] == [6.5, 9.5, 3.0]
    assert [t.messages for t in work.tasks if t.resource == SERVER] == [1, 0, 0]
    assert (work.bytes_up, work.bytes_down) == (64 * 200, 10)


def test_a_two_sided_plan_charges_the_halo_once() -> None:
    manifest = chain([Layer(200, lag=2)], whole=[10], halo=5, extra=4.0)
    plan = StripePlan(cut=1, until=1, bounds=(16, 32, 48, 64), robot=2)
    assert trouble(plan, manifest) == ""
    points = tuple(64.0 * share for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1))
    times = SegmentTimes((64.0, 3.0), (points, ()))
    work = Pricer(manifest, times, times).plan(plan)
    sent = [t for t in work.tasks if t.resource == LINK]
    # Raw rows first, 16 and 5 above them; then the robot's: 14, and 16 as all that it has.
    assert [t.bits / 8 for t in sent] == [21 * 100, 16 * 100, 14 * 200, 16 * 200, 10]
    assert [t.after for t in sent[:2]] == [(), ()]
    # The server: 16 rows and 4 extra, then the 18 that the lag left, then all that is not striped.
    assert [t.seconds for t in work.tasks if t.resource == SERVER] == [20.0, 18.0, 3.0]
    assert [t.queued for t in work.tasks if t.resource == SERVER] == [True, False, False]
    # Three messages follow the first one: all are sent while the robot computes.
    assert [t.messages for t in work.tasks if t.resource == ROBOT] == [2, 1]


def test_coding_takes_its_own_time_beside_the_others() -> None:
    manifest = chain([Layer(100)], whole=[10])
    plan = StripePlan(cut=0, until=1, bounds=(32, 64), robot=2)
    times = SegmentTimes((1.0, 1.0), ((1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), ()))
    plain = Pricer(manifest, times, times).plan(plan)
    coded = Pricer(manifest, times, times, CodecSpeed(1e-3, 2e-3)).plan(plan)
    link = (1e6, 0.0, 0.0)
    # Coding takes 3.2 s a stripe on the robot and 6.4 s on the server, so the second one waits for
    # the first on both. Then half a second of stripe, a second of the rest, the answer's 10 bytes.
    assert _latency(plain, link) == pytest.approx(0.0256 + 2.0 + 8e-5)
    assert _latency(coded, link) == pytest.approx(3.2 + 0.0256 + 12.8 + 1.5 + 0.03 + 8e-5)


def test_estimated_times_charge_every_operator() -> None:
    manifest = chain([Layer(100)], whole=[], row_split=True)
    times = estimated_times(manifest, SegmentTimes((1.0,)))
    half = LAUNCH_S + 0.5 * (1 - LAUNCH_S)
    assert times.striped_s[0][3] == pytest.approx(half)
    assert times.row_splits_s[0][3] == pytest.approx(half)
    kept = SegmentTimes((1.0,), ((1.0, 2.0, 3.0, 4.0, 5.0),), ((5.0,) * 5,))
    assert estimated_times(manifest, kept) == kept
    assert math.isclose(times.stripe_s(0, 1.0), 1.0)
