"""Error budget: what every codec costs at every cut, measured over the user's data.

For every sample the segments run once, as a chain. At every cut what crosses goes through each
codec that applies to it, and the rest of the model runs on what came back; the outputs are
compared with the reference's. A lossless codec is checked to be lossless, value by value: its
outputs are those of the chain, and nothing is run. Sums are kept, never outputs. To codecs that
refer to what was sent before, the samples are one sequence.

Where a bundle has bounded divisions (lossy, ``--halo``), each is run as well, divided at its
lowest, middle and highest bound; it goes by the name ``halo~ROWS`` in the place of a codec.
"""

from __future__ import annotations

import contextlib
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import numpy as np

from calibration.codec_ranges import codec_ranges, ranges_digest
from calibration.metrics import Metric
from calibration.quality import SPEC, CodecQuality, QualityTable
from calibration.ranges import stored_ranges
from calibration.samples import DataDigest, Samples
from engines import codecs as registry
from engines.bounded_runs import BoundedHeadRun, BoundedTailRun
from engines.codecs import Codec, default_codec
from engines.codecs.decoders import Decoders
from engines.codecs.encoders import Encoders, ValueRange
from engines.errors import CodecError, SourceError, SplitError
from engines.manifest import Cut
from engines.program import Program
from engines.stripe_plans import BoundedPlan
from engines.striped import StripedProgram
from engines.stripes import BoundedCut
from engines.tensors import Array, TensorSpec

__all__ = ["HALO", "LOCAL", "measure_quality", "pareto", "usable_codecs"]

LOCAL = "none"
"""What stands for the codec of the last cut, where nothing crosses."""

HALO = "halo~"
"""What the name of a bounded division begins with, in the place of a codec's."""

Outputs = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""The reference: from inputs to outputs."""


Key = Tuple[int, str]
"""Index of a cut, and what stands for a codec."""


class _Sum:
    """The errors and bytes of one codec at one cut so far."""

    def __init__(self, *, lossless: bool) -> None:
        self.lossless = lossless
        self.bytes = 0
        self.runs = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, error: float, size: int = 0) -> None:
        """Count one run."""
        self.runs += 1
        self.total += error
        self.largest = max(self.largest, error)
        self.bytes += size


class _Ends(NamedTuple):
    """What writes and what reads at one cut with one codec, sample after sample."""

    encoders: Encoders
    decoders: Decoders


class _Coded(NamedTuple):
    """What crossed a cut.

    Attributes:
        tensors: As they came back.
        bytes: Encoded size.
    """

    tensors: Dict[str, Array]
    bytes: int


def usable_codecs(
    names: Optional[Collection[str]] = None, *, calibrated: bool = False
) -> "Tuple[List[Codec], List[str]]":
    """Return the codecs that can be used here, and why others cannot.

    Args:
        names: Which of them; all by default.
        calibrated: Whether there are calibrated ranges, for the codecs that write by those.

    Raises:
        CodecError: There is no codec of such a name.
    """
    # Codecs with a quality at those that are tried.
    names_here = (*registry.CANDIDATES, *(registry.CALIBRATED if calibrated else ()))
    known = {name.partition(":")[0] for name in names_here}
    unknown = sorted(name for name in names or () if name.partition(":")[0] not in known)
    if unknown:
        raise CodecError(
            f"codec {', '.join(map(repr, unknown))}: expected {', '.join(sorted(known))}"
        )
    found: Dict[str, Codec] = {}
    missing: List[str] = []
    wanted = [
        name
        for name in names_here
        if not names or name in names or name.partition(":")[0] in names
    ]
    here = {name.partition(":")[0] for name in registry.codec_names_here()}
    for name in dict.fromkeys([*wanted, *(names or ())]):
        base = name.partition(":")[0]
        if base in registry.NEEDS and base not in here:
            missing.append(f"codec {name}: left out: needs {registry.NEEDS[base]}")
            continue
        if name in registry.CALIBRATED and not calibrated:
            missing.append(
                f"codec {name}: left out: needs calibrated ranges; "
                "run `split-bundle calibrate BUNDLE DATA`"
            )
            continue
        try:
            codec = registry.open_codec(name)
        except (CodecError, ImportError) as exc:  # of a library that is not installed
            missing.append(f"codec {name}: left out: {exc}")
        else:
            found[codec.name] = codec
    return list(found.values()), missing


def measure_quality(
    program: Program,
    reference: Outputs,
    samples: Samples,
    metric: Metric,
    *,
    name: str,
    reference_digest: str,
    codecs: Collection[Codec],
    cuts: Optional[Collection[str]] = None,
    progress: Callable[[int, Optional[int]], Any],
) -> QualityTable:
    """Measure every codec at every cut.

    Args:
        program: The bundle, its whole chain loaded.
        reference: The float32 model.
        samples: The data.
        metric: What errors are measured by.
        name: The metric's name.
        reference_digest: Digest of the reference's bundle.
        codecs: The codecs to try where they apply.
        cuts: Ids of the cuts; all by default. The last one, where nothing crosses, is always
            there: it is what the precision alone costs.
        progress: Called with (samples done, samples in all if that is known).

    Raises:
        SplitError: No such cut, or a lossless codec changes values.
        SourceError: There are no samples, or one cannot be read.
    """
    manifest = program.bundle.manifest
    for cut_id in cuts or ():
        manifest.cut(cut_id)
    digest = DataDigest()
    ranges = stored_ranges(program.bundle)
    done = 0
    with contextlib.closing(StripedProgram(program)) as forms:
        budget = _Budget(forms, metric, codecs, cuts, codec_ranges(ranges))
        for sample in samples:
            digest.add(sample.inputs)
            budget.add(sample.inputs, reference(sample.inputs))
            done += 1
            progress(done, samples.size)
    if not done:
        raise SourceError(f"{samples.name}: expected at least one sample, found none")
    return QualityTable(
        spec=SPEC,
        bundle=program.bundle.digest,
        reference=reference_digest,
        precision=manifest.precision,
        metric=name,
        data=digest.hexdigest(),
        samples=done,
        rows=tuple(budget.rows(name)),
        ranges=ranges_digest(ranges),
    )


class _Budget:
    """The sums so far, by cut and codec."""

    def __init__(
        self,
        forms: StripedProgram,
        metric: Metric,
        codecs: Collection[Codec],
        cuts: Optional[Collection[str]],
        ranges: Mapping[Tuple[str, str], ValueRange],
    ) -> None:
        self._ranges = ranges
        self._ends: Dict[Key, _Ends] = {}
        self._forms = forms
        self._program = forms.program
        self._manifest = forms.manifest
        self._metric = metric
        self._codecs = codecs
        striping = self._manifest.striping if forms.offered else None
        bounded = () if striping is None else striping.bounded
        ids = [cut.id for cut in self._manifest.cuts]
        self._cuts = {n for n, cut_id in enumerate(ids) if cuts is None or cut_id in cuts}
        self._bounded = [one for one in bounded if one.cut in self._cuts]
        self._sums: Dict[Key, _Sum] = {}
        self._unfit: Set[Key] = set()

    def add(self, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Run one sample through everything."""
        program = self._program
        exact: List[_Sum] = []
        for index, env in program.frontiers(inputs):
            if index == program.last:
                exact.append(self._sum((index, LOCAL), lossless=True))
                error = self._metric(program.outputs(env), expected)
                for one in exact:
                    one.add(error)
            elif index in self._cuts:
                exact += self._cut(self._manifest.cuts[index], env, expected)
        for bounded in self._bounded:
            one = self._sum((bounded.cut, f"{HALO}{bounded.halo}"), lossless=False)
            for outputs, size in _divided(self._forms, bounded, inputs):
                one.add(self._metric(outputs, expected), size)

    def rows(self, metric: str) -> Iterator[CodecQuality]:
        """Yield what was measured, by cut, then codec."""
        for (index, codec), one in sorted(self._sums.items()):
            yield CodecQuality(
                cut=self._manifest.cuts[index].id,
                codec=codec,
                metric=metric,
                error=one.total / one.runs,
                largest=one.largest,
                bytes=one.bytes / one.runs,
                lossless=one.lossless,
            )

    def _cut(
        self, cut: Cut, env: Mapping[str, Array], expected: Mapping[str, Array]
    ) -> Iterator[_Sum]:
        """Send what crosses through every codec; yield those that lose nothing, not yet added."""
        for codec in self._codecs:
            key = (cut.index, codec.name)
            if key in self._unfit:
                continue
            specs = self._manifest.specs(cut.tensors)
            ends = self._ends.get(key)
            if ends is None:
                ends = self._ends[key] = _Ends(Encoders(self._ranges), Decoders())
            coded = _through(codec.name, ends, specs, cut.id, env)
            if coded is None:
                self._unfit.add(key)
                self._sums.pop(key, None)
                continue
            one = self._sum(key, lossless=codec.lossless)
            one.bytes += coded.bytes
            if codec.lossless:
                yield one
                continue
            outputs = self._program.run({**env, **coded.tensors}, cut.index)
            one.add(self._metric(self._program.outputs(outputs), expected))

    def _sum(self, key: Key, *, lossless: bool) -> _Sum:
        return self._sums.setdefault(key, _Sum(lossless=lossless))


def _divided(
    forms: StripedProgram, bounded: BoundedCut, inputs: Mapping[str, Array]
) -> "Iterator[Tuple[Dict[str, Array], int]]":
    """Run a bounded division at a few bounds; yield the outputs, and the bytes that crossed."""
    middle = (bounded.least + bounded.most) // 2 // bounded.band * bounded.band
    for bound in sorted({bounded.least, max(middle, bounded.least), bounded.most}):
        plan = BoundedPlan(cut=bounded.cut, bound=bound, halo=bounded.halo)
        head, tail = BoundedHeadRun(forms, plan, inputs), BoundedTailRun(forms, plan)
        raw = {name: np.ascontiguousarray(rows) for name, rows in head.raw().items()}
        tail.take(1, raw)
        rows = head.run()
        outputs = tail.take(0, rows)
        assert outputs is not None, "both messages were taken"
        yield outputs, sum(array.nbytes for array in (*raw.values(), *rows.values()))


def pareto(points: "List[Tuple[float, float]]") -> List[int]:
    """Return the places of the points that no other one beats in both numbers, ascending.

    Of equal points the first one counts.
    """
    order = sorted(range(len(points)), key=lambda place: (*points[place], place))
    best = float("inf")
    found = []
    for place in order:
        if points[place][1] < best:
            best = points[place][1]
            found.append(place)
    return sorted(found)


def _through(
    name: str,
    ends: _Ends,
    specs: Sequence[TensorSpec],
    cut: str,
    env: Mapping[str, Array],
) -> Optional[_Coded]:
    """Send what crosses through a codec; none where it applies to nothing of it.

    Raises:
        SplitError: A codec that says that it is lossless changes values.
    """
    tensors: Dict[str, Array] = {}
    size = 0
    with ends.encoders.message({spec.name: name for spec in specs}):
        opened = {spec.name: ends.encoders.open(name, spec.name) for spec in specs}
        fit = {
            spec.name: codec
            for spec in specs
            for codec in (opened[spec.name],)
            if codec is not None and codec.applies(spec)
        }
        if not fit:
            return None
        for spec in specs:
            codec = fit.get(spec.name) or default_codec(spec)
            decoder = ends.decoders.open(codec.wire_id, spec.name)
            try:
                tensors[spec.name], taken = _round_trip(codec, decoder, spec, env[spec.name])
            except CodecError:  # values that this codec has no bytes for
                return None
            size += taken
            if codec.lossless and not _same(tensors[spec.name], env[spec.name]):
                raise SplitError(
                    f"codec {codec.name}, cut {cut}: says that it is lossless, and changes "
                    f"{spec.name!r}; this is an error of the codec"
                )
    return _Coded(tensors, size)


def _round_trip(
    codec: Codec, decoder: Codec, spec: TensorSpec, array: Array
) -> "Tuple[Array, int]":
    scratch = memoryview(bytearray(codec.max_encoded_bytes(spec)))
    payload = codec.encode(np.ascontiguousarray(array).reshape(spec.shape), scratch)
    decoded = np.empty(spec.shape, spec.dtype)
    decoder.decode(payload, decoded)
    return decoded, payload.nbytes


def _same(a: Array, b: Array) -> bool:
    """Say whether two arrays have the same bits, NaN included."""
    return a.reshape(-1).view(np.uint8).tobytes() == np.ascontiguousarray(b).tobytes()
