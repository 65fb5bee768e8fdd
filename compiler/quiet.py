"""Silence what torch says while it traces: none of it is for the user of ``split-compile``."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

__all__ = ["one_line", "quiet", "stdout_to_stderr"]

_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch._export", "onnx_ir", "onnxscript")
"""Loggers that speak of the exporter's own business, such as torchvision not being there."""

_MESSAGE_CHARS = 400
"""Longest reason passed on from another library: a line or two of a terminal."""


@contextlib.contextmanager
def quiet(*, stderr: bool = False) -> Iterator[None]:
    """Keep torch's exporters from printing, logging and warning.

    Warnings of every category are dropped: torch deprecates its own calls under many of them.
    Errors pass.

    Args:
        stderr: Drop what is written to stderr too: torch prints the graph it gave up on there.
            Progress bars stand still meanwhile.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    loggers += [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.startswith(("torch._", "torch.onnx", "torch.export", "onnx_ir.", "onnxscript."))
    ]
    levels = [logger.level for logger in loggers]
    dropped = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(dropped))
        if stderr:
            stack.enter_context(contextlib.redirect_stderr(dropped))
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what a user's own code prints to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def one_line(exc: BaseException) -> str:
    """Return the reason of another library's error: its first paragraph, in one line."""
    text = str(exc).strip()
    paragraph = text.split("\n\n")[0] if text else ""
    reason = " ".join(paragraph.split()) or type(exc).__name__
    return reason if len(reason) <= _MESSAGE_CHARS else reason[: _MESSAGE_CHARS - 3] + "..."
