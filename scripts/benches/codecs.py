"""Codecs on one core: throughput beside a copy of the memory, and up to which link rate they pay.

A codec pays while the bytes that it saves take longer on the link than its coding at both ends.
"""

from __future__ import annotations

import numpy as np
from benches.row import Row, medians
from benches.workloads import demo_bundle
from record_activations import sample_inputs

from calibration.measure_codecs import tensor_samples
from engines.backend import BackendOptions, open_backend
from engines.codecs import codec_by_id, codec_names_here, default_codec, open_codec
from engines.errors import CodecError
from engines.program import Program
from engines.tensors import Array, TensorSpec

OCCUPIED = 0.05


def run() -> list[Row]:
    """Time every codec on a photograph, an activation, an occupancy grid and a label map."""
    rows = []
    for what, array in _tensors().items():
        spec = TensorSpec("t", array.dtype.name, array.shape)
        for name in codec_names_here():
            codec = open_codec(name)
            if codec.applies(spec) and codec is not default_codec(spec):
                row = _row(what, spec, array, name)
                if row is not None:
                    rows.append(row)
    return rows


def _row(what: str, spec: TensorSpec, array: Array, name: str) -> Row | None:
    codec, decoder = open_codec(name), codec_by_id(open_codec(name).wire_id)
    scratch = np.empty(codec.max_encoded_bytes(spec), np.uint8).data
    out, copy = np.empty_like(array), np.empty_like(array)
    try:
        coded = codec.encode(array, scratch)
    except CodecError:
        return None
    encode_s, decode_s, copy_s = medians(
        lambda: codec.encode(array, scratch),
        lambda: decoder.decode(coded, out),
        lambda: np.copyto(copy, array),
        runs=15,
    )
    usual = default_codec(spec).max_encoded_bytes(spec)
    pays_mbps = 8e-6 * (usual - coded.nbytes) / (encode_s + decode_s)
    kind = "lossless" if codec.lossless else "lossy"
    pays = f"pays up to {pays_mbps:.0f} Mbps" if pays_mbps > 0 else "never pays"
    return Row(
        "codecs",
        f"{what}: {name}, {kind}, {coded.nbytes} of {usual} bytes, {pays}",
        (encode_s + decode_s) * 1e3,
        "ms",
        f"memcpy {copy_s * 1e3:.3f} ms",
        (encode_s + decode_s) / copy_s,
    )


def _tensors() -> dict[str, Array]:
    bundle = demo_bundle()
    with Program(bundle, open_backend("ort", BackendOptions(threads=1))) as program:
        found = tensor_samples(program, [sample_inputs(bundle.manifest)])
    (frame,) = bundle.manifest.cuts[0].tensors
    first = next(cut for cut in bundle.manifest.cuts if cut.robot_segments)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat(rng.integers(0, 20, (1, 32, 32), np.uint8), 8, 1), 8, 2)
    return {
        "photograph": found[frame][0],
        f"activation {first.id}": found[first.tensors[0]][0],
        "occupancy grid": rng.random((1, 64, 32, 256)) < OCCUPIED,
        "label map": labels,
    }
