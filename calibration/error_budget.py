"""Error budget: what every codec costs at every cut, measured over the user's data.

For every sample the segments run once, as a chain. At every cut what crosses goes through each
codec that applies to it, and the rest of the model runs on what came back; the outputs are
compared with the reference's. A lossless codec is checked to be lossless, value by value: its
outputs are those of the chain, and nothing is run. Sums are kept, never outputs.
"""

from __future__ import annotations

from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np

from calibration.metrics import Metric
from calibration.quality import SPEC, CodecQuality, QualityTable
from calibration.samples import DataDigest, Samples
from engines import codecs as registry
from engines.codecs import Codec, default_codec
from engines.errors import CodecError, SourceError, SplitError
from engines.manifest import Cut, Manifest
from engines.program import Program
from engines.tensors import Array, TensorSpec

__all__ = ["LOCAL", "measure_quality", "pareto", "usable_codecs"]

LOCAL = "none"
"""What stands for the codec of the last cut, where nothing crosses."""

Outputs = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""The reference: from inputs to outputs."""


class _Sum:
    """The errors and bytes of one codec at one cut so far."""

    def __init__(self, *, lossless: bool) -> None:
        self.lossless = lossless
        self.bytes = 0
        self.samples = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, error: float) -> None:
        self.samples += 1
        self.total += error
        self.largest = max(self.largest, error)


class _Coded(NamedTuple):
    """What crossed a cut.

    Attributes:
        tensors: As they came back.
        bytes: Encoded size.
    """

    tensors: Dict[str, Array]
    bytes: int


def usable_codecs(names: Optional[Collection[str]] = None) -> "Tuple[List[Codec], List[str]]":
    """Return the codecs that can be used here, and why others cannot.

    Args:
        names: Which of them; all by default.

    Raises:
        CodecError: There is no codec of such a name.
    """
    # Codecs with a quality are tried at those that the registry names.
    names_here: Sequence[str] = getattr(registry, "CANDIDATES", ()) or [
        name for name, _ in registry.CODECS.values()
    ]
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
    for name in dict.fromkeys([*wanted, *(names or ())]):
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
    sums: Dict[Tuple[int, str], _Sum] = {}
    unfit: Dict[Tuple[int, str], str] = {}
    digest = DataDigest()
    done = 0
    for sample in samples:
        digest.add(sample.inputs)
        expected = reference(sample.inputs)
        exact: List[_Sum] = []
        for index, env in program.frontiers(sample.inputs):
            cut = manifest.cuts[index]
            if index == program.last:
                local = sums.setdefault((index, LOCAL), _Sum(lossless=True))
                error = metric(program.outputs(env), expected)
                for one in (local, *exact):
                    one.add(error)
                continue
            if cuts is not None and cut.id not in cuts:
                continue
            for codec in codecs:
                key = (index, codec.name)
                coded = None if key in unfit else _through(codec, manifest, cut, env, key, unfit)
                if coded is None:
                    sums.pop(key, None)
                    continue
                one = sums.setdefault(key, _Sum(lossless=codec.lossless))
                one.bytes += coded.bytes
                if codec.lossless:
                    exact.append(one)
                    continue
                outputs = program.outputs(program.run({**env, **coded.tensors}, index))
                one.add(metric(outputs, expected))
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
        rows=tuple(
            CodecQuality(
                cut=manifest.cuts[index].id,
                codec=codec_name,
                metric=name,
                error=one.total / one.samples,
                largest=one.largest,
                bytes=one.bytes / done,
                lossless=one.lossless,
            )
            for (index, codec_name), one in sorted(sums.items())
            if one.samples
        ),
    )


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
    codec: Codec,
    manifest: Manifest,
    cut: Cut,
    env: Mapping[str, Array],
    key: Tuple[int, str],
    unfit: Dict[Tuple[int, str], str],
) -> Optional[_Coded]:
    """Send what crosses through a codec; none where it applies to nothing of it."""
    specs = manifest.specs(cut.tensors)
    mine = [spec for spec in specs if codec.applies(spec)]
    if not mine:
        unfit[key] = "applies to no tensor"
        return None
    tensors: Dict[str, Array] = {}
    size = 0
    for spec in specs:
        chosen = codec if spec in mine else default_codec(spec)
        try:
            tensors[spec.name], taken = _round_trip(chosen, spec, env[spec.name])
        except CodecError as exc:  # values that this codec has no bytes for
            unfit[key] = str(exc)
            return None
        size += taken
        if chosen.lossless and not _same(tensors[spec.name], env[spec.name]):
            raise SplitError(
                f"codec {chosen.name}, cut {cut.id}: says that it is lossless, and changes "
                f"{spec.name!r}; this is an error of the codec"
            )
    return _Coded(tensors, size)


def _round_trip(codec: Codec, spec: TensorSpec, array: Array) -> "Tuple[Array, int]":
    scratch = memoryview(bytearray(codec.max_encoded_bytes(spec)))
    payload = codec.encode(np.ascontiguousarray(array).reshape(spec.shape), scratch)
    decoded = np.empty(spec.shape, spec.dtype)
    codec.decode(payload, decoded)
    return decoded, payload.nbytes


def _same(a: Array, b: Array) -> bool:
    """Say whether two arrays have the same bits, NaN included."""
    return a.reshape(-1).view(np.uint8).tobytes() == np.ascontiguousarray(b).tobytes()
