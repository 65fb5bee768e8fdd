"""How `runtime infer` tells what happened: lines of JSON, and lines for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, TextIO

import numpy as np

from engines.errors import SourceError
from runtime.result import Result

__all__ = ["label_of", "read_labels", "result_line", "summary_line", "write_record"]


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


def label_of(result: Result, names: List[str]) -> str:
    """Return the name of the largest value of the first output."""
    scores = next(iter(result.outputs.values())).reshape(-1)
    best = int(np.argmax(scores))
    return names[best] if best < len(names) else str(best)


def write_record(sinks: List[TextIO], record: Dict[str, Any]) -> None:
    """Write one JSON line to every sink."""
    for sink in sinks:
        sink.write(json.dumps(record) + "\n")
        sink.flush()


def result_line(record: Dict[str, Any]) -> str:
    """Return a result's record as a line for people; in brackets, measured against predicted."""
    label = f"  {record['label']}" if "label" in record else ""
    stripes = f" in {record['stripes']}" if record["stripes"] > 1 else ""
    error = record["prediction_error"]
    predicted = "" if error is None else f" ({100 * error:+.0f}%)"
    return (
        f"{record['seq']:5d}  {record['latency_ms']:9.2f} ms{predicted}  "
        f"{record['mode']}{stripes} {record['plan'] or record['cut']} {record['answered_by']:8}  "
        f"robot {record['robot_ms']:.2f}  link {record['link_ms']:.2f}"
        f"  server {record['server_ms']:.2f} ms  up {record['bytes_up']}  "
        f"{record['energy_j']:.3f} J  {record['source']}{label}"
    )


def summary_line(summary: Dict[str, Any]) -> str:
    """Return a summary's record as a line for people."""
    who = ", ".join(f"{count} {name}" for name, count in summary["answered_by"].items())
    if not summary["count"]:
        return "no inference was run"
    ratio = summary["ratio_p50"]
    predicted = "" if ratio is None else f"; measured / predicted p50 {ratio:.3f}"
    return (
        f"{summary['count']} inferences ({who}), {summary['failures']} failed; latency p50 "
        f"{summary['p50_ms']:.2f}, p95 {summary['p95_ms']:.2f}, p99 {summary['p99_ms']:.2f} ms; "
        f"mean energy {summary['mean_energy_j']:.3f} J (modelled); {summary['rate_hz']:.2f} a "
        f"second, age p50 {summary['age_p50_ms']:.2f} ms{predicted}"
    )
