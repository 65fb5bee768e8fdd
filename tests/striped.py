"""Manifests with stripes, made by hand: chains of segments of which the first ones are striped.

    x -> segment 0 -> t1 -> segment 1 -> t2 -> ... -> y

There are no files behind them: nothing here can be run, only planned and predicted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from engines.manifest import SPEC, Cut, FileEntry, Manifest, Parity, Segment
from engines.stripes import (
    RowsOf,
    RowSplit,
    StripedCut,
    StripedSegment,
    StripeEnd,
    Striping,
)
from engines.tensors import TensorSpec


@dataclass(frozen=True)
class Layer:
    """A striped segment's output: bytes a row, rows of the base for each of its own, lag."""

    row_bytes: int
    den: int = 1
    lag: int = 0


def chain(
    layers: list[Layer],
    *,
    rows: int = 64,
    input_row_bytes: int = 100,
    whole: list[int] | None = None,
    halo: int = 4,
    extra: float = 2.0,
    row_split: bool = False,
) -> Manifest:
    """Return the manifest of a chain.

    Args:
        layers: Of the striped segments.
        rows: Rows of the input.
        input_row_bytes: Bytes of a row of the input.
        whole: Bytes of the outputs of the segments that follow, not striped; the last is the
            model's output. Without them, it is that of the last striped segment.
        halo: Of every striped cut but the first.
        extra: Rows that the server computes beside its stripes, of every segment.
        row_split: Whether the model's output, then a striped one, can be divided by rows.
    """
    whole = [10] if whole is None else whole
    specs = [TensorSpec("x", "uint8", (rows, input_row_bytes))]
    placed = {"x": RowsOf(axis=0, rows=rows, num=1, den=1, lag=0)}
    for place, layer in enumerate(layers):
        name = f"t{place + 1}"
        specs.append(TensorSpec(name, "uint8", (rows // layer.den, layer.row_bytes)))
        placed[name] = RowsOf(axis=0, rows=rows // layer.den, num=1, den=layer.den, lag=layer.lag)
    specs += [TensorSpec(f"w{place}", "uint8", (size,)) for place, size in enumerate(whole)]
    count = len(specs) - 1
    striped = []
    for place, layer in enumerate(layers):
        striped.append(
            StripedSegment(
                index=place,
                first=f"s{place}f",
                middle=f"s{place}m",
                last=f"s{place}l",
                band=layer.den,
                least=(layer.lag + 1) * layer.den,
                most=rows - layer.den,
                carries=(),
            )
        )
    cuts = [StripedCut(cut=0, band=1, least=1, most=rows - 1, lag=0, halo=0)]
    for place, layer in enumerate(layers[: count - 1]):
        cuts.append(
            StripedCut(
                cut=place + 1,
                band=layer.den,
                least=(layer.lag + 1) * layer.den,
                most=rows - layer.den,
                lag=layer.lag * layer.den,
                halo=halo,
                entry=f"c{place}e",
                rest=f"c{place}r",
                entry_least=(layer.lag + 1) * layer.den + halo,
                extra=(extra,) * (place + 1),
            )
        )
    splits = ()
    if row_split:
        assert not whole
        end = layers[-1]
        splits = (
            RowSplit(
                cut=0,
                rows=rows,
                band=end.den,
                least=(end.lag + 1) * end.den + halo,
                most=rows - end.den,
                lag=end.lag * end.den,
                halo=halo,
                top="r0t",
                last="r0l",
                bottom="r0b",
                tensors={"x": placed["x"], specs[-1].name: placed[specs[-1].name]},
                starts={"x": halo},
                carries=(),
                mean_lag=end.lag * end.den / 2,
                mean_extra=halo / 2,
            ),
        )
    striping = Striping(
        rows=rows,
        tensors=placed,
        segments=tuple(striped),
        cuts=tuple(cuts),
        row_splits=splits,
        ended_by=(StripeEnd("pool", "GlobalAveragePool", "needs every row"),),
    )
    return _manifest(specs, striping)


def serial(sizes: list[int], output: int = 0) -> Manifest:
    """Return the manifest of a chain without stripes.

    Args:
        sizes: Bytes of what crosses each cut but the last, the input first.
        output: Bytes of the output.
    """
    specs = [TensorSpec(f"t{place}", "uint8", (size,)) for place, size in enumerate(sizes)]
    return _manifest([*specs, TensorSpec("y", "uint8", (output,))], None)


def _manifest(specs: list[TensorSpec], striping: Striping | None) -> Manifest:
    count = len(specs) - 1
    names = [spec.name for spec in specs]
    cuts = tuple(
        Cut(
            id=hashlib.sha256(name.encode()).hexdigest()[:8],
            index=place,
            tensors=(name,),
            bytes=specs[place].nbytes,
            results=(names[-1],) if place < count else (),
            result_bytes=specs[-1].nbytes,
            flops_robot=100 * place,
            flops_server=100 * (count - place),
            after=f"layer{place}" if place else "",
            why=("every boundary",),
            head=None,
            tail=None,
            robot_segments=tuple(range(place)),
        )
        for place, name in enumerate(names)
    )
    files = [f"segment{place}" for place in range(count)]
    named = [*files, "graph", "parity.npz", *(striping.files() if striping else [])]
    return Manifest(
        spec=SPEC,
        name="chain",
        model_digest="0" * 64,
        producer={},
        opset=18,
        precision="fp32",
        graph="graph",
        weights="",
        inputs=(specs[0],),
        outputs=(specs[-1],),
        images={},
        tensors={spec.name: spec for spec in specs},
        cuts=cuts,
        segments=tuple(
            Segment(
                index=place,
                file=files[place],
                inputs=(names[place],),
                outputs=(names[place + 1],),
                operators=("Conv",),
                flops=100,
            )
            for place in range(count)
        ),
        refused=(),
        estimates={},
        targets={},
        parity=Parity(
            file="parity.npz", seed=0, tolerance={}, max_error=0.0, compared_with="onnx"
        ),
        files={name: FileEntry(bytes=0, sha256="") for name in named},
        striping=striping,
    )
