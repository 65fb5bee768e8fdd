"""``split-bundle verify --data``: the error of every cut, codec and precision over some data."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, TypeVar

import click
import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from calibration.error_budget import measure_quality, usable_codecs
from calibration.metrics import METRICS, open_metric
from calibration.quality import QualityTable, quality_file, write_quality
from calibration.quality_page import Line, lines_of, render_page
from calibration.ranges import stored_ranges
from calibration.samples import open_samples
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.console import print_json, progress_bar
from engines.errors import SplitError
from engines.manifest import Manifest
from engines.program import Program
from engines.tensors import Array

__all__ = ["QualityOptions", "quality_options", "verify_quality"]

F = TypeVar("F", bound=Callable[..., Any])

_EXACT = ("float32", "float64", "fp32")
"""Precisions of a model as it was given."""

Measured = Tuple[Manifest, QualityTable]


class QualityOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What ``verify`` takes for data of the user's.

    Attributes:
        data: DATA; none for the bundle's own parity vectors.
        metric: Name of the metric.
        limit: Largest mean error.
        reference: Bundle of the float32 model.
        also: Bundles of the same model in other precisions.
        codec: Codecs to try; all by default.
        cut: Ids of cuts; all by default.
        samples: Most samples to use.
        page: Where the page goes.
    """

    data: Optional[str] = None
    metric: str = "cosine"
    limit: Optional[float] = None
    reference: Optional[str] = None
    also: Tuple[str, ...] = ()
    codec: Tuple[str, ...] = ()
    cut: Tuple[str, ...] = ()
    samples: Optional[int] = None
    page: Optional[str] = None

    def check_alone(self) -> None:
        """Refuse options that mean nothing without data.

        Raises:
            SplitError: One is given.
        """
        given = [
            f"--{name}"
            for name, default in msgspec.structs.asdict(QualityOptions()).items()
            if getattr(self, name) != default
        ]
        if given:
            raise SplitError(f"{', '.join(given)}: expected with --data, given without it")


def quality_options(function: F) -> F:
    """Give a command the options of :class:`QualityOptions`."""
    for option in reversed(
        (
            click.option("--data", metavar="DATA", help="Inputs to measure errors over."),
            click.option(
                "--metric",
                default="cosine",
                show_default=True,
                metavar="NAME",
                help=f"{', '.join(METRICS)}, or module:function of the outputs given and "
                "expected, by name, that returns an error.",
            ),
            click.option("--limit", type=click.FloatRange(0), help="Largest mean error."),
            click.option(
                "--reference",
                metavar="BUNDLE32",
                help="Bundle of the float32 model; needed where neither BUNDLE nor --also is one.",
            ),
            click.option(
                "--also",
                multiple=True,
                metavar="BUNDLE",
                help="The same model in another precision, in the same table. Repeatable.",
            ),
            click.option("--codec", multiple=True, help="Only this codec. Repeatable."),
            click.option("--cut", multiple=True, metavar="ID", help="Only this cut. Repeatable."),
            click.option("--samples", type=click.IntRange(1), metavar="N", help="The first N."),
            click.option(
                "--page",
                type=click.Path(dir_okay=False),
                help="Default: quality-METRIC.html in the device folder.",
            ),
        )
    ):
        function = option(function)
    return function


def verify_quality(
    bundle: Bundle, options: QualityOptions, *, backend: str, as_json: bool
) -> bool:
    """Measure, print, and write tables and page. Returns whether all errors are within the limit.

    Raises:
        SplitError: The data, the metric, a codec or a bundle cannot be used.
    """
    metric = open_metric(options.metric)
    bundles = [bundle, *(Bundle.open(path) for path in options.also)]
    calibrated = any(stored_ranges(one) is not None for one in bundles)
    codecs, missing = usable_codecs(options.codec, calibrated=calibrated)
    reference = _reference(bundles, options.reference)
    _check_alike(reference, bundles)
    for line in missing:
        click.echo(line, err=True)
    measured: List[Measured] = []
    with contextlib.ExitStack() as stack:
        exact = stack.enter_context(Program(reference, open_backend("ort"), fuse=False))

        def expected(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            return exact.outputs(exact.run(inputs, 0, exact.last))

        for opened in bundles:
            manifest = opened.manifest
            assert options.data is not None, "no data"
            samples = open_samples(options.data, manifest.inputs, manifest.images)
            if options.samples is not None:
                samples = samples.first(options.samples)
            title = f"measuring {manifest.name} in {manifest.precision}"
            known = {cut.id for cut in manifest.cuts}
            with Program(opened, open_backend(backend), fuse=False) as program, progress_bar(
                title, samples.size
            ) as advance:
                table = measure_quality(
                    program,
                    expected,
                    samples,
                    metric,
                    name=options.metric,
                    reference_digest=reference.digest,
                    codecs=codecs,
                    cuts=_cuts_of(options.cut, known, first=opened is bundle),
                    progress=_advancing(advance),
                )
            if not options.cut and not options.codec:  # a part would hide what is not in it
                write_quality(quality_file(opened, options.metric), table)
            measured.append((manifest, table))
    lines = lines_of(measured, options.limit)
    page = _write_page(bundle, measured, options)
    if as_json:
        print_json(_record(bundle, measured, lines, options))
    else:
        _print(lines, measured[0][1], options, page)
    return not any(line.over for line in lines)


def _reference(bundles: List[Bundle], named: Optional[str]) -> Bundle:
    if named is not None:
        found = Bundle.open(named)
        if found.manifest.precision not in _EXACT:
            raise SplitError(
                f"--reference {named}: expected a bundle in float32, given one in "
                f"{found.manifest.precision}; compile the model without --precision"
            )
        return found
    for bundle in bundles:
        if bundle.manifest.precision in _EXACT:
            return bundle
    raise SplitError(
        f"{bundles[0].folder}: computes in {bundles[0].manifest.precision}: expected the float32 "
        "model to compare with, given none; compile it without --precision and name it by "
        "--reference BUNDLE32"
    )


def _check_alike(reference: Bundle, bundles: List[Bundle]) -> None:
    """Refuse bundles that take or give something else than the reference."""
    wanted = (reference.manifest.inputs, reference.manifest.outputs)
    for bundle in bundles:
        given = (bundle.manifest.inputs, bundle.manifest.outputs)
        if given != wanted:
            ends = ["; ".join(str(spec) for spec in (*a, *b)) for a, b in (wanted, given)]
            raise SplitError(
                f"{bundle.folder}: expected the model of {reference.folder} ({ends[0]}), given "
                f"another ({ends[1]}); compile both from the same model and inputs"
            )


def _advancing(advance: Callable[[int, int], None]) -> Callable[[int, Optional[int]], None]:
    return lambda done, total: advance(done, total or done)


def _cuts_of(
    cuts: Tuple[str, ...], known: "set[str]", *, first: bool
) -> Optional[Tuple[str, ...]]:
    """Return the cuts to measure; those that only another bundle has are no error of this one."""
    if not cuts:
        return None
    return cuts if first else tuple(cut for cut in cuts if cut in known)


def _write_page(
    bundle: Bundle, measured: List[Measured], options: QualityOptions
) -> Optional[Path]:
    path = quality_file(bundle, options.metric).with_suffix(".html")
    path = path if options.page is None else Path(options.page)
    try:
        page = render_page(measured, options.limit)
    except SplitError as exc:  # a robot has no packages for pictures
        click.echo(f"no page: {exc}", err=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _record(
    bundle: Bundle, measured: List[Measured], lines: List[Line], options: QualityOptions
) -> Dict[str, Any]:
    first = measured[0][1]
    return {
        "bundle": bundle.digest,
        "reference": first.reference,
        "metric": options.metric,
        "limit": options.limit,
        "data": first.data,
        "samples": first.samples,
        "ok": not any(line.over for line in lines),
        "rows": [
            {
                "precision": line.precision,
                **msgspec.to_builtins(line.quality),
                "best": line.best,
                "ok": not line.over,
            }
            for line in lines
        ],
    }


def _print(
    lines: List[Line], first: QualityTable, options: QualityOptions, page: Optional[Path]
) -> None:
    table = Table(box=SIMPLE)
    for title in ("in", "cut", "codec", "bytes", options.metric, "worst", ""):
        table.add_column(title, no_wrap=True)
    table.add_column("after", no_wrap=True, overflow="ellipsis")
    for line in lines:
        row = line.quality
        marks = " ".join(["best"] * line.best + ["over"] * line.over)
        table.add_row(
            line.precision,
            row.cut,
            row.codec,
            f"{row.bytes:.0f}",
            f"{row.error:.2g}",
            f"{row.largest:.2g}",
            marks,
            line.after,
        )
    Console().print(table)
    over = sum(1 for line in lines if line.over)
    verdict = "no limit" if options.limit is None else f"{over} above the limit {options.limit:g}"
    click.echo(f"{len(lines)} rows over {first.samples} samples, {verdict}")
    if page is not None:
        click.echo(f"written to {page}")
