"""A bundle served and inferred with, every cut once, by whatever Python runs this.

    python scripts/smoke.py BUNDLE

Needs the robot's packages only; that is how they are shown to work on Python 3.8.
"""

from __future__ import annotations

import platform
import sys

import numpy as np
import onnxruntime

from calibration.parity import TOLERANCE, largest_error
from engines.backend import open_backend
from engines.bundle import Bundle
from engines.program import Program
from runtime import Robot, Server


def main(path: str) -> int:
    """Run every cut of the bundle at ``path``; returns the exit status."""
    bundle = Bundle.open(path)
    inputs, expected = bundle.parity_vectors()
    largest = 0.0
    remote = 0
    with Program(bundle, open_backend("ort")) as program, Server([program]) as server:
        address = "{}:{}".format(*server.address)
        with Robot(bundle, server=address, patience_s=60.0) as robot:
            for cut in bundle.manifest.cuts:
                if cut.refused:
                    continue
                result = robot.infer(inputs, cut=cut.id)
                remote += result.answered_by == "remote"
                largest = max(largest, largest_error(result.outputs, expected))
    print(
        f"Python {platform.python_version()}, NumPy {np.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}: {len(bundle.manifest.cuts)} cuts of "
        f"{bundle.manifest.name}, {remote} answered remotely, largest error {largest:.1e}"
    )
    return 0 if remote and largest <= TOLERANCE["float32"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
