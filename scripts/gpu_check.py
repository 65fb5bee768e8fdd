"""What a GPU does here: plans built, every cut compared with ONNX Runtime, times taken.

    python scripts/gpu_check.py [--only demo] [--out FILE]

Runs on any machine. Without a GPU it says what it could not do, and still builds plans with
TensorRT for RTX where that is installed. Every step runs in a process of its own and has a budget
of time; what fails is a line of the table, with the library's reason. See ``docs/gpu.md``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import click
import msgspec
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the small models lie in tests/, which no installation has

from engines.files import write_at_once  # noqa: E402  found through the line above, as all below
from scripts.gpu_checks.records import SCHEMA, Check, Row  # noqa: E402
from scripts.gpu_checks.runner import examine_machine, run_step  # noqa: E402
from scripts.gpu_checks.steps import ONLY, plan_steps  # noqa: E402
from scripts.gpu_checks.table import make_table, summary  # noqa: E402

OUT = ROOT / "build" / "gpu_check.json"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(ONLY), help="Do this part. Repeatable.")
@click.option(
    "--bundle",
    "given",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Check this bundle, for a device that does not compile; then nothing else but --only "
    "parts. Repeatable.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=OUT, help="The JSON file."
)
@click.option(
    "--budget", default=300.0, show_default=True, help="Seconds that each step may take."
)
@click.option("--require-gpu", is_flag=True, help="Exit with 1 if no GPU can be used.")
def main(
    only: tuple[str, ...], given: tuple[Path, ...], out: Path, budget: float, require_gpu: bool
) -> None:
    """Check what a GPU does with SplitRT's plans; print a table and write a JSON file.

    Exit status: 1 if a result is wrong or a step failed in a way that nobody expected, or there is
    no GPU and --require-gpu; else 0.
    """
    started = datetime.now(timezone.utc)
    clock = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        work = Path(folder)
        machine, listed = examine_machine(work)
        bundles = [str(path.resolve()) for path in given]
        for step in plan_steps(only, bundles, budget, listed):
            rows += run_step(step, work, _tell)
    check = Check(
        schema=SCHEMA,
        splitrt=_version(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 1),
        arguments=tuple(sys.argv[1:]),
        machine=machine,
        rows=tuple(rows),
    )
    try:
        write_at_once(out, msgspec.json.format(msgspec.json.encode(check), indent=1) + b"\n")
    except OSError as exc:
        click.echo(f"error: --out {out}: cannot be written: {exc.strerror}", err=True)
        sys.exit(1)
    console = Console(width=max(140, Console().width))
    console.print(make_table(machine, rows))
    console.print(f"{summary(machine, rows)}; {check.seconds:.0f} s; {out}", markup=False)
    bad = any(row.status in ("wrong", "failed") for row in rows)
    sys.exit(1 if bad or (require_gpu and not machine.gpus) else 0)


def _tell(row: Row) -> None:
    where = " ".join(filter(None, [row.step, row.subject, row.backend]))
    click.echo(f"{where}: {row.status} ({row.seconds:.1f} s)", err=True)


def _version() -> str:
    try:
        return metadata.version("splitrt")
    except metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
