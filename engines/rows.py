"""Engines that take any number of rows: what runs the striped forms of a model.

A striped form is an ONNX file in which one extent, that of the rows, has a name instead of a
number. A backend that can load such files has ``load_rows``; :func:`rows_backend` looks for it,
since not every backend can (those of static shapes cannot).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple, cast

import numpy as np

from engines.errors import EngineError, TensorMismatchError
from engines.tensors import Array, same_dtype

__all__ = ["RowsBackend", "RowsEngine", "RowsSpec", "rows_backend"]


class RowsSpec(NamedTuple):
    """What a band of rows of a tensor is.

    Attributes:
        name: Name in the ONNX graph.
        dtype: NumPy name of the dtype.
        shape: Extents; none for that of the rows.
    """

    name: str
    dtype: str
    shape: Tuple[Optional[int], ...]

    def mismatch(self, array: object) -> str:
        """Say how ``array`` differs from this specification; an empty string if it does not."""
        if isinstance(array, np.ndarray):
            fits = len(array.shape) == len(self.shape) and all(
                expected is None or expected == given
                for expected, given in zip(self.shape, array.shape)
            )
            if fits and same_dtype(array.dtype, self.dtype):
                return ""
            given = f"{array.dtype.name} {list(array.shape)}"
        else:
            given = "nothing" if array is None else f"a {type(array).__name__}"
        shape = ", ".join("rows" if extent is None else str(extent) for extent in self.shape)
        return f"{self.name!r}: expected {self.dtype} [{shape}], given {given}"


class RowsEngine:
    """Base of engines of dynamic height: checks every input before ``_run``.

    May be run from several threads at once.

    Attributes:
        any_order: Whether ``_run`` takes arrays of any memory layout; else in C order.
    """

    any_order = False

    def __init__(self, name: str, inputs: Sequence[RowsSpec], outputs: Sequence[RowsSpec]) -> None:
        self._name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {self._name} {state}>"

    def run(self, inputs: Mapping[str, Array]) -> Dict[str, Array]:
        """Compute the outputs for as many rows as ``inputs`` have.

        Args:
            inputs: Arrays by name, neither more nor fewer than the engine takes.

        Returns:
            The outputs; the caller owns the arrays.

        Raises:
            TensorMismatchError: An input does not fit; every offender is listed.
            EngineError: The backend failed, or the engine is closed.
        """
        if self._closed:
            raise EngineError(f"engine {self._name!r} is closed; load it again to run it")
        wrong: List[str] = []
        feed: Dict[str, Array] = {}
        for spec in self.inputs:
            array = inputs.get(spec.name)
            difference = spec.mismatch(array)
            if difference or array is None:
                wrong.append(difference)
            else:
                dtype = np.dtype(spec.dtype)
                feed[spec.name] = (
                    np.asarray(array, dtype)
                    if self.any_order
                    else np.asarray(array, dtype, order="C")
                )
        wrong += [f"{name!r}: not an input here" for name in inputs if name not in feed]
        if wrong:
            raise TensorMismatchError(f"engine {self._name!r}: {'; '.join(sorted(set(wrong)))}")
        return self._run(feed)

    def close(self) -> None:
        """Free what the engine holds; safe to call again."""
        if not self._closed:
            self._closed = True
            self._free()

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        raise AssertionError("a backend's engine overrides _run")

    def _free(self) -> None:
        """Drop the backend's objects; overridden where there are any."""


class RowsBackend(Protocol):
    """A backend that can run striped forms."""

    def load_rows(self, onnx_path: Path) -> RowsEngine:
        """Load an ONNX file of dynamic height; its weights lie in the same folder.

        Raises:
            EngineError: The backend refused it.
        """


def rows_backend(backend: Any) -> Optional[RowsBackend]:
    """Return ``backend`` if it can run striped forms, else none."""
    return cast(RowsBackend, backend) if hasattr(backend, "load_rows") else None
