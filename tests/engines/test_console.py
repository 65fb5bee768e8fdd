from __future__ import annotations

import logging
import subprocess
import sys
import textwrap

import click
import pytest
from click.testing import CliRunner

from engines.console import command_options, print_json, progress_bar
from engines.errors import BundleError, SplitError

RAISED: dict[str, BaseException | None] = {
    "ok": None,
    "split": SplitError("what, where:\n  expected this,   given that"),
    "bundle": BundleError("no bundle"),
    "oserror": FileNotFoundError(2, "No such file or directory", "gone.txt"),
    "interrupt": KeyboardInterrupt(),
    "bug": AssertionError("a bug"),
}


@click.command()
@click.argument("what")
@command_options
def command(what: str) -> None:
    """Raise what is asked for."""
    exc = RAISED[what]
    if exc is not None:
        raise exc
    click.echo("done")


@pytest.mark.parametrize(
    ("what", "status", "stderr"),
    [
        ("ok", 0, ""),
        ("split", 1, "error: what, where: expected this, given that\n"),
        ("bundle", 1, "error: no bundle\n"),
        ("oserror", 1, "error: gone.txt: No such file or directory\n"),
        ("interrupt", 130, "interrupted\n"),
    ],
)
def test_exit_status_and_one_line_on_stderr(what: str, status: int, stderr: str) -> None:
    result = CliRunner().invoke(command, [what])
    assert (result.exit_code, result.stderr) == (status, stderr)


@pytest.mark.parametrize("args", [[], ["ok", "--unknown"], ["ok", "more"]])
def test_wrong_usage_is_status_2(args: list[str]) -> None:
    assert CliRunner().invoke(command, args).exit_code == 2


@pytest.mark.parametrize("what", ["split", "oserror"])
def test_debug_shows_the_traceback(what: str) -> None:
    result = CliRunner().invoke(command, [what, "--debug"])
    assert result.exception is RAISED[what]


def test_a_bug_is_never_disguised_as_a_users_error() -> None:
    result = CliRunner().invoke(command, ["bug"])
    assert isinstance(result.exception, AssertionError)


def test_help_shows_the_docstring() -> None:
    assert "Raise what is asked for." in CliRunner().invoke(command, ["--help"]).output


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in ``split-bundle inspect | head -1``."""
    code = textwrap.dedent(
        """
        import click
        from engines.console import command_options
        @click.command()
        @command_options
        def main():
            for number in range(100_000):
                click.echo(f"line {number}")
        main()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_json_is_printed_whole_and_unescaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1, "é"]})
    assert capsys.readouterr().out == '{\n  "a": [\n    1,\n    "é"\n  ]\n}\n'


def test_progress_is_silent_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("working", 3) as advance:
        advance(1, 3)
    assert capsys.readouterr() == ("", "")


def test_a_warning_is_one_line_where_there_is_no_terminal() -> None:
    warning = "a warning that is " + "long " * 60 + "indeed"

    @click.command()
    @command_options
    def warn() -> None:
        logging.getLogger("engines.test").warning(warning)
        logging.getLogger("engines.test").info("not shown without --verbose")

    assert CliRunner().invoke(warn).stderr == f"WARNING {warning}\n"
