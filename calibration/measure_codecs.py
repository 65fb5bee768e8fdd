"""Measures codecs: what each makes of every tensor that may cross the link, and how quickly."""

from __future__ import annotations

import time
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple, cast

import numpy as np

from calibration.codec_ranges import open_encoders
from calibration.codings import CodecCost
from engines.codecs import Codec, codec_by_id, is_stream
from engines.codecs.base import StreamCodec
from engines.errors import CodecError
from engines.manifest import Manifest
from engines.program import Program
from engines.tensors import Array, TensorSpec

__all__ = ["crossing_tensors", "measure_codecs", "tensor_samples"]

_FEWEST_RUNS = 3
_MOST_RUNS = 15
_LEAST_S = 1e-9
"""Seconds that a run takes at least: no codec is free of charge."""


def crossing_tensors(manifest: Manifest) -> Tuple[TensorSpec, ...]:
    """Return every tensor of a frontier or of results that may cross the link."""
    names: List[str] = []
    for cut in manifest.cuts[:-1]:
        if not cut.refused:
            names += [*cut.tensors, *cut.results]
    return manifest.specs(tuple(sorted(set(names))))


def tensor_samples(
    program: Program, samples: Sequence[Mapping[str, Array]]
) -> Dict[str, List[Array]]:
    """Run samples through a wholly loaded program and return what may cross the link of each.

    Args:
        program: The loaded bundle.
        samples: The model's inputs by name.
    """
    specs = crossing_tensors(program.bundle.manifest)
    found: Dict[str, List[Array]] = {spec.name: [] for spec in specs}
    for sample in samples:
        env: Dict[str, Array] = dict(sample)
        for segment in program.bundle.manifest.segments:
            env.update(program.run_segment(segment.index, env))
        for name, arrays in found.items():
            arrays.append(np.array(env[name], order="C"))
    return found


def measure_codecs(
    program: Program,
    samples: Sequence[Mapping[str, Array]],
    *,
    budget_s: float = 20.0,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Tuple[CodecCost, ...]:
    """Time every codec that is installed on every tensor that it applies to.

    Those by a calibrated range are tried where the bundle has one of the tensor. Codecs that refer
    to what was sent before get the samples as one sequence, their first as one that refers to
    nothing.

    Codec ``identity`` is no work, so it is not among them; nor is a codec that cannot encode one
    of the samples.

    Args:
        program: The loaded bundle, all of it; nothing else should use the device meanwhile.
        samples: The model's inputs, as like those of its use as can be had: noise says nothing.
        budget_s: Seconds for all of it; every codec and tensor gets an equal share, but no fewer
            than 3 runs.
        progress: Called with (pairs done, pairs in all).

    Raises:
        SplitError: The bundle's calibrated ranges cannot be used.
    """
    found = tensor_samples(program, samples)
    encoders = open_encoders(program.bundle)
    pairs = [
        (spec, codec)
        for spec in crossing_tensors(program.bundle.manifest)
        for name in encoders.names(spec.name)
        for codec in (encoders.open(name, spec.name),)
        if name != "identity" and codec is not None and codec.applies(spec) and spec.nbytes
    ]
    costs: List[CodecCost] = []
    for done, (spec, codec) in enumerate(pairs, 1):
        cost = _measure(spec, codec, found[spec.name], budget_s / len(pairs))
        if cost is not None:
            costs.append(cost)
        if progress is not None:
            progress(done, len(pairs))
    return tuple(costs)


def _measure(
    spec: TensorSpec, codec: Codec, arrays: Sequence[Array], budget_s: float
) -> Optional[CodecCost]:
    scratch = np.empty(codec.max_encoded_bytes(spec), np.uint8).data
    out = np.empty(spec.shape, spec.dtype)
    encodes, decodes, sizes = [], [], []
    started = time.perf_counter()
    for run in range(_MOST_RUNS):
        encoder, decoder = _ends(codec)
        for array in arrays:
            begin = time.perf_counter()
            try:
                coded = encoder.encode(array, scratch)
            except CodecError:
                return None
            between = time.perf_counter()
            decoder.decode(coded, out)
            end = time.perf_counter()
            if run or len(arrays) * 2 > _MOST_RUNS:  # the first finds cold caches
                encodes.append(between - begin)
                decodes.append(end - between)
            sizes.append(coded.nbytes)
        if end - started > budget_s and len(encodes) >= _FEWEST_RUNS:
            break
    return CodecCost(
        tensor=spec.name,
        codec=codec.name,
        ratio=float(np.mean(sizes)) / spec.nbytes,
        encode_s=max(float(np.median(encodes)), _LEAST_S) / spec.nbytes,
        decode_s=max(float(np.median(decodes)), _LEAST_S) / spec.nbytes,
    )


def _ends(codec: Codec) -> Tuple[Codec, Codec]:
    """Return what encodes and what decodes a sequence."""
    if not is_stream(codec.name):
        return codec, codec_by_id(codec.wire_id)
    opened = cast(StreamCodec, codec)
    return opened.stream(), opened.stream()
