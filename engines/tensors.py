"""Tensor specifications: a name, a dtype and a static shape, and checks of arrays against them."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Tuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.errors import TensorMismatchError

__all__ = ["DTYPES", "Array", "TensorSpec", "check_tensors", "same_dtype"]

Array = NDArray[Any]
"""Any NumPy array; its dtype and shape are what a :class:`TensorSpec` says."""

DTYPES: Tuple[str, ...] = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)
"""Dtypes that may cross a cut: those with a fixed NumPy representation."""


def same_dtype(dtype: "np.dtype[Any]", name: str) -> bool:
    """Whether a dtype is the one of this NumPy name, in whatever byte order."""
    return dtype == np.dtype(name) or dtype.name == name  # the name takes long to make up


class TensorSpec(msgspec.Struct, frozen=True):
    """What a tensor is, without its values.

    Attributes:
        name: Name in the ONNX graph.
        dtype: NumPy name of the dtype, one of :data:`DTYPES`.
        shape: Static shape, every extent at least 0.
    """

    name: str
    dtype: str
    shape: Tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name!r}: dtype {self.dtype!r} is not one of {DTYPES}")
        if any(extent < 0 for extent in self.shape):
            raise ValueError(f"tensor {self.name!r}: negative extent in shape {list(self.shape)}")

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return self.size * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {list(self.shape)}"

    def mismatch(self, array: object) -> str:
        """Say how ``array`` differs from this specification; an empty string if it does not."""
        if not isinstance(array, (np.ndarray, np.generic)):
            given = type(array).__name__
            return f"{self.name!r}: expected {self.dtype} {list(self.shape)}, given a {given}"
        if same_dtype(array.dtype, self.dtype) and array.shape == self.shape:
            return ""
        return (
            f"{self.name!r}: expected {self.dtype} {list(self.shape)}, "
            f"given {array.dtype.name} {list(array.shape)}"
        )


def check_tensors(
    specs: Iterable[TensorSpec], tensors: Mapping[str, Array], *, where: str, hint: str = ""
) -> Dict[str, Array]:
    """Check ``tensors`` against ``specs`` and return them in the order of ``specs``.

    They come back C-contiguous and in the machine's byte order; where they are so already, as the
    same objects.

    Args:
        specs: What is expected.
        tensors: Arrays by name; names beyond ``specs`` are an error too.
        where: What takes the tensors, for the message.
        hint: What the user should do about it, for the message.

    Raises:
        TensorMismatchError: Lists every missing, unknown and mismatching tensor.
    """
    specs = tuple(specs)
    wrong: List[str] = []
    checked: Dict[str, Array] = {}
    for spec in specs:
        array = tensors.get(spec.name)
        if array is None:
            wrong.append(f"{spec.name!r}: expected {spec.dtype} {list(spec.shape)}, given nothing")
            continue
        difference = spec.mismatch(array)
        if difference:
            wrong.append(difference)
        else:
            # Not np.ascontiguousarray: that makes a vector of a scalar.
            checked[spec.name] = np.asarray(array, np.dtype(spec.dtype), order="C")
    known = {spec.name for spec in specs}
    wrong += [f"{name!r}: not an input here" for name in tensors if name not in known]
    if wrong:
        tail = f"; {hint}" if hint else ""
        raise TensorMismatchError(f"{where}: {'; '.join(wrong)}{tail}")
    return checked
