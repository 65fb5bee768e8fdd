"""``quality-<metric>.html``: bytes against error, for every cut, codec and precision; one file.

Needs the packages of the extra ``compile`` (Jinja2, Matplotlib), which are imported here only.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from calibration.error_budget import LOCAL, pareto
from calibration.quality import CodecQuality, QualityTable
from engines.errors import SplitError
from engines.manifest import Manifest

__all__ = ["Line", "lines_of", "quality_figure", "quality_row", "render_page"]

_TEMPLATE = Path(__file__).with_name("quality.html.j2")

_FRONT = "#c53030"


class Line(NamedTuple):
    """One row of the table.

    Attributes:
        precision: What the bundle computes in.
        after: Where the cut is, for people.
        quality: What was measured.
        best: Whether nothing has both fewer bytes and less error.
        over: Whether the error is above the limit.
    """

    precision: str
    after: str
    quality: CodecQuality
    best: bool
    over: bool


def lines_of(
    tables: "Sequence[tuple[Manifest, QualityTable]]", limit: Optional[float] = None
) -> List[Line]:
    """Return the rows of all tables, with the Pareto front of bytes and error over all of them.

    Where nothing crosses, the robot computes everything: that is on no front.
    """
    rows = [(manifest, table, row) for manifest, table in tables for row in table.rows]
    places = [place for place, (_, _, row) in enumerate(rows) if row.codec != LOCAL]
    front = {places[i] for i in pareto([(rows[p][2].bytes, rows[p][2].error) for p in places])}
    return [
        Line(
            precision=table.precision,
            after=manifest.cut(row.cut).after or "the input",
            quality=row,
            best=place in front,
            over=limit is not None and row.error > limit,
        )
        for place, (manifest, table, row) in enumerate(rows)
    ]


def render_page(
    tables: "Sequence[tuple[Manifest, QualityTable]]", limit: Optional[float] = None
) -> str:
    """Return the page.

    Raises:
        SplitError: A package is missing.
    """
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as exc:
        raise SplitError(
            f"the page needs {exc.name}, which is missing; pip install 'splitrt[compile]'"
        ) from exc
    lines = lines_of(tables, limit)
    manifest, table = tables[0]
    with mpl.rc_context({"svg.hashsalt": "splitrt", "font.size": 10, "svg.fonttype": "none"}):
        figure = quality_figure(lines, table.metric, limit)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text: str = page.render(
        name=manifest.name,
        metric=table.metric,
        samples=table.samples,
        data=table.data[:12],
        reference=table.reference[:12],
        limit=limit,
        over=sum(1 for line in lines if line.over),
        lines=[quality_row(line) for line in lines],
        svg=jinja2.filters.Markup(figure),
    )
    return text


def quality_row(line: Line) -> Dict[str, Any]:
    """Return a row as text."""
    row = line.quality
    return {
        "precision": line.precision,
        "cut": row.cut,
        "codec": row.codec,
        "bytes": f"{row.bytes:,.0f}",
        "error": f"{row.error:.3g}",
        "largest": f"{row.largest:.3g}",
        "after": line.after,
        "best": line.best,
        "over": line.over,
    }


def quality_figure(lines: Sequence[Line], metric: str, limit: Optional[float] = None) -> str:
    """Draw every row as a point, one colour a codec and one mark a precision; as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    crossing = [line for line in lines if line.quality.codec != LOCAL]
    codecs = sorted({line.quality.codec for line in crossing})
    precisions = sorted({line.precision for line in crossing})
    for line in crossing:
        row = line.quality
        axes.scatter(
            max(row.bytes, 1) / 1e3,
            row.error,
            color=f"C{codecs.index(row.codec) % 10}",
            marker="os^Dv"[precisions.index(line.precision) % 5],
            s=22,
            zorder=3,
        )
    front = sorted((line.quality.bytes, line.quality.error) for line in crossing if line.best)
    if front:
        axes.plot(
            [max(size, 1) / 1e3 for size, _ in front],
            [error for _, error in front],
            drawstyle="steps-post",
            color=_FRONT,
            linewidth=1.2,
        )
    if limit is not None:
        axes.axhline(limit, color="#4a5568", linestyle="--", linewidth=1)
    errors = [line.quality.error for line in crossing if line.quality.error > 0]
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=min([*errors, 1e-1]), linscale=0.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("kB across the cut")
    axes.set_ylabel(f"error by {metric}")
    axes.grid(visible=True, which="major", color="#e2e8f0", linewidth=0.6)
    for place, codec in enumerate(codecs):
        axes.scatter([], [], color=f"C{place % 10}", label=codec)
    for place, precision in enumerate(precisions):
        axes.scatter([], [], color="#718096", marker="os^Dv"[place % 5], label=precision)
    axes.plot([], [], color=_FRONT, label="Pareto front")
    figure.legend(frameon=False, fontsize=8, ncols=5, loc="outside upper left")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
