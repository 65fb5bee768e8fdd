"""Samples: a finite stream of inputs, read one at a time, that can be gone through again.

DATA is a folder of images (with an image input, in the order of their names), an ``.npz`` file of
arrays by input name with a dimension of samples in front, or ``module:name``: an iterable of
inputs by name, or a function that returns one. Nothing is unpickled.

``DataDigest`` names data: SHA-256 over, for every sample, the number of its inputs and, in the
order of their names, name, dtype, shape and values.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from zlib import error as ZlibError  # noqa: N812 (a class, whatever zlib calls it)

import numpy as np

from calibration.objects import load_object
from calibration.pictures import IMAGE_SUFFIXES, read_image
from engines.errors import SourceError, SplitError
from engines.manifest import ImageLayout
from engines.tensors import Array, TensorSpec, check_tensors

__all__ = ["DataDigest", "Sample", "Samples", "open_samples"]

_EXPECTED = "expected a folder of images, an .npz file, or module:name of an iterable"


class Sample(NamedTuple):
    """One inference's inputs.

    Attributes:
        name: Where they come from, for people.
        inputs: Arrays by name.
    """

    name: str
    inputs: Dict[str, Array]


class Samples:
    """A finite stream of samples; every iteration begins anew.

    Args:
        name: What the user called it.
        open_: Begins an iteration.
        size: How many there are, if that is known.
    """

    def __init__(
        self, name: str, open_: Callable[[], Iterator[Sample]], size: Optional[int]
    ) -> None:
        self.name = name
        self.size = size
        self._open = open_

    def __iter__(self) -> Iterator[Sample]:
        return self._open()

    def first(self, count: int) -> Samples:
        """Return the first ``count`` samples only."""
        size = None if self.size is None else min(self.size, count)
        return Samples(self.name, lambda: itertools.islice(self._open(), count), size)


class DataDigest:
    """The SHA-256 of samples, and whether they are all equal."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._first: Optional[bytes] = None
        self.constant = True

    def add(self, inputs: Mapping[str, Array]) -> None:
        """Add one sample."""
        one = hashlib.sha256()
        for name in sorted(inputs):
            array = inputs[name]
            head = f"{name}\n{array.dtype.str}\n{list(array.shape)}\n"
            one.update(head.encode())
            one.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        digest = one.digest()
        self._hasher.update(len(inputs).to_bytes(4, "little") + digest)
        if self._first is None:
            self._first = digest
        self.constant = self.constant and digest == self._first

    def hexdigest(self) -> str:
        """Return the digest of what was added."""
        return self._hasher.hexdigest()


def open_samples(
    text: str, inputs: Tuple[TensorSpec, ...], images: Mapping[str, ImageLayout]
) -> Samples:
    """Open DATA.

    Args:
        text: What the user gave.
        inputs: What a sample must fit.
        images: Inputs that take raw pixels.

    Raises:
        SourceError: No such data, or it does not fit the model.
    """
    path = Path(text)
    if path.is_dir():
        return _folder(path, inputs, images)
    if path.suffix.lower() == ".npz":
        return _Archive(path, inputs).samples()
    if ":" in text and not path.exists():
        return _iterable(text, inputs)
    problem = "no such file" if not path.exists() else "not an .npz file"
    raise SourceError(f"data {text!r}: {problem}; {_EXPECTED}")


def _folder(
    path: Path, inputs: Tuple[TensorSpec, ...], images: Mapping[str, ImageLayout]
) -> Samples:
    if len(inputs) != 1 or inputs[0].name not in images:
        raise SourceError(
            f"{path}: the model takes no raw image; compile it with --preprocess NAME=imagenet "
            "(or your own mean and std), or give an .npz file"
        )
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise SourceError(f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    (spec,) = inputs

    def read() -> Iterator[Sample]:
        for file in found:
            yield Sample(file.name, {spec.name: read_image(file, spec, images[spec.name])})

    return Samples(str(path), read, len(found))


class _Archive:
    """An ``.npz`` file, read row by row: an archive may be larger than memory."""

    def __init__(self, path: Path, inputs: Tuple[TensorSpec, ...]) -> None:
        self._path = path
        self._specs = inputs
        self._rows: Dict[str, int] = {}
        with self._opened() as archive, contextlib.ExitStack() as stack:
            names = {n[:-4] for n in archive.namelist() if n.endswith(".npy")}
            wrong = [f"no {spec.name!r}" for spec in inputs if spec.name not in names]
            for spec in inputs:
                if spec.name in names:
                    problem, rows = self._check(spec, self._header(archive, stack, spec.name))
                    wrong += problem
                    self._rows[spec.name] = rows
            if not wrong and len(set(self._rows.values())) != 1:
                counts = ", ".join(f"{name!r}: {rows}" for name, rows in self._rows.items())
                wrong = [f"different numbers of samples ({counts})"]
        if wrong:
            known = f"; it has {', '.join(sorted(names)) or 'nothing'}"
            raise SourceError(
                f"{path}: {'; '.join(wrong)}{known}; make it with numpy.savez(FILE, NAME=array)"
            )

    def samples(self) -> Samples:
        return Samples(str(self._path), self._read, next(iter(self._rows.values())))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, ZlibError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise SourceError(f"{self._path}: not a readable .npz file: {reason}") from exc

    @staticmethod
    def _header(
        archive: zipfile.ZipFile, stack: contextlib.ExitStack, name: str
    ) -> "Tuple[Any, Tuple[int, ...], np.dtype[Any], bool]":
        """Open one array; return its bytes to come, shape, dtype, and whether it is in C order."""
        stream: Any = stack.enter_context(archive.open(f"{name}.npy"))
        version = np.lib.format.read_magic(stream)
        read: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{name!r} is of format {version}")
        shape, fortran, dtype = read(stream)
        return stream, shape, dtype, not fortran

    @staticmethod
    def _check(
        spec: TensorSpec, header: "Tuple[Any, Tuple[int, ...], np.dtype[Any], bool]"
    ) -> "Tuple[List[str], int]":
        """Return what is wrong with an array, and how many samples it holds."""
        _, shape, dtype, ordered = header
        stacked = shape[1:] == spec.shape and len(shape) == len(spec.shape) + 1
        batched = spec.shape[:1] == (1,) and shape[1:] == spec.shape[1:] and len(shape) > 0
        if dtype.name != spec.dtype or not (stacked or batched or shape == spec.shape):
            want = f"{spec.dtype} [samples, {', '.join(map(str, spec.shape))}]"
            return [f"{spec.name!r}: expected {want}, given {dtype.name} {list(shape)}"], 0
        if not ordered and len(shape) > 1:
            return [f"{spec.name!r}: lies in Fortran order; use numpy.ascontiguousarray"], 0
        return [], shape[0] if stacked or batched else 1

    def _read(self) -> Iterator[Sample]:
        with self._opened() as archive, contextlib.ExitStack() as stack:
            streams = [(spec, self._header(archive, stack, spec.name)) for spec in self._specs]
            for row in range(next(iter(self._rows.values()))):
                inputs: Dict[str, Array] = {}
                for spec, (stream, _, dtype, _) in streams:
                    data = stream.read(spec.nbytes)
                    if len(data) != spec.nbytes:
                        raise ValueError(f"{spec.name!r} ends within sample {row}")
                    array = np.frombuffer(data, dtype).reshape(spec.shape)
                    inputs[spec.name] = array.astype(spec.dtype)  # writable, native order
                yield Sample(f"{self._path.name}[{row}]", inputs)


def _iterable(text: str, inputs: Tuple[TensorSpec, ...]) -> Samples:
    try:
        found = load_object(text, "data")
    except SplitError as exc:
        raise SourceError(f"{exc}; {_EXPECTED}") from exc
    once: Any = None if callable(found) else found
    used = False

    def begin() -> Iterator[Sample]:
        nonlocal used
        try:
            given: Any = found() if once is None else once
            iterator = iter(given)
        except Exception as exc:  # a user's own code raises what it likes
            raise SourceError(
                f"data {text!r}: expected an iterable, or a function that returns one: "
                f"{type(exc).__name__}: {exc}"
            ) from exc
        if iterator is given and once is not None:
            if used:
                raise SourceError(
                    f"data {text!r}: expected an iterable that can be gone through twice, given "
                    f"a {type(once).__name__}; give a function that returns it"
                )
            used = True
        return _checked(text, iterator, inputs)

    size = len(once) if hasattr(once, "__len__") else None
    return Samples(text, begin, size)


def _checked(text: str, given: Iterator[Any], inputs: Tuple[TensorSpec, ...]) -> Iterator[Sample]:
    for row in itertools.count():
        try:
            item = next(given, None)
        except Exception as exc:  # a user's own code raises what it likes
            raise SourceError(f"data {text!r}, sample {row}: {type(exc).__name__}: {exc}") from exc
        if item is None:
            return
        if not isinstance(item, Mapping):
            values = item if isinstance(item, (tuple, list)) else [item]
            if len(values) != len(inputs):
                raise SourceError(
                    f"data {text!r}, sample {row}: expected {len(inputs)} inputs, given "
                    f"{len(values)}; give a dict of arrays by input name"
                )
            item = {spec.name: value for spec, value in zip(inputs, values)}
        arrays = {name: np.asarray(value) for name, value in item.items()}
        yield Sample(f"{text}[{row}]", check_tensors(inputs, arrays, where=f"{text}[{row}]"))
