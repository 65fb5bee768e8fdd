"""How `runtime infer` tells what happened: JSON lines, and lines or a live table for people."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, TextIO, Union, cast

import click
import numpy as np

from engines.errors import SourceError, SplitError, UnansweredError
from runtime.live import LiveTable
from runtime.recording import Recorder
from runtime.result import Result
from runtime.sources import Source
from runtime.summary import Summary

__all__ = ["Telling", "read_labels", "result_line", "summary_line"]


class Telling:
    """Tells the results of a run, and what they add up to. A context manager.

    An error that ends the run counts as a failure, and the sums are told all the same.

    Attributes:
        summary: The sums.

    Args:
        sinks: Files of JSON lines.
        title: What runs.
        names: Labels; none for none.
        folder: Where outputs are saved; none for nowhere.
        recorder: Records the run; none for no record.
        people: Whether people are told too, on the standard output: with a live table where that
            is a terminal.
        source: Where the samples come from: what it dropped or could not read is told.
    """

    def __init__(
        self,
        sinks: List[TextIO],
        *,
        title: str,
        names: List[str],
        folder: Optional[Path],
        recorder: Optional[Recorder],
        people: bool,
        source: Optional[Source] = None,
    ) -> None:
        self.summary = Summary()
        self._sinks = sinks
        self._names = names
        self._folder = folder
        self._recorder = recorder
        self._source = source
        self._people = people
        self._live = LiveTable(title, self.summary) if people and sys.stdout.isatty() else None
        self._began_s = time.monotonic()

    def __enter__(self) -> Telling:
        if self._live is not None:
            self._live.open()
        self._began_s = time.monotonic()
        return self

    def __exit__(self, kind: Optional[type], *_: object) -> None:
        if kind is not None and issubclass(kind, SplitError):
            self.summary.failures += 1
        if self._source is not None:
            self.summary.dropped = self._source.dropped
            self.summary.unreadable = self._source.unreadable
        sums = self.summary.record(elapsed_s=time.monotonic() - self._began_s)
        if self._live is not None:
            self._live.close()
        self._write({"summary": sums})
        if self._people:
            click.echo(summary_line(sums))

    def add(self, name: str, result: Union[Result, UnansweredError]) -> None:
        """Tell a sample's result, or why it has none."""
        if isinstance(result, UnansweredError):
            self.summary.failures += 1
            self._write({"error": str(result), "source": name})
            click.echo(f"error: {result}", err=True)
            return
        self.summary.add(result)
        if self._recorder is not None:
            self._recorder.add(result)
        record: Dict[str, Any] = {**result.record(), "source": name}
        if self._names:
            record["label"] = _label_of(result, self._names)
        self._write(record)
        if self._folder is not None:
            path = self._folder / f"{result.seq:06d}.npz"
            np.savez(str(path), **cast(Any, result.outputs))
        if self._live is not None:
            self._live.add(record)
        elif self._people:
            click.echo(result_line(record))

    def _write(self, record: Dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(json.dumps(record) + "\n")
            sink.flush()


def read_labels(path: Optional[str]) -> List[str]:
    """Read names, one a line; none where no file is named.

    Raises:
        SourceError: The file cannot be read.
    """
    if path is None:
        return []
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise SourceError(f"{path}: labels cannot be read: {exc}") from exc


def _label_of(result: Result, names: List[str]) -> str:
    """Return the name of the largest value of the first output."""
    scores = next(iter(result.outputs.values())).reshape(-1)
    best = int(np.argmax(scores))
    return names[best] if best < len(names) else str(best)


def result_line(record: Dict[str, Any]) -> str:
    """Return a result's record as a line for people; in brackets, measured against predicted."""
    label = f"  {record['label']}" if "label" in record else ""
    lossy = " LOSSY" if record["lossy"] else ""
    stripes = f" in {record['stripes']}" if record["stripes"] > 1 else ""
    error = record["prediction_error"]
    predicted = "" if error is None else f" ({100 * error:+.0f}%)"
    rate = ""
    if record["reason"].startswith("highest predicted rate") and record["predicted_hz"]:
        rate = f"  {record['predicted_hz']:.2f} a second expected"
    return (
        f"{record['seq']:5d}  {record['latency_ms']:9.2f} ms{predicted}  "
        f"{record['mode']}{lossy}{stripes} "
        f"{record['plan'] or record['cut']} {record['answered_by']:8}  "
        f"robot {record['robot_ms']:.2f}  link {record['link_ms']:.2f}"
        f"  server {record['server_ms']:.2f} ms  up {record['bytes_up']}  "
        f"{record['energy_j']:.3f} J {record['energy_source']}  {record['source']}{label}{rate}"
    )


def summary_line(summary: Dict[str, Any]) -> str:
    """Return a summary's record as a line for people."""
    who = ", ".join(f"{count} {name}" for name, count in summary["answered_by"].items())
    lossy = f", {summary['lossy']} LOSSY" if summary["lossy"] else ""
    if not summary["count"]:
        return "no inference was run"
    lost = f"; {summary['dropped']} frames dropped" if summary["dropped"] else ""
    if summary["unreadable"]:
        lost += f"; {summary['unreadable']} files unreadable"
    hedged = f", {summary['hedged']} hedged" if summary["hedged"] else ""
    if summary["beyond_bound"]:
        lost += (
            f"; {summary['beyond_bound']} of {summary['promised']} beyond their bound, by "
            f"{summary['most_beyond_ms']:.2f} ms at most"
        )
    rate = "" if summary["rate_hz"] is None else f" {summary['rate_hz']:.2f} a second,"
    ratio = summary["ratio_p50"]
    predicted = "" if ratio is None else f"; measured / predicted p50 {ratio:.3f}"
    return (
        f"{summary['count']} inferences ({who}{lossy}{hedged}), {summary['failures']} failed; "
        f"latency p50 {summary['p50_ms']:.2f}, p95 {summary['p95_ms']:.2f}, "
        f"p99 {summary['p99_ms']:.2f} ms; "
        f"mean energy {summary['mean_energy_j']:.3f} J ({summary['energy_source']});{rate} "
        f"age p50 {summary['age_p50_ms']:.2f} ms{predicted}{lost}"
    )
