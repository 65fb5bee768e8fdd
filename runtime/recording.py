"""Recorded runs: what every inference was decided on, what was decided and what came of it.

A file of JSON lines that needs nothing beside it. The first line is the run: the version, the
bundle's manifest, the selector. Then come inferences, and before the first inference that was
decided with a pair of latency tables, those tables. Times in seconds, goodput in bits per second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, TextIO, Tuple, Union

import msgspec

from calibration.codings import CodecOffer, Codings
from calibration.energy import StatePower
from calibration.objectives import UNCONSTRAINED, Constraints
from calibration.plan_text import plan_text
from calibration.prepared import PreparedPlans
from calibration.ranking import EXPECTED_AT
from calibration.schedule import NO_HANDLING, Handling
from calibration.segment_times import SegmentTimes
from engines.bundle import Bundle
from engines.errors import SplitError
from engines.manifest import Manifest
from runtime.decision import LinkView, raw_quantiles
from runtime.link_state import LinkState
from runtime.result import Result

__all__ = [
    "QUANTILES",
    "VERSION",
    "Inference",
    "RecordedLink",
    "Recorder",
    "Run",
    "RunHeader",
    "Tables",
    "read_run",
]

VERSION = 1
"""Of the lines; a file of another version is refused."""

QUANTILES: Tuple[float, ...] = tuple(sorted({*EXPECTED_AT, 0.01, 0.05, 0.95, 0.99}))
"""Parts at which the quantiles of the goodput are kept."""

_BYTES = 1 << 26
"""Longest line that is read."""


class RunHeader(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """The first line.

    Attributes:
        version: Of the lines.
        bundle: Digest of the bundle.
        manifest: Its manifest.
        selector: Name of the selector.
        keep_local: See ``calibration.objectives.Constraints``.
        lossless: The same.
        least_halo: Fewest rows of halo of lossy plans; none where they were not allowed.
    """

    version: int
    bundle: str
    manifest: Manifest
    selector: str
    keep_local: Optional[str] = None
    lossless: bool = False
    least_halo: Optional[int] = None

    @property
    def constraints(self) -> Constraints:
        """What the run's inferences might not do."""
        return Constraints(self.keep_local, self.lossless)


class Tables(msgspec.Struct, frozen=True, kw_only=True, tag="tables"):
    """A pair of latency tables, stripes estimated where they were not measured.

    Attributes:
        number: What inferences call it.
        robot: Times on the robot.
        server: Times on the server.
        power: The robot's power by state.
        codecs: Which codecs there were, and their costs; none where nothing was chosen of them.
    """

    number: int
    robot: SegmentTimes
    server: SegmentTimes
    power: StatePower
    codecs: Optional[CodecOffer] = None


class RecordedLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link as it was estimated.

    Attributes:
        goodput_bps: Payload bits per second; none while unknown.
        rtt_s: Round trip.
        quantiles_bps: Goodput at each of :data:`QUANTILES`; empty while unknown.
        state: Up, degraded or down.
    """

    goodput_bps: Optional[float]
    rtt_s: float
    quantiles_bps: Tuple[float, ...] = ()
    state: LinkState = LinkState.UP

    def __post_init__(self) -> None:
        if len(self.quantiles_bps) not in (0, len(QUANTILES)):
            raise ValueError(
                f"expected {len(QUANTILES)} quantiles or none, given {len(self.quantiles_bps)}"
            )

    def quantile(self, part: float) -> Optional[float]:
        """Return a quantile of the goodput: straight lines between those that were kept."""
        kept = self.quantiles_bps
        if not kept:
            return self.goodput_bps
        if part <= QUANTILES[0]:
            return kept[0]
        for place in range(1, len(QUANTILES)):
            low, high = QUANTILES[place - 1], QUANTILES[place]
            if part <= high:
                along = (part - low) / (high - low)
                return kept[place - 1] + along * (kept[place] - kept[place - 1])
        return kept[-1]


class Inference(msgspec.Struct, frozen=True, kw_only=True, tag="inference"):
    """One inference: what was known, what was decided, what happened.

    Attributes:
        seq: Its number.
        at_s: When it was answered, from the beginning of the run.
        tables: Number of the latency tables; none while one was missing.
        link: The link as estimated; none without a connection.
        queue_s: The expected wait at the server.
        objective: As text.
        in_flight: Inferences under way at a time, where the caller said so.
        cut: Id of the cut that was decided on.
        plan: The plan, as text; empty for a serial cut.
        reason: Why.
        predicted_s: Predicted latency; none where it was not predicted.
        predicted_j: Predicted energy.
        answered_by: See ``Result``, as for all that follow.
        latency_s: Measured.
        robot_s: Measured.
        link_s: Measured.
        server_s: Measured.
        waited_s: At the server, measured.
        bytes_up: Sent.
        bytes_down: Received.
        energy_j: Modelled.
        measured_j: The energy that a sensor measured; none where there was none.
        age_s: Measured.
        hedge_s: Measured: the robot's work on the server's part, beside the waiting.
        bound_s: What was promised; none where nothing was.
        trouble: Why there was no link, where there was none.
        true_bps: The link's goodput during the inference, where something knew it.
        handling: What a message was known to take beside the computing, at robot and server.
    """

    seq: int
    at_s: float
    tables: Optional[int]
    link: Optional[RecordedLink]
    queue_s: float
    objective: str
    cut: str
    plan: str
    reason: str
    predicted_s: Optional[float]
    predicted_j: Optional[float]
    answered_by: str
    latency_s: float
    robot_s: float
    link_s: float
    server_s: float
    waited_s: float
    bytes_up: int
    bytes_down: int
    energy_j: float
    age_s: float
    true_bps: Optional[float] = None
    in_flight: Optional[int] = None
    measured_j: Optional[float] = None
    hedge_s: float = 0.0
    bound_s: Optional[float] = None
    trouble: str = "no connection"
    handling: Handling = NO_HANDLING

    def __post_init__(self) -> None:
        times = (
            self.at_s,
            self.queue_s,
            self.latency_s,
            self.robot_s,
            self.link_s,
            *self.handling,
        )
        if any(not 0 <= value < float("inf") for value in times):
            raise ValueError("expected seconds of 0 or more")
        if self.true_bps is not None and not self.true_bps > 0:
            raise ValueError(f"true_bps: expected bits per second above 0, given {self.true_bps}")


_TablesKey = Tuple[SegmentTimes, SegmentTimes, StatePower, Optional[CodecOffer]]


class Recorder:
    """Writes a run, line by line.

    Args:
        sink: Where to; the caller closes it.
        bundle: What the robot runs.
        selector: Name of its selector.
        constraints: What it may not do.
        least_halo: Fewest rows of halo of lossy plans; none where they are not allowed.
        clock: Seconds from any fixed moment.
    """

    def __init__(
        self,
        sink: TextIO,
        bundle: Bundle,
        *,
        selector: str,
        constraints: Constraints = UNCONSTRAINED,
        least_halo: Optional[int] = None,
        clock: Callable[[], float],
    ) -> None:
        self._sink = sink
        self._manifest = bundle.manifest
        self._clock = clock
        self._began_s = clock()
        self._numbers: Dict[_TablesKey, int] = {}
        self._write(
            RunHeader(
                version=VERSION,
                bundle=bundle.digest,
                manifest=bundle.manifest,
                selector=selector,
                keep_local=constraints.keep_local,
                lossless=constraints.lossless,
                least_halo=least_halo,
            )
        )

    def add(self, result: Result, *, true_bps: Optional[float] = None) -> None:
        """Write an inference, and its tables where they are new.

        Args:
            result: What the robot gave; one without a decision's situation is left out.
            true_bps: The link's goodput during it, where that is known.
        """
        decision = result.decision
        if decision is None or decision.situation is None:
            return
        situation, predicted = decision.situation, decision.prediction
        chosen = "" if decision.plan is None else plan_text(decision.plan, self._manifest)
        self._write(
            Inference(
                seq=result.seq,
                at_s=max(self._clock() - self._began_s, 0.0),
                tables=None if situation.plans is None else self._number(situation.plans),
                link=None if situation.link is None else _recorded(situation.link),
                queue_s=situation.queue_s,
                objective=str(situation.objective),
                cut=self._manifest.cuts[decision.cut].id,
                plan=chosen,
                reason=result.reason,
                predicted_s=None if predicted is None else predicted.latency_s,
                predicted_j=None if predicted is None else predicted.energy_j,
                answered_by=result.answered_by,
                latency_s=result.latency_s,
                robot_s=result.robot_s,
                link_s=result.link_s,
                server_s=result.server_s,
                waited_s=result.queue_s,
                bytes_up=result.bytes_up,
                bytes_down=result.bytes_down,
                energy_j=result.modelled_j,
                measured_j=result.energy_j if result.energy_source == "measured" else None,
                age_s=result.age_s,
                hedge_s=result.hedge_s,
                bound_s=result.bound_s,
                trouble=situation.trouble,
                true_bps=true_bps,
                in_flight=situation.in_flight,
                handling=NO_HANDLING if situation.plans is None else situation.plans.handling,
            )
        )

    def _number(self, plans: PreparedPlans) -> int:
        offer = None if plans.codings is None else plans.codings.offer
        key = (plans.robot, plans.server, plans.power, offer)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            self._write(
                Tables(
                    number=number,
                    robot=plans.robot,
                    server=plans.server,
                    power=plans.power,
                    codecs=offer,
                )
            )
        return number

    def _write(self, record: msgspec.Struct) -> None:
        self._sink.write(msgspec.json.encode(record).decode() + "\n")
        self._sink.flush()


class Run:
    """A recorded run.

    Attributes:
        header: The first line.
        inferences: In the order of the file.
        damaged: Numbers of the lines that could not be read, from 1, each with why.
    """

    def __init__(
        self,
        header: RunHeader,
        tables: Dict[int, Tables],
        inferences: Tuple[Inference, ...],
        damaged: Tuple[Tuple[int, str], ...],
    ) -> None:
        self.header = header
        self.inferences = inferences
        self.damaged = damaged
        self._tables = tables
        self._plans: Dict[int, PreparedPlans] = {}

    def __repr__(self) -> str:
        return f"<Run {self.header.manifest.name} {len(self.inferences)} inferences>"

    def plans(self, number: Optional[int]) -> Optional[PreparedPlans]:
        """Return all choices for a pair of tables; none where the run does not have it."""
        if number is None or number not in self._tables:
            return None
        if number not in self._plans:
            tables = self._tables[number]
            offer = tables.codecs
            self._plans[number] = PreparedPlans(
                self.header.manifest,
                tables.robot,
                tables.server,
                tables.power,
                least_halo=self.header.least_halo,
                codings=None if offer is None else Codings(self.header.manifest, offer),
            )
        return self._plans[number]


def read_run(path: Path) -> Run:
    """Read a recorded run. Damaged lines are left out and told.

    Raises:
        SplitError: It cannot be read, its first line is not that of a run, or it is of another
            version.
    """
    try:
        with path.open("rb") as file:
            return _read(file.readline(_BYTES), file.read().split(b"\n"), str(path))
    except OSError as exc:
        raise SplitError(f"{path}: {exc.strerror}; expected a run that --record wrote") from exc


_Line = Union[RunHeader, Tables, Inference]


def _read(first: bytes, lines: List[bytes], where: str) -> Run:
    header = _header(first, where)
    tables: Dict[int, Tables] = {}
    inferences: List[Inference] = []
    damaged: List[Tuple[int, str]] = []
    decoder: Any = msgspec.json.Decoder(_Line)
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        try:
            record = decoder.decode(line)
            _check(record, header.manifest)
        except (ValueError, UnicodeDecodeError, RecursionError) as exc:
            damaged.append((number, str(exc)))
            continue
        if isinstance(record, Tables):
            tables[record.number] = record
        else:
            inferences.append(record)
    return Run(header, tables, tuple(inferences), tuple(damaged))


def _header(line: bytes, where: str) -> RunHeader:
    try:
        version = msgspec.json.decode(line, type=_OnlyVersion).version
        if version != VERSION:
            raise SplitError(
                f"{where}: line 1: expected a run of version {VERSION}, given {version}; record "
                "it again with this version of SplitRT"
            )
        return msgspec.json.decode(line, type=RunHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SplitError(
            f"{where}: line 1: expected the first line of a run that --record wrote: {exc}"
        ) from exc


class _OnlyVersion(msgspec.Struct):
    version: int


def _check(record: _Line, manifest: Manifest) -> None:
    """Refuse a line that does not go with the run's bundle."""
    if isinstance(record, RunHeader):
        raise ValueError("a second run in one file")
    if isinstance(record, Tables):
        striping = manifest.striping
        splits = 0 if striping is None else len(striping.row_splits)
        for times in (record.robot, record.server):
            if len(times.segments_s) != len(manifest.segments) or (
                len(times.row_splits_s) not in (0, splits)
            ):
                raise ValueError("tables of another bundle")


def _recorded(link: LinkView) -> RecordedLink:
    state = getattr(link, "state", LinkState.UP)
    if not link.goodput_bps:
        return RecordedLink(goodput_bps=None, rtt_s=link.rtt_s, state=state)
    at = raw_quantiles(link)
    quantiles = tuple(at(part) for part in QUANTILES)
    return RecordedLink(
        goodput_bps=link.goodput_bps, rtt_s=link.rtt_s, quantiles_bps=quantiles, state=state
    )
