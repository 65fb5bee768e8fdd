"""This program's name and version, as logs and peers see it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["SOFTWARE", "VERSION"]


def _installed() -> str:
    try:
        return version("splitrt")
    except PackageNotFoundError:  # run from a checkout
        return "0+checkout"


VERSION = _installed()
SOFTWARE = f"splitrt {VERSION}"
