"""``runtime explain``: why a choice is made."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import click
from rich.console import Console
from rich.table import Table

from calibration.codings import CodecCost, CodecOffer, Codings
from calibration.energy import StatePower, parse_power
from calibration.latency_table import read_table
from calibration.objectives import (
    OBJECTIVE_FORMS,
    Constraints,
    check_constraints,
    parse_objective,
)
from calibration.prepared import PreparedPlans
from calibration.segment_times import SegmentTimes, estimated_times
from engines.bundle import Bundle
from engines.codecs import CODECS
from engines.console import command_options, print_json
from engines.errors import SplitError
from runtime.decision import Situation
from runtime.explain import Candidate, Explanation, SpreadLink, explain

__all__ = ["explain_command"]

_SHOWN = 3
"""Candidates of each mode that are shown without --all: plans of one mode are much alike."""

_NAME_WIDTH = 40
_WIDTH = 120
"""Columns of a table's names, and of the whole where the terminal has fewer."""

_GOODPUT = re.compile(r"(?P<low>\d+(\.\d+)?)(-(?P<high>\d+(\.\d+)?))?")


@click.command("explain")
@click.argument("bundle")
@click.option(
    "--goodput",
    required=True,
    metavar="MBPS",
    help="Of the link in Mbps; 20-60: it is between these with a probability of 80%.",
)
@click.option("--rtt", "rtt_ms", type=click.FloatRange(0), default=2.0, show_default=True,
              metavar="MS", help="Round trip in ms.")  # fmt: skip
@click.option("--queue", "queue_ms", type=click.FloatRange(0), default=0.0, show_default=True,
              metavar="MS", help="Expected wait at the server in ms.")  # fmt: skip
@click.option("--objective", default="latency", show_default=True, help=OBJECTIVE_FORMS)
@click.option("--keep-local", metavar="CUT", help="Nothing before this cut leaves the robot.")
@click.option("--robot-table", metavar="FILE", help="The robot's latency-*.json of this bundle.")
@click.option("--server-table", metavar="FILE", help="The server's.")
@click.option("--power", default="", metavar="compute=W,comm=W,idle=W", help="Robot's power.")
@click.option("--all", "everything", is_flag=True, help=f"Not only the first {_SHOWN} of a mode.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every candidate.")
@command_options
def explain_command(
    bundle: str,
    goodput: str,
    rtt_ms: float,
    queue_ms: float,
    objective: str,
    keep_local: Optional[str],
    robot_table: Optional[str],
    server_table: Optional[str],
    power: str,
    everything: bool,
    as_json: bool,
) -> None:
    """Print what BUNDLE can do on a link, what each takes, what is chosen and why not the others.

    Times are those that the bundle was compiled with, unless tables are given. Codecs are among
    the choices where the robot's table has their costs; both ends are taken to have them all.
    """
    wanted = parse_objective(objective)
    low, high = _goodputs(goodput)
    opened = Bundle.open(bundle)
    constraints = Constraints(keep_local)
    check_constraints(constraints, opened.manifest)
    robot, robot_from, codecs = _times(opened, "robot", robot_table)
    server, server_from, there = _times(opened, "server", server_table)
    offer = CodecOffer(
        usable=tuple(name for name, _ in CODECS.values()), robot=codecs, server=there
    )
    plans = PreparedPlans(
        opened.manifest,
        robot,
        server,
        parse_power(power) if power else StatePower(),
        codings=Codings(opened.manifest, offer) if codecs else None,
    )
    link = SpreadLink(low, high, rtt_ms / 1e3)
    found = explain(Situation(plans, link, queue_ms / 1e3, wanted, constraints))
    if as_json:
        print_json(
            {
                "bundle": opened.digest,
                "objective": str(wanted),
                "goodput_mbps": [low / 1e6, high / 1e6],
                "rtt_ms": rtt_ms,
                "queue_ms": queue_ms,
                "robot": robot_from,
                "server": server_from,
                "rule": found.rule,
                "candidates": [candidate.record() for candidate in found.candidates],
                "selectors": found.others,
                "bound_ms": None if found.bound is None else _rounded_ms(found.bound.latency_s),
                "hedge_ms": None if found.bound is None else _rounded_ms(found.bound.hedge_s),
            }
        )
        return
    click.echo(f"objective {wanted} at {goodput} Mbps, round trip {rtt_ms:g} ms")
    click.echo(f"robot {robot_from}; server {server_from}")
    _print(found, len(found.candidates) if everything else _SHOWN)


def _print(found: Explanation, most: int) -> None:
    table = Table("")
    table.add_column("candidate", overflow="fold", max_width=_NAME_WIDTH)
    for title in ("ms", "robot", "link", "server", "J"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("why")
    of_mode: "Counter[str]" = Counter()
    for candidate in found.candidates:
        of_mode[candidate.predicted.mode] += 1
        if of_mode[candidate.predicted.mode] <= most:
            table.add_row(*_row(candidate))
    Console(width=max(_WIDTH, Console().width)).print(table)
    left = len(found.candidates) - table.row_count
    if left:
        click.echo(f"{left} more of {len(found.candidates)}: --all shows them")
    if found.bound is not None:
        hedge_ms = _rounded_ms(found.bound.hedge_s)
        begins = "" if hedge_ms is None else f"; the robot begins itself after {hedge_ms:.2f} ms"
        click.echo(f"promised within {found.bound.latency_s * 1e3:.2f} ms{begins}")
    for name, choice in found.others.items():
        click.echo(f"{name:13} {choice}")


def _rounded_ms(seconds: Optional[float]) -> Optional[float]:
    return None if seconds is None else round(seconds * 1e3, 3)


def _row(candidate: Candidate) -> Tuple[str, ...]:
    record: Dict[str, Any] = candidate.record()
    cells: List[str] = ["*" if candidate.chosen else "", candidate.name]
    for key in ("latency_ms", "robot_ms", "link_ms", "server_ms"):
        cells.append("-" if record[key] is None else f"{record[key]:.2f}")
    cells.append("-" if record["energy_j"] is None else f"{record['energy_j']:.4f}")
    return (*cells, candidate.reason)


def _goodputs(text: str) -> Tuple[float, float]:
    """Read ``40`` or ``20-60`` in Mbps; returns bits per second."""
    match = _GOODPUT.fullmatch(text)
    if match is not None:
        low = float(match["low"]) * 1e6
        high = low if match["high"] is None else float(match["high"]) * 1e6
        if 0 < low <= high:
            return low, high
    raise SplitError(f"--goodput {text!r}: expected Mbps above 0, as in 40, or as in 20-60")


def _times(
    opened: Bundle, side: str, path: Optional[str]
) -> Tuple[SegmentTimes, str, Tuple[CodecCost, ...]]:
    """Return one side's times, where they are from, and what codecs cost there."""
    if path is not None:
        table = read_table(Path(path))
        if table.bundle != opened.digest:
            raise SplitError(
                f"{path}: expected a table of bundle {opened.digest[:12]}, given one of "
                f"{table.bundle[:12]}; run `runtime profile` on this bundle"
            )
        times = estimated_times(opened.manifest, table.times())
        return times, str(table.fingerprint), table.codecs
    estimate = opened.manifest.estimates.get(side)
    if estimate is None:
        raise SplitError(
            f"bundle {opened.manifest.name!r} has no times of a {side}; give --{side}-table, "
            "which `runtime profile` writes"
        )
    times = estimated_times(opened.manifest, SegmentTimes(estimate.segments_s))
    return times, f"{estimate.device} ({estimate.source})", ()
