"""What an ONNX file takes and gives, read without the onnx package, which robots need not have.

Of the whole file only the names, types and shapes of the graph's inputs and outputs are looked at;
nodes and weights are skipped over.

Source:
    onnx.proto3 of ONNX 1.18 for the field numbers; Protocol Buffers' description of the wire
    format for the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from engines.errors import BuildError

__all__ = ["End", "Ends", "read_ends"]

_GRAPH = 7  # of ModelProto
_INITIALISER, _INPUT, _OUTPUT = 5, 11, 12  # of GraphProto
_TENSOR_NAME = 8  # of TensorProto
_NAME, _TYPE = 1, 2  # of ValueInfoProto
_TENSOR_TYPE = 1  # of TypeProto
_ELEMENT_TYPE, _SHAPE = 1, 2  # of TypeProto.Tensor
_DIM = 1  # of TensorShapeProto
_DIM_VALUE = 1  # of Dimension

_DTYPES: Dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""TensorProto.DataType."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Value = Union[int, memoryview]


class End(NamedTuple):
    """A tensor that goes in or comes out.

    Attributes:
        name: Name in the graph.
        dtype: NumPy name of the dtype.
        shape: Extents; none where they have a name instead of a number.
    """

    name: str
    dtype: str
    shape: Tuple[Optional[int], ...]


class Ends(NamedTuple):
    """Both ends of a graph, in its order."""

    inputs: Tuple[End, ...]
    outputs: Tuple[End, ...]


def read_ends(path: Path) -> Ends:
    """Read the inputs and outputs of an ONNX file; initialisers are no inputs.

    Raises:
        BuildError: It cannot be read, or is not an ONNX file.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as exc:
        raise BuildError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        graphs = [value for number, value in _fields(data) if number == _GRAPH]
        inputs: List[End] = []
        outputs: List[End] = []
        initialisers: List[str] = []
        for number, value in _fields(_message(graphs[-1])):
            if number == _INPUT:
                inputs.append(_end(_message(value)))
            elif number == _OUTPUT:
                outputs.append(_end(_message(value)))
            elif number == _INITIALISER:
                initialisers += _texts(_message(value), _TENSOR_NAME)
    except (ValueError, IndexError, KeyError) as exc:
        raise BuildError(f"{path}: not an ONNX file: {exc!r}") from exc
    given = tuple(end for end in inputs if end.name not in initialisers)
    return Ends(given, tuple(outputs))


def _end(message: memoryview) -> End:
    name = _texts(message, _NAME)[-1]
    tensor = _inner(_inner(message, _TYPE), _TENSOR_TYPE)
    element = [value for number, value in _fields(tensor) if number == _ELEMENT_TYPE][-1]
    dims = [value for number, value in _fields(_inner(tensor, _SHAPE)) if number == _DIM]
    return End(name, _DTYPES[int(element)], tuple(_extent(_message(dim)) for dim in dims))


def _extent(dim: memoryview) -> Optional[int]:
    values = [value for number, value in _fields(dim) if number == _DIM_VALUE]
    return int(values[-1]) if values else None


def _inner(message: memoryview, number: int) -> memoryview:
    return _message([value for found, value in _fields(message) if found == number][-1])


def _texts(message: memoryview, number: int) -> List[str]:
    found = [value for at, value in _fields(message) if at == number]
    return [bytes(_message(value)).decode() for value in found]


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("expected a message, given a number")
    return value


def _fields(data: memoryview) -> Iterator[Tuple[int, Value]]:
    """Give number and value of each field of a message; nested messages as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} of unknown kind {kind}")
        if at + size > len(data):
            raise ValueError(f"field {number} ends behind its message")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
