"""Overhead: what a remote inference costs beyond its computation, over loopback."""

from __future__ import annotations

from benches.row import Row, medians
from benches.workloads import demo_bundle

from engines.backend import BackendOptions, open_backend
from engines.program import Program
from runtime import Robot, Server


def run() -> list[Row]:
    """Compare offloading the raw frame to a server on loopback with running it in place."""
    bundle = demo_bundle()
    inputs, _ = bundle.parity_vectors()
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(bundle, backend) as program, Server([program]) as server:
        address = "{}:{}".format(*server.address)
        program.load_half(0, program.last)
        with Robot(bundle, server=address, cut="offload", threads=1) as robot:
            answered = robot.infer(inputs).answered_by
            assert answered == "remote", answered
            remote_s, local_s = medians(
                lambda: robot.infer(inputs), lambda: program.run(inputs), runs=40
            )
    size = bundle.manifest.cuts[0].bytes
    return [
        Row(
            "overhead",
            f"{bundle.manifest.name}, {size / 1e3:.0f} kB frame offloaded over loopback",
            remote_s * 1e3,
            "ms",
            f"the same engine in place {local_s * 1e3:.2f} ms",
            remote_s / local_s,
            "at most 1.25",
            remote_s / local_s <= 1.25,
        )
    ]
