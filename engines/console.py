"""What every console command shares: errors in one line, logs and progress on stderr.

Exit status: 0 ok, 1 for the user's error (one line on stderr, no traceback), 2 for usage,
130 after Ctrl-C. ``--debug`` shows the traceback.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, TypeVar

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engines.errors import SplitError

__all__ = ["command_options", "interruptible", "print_json", "progress_bar", "stderr"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it: 128 + SIGINT."""

stderr = Console(stderr=True)

F = TypeVar("F", bound=Callable[..., Any])


def command_options(function: F) -> F:
    """Give a click command ``--debug`` and ``--verbose``, and turn errors into one line.

    Place it under ``@click.command``, above the options, so that it wraps the function last.
    """

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.option("--verbose", "-v", is_flag=True, help="Log what happens, on stderr.")
    @functools.wraps(function)
    def wrapped(*args: Any, debug: bool, verbose: bool, **kwargs: Any) -> Any:
        _set_up_logging(verbose=verbose, debug=debug)
        try:
            return function(*args, **kwargs)
        except SplitError as exc:
            if debug:
                raise
            _exit(_one_line(str(exc)), 1)
        except KeyboardInterrupt:
            _exit("interrupted", INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output went away, as in `... | head`: not an error of ours.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (kept until exit)
            sys.exit(0)
        except OSError as exc:
            if debug:
                raise
            place = f"{exc.filename}: " if exc.filename else ""
            _exit(_one_line(f"{place}{exc.strerror or exc}"), 1)

    return wrapped  # type: ignore[return-value]  # click's options keep the signature open


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Make sure that Ctrl-C ends a loop, wherever it comes.

    Python raises it in the middle of whatever runs. Where that is called by a library that drops
    exceptions it would be lost; what is yielded raises it again, at the next turn of the loop.
    Where Ctrl-C was ignored at the start, as in a shell's background job, it stays so.
    """
    came: List[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


@contextmanager
def progress_bar(title: str, total: Optional[int] = None) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, nothing elsewhere.

    Yields:
        A function of (done, total), to be called as the work advances.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)


class _LineHandler(logging.Handler):
    """Writes records to what is standard error by then, as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def _set_up_logging(*, verbose: bool, debug: bool) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    if stderr.is_terminal:
        rich = RichHandler(console=stderr, show_path=False, log_time_format="%H:%M:%S")
        logging.basicConfig(level=level, format="%(message)s", handlers=[rich], force=True)
    else:  # Rich would fold a warning to a width that nobody sees: a line stays a line
        form = "%(levelname)s %(message)s"
        logging.basicConfig(level=level, format=form, handlers=[_LineHandler()], force=True)


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _exit(message: str, status: int) -> None:
    click.echo(f"error: {message}" if status == 1 else message, err=True)
    sys.exit(status)
