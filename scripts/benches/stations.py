"""Robot and server as processes of their own, wherever a prefix puts them.

    python scripts/benches/stations.py serve BUNDLE HOST BACKEND
    python scripts/benches/stations.py infer BUNDLE ADDRESS BACKEND CUT COUNT VALUES

What the console commands do, with any backend and with stored inputs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["infer", "serving"]

_HERE = [sys.executable, str(Path(__file__).resolve())]


@contextmanager
def serving(prefix: Sequence[str], bundle: Path, host: str, backend: str) -> Iterator[str]:
    """Run a server, and give its address once it listens."""
    command = [*prefix, *_HERE, "serve", str(bundle), host, backend]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None  # asked for above
    try:
        address = server.stdout.readline().strip()
        if not address:
            raise RuntimeError("the server did not start; its message stands above")
        yield address
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def infer(
    prefix: Sequence[str],
    bundle: Path,
    address: str,
    backend: str,
    cut: str,
    count: int,
    values: Path,
) -> list[dict[str, Any]]:
    """Run a robot, and return what it says of each inference."""
    command = [
        *prefix,
        *_HERE,
        "infer",
        str(bundle),
        address,
        backend,
        cut,
        str(count),
        str(values),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _serve(bundle: str, host: str, backend: str) -> None:
    from engines.bundle import Bundle
    from engines.bundle_plans import open_bundle_backend
    from engines.program import Program
    from runtime.server import Server

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    opened = Bundle.open(bundle)
    with (
        Program(opened, open_bundle_backend(opened, backend)) as program,
        Server([program], host=host, port=0) as server,
    ):
        print("{}:{}".format(*server.address), flush=True)
        stop.wait()


def _infer(bundle: str, address: str, backend: str, cut: str, count: str, values: str) -> None:
    from engines.bundle import Bundle
    from runtime.robot import Robot

    opened = Bundle.open(bundle)
    with np.load(values) as stored:
        inputs = {spec.name: stored[spec.name] for spec in opened.manifest.inputs}
    with Robot(opened, server=address or None, cut=cut, backend=backend, patience_s=5.0) as robot:
        for _ in range(int(count)):
            result = robot.infer(inputs)
            print(json.dumps(result.record()))


if __name__ == "__main__":
    {"serve": _serve, "infer": _infer}[sys.argv[1]](*sys.argv[2:])
