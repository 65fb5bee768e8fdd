"""What is installed here, which backends work, and what to do about the rest."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Dict, List, NamedTuple

from engines.backend import available_backends
from engines.fingerprint import device_name
from runtime.power.find import look_for_sensor
from runtime.version import VERSION

__all__ = ["Check", "examine"]


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What.
        ok: Whether it works.
        needed: Whether SplitRT cannot work here without it.
        found: What was found.
        mend: The command that mends it; empty where nothing is to be mended.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    mend: str


_NEEDED = ("numpy", "msgspec", "click", "rich")
_OPTIONAL = {
    "Pillow": "images as a source, coded pictures: pip install 'splitrt[codecs]'",
    "blosc2": "compressed tensors on the link: pip install 'splitrt[codecs]'",
    "av": "videos and cameras as a source, codec video: pip install 'splitrt[video]'",
    "nvidia-ml-py": "energy of an NVIDIA GPU: pip install 'splitrt[power]'",
    "asyncssh": "split-deploy to user@robot: pip install 'splitrt[deploy]'",
    "torch": "compiling models: pip install 'splitrt[compile]'",
    "onnx": "compiling models: pip install 'splitrt[compile]'",
    "torch-tensorrt": (
        "split-compile --builder torch-tensorrt, on an NVIDIA GPU: "
        "pip install 'splitrt[torch-tensorrt]'"
    ),
}
_BACKEND_MENDS = {
    "ort": "pip install 'splitrt[ort]'",
    "reference": "pip install onnx",
    "tensorrt": "pip install 'splitrt[tensorrt,cuda]'; Jetson: apt install python3-libnvinfer",
    "tensorrt-rtx": "pip install 'splitrt[tensorrt-rtx,cuda]'",
}


def examine() -> List[Check]:
    """Look at this machine; the order is the order to mend things in."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    checks = [
        Check("splitrt", ok=True, needed=True, found=VERSION, mend=""),
        Check("device", ok=True, needed=True, found=device_name(), mend=""),
        Check(
            "python",
            ok=sys.version_info >= (3, 8),
            needed=True,
            found=f"{python}, {platform.system()} {platform.machine()}",
            mend="install Python 3.8 or newer (3.10 to compile)",
        ),
    ]
    for package in _NEEDED:
        found = _installed(package)
        checks.append(Check(package, bool(found), True, found, f"pip install {package}"))
    backends: Dict[str, str] = available_backends()
    for name, trouble in backends.items():
        mend = _BACKEND_MENDS.get(name, "")
        checks.append(Check(f"backend {name}", not trouble, False, trouble or "works", mend))
    works = [name for name, trouble in backends.items() if not trouble]
    checks.append(
        Check(
            "a backend",
            ok=bool(works),
            needed=True,
            found=", ".join(works) or "none works",
            mend="pip install 'splitrt[ort]'",
        )
    )
    for package, use in _OPTIONAL.items():
        found = _installed(package)
        checks.append(Check(package, bool(found), False, found, use))
    checks.append(_power_sensor())
    return checks


def _power_sensor() -> Check:
    sensor, troubles = look_for_sensor()
    found, mend = "none: energy is modelled", "docs/energy.md says which there are"
    if sensor is not None:
        found = f"{sensor.name} ({sensor.covers}, {sensor.where})"
        sensor.close()
    elif troubles:
        mend = "; ".join(troubles)
    return Check("power sensor", sensor is not None, False, found, mend)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
