"""The demo: a pretrained network on real photographs, split between two processes.

Compiles EfficientNet-lite0 once, starts a server, shapes the link where it may, then runs the
robot at three cuts and at ``auto``. Prints what each photograph is, and where the time of each
cut went. Ends every process that it started.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import skimage
from demo_model import INPUT, PREPROCESS
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from shaped_link import ShapedLink, shaped_link

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
BUNDLE = BUILD / "demo.bundle"
RUNS = BUILD / "demo"
LABELS = ROOT / "scripts" / "data" / "imagenet_classes.txt"
PHOTOS = ("coffee.png", "camera.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg")
EXPECTED = {"coffee.png": "espresso"}
RATE_MBPS = 80.0
"""Mean rate of the Wi-Fi traces that robots of this kind were measured on."""

ROUNDS = 8
"""Times that each photograph is run at each cut."""

BIN = Path(sys.executable).parent


def main() -> int:
    """Run the demo; returns the exit status."""
    console = Console(width=max(130, Console().width))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    RUNS.mkdir(parents=True, exist_ok=True)
    report = compile_model(console)
    if "--compile-only" in sys.argv[1:]:
        return 0
    photos = copy_photos()
    cuts = choose_cuts(report)
    results: dict[str, list[dict[str, Any]]] = {}
    with shaped_link(RATE_MBPS) as link:
        console.print(f"link: {link.description}")
        server, address = start_server(link)
        try:
            for name in [*cuts, "auto"]:
                results[name] = run_robot(link, address, photos, name)
        finally:
            stop(server)
    print_cuts(console, report, results)
    wrong = print_labels(console, results)
    console.print(f"all of it in {time.monotonic() - started:.0f} s; bundle in {BUNDLE}")
    for complaint in wrong:
        console.print(f"[bold red]wrong[/]: {complaint}")
    return 1 if wrong else 0


def compile_model(console: Console) -> dict[str, Any]:
    """Compile the model unless it is compiled already, and return what split-compile said."""
    said = BUILD / "demo.bundle.json"
    sources = [ROOT / "scripts" / "demo_model.py", *sorted((ROOT / "compiler").rglob("*.py"))]
    newest = max(path.stat().st_mtime for path in sources)
    fresh = said.exists() and said.stat().st_mtime > newest
    if not (fresh and BUNDLE.exists()):
        console.print("compiling EfficientNet-lite0 (once) ...")
        model = f"{ROOT / 'scripts' / 'demo_model.py'}:efficientnet_lite0"
        command = [BIN / "split-compile", model, "-o", BUNDLE, "--input", INPUT]
        command += ["--preprocess", PREPROCESS, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        said.write_text(done.stdout)
    report: dict[str, Any] = json.loads(said.read_text())
    seconds = sum(report["seconds"].values())
    console.print(
        f"{len(report['cuts'])} cuts, weights {report['weights_bytes'] / 1e6:.1f} MB, bundle "
        f"{report['bundle_bytes'] / 1e6:.1f} MB, largest error {report['max_error']:.1e}, "
        f"compiled in {seconds:.0f} s"
    )
    return report


def copy_photos() -> Path:
    """Copy the photographs that scikit-image carries into one folder."""
    folder = BUILD / "demo-photos"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        shutil.copyfile(Path(skimage.__file__).parent / "data" / name, folder / name)
    return folder


def choose_cuts(report: dict[str, Any]) -> list[str]:
    """Take the raw frame, and the smallest frontiers early and late in the network."""
    cuts = report["cuts"]
    work = cuts[-1]["flops_robot"]

    def smallest(low: float, high: float) -> str:
        inside = [cut for cut in cuts[1:-1] if low <= cut["flops_robot"] / work < high]
        best: str = min(inside, key=lambda cut: cut["bytes"])["id"]
        return best

    return [cuts[0]["id"], smallest(0.2, 0.6), smallest(0.6, 0.95)]


def start_server(link: ShapedLink) -> tuple[subprocess.Popen[str], str]:
    """Start the server and wait until it listens."""
    command = [*link.server_prefix, str(BIN / "runtime"), "serve", str(BUNDLE)]
    command += ["--listen", f"{link.server_host}:0", "--threads", "1", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None  # asked for above
    line = server.stdout.readline()
    if not line:
        stop(server)
        raise SystemExit("the server did not start; its message stands above")
    return server, json.loads(line)["listening"]


def run_robot(link: ShapedLink, address: str, photos: Path, cut: str) -> list[dict[str, Any]]:
    """Run the robot's process at one cut and return its records, without the warm-up."""
    out = RUNS / f"{cut}.jsonl"
    command = [*link.robot_prefix, str(BIN / "runtime"), "infer", str(BUNDLE)]
    command += ["--server", address, "--source", str(photos), "--cut", cut, "--threads", "1"]
    command += ["--count", str(len(PHOTOS) * (ROUNDS + 1)), "--labels", str(LABELS)]
    command += ["--out", str(out)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    return [record for record in records if "summary" not in record][len(PHOTOS) :]


def stop(process: subprocess.Popen[str]) -> None:
    """End a process: politely, then not."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def print_cuts(
    console: Console, report: dict[str, Any], results: dict[str, list[dict[str, Any]]]
) -> None:
    """Print a row a cut: medians, and where the time went."""
    table = Table(title="medians; time in ms", title_justify="left", box=SIMPLE)
    for title in ("cut", "the robot computes up to", "answered by"):
        table.add_column(title, no_wrap=True)
    for title in ("bytes up", "latency", "robot", "link", "server", "queue", "joules"):
        table.add_column(title, justify="right", no_wrap=True)
    by_id = {cut["id"]: cut for cut in report["cuts"]}
    last = report["cuts"][-1]["id"]
    for name, records in results.items():
        used = statistics.mode(record["cut"] for record in records)
        answered = sorted({record["answered_by"] for record in records})
        where = "the end" if used == last else by_id[used]["after"] or "nothing"
        middle = {
            key: statistics.median(record[key] for record in records)
            for key in ("latency_ms", "robot_ms", "link_ms", "server_ms", "queue_ms", "energy_j")
        }
        table.add_row(
            used if name == used else f"{name}: {used}",
            where,
            ", ".join(answered),
            str(records[-1]["bytes_up"]),
            *(f"{middle[key]:.2f}" for key in list(middle)[:5]),
            f"{middle['energy_j']:.3f}",
        )
    console.print(table)
    console.print(
        "Both processes run on this one machine, so the server is no faster than the robot: where"
        "\nauto keeps everything on the robot, that is the right answer here. Energy is modelled"
        "\nfrom a Jetson Xavier NX's power by state; this machine's own is not measured."
    )


def print_labels(console: Console, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Print each photograph's label; returns what is wrong with them."""
    table = Table("photograph", "label", box=SIMPLE)
    wrong: list[str] = []
    for photo in PHOTOS:
        labels = {
            record["label"]
            for records in results.values()
            for record in records
            if record["source"] == photo
        }
        table.add_row(photo, ", ".join(sorted(labels)))
        if len(labels) != 1:
            wrong.append(f"{photo}: expected one label at every cut, given {sorted(labels)}")
        elif EXPECTED.get(photo, next(iter(labels))) not in labels:
            wrong.append(f"{photo}: expected {EXPECTED[photo]}, given {sorted(labels)}")
    console.print(table)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
