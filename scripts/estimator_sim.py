"""A link and its traffic on paper: the readings an estimator would get, and how well it does.

A fluid goes through a pipe whose rate changes as a trace says; receipts come a round trip later.
Nothing waits for a clock, so minutes of link take a second or two.
"""

from __future__ import annotations

import bisect
import csv
import json
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shaped_link import PAYLOAD_SHARE

from runtime.estimator import LinkEstimate, LinkEstimator
from runtime.evidence import Connected, Reading, RoundTrip, Transfer
from runtime.probing import ProbeBudget

__all__ = [
    "TRAFFIC",
    "Checked",
    "Frames",
    "Score",
    "Trace",
    "read_trace",
    "score",
    "simulate",
    "step_lags_s",
]

FRAME_BYTES = 150_528
"""A 224 x 224 picture in uint8."""

RTT_S = 0.003
_TICK_S = 0.0005
_OVERHEAD_BYTES = 40
_NEAR = 0.2
"""What "within 20%" is."""


@dataclass(frozen=True)
class Trace:
    """A link's rate over time.

    Attributes:
        step_s: Length of each step.
        mbps: Rate in each, headers included.
    """

    step_s: float
    mbps: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.step_s * len(self.mbps)

    def goodput_bps(self, at_s: float) -> float:
        """Payload bits per second at a moment."""
        index = min(max(int(at_s / self.step_s), 0), len(self.mbps) - 1)
        return self.mbps[index] * 1e6 * PAYLOAD_SHARE

    def mean_bps(self, begin_s: float, end_s: float, points: int = 20) -> float:
        """Payload bits per second over a stretch."""
        width = (end_s - begin_s) / points
        return statistics.fmean(
            self.goodput_bps(begin_s + (i + 0.5) * width) for i in range(points)
        )


@dataclass(frozen=True)
class Frames:
    """Traffic: frames, one after the other.

    Attributes:
        stripes: Messages that each is cut into.
        spacing_s: Time between those.
        pause_s: From a frame's last receipt to the next frame.
        frame_bytes: Size of a frame.
    """

    stripes: int = 1
    spacing_s: float = 0.0
    pause_s: float = 0.01
    frame_bytes: int = FRAME_BYTES


TRAFFIC = {
    "frames": Frames(),
    "striped": Frames(stripes=8, spacing_s=0.008, pause_s=0.01),
    "sparse": Frames(pause_s=1.0),
    "idle": Frames(pause_s=1e9),
}
"""Frames back to back, in stripes while the robot computes, one a second; or probes only."""


@dataclass(frozen=True)
class Checked:
    """An estimate and the time when it held, from the beginning of the trace."""

    at_s: float
    estimate: LinkEstimate


@dataclass(frozen=True)
class Score:
    """How well estimates fit a trace.

    Attributes:
        estimates: How many were compared.
        p10, p50, p90: Quantiles of estimate by truth, less 1.
        off_p50: Median of the error's size.
        off_p90: What 90% of the errors stay below.
        band: Part of the time in which the truth lay between the quantiles 0.05 and 0.95.
        ahead: The same for the mean of the 200 ms that follow.
        half: As ``ahead``, between the quantiles 0.25 and 0.75.
        width: Median of the quantile 0.95 by the quantile 0.05.
        down_s, up_s: Median time from a step of the rate to an estimate within 20%; none without
            steps.
        probe_bytes_per_s: Bytes of probes by time.
    """

    estimates: int
    p10: float
    p50: float
    p90: float
    off_p50: float
    off_p90: float
    band: float
    ahead: float
    half: float
    width: float
    down_s: float | None
    up_s: float | None
    probe_bytes_per_s: float

    def __str__(self) -> str:
        def lag(seconds: float | None) -> str:
            return "   -" if seconds is None else f"{seconds * 1e3:4.0f}"

        return (
            f"error p10/50/90 {self.p10:+5.0%} {self.p50:+5.0%} {self.p90:+5.0%}, size p50 "
            f"{self.off_p50:4.0%} p90 {self.off_p90:4.0%}; 5-95% band holds {self.band:4.0%} now, "
            f"{self.ahead:4.0%} ahead (25-75%: {self.half:4.0%}), width x{self.width:.1f}; lag "
            f"down {lag(self.down_s)} up {lag(self.up_s)} ms; probes "
            f"{self.probe_bytes_per_s / 1e3:.1f} kB/s"
        )

    def as_json(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self))


def read_trace(path: Path, *, begin_s: float = 0.0, seconds: float | None = None) -> Trace:
    """Read a trace of 10 Hz: columns ``t_s`` and ``mbps``."""
    with path.open(newline="") as lines:
        rows = [(float(row["t_s"]), float(row["mbps"])) for row in csv.DictReader(lines)]
    end_s = rows[-1][0] + 1.0 if seconds is None else begin_s + seconds
    chosen = tuple(mbps for at_s, mbps in rows if begin_s <= at_s < end_s - 1e-9)
    if not chosen:
        raise ValueError(f"{path}: nothing between {begin_s} s and {end_s} s")
    return Trace(0.1, chosen)


def simulate(
    trace: Trace,
    traffic: Frames,
    *,
    estimator: LinkEstimator | None = None,
    every_s: float = 0.02,
    rtt_s: float = RTT_S,
    probe_every_s: float = 1.0,
) -> tuple[list[Checked], int]:
    """Send traffic through a trace; returns the estimates over time, and the bytes of probes."""
    pipe = _Pipe(trace, rtt_s)
    estimator = estimator or LinkEstimator()
    budget = ProbeBudget(_OVERHEAD_BYTES)
    estimator.take(Connected(0.0))
    estimator.take(RoundTrip(0.0, rtt_s))
    found: list[Checked] = []
    stripes: deque[tuple[float, int]] = deque()
    next_frame_s, probed_s, check_s, reading_s = 0.05, -1e9, 0.0, 0.0
    probe: tuple[float, int, int] | None = None
    count = 0
    for tick in range(int(trace.seconds / _TICK_S)):
        now_s = tick * _TICK_S
        pipe.step(now_s)
        if not stripes and pipe.outstanding == 0 and now_s >= next_frame_s and probe is None:
            size = traffic.frame_bytes // traffic.stripes
            stripes.extend((now_s + i * traffic.spacing_s, size) for i in range(traffic.stripes))
        while stripes and stripes[0][0] <= now_s:
            pipe.write(stripes.popleft()[1])
            next_frame_s = 1e18
        if not stripes and pipe.outstanding == 0 and next_frame_s == 1e18:
            next_frame_s = now_s + traffic.pause_s
        if probe is not None and pipe.acked >= probe[2]:
            estimator.take(Transfer(now_s, probe[1], now_s - probe[0]))
            probe = None
        idle = not stripes and pipe.outstanding == 0
        if idle and probe is None and now_s - probed_s >= probe_every_s and now_s < next_frame_s:
            known = estimator.at(now_s)
            if known.age_s is None or known.age_s >= probe_every_s:
                payload = budget.probe(now_s, known.goodput_bps)
                probed_s = now_s
                if payload:
                    pipe.write(payload)
                    probe = now_s, payload, pipe.written
        if now_s >= reading_s and (pipe.outstanding or count):
            estimator.take(Reading(now_s, pipe.acked, 0, pipe.outstanding))
            count = count + 1 if pipe.outstanding else 0
            reading_s = now_s + (0.001 if count < 10 else 0.004)
        if now_s >= check_s:
            found.append(Checked(now_s, estimator.at(now_s)))
            check_s += every_s
    return found, budget.spent_bytes


class _Pipe:
    """A fluid of bytes, and receipts a round trip later."""

    def __init__(self, trace: Trace, rtt_s: float) -> None:
        self._trace = trace
        self._through = 0.0
        self._receipts: deque[float] = deque([0.0] * max(round(rtt_s / _TICK_S), 1))
        self.written = 0
        self.acked = 0

    @property
    def outstanding(self) -> int:
        """Bytes written without a receipt."""
        return self.written - self.acked

    def write(self, size: int) -> None:
        """Put bytes into the pipe's queue."""
        self.written += size

    def step(self, now_s: float) -> None:
        """Let a tick go by."""
        room = self._trace.goodput_bps(now_s) / 8.0 * _TICK_S
        self._through = min(self._through + room, float(self.written))
        self._receipts.append(self._through)
        self.acked = int(self._receipts.popleft() + 1e-6)


def score(
    trace: Trace, found: Sequence[Checked], *, probe_bytes: int = 0, warm_s: float = 2.0
) -> Score:
    """Compare estimates with the truth."""
    known = [
        one
        for one in found
        if warm_s <= one.at_s < trace.seconds - 0.2 and one.estimate.goodput_bps is not None
    ]
    if not known:
        raise ValueError("no estimate in all that time")
    errors = sorted(
        (one.estimate.goodput_bps or 0.0) / trace.goodput_bps(one.at_s) - 1 for one in known
    )
    sizes = sorted(abs(error) for error in errors)
    ahead = [trace.mean_bps(one.at_s, one.at_s + 0.2) for one in known]
    bands = (0.05, 0.25, 0.75, 0.95)
    quantiles = [tuple(one.estimate.quantile(q) or 0.0 for q in bands) for one in known]
    downs, ups = step_lags_s(trace, found)
    return Score(
        estimates=len(known),
        p10=_at(errors, 0.1),
        p50=_at(errors, 0.5),
        p90=_at(errors, 0.9),
        off_p50=_at(sizes, 0.5),
        off_p90=_at(sizes, 0.9),
        band=_share(
            q[0] <= trace.goodput_bps(one.at_s) <= q[-1]
            for q, one in zip(quantiles, known, strict=True)
        ),
        ahead=_share(q[0] <= t <= q[-1] for q, t in zip(quantiles, ahead, strict=True)),
        half=_share(q[1] <= t <= q[2] for q, t in zip(quantiles, ahead, strict=True)),
        width=statistics.median(q[-1] / q[0] for q in quantiles),
        down_s=statistics.median(downs) if downs else None,
        up_s=statistics.median(ups) if ups else None,
        probe_bytes_per_s=probe_bytes / trace.seconds,
    )


def step_lags_s(
    trace: Trace, found: Sequence[Checked], *, least: float = 1.6, steady_s: float = 0.3
) -> tuple[list[float], list[float]]:
    """Return how long it took after each step of the rate, down and up, to be within 20%.

    Args:
        trace: The truth.
        found: Estimates in the order of time.
        least: A step is a change by this factor or more.
        steady_s: And one after which the rate changes by less than 20% for so long. An estimate
            that is not within 20% at the end of that took at least so long, and counts as that.
    """
    times = [one.at_s for one in found]
    lags: tuple[list[float], list[float]] = ([], [])
    steady = round(steady_s / trace.step_s)
    for index in range(1, len(trace.mbps) - steady):
        old, new = trace.mbps[index - 1], trace.mbps[index]
        after = trace.mbps[index : index + steady]
        if max(old / new, new / old) < least or any(abs(r / new - 1) > _NEAR for r in after):
            continue
        at_s = index * trace.step_s
        more = index + steady
        while more < len(trace.mbps) and abs(trace.mbps[more] / new - 1) <= _NEAR:
            more += 1
        lag_s = _lag(trace, found[bisect.bisect_left(times, at_s) :], at_s, more * trace.step_s)
        lags[new > old].append(lag_s)
    return lags


def _lag(trace: Trace, found: Sequence[Checked], at_s: float, end_s: float) -> float:
    for one in found:
        if one.at_s >= end_s:
            break
        goodput_bps = one.estimate.goodput_bps or 0.0
        if abs(goodput_bps / trace.goodput_bps(one.at_s) - 1) <= _NEAR:
            return one.at_s - at_s
    return end_s - at_s


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def _share(yes: Iterable[bool]) -> float:
    return statistics.fmean(float(one) for one in yes)
