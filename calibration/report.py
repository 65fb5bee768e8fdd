"""``report.html``: whether and where a split pays, in words, curves and tables; one file.

The page needs no network: its style is inline and its figures are SVG. Needs the packages of the
extra ``compile`` (Jinja2, Matplotlib), which are imported here only.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import AbstractSet, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from calibration import modes
from calibration.choices import Choices, Stretch, choices, codec_names, mbps, verdict
from calibration.codings import CodecOffer, Codings
from calibration.energy import StatePower
from calibration.latency_table import LatencyTable
from calibration.plans import bounded_plans
from calibration.predictor import CutCosts, cut_costs
from calibration.prepared import PreparedPlans
from calibration.quality import QualityTable
from calibration.quality_page import lines_of, quality_figure, quality_row
from calibration.segment_times import SegmentTimes, estimated_times
from engines.codecs import CODECS
from engines.errors import SplitError
from engines.manifest import Estimate, Manifest
from engines.stripes import MAX_STRIPES, Striping, even_bounds

__all__ = ["RTT_S", "render_report"]

RTT_S = 0.002
"""Round trip assumed where none was measured: a quiet Wi-Fi cell."""

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_ROBOT, _SERVER, _SPLIT, _OTHER = "#b7791f", "#2b6cb0", "#2f855a", "#a0aec0"


def render_report(
    manifest: Manifest,
    *,
    estimates: Optional[Dict[str, Estimate]] = None,
    rtt_s: float = RTT_S,
    power: StatePower = StatePower(),
    tables: Mapping[str, LatencyTable] = MappingProxyType({}),
    quality: Optional[QualityTable] = None,
    admitted: Tuple[Tuple[str, str], ...] = (),
) -> str:
    """Return the page.

    Cuts and plans are prepared as the runtime does: with the codecs that the robot's table has
    the costs of, where there is one.

    Args:
        manifest: The bundle's manifest; its digests are not used.
        estimates: Times of ``robot`` and ``server``; those of the manifest by default.
        rtt_s: Round trip in seconds.
        power: The robot's power by state.
        tables: Measured tables of ``robot`` and ``server``, which count before ``estimates``.
        quality: Errors of codecs, to be shown.
        admitted: Pairs of a cut's id and a lossy codec that may be used there.

    Raises:
        SplitError: The manifest has no estimates, or a package is missing.
    """
    sides = {**(estimates or manifest.estimates), **{k: _measured(t) for k, t in tables.items()}}
    if not {"robot", "server"} <= set(sides):
        raise SplitError(f"bundle {manifest.name!r}: no times of robot and server to report on")
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as exc:
        raise SplitError(
            f"the report needs {exc.name}, which is missing; pip install 'splitrt[compile]'"
        ) from exc
    robot, server = sides["robot"], sides["server"]
    times = (robot.segments_s, server.segments_s)
    robot_times, server_times = (
        estimated_times(
            manifest,
            tables[side].times() if side in tables else SegmentTimes(sides[side].segments_s),
        )
        for side in ("robot", "server")
    )
    codings = _codings(manifest, tables, admitted)
    plans = PreparedPlans(manifest, robot_times, server_times, power, codings=codings)
    latency = choices(manifest, plans, rtt_s=rtt_s)
    energy = choices(manifest, plans, rtt_s=rtt_s, objective="energy")
    costs = cut_costs(manifest, *times)
    verdicts = [verdict(manifest, latency), verdict(manifest, energy)]
    stripes = None
    if manifest.striping is not None:
        latency_modes = modes.mode_choices(plans, rtt_s=rtt_s)
        energy_modes = modes.mode_choices(plans, rtt_s=rtt_s, objective="energy")
        verdicts = [
            *(modes.verdict(manifest, found) for found in (latency_modes, energy_modes)),
            *verdicts,
        ]
        stripes = {
            "latency_rows": _mode_rows(manifest, latency_modes),
            "energy_rows": _mode_rows(manifest, energy_modes),
            **_striping_tables(manifest, manifest.striping),
            "bounded": [],
        }
        if manifest.striping.bounded:
            lossy = [plan for b in manifest.striping.bounded for plan in bounded_plans(b)]
            found = modes.bounded_gains(
                manifest,
                plans,
                PreparedPlans(
                    manifest, robot_times, server_times, power, plans=lossy, codings=codings
                ),
                rtt_s=rtt_s,
            )
            stripes["bounded"] = _bounded_rows(manifest, manifest.striping, found)
            stripes["bounded_text"] = modes.bounded_text(manifest)
    best = {stretch.cut for stretch in latency.stretches + energy.stretches}
    # The same bundle gives the same bytes: names inside of the SVG come from a fixed salt.
    with mpl.rc_context({"svg.hashsalt": "splitrt", "font.size": 10, "svg.fonttype": "none"}):
        figures = {
            "latency_svg": _goodput_figure(manifest, latency, best),
            "energy_svg": _goodput_figure(manifest, energy, best),
            "depth_svg": _depth_figure(costs),
        }
        codecs = None if quality is None else _codec_table(manifest, quality, set(admitted))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text: str = page.render(
        name=manifest.name,
        verdicts=verdicts,
        sides=[_side("robot", robot), _side("server", server)],
        inputs="; ".join(str(spec) for spec in manifest.inputs),
        outputs="; ".join(str(spec) for spec in manifest.outputs),
        weights=_bytes(manifest.files[manifest.weights].bytes) if manifest.weights else "inline",
        max_error=f"{manifest.parity.max_error:.1e}",
        compared_with=manifest.parity.compared_with,
        caveat=_caveat(sides, rtt_s, codings, striped=manifest.striping is not None),
        latency_rows=[_row(manifest, stretch) for stretch in latency.stretches],
        energy_rows=[_row(manifest, stretch) for stretch in energy.stretches],
        cuts=_cut_rows(manifest, costs, best),
        refused=_refused_rows(manifest),
        stripes=stripes,
        codecs=codecs,
        **{name: jinja2.filters.Markup(svg) for name, svg in figures.items()},
    )
    return text


def _measured(table: LatencyTable) -> Estimate:
    return Estimate(
        device=str(table.fingerprint), source="measured", segments_s=table.times().segments_s
    )


def _codings(
    manifest: Manifest, tables: Mapping[str, LatencyTable], admitted: Tuple[Tuple[str, str], ...]
) -> Optional[Codings]:
    """Return what codecs cost, both ends taken to have them all; none where that is not known."""
    robot, server = tables.get("robot"), tables.get("server")
    if robot is None or not robot.codecs:
        return None
    offer = CodecOffer(
        usable=tuple(name for name, _ in CODECS.values()),
        robot=robot.codecs,
        server=() if server is None else server.codecs,
        admitted=admitted,
    )
    return Codings(manifest, offer)


def _codec_table(
    manifest: Manifest, quality: QualityTable, admitted: AbstractSet[Tuple[str, str]]
) -> Dict[str, Any]:
    """Return the picture of bytes against error, and the rows that are on its front."""
    import jinja2

    lines = lines_of([(manifest, quality)])
    shown = [line for line in lines if line.best]
    return {
        "metric": quality.metric,
        "samples": quality.samples,
        "count": len(lines),
        "svg": jinja2.filters.Markup(quality_figure(lines, quality.metric)),
        "rows": [
            {
                **quality_row(line),
                "used": line.quality.lossless
                or (line.quality.cut, line.quality.codec) in admitted,
            }
            for line in sorted(shown, key=lambda line: line.quality.bytes)
        ],
    }


def _caveat(
    sides: Dict[str, Estimate], rtt_s: float, codings: Optional[Codings], *, striped: bool
) -> str:
    guessed = [name for name in ("robot", "server") if sides[name].source == "roofline"]
    plans = "Serial and striped plans" if striped else "Serial plans"
    text = (
        f"{plans}, a round trip of {rtt_s * 1e3:g} ms, a link that carries one direction at "
        "a time. "
    )
    if codings is None:
        text += (
            "Tensors cross as they are (booleans as bits): an image codec would move the "
            "whole frame in fewer bytes, and is the rival to beat. `split-bundle report "
            "--robot-table FILE` counts the codecs that `runtime profile` measured. "
        )
    else:
        lossy = sorted({codec for _, codec in codings.offer.admitted})
        text += (
            "Tensors cross by what codecs are the best there, their work at both ends counted as "
            f"measured{'' if not lossy else ', lossy ones among them: ' + ', '.join(lossy)}. "
        )
    if guessed:
        text += (
            f"Times of the {' and the '.join(guessed)} are estimated from the device's data sheet "
            "(roofline); `runtime profile` measures them, and the runtime decides by what it "
            "measured."
        )
    return text


def _side(name: str, estimate: Estimate) -> Dict[str, str]:
    whole = f"{sum(estimate.segments_s) * 1e3:.2f} ms"
    return {"name": name, "device": estimate.device, "source": estimate.source, "whole": whole}


def _label(manifest: Manifest, index: int) -> str:
    if index == len(manifest.cuts) - 1:
        return "robot alone"
    cut = manifest.cuts[index]
    return f"cut {cut.id}" if cut.robot_segments else "server alone"


def _coded(label: str, codecs: Sequence[str]) -> str:
    return f"{label}, {', '.join(codecs)}" if codecs else label


def _row(manifest: Manifest, stretch: Stretch) -> Dict[str, str]:
    return {
        "range": f"{mbps(stretch.low_bps)} to {mbps(stretch.high_bps)}",
        "best": _coded(_label(manifest, stretch.cut), stretch.codecs),
        "second": _label(manifest, stretch.runner_up),
        "margin": f"{100 * stretch.margin:.1f}%",
        "gain": f"{100 * stretch.gain:.1f}%",
    }


def _cut_rows(manifest: Manifest, costs: CutCosts, best: AbstractSet[int]) -> List[Dict[str, Any]]:
    return [
        {
            "id": cut.id,
            "after": cut.after or "the input",
            "tensors": len(cut.tensors),
            "up": _bytes(int(costs.bytes_up[cut.index])),
            "down": _bytes(int(costs.bytes_down[cut.index])),
            "robot_ms": f"{1e3 * float(costs.head_s[cut.index]):.2f}",
            "server_ms": f"{1e3 * float(costs.tail_s[cut.index]):.2f}",
            "gflop": f"{cut.flops_robot / 1e9:.3f}",
            "why": f"refused: {cut.refused}" if cut.refused else ", ".join(cut.why),
            "best": cut.index in best,
        }
        for cut in manifest.cuts
    ]


def _refused_rows(manifest: Manifest) -> List[Dict[str, Any]]:
    counts = Counter(rejection.reason for rejection in manifest.refused)
    examples = {rejection.reason: rejection for rejection in reversed(manifest.refused)}
    return [
        {
            "reason": reason,
            "count": count,
            "example": f"{examples[reason].after}: {', '.join(examples[reason].nodes[:4])}",
        }
        for reason, count in counts.most_common(20)
    ]


def _mode_rows(manifest: Manifest, found: modes.ModeChoices) -> List[Dict[str, str]]:
    return [
        {
            "range": f"{mbps(stretch.low_bps)} to {mbps(stretch.high_bps)}",
            "best": _coded(
                modes.choice_text(manifest, stretch.choice), codec_names(stretch.choice)
            ),
            "gain": f"{100 * stretch.gain:.1f}%",
            "serial_gain": f"{100 * stretch.serial_gain:.1f}%",
            "at": mbps(stretch.at_bps),
        }
        for stretch in found.stretches
    ]


def _striping_tables(manifest: Manifest, striping: Striping) -> Dict[str, Any]:
    """Say what lag and halo each cut has, and where the stripes end."""
    cuts = [
        {
            "id": manifest.cuts[striped.cut].id,
            "after": manifest.cuts[striped.cut].after or "the input",
            "lag": _rows_of(striped.lag, striping.rows),
            "halo": _rows_of(striped.halo, striping.rows),
            "stripes": _most_stripes(manifest, striping, striped.cut),
            "two_sided": ("no" if striped.entry is None else f"from row {striped.entry_least} on"),
        }
        for striped in striping.cuts
    ]
    splits = [
        {
            "id": manifest.cuts[split.cut].id,
            "after": manifest.cuts[split.cut].after or "the input",
            "lag": _rows_of(split.lag, split.rows),
            "halo": _rows_of(split.halo, split.rows),
            "bounds": f"{split.least} to {split.most} by {split.band}",
        }
        for split in striping.row_splits
    ]
    return {"rows": striping.rows, "cuts": cuts, "splits": splits, "ended_by": striping.ended_by}


def _bounded_rows(
    manifest: Manifest, striping: Striping, found: Sequence[modes.BoundedGain]
) -> List[Dict[str, str]]:
    return [
        {
            "id": manifest.cuts[of.bounded.cut].id,
            "after": manifest.cuts[of.bounded.cut].after,
            "halo": _rows_of(of.bounded.halo, striping.rows),
            "needed": _rows_of(of.bounded.needed, striping.rows),
            "error": f"{of.bounded.error:.2g}",
            "gain": f"{100 * of.gain:.1f}%" if of.gain > 0 else "none",
            "best": modes.choice_text(manifest, of.choice) if of.gain > 0 else "",
            "at": mbps(of.at_bps) if of.gain > 0 else "",
        }
        for of in found
    ]


def _rows_of(rows: int, height: int) -> str:
    return f"{rows} ({100 * rows / height:.0f}%)"


def _most_stripes(manifest: Manifest, striping: Striping, cut: int) -> int:
    band, least, most = striping.limits(manifest.cuts[cut].robot_segments)
    wanted = min(striping.rows // band, MAX_STRIPES)
    return len(even_bounds(striping.rows, wanted, band=band, least=least, most=most))


def _goodput_figure(manifest: Manifest, found: Choices, best: AbstractSet[int]) -> str:
    """Draw latency or energy over goodput: both ends, the cuts that win, the others in grey."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    last = len(manifest.cuts) - 1
    scale, unit = (1e3, "latency, ms") if found.unit == "s" else (1.0, "energy on the robot, J")
    labelled = False
    for index in range(last + 1):
        values = found.costs[index] * scale
        if not np.all(np.isfinite(values)):
            continue
        style: Dict[str, Any] = {"color": _OTHER, "linewidth": 0.8}
        if index == last:
            style = {"color": _ROBOT, "linewidth": 2, "label": "robot alone"}
        elif index == 0:
            style = {"color": _SERVER, "linewidth": 2, "label": "server alone"}
        elif index in best:
            style = {"color": _SPLIT, "linewidth": 1.6, "label": f"cut {manifest.cuts[index].id}"}
        elif not labelled:
            style["label"] = "other cuts"
            labelled = True
        axes.plot(found.goodputs_bps / 1e6, values, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("goodput, Mbps")
    axes.set_ylabel(unit)
    axes.grid(visible=True, which="major", color="#e2e8f0", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _depth_figure(costs: CutCosts) -> str:
    """Draw the bytes that cross each cut over the share of the robot's time before it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    total = float(costs.head_s[-1]) or 1.0
    depth = 100 * costs.head_s[:-1] / total
    up = np.maximum(costs.bytes_up[:-1], 1) / 1e3
    axes.vlines(depth, 0.001, up, color=_OTHER, linewidth=1)
    axes.scatter(depth, up, color=_SERVER, s=18, zorder=3, label="crosses the cut")
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(0.1, float(up.min()) / 3))
    axes.set_xlabel("share of the robot's time before the cut, %")
    axes.set_ylabel("kB")
    server = axes.twinx()
    server.plot(depth, 1e3 * costs.tail_s[:-1], color=_SPLIT, linewidth=1.4, label="server, ms")
    server.plot(depth, 1e3 * costs.head_s[:-1], color=_ROBOT, linewidth=1.4, label="robot, ms")
    server.set_ylabel("ms")
    axes.grid(visible=True, which="major", color="#e2e8f0", linewidth=0.6)
    handles = [*axes.get_legend_handles_labels()[0], *server.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="outside upper left")
    return _svg(figure)


def _svg(figure: Any) -> str:
    """Return a figure as SVG without the XML prologue, for use inside of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _bytes(size: int) -> str:
    for limit, unit in ((1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.1f} {unit}"
    return f"{size} B"
