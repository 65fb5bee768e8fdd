"""The one table of a check."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from scripts.gpu_checks.records import Machine, Row

__all__ = ["make_table", "summary"]

_REPEATED_CHARS = 60
"""Of a reason that another row has already, as much is shown again."""

_STYLE = {
    "ok": "green",
    "wrong": "bold red",
    "failed": "bold red",
    "refused": "yellow",
    "out of time": "yellow",
}


def make_table(machine: Machine, rows: list[Row]) -> Table:
    """Return everything that was found as a table."""
    table = Table("step", "subject", "backend", "result", "plans", "what was found")
    for package in machine.packages:
        state = "ok" if package.works else "not done"
        what = " ".join(filter(None, [package.version, package.said]))
        _add(table, "installed", package.name, "", state, "", what or "not installed")
    for gpu in machine.gpus:
        graphs = "CUDA graphs" if gpu.cuda_graphs else "no CUDA graphs"
        what = f"{gpu.name}, {gpu.compute_capability}, {gpu.total_bytes >> 20} MiB, {graphs}"
        _add(table, "GPU", "0", gpu.provider, "ok", "", what)
    if not machine.gpus:
        _add(table, "GPU", "0", "", "not done", "", machine.no_gpu)
    told: set[str] = set()
    for row in rows:
        plans = f"{row.plans}, {row.plan_bytes / 1e6:.1f} MB" if row.plan_bytes else ""
        said = row.said
        if said in told and len(said) > _REPEATED_CHARS:
            said = f"{said[:_REPEATED_CHARS]}... (as above)"
        told.add(row.said)
        _add(table, row.step, row.subject, row.backend, row.status, plans, said)
    return table


def summary(machine: Machine, rows: list[Row]) -> str:
    """Return the counts of all results in one line."""
    counts = {row.status: 0 for row in rows}
    for row in rows:
        counts[row.status] += 1
    found = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no steps"
    gpus = {f"{gpu.name} ({gpu.compute_capability})" for gpu in machine.gpus}
    return f"{', '.join(sorted(gpus)) or 'no GPU'}: {found}"


def _add(
    table: Table, step: str, subject: str, backend: str, state: str, plans: str, what: str
) -> None:
    style = _STYLE.get(state, "dim")
    table.add_row(step, escape(subject), backend, f"[{style}]{state}[/]", plans, escape(what))
