"""Targets: which engines a bundle is for, as the user names them.

cpu                          ONNX Runtime; needs nothing beyond the ONNX files
tensorrt-rtx[:sm86,sm89]     plans of TensorRT for RTX, built here, with or without a GPU
tensorrt                     plans of TensorRT for this machine's own GPU
jetson[-orin-nx|...]         no plans: the recipe that ``runtime build`` carries out on the robot
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engines.errors import BuildError

__all__ = ["BUILDERS", "CPU", "TENSORRT", "TORCH_TENSORRT", "TargetSpec", "parse_target"]

CPU = "cpu"
TENSORRT = "tensorrt"
TORCH_TENSORRT = "torch-tensorrt"
BUILDERS = ("onnx", TORCH_TENSORRT)
"""What the plans of the target ``tensorrt`` are built from: ONNX files, or fx programs."""

_RTX = "tensorrt-rtx"
_JETSONS = ("jetson", "jetson-xavier-nx", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin",
            "jetson-thor")  # fmt: skip


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A target as the user named it.

    Attributes:
        name: ``cpu``, ``tensorrt``, ``tensorrt-rtx`` or one of the Jetsons.
        compute_capabilities: GPUs to build for, as ``sm86``.
    """

    name: str
    compute_capabilities: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """Backend that runs its plans."""
        return "tensorrt" if self.name.startswith("jetson") else self.name

    @property
    def opset(self) -> int:
        """Highest ONNX opset that it takes: TensorRT 8 of JetPack 5 stops at 17, 10.0 at 20."""
        if self.name in ("jetson", "jetson-xavier-nx"):
            return 17
        return 20 if self.name.startswith("jetson") else 23

    @property
    def here(self) -> bool:
        """Whether its plans are built when the bundle is compiled."""
        return not self.name.startswith("jetson")


def parse_target(text: str) -> TargetSpec:
    """Read a ``--target``.

    Raises:
        BuildError: No such target.
    """
    name, colon, listed = text.partition(":")
    known = (CPU, TENSORRT, _RTX, *_JETSONS)
    if name not in known:
        raise BuildError(f"--target {text!r}: expected one of {', '.join(known)}")
    capabilities = tuple(item.strip().lower() for item in listed.split(",") if item.strip())
    wrong = [item for item in capabilities if not re.fullmatch(r"sm\d{2,3}", item)]
    if colon and (name != _RTX or wrong or not capabilities):
        raise BuildError(
            f"--target {text!r}: compute capabilities go with {_RTX} only, as in {_RTX}:sm86,sm89"
        )
    return TargetSpec(name, capabilities)
