"""Inputs as a user gives them: ``name=float32[1,3,224,224]``, or arrays in an ``.npz`` file."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.errors import TraceError
from engines.tensors import DTYPES, Array

__all__ = ["InputSpec", "load_example", "parse_input"]

_PATTERN = re.compile(r"(?:(?P<name>[^=\[\]]+)=)?(?P<dtype>[a-z]+\d*)\[(?P<dims>[\d,\s]*)\]")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One ``--input``.

    Attributes:
        name: Parameter of ``forward()``, with ``.key`` or ``.index`` for what lies inside a dict
            or a tuple; none for the next parameter in order.
        dtype: NumPy name of the dtype.
        shape: Static shape.
    """

    name: str | None
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TraceError(
                f"input {self}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}"
            )

    def __str__(self) -> str:
        named = f"{self.name}=" if self.name else ""
        return f"{named}{self.dtype}[{','.join(map(str, self.shape))}]"


def parse_input(text: str) -> InputSpec:
    """Read ``name=dtype[dims]`` or ``dtype[dims]``.

    Raises:
        TraceError: It is neither.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise TraceError(
            f"--input {text!r}: expected name=dtype[dims], such as 'x=float32[1,3,224,224]'"
        )
    dims = [dim for dim in match["dims"].replace(" ", "").split(",") if dim]
    return InputSpec(match["name"], match["dtype"], tuple(map(int, dims)))


def load_example(path: Path) -> dict[str, Array]:
    """Read the arrays of an ``.npz`` file by name; nothing in it is unpickled.

    Raises:
        TraceError: It cannot be read, is empty, or holds something other than tensors.
    """
    make = "make one with numpy.savez(FILE, input_name=array)"
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it is not an .npz archive")
        with loaded as file:
            arrays = {name: file[name].copy(order="C") for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise TraceError(
            f"--example {path}: expected an .npz file of arrays by input name; {reason}; {make}"
        ) from exc
    wrong = [f"{n}: {a.dtype}" for n, a in arrays.items() if a.dtype.name not in DTYPES]
    if wrong or not arrays:
        raise TraceError(
            f"--example {path}: expected arrays of {', '.join(DTYPES)}, "
            f"given {', '.join(wrong) or 'none'}; {make}"
        )
    return arrays
