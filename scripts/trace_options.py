"""What scripts that replay workloads on recorded traces take on their command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from workloads import WORKLOADS
from workloads.profiles import TESTBED

__all__ = ["BUILD", "NAMES", "TRACES", "trace_options", "traces_of"]

BUILD = Path(__file__).resolve().parent.parent / "build"
"""Where the bundles of the workloads are made."""

NAMES = tuple(name for name, workload in WORKLOADS.items() if workload.profile)
TRACES = ("indoors", "outdoors")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def trace_options(command: _Command) -> _Command:
    """Give a command ``names``, ``testbed``, ``traces``, ``begin_s`` and ``count``."""
    for add in reversed(
        [
            click.argument("names", nargs=-1, metavar="[WORKLOAD]...", type=click.Choice(NAMES)),
            click.option(
                "--testbed", help="Folder with profiles and traces; default $SPLITRT_TESTBED."
            ),
            click.option(
                "--trace",
                "traces",
                multiple=True,
                type=click.Choice(TRACES),
                help="Both by default.",
            ),
            click.option(
                "--from", "begin_s", default=100.0, show_default=True, help="Where in it, s."
            ),
            click.option("--count", default=300, show_default=True, help="Inferences of each."),
        ]
    ):
        command = add(command)
    return command


def traces_of(testbed: str | None, names: Sequence[str]) -> list[Path]:
    """Return the files of traces, of all where none is named.

    Raises:
        click.UsageError: They are not there.
    """
    folder = testbed or os.environ.get(TESTBED)
    if not folder:
        raise click.UsageError("name the testbed's folder (--testbed), or set SPLITRT_TESTBED")
    paths = [Path(folder) / "traces" / f"{name}_10hz.csv" for name in names or TRACES]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise click.UsageError(f"no trace at {', '.join(missing)}")
    return paths
