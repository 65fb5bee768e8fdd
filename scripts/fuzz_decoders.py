"""Feeds damaged encodings to every decoder, of every dtype and shapes with and without rows.

A decoder may give back values or raise ``CodecError``, and nothing else. Decoding happens in
processes of their own. The bytes to decode end at a page that cannot be read, and so does the
array that they are decoded into, so that one byte too far ends the process; the address space is
limited to little above what the process begins with, and every 64th decoding is watched by
tracemalloc. A process that ends or hangs is counted, its input kept, and another begun.

``python scripts/fuzz_decoders.py --inputs 10000000 --seconds 600``
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import numpy as np

from engines.codecs import NEEDS, Codec, codec_names_here, is_stream, open_codec
from engines.codecs.base import StreamCodec
from engines.errors import CodecError
from engines.tensors import DTYPES, TensorSpec

SHAPES = ((0,), (), (1,), (3, 0, 2), (7, 9), (1, 4, 8, 6), (2, 3, 5, 4, 3), (1, 24, 16, 3), (600,))
"""Shapes of what is decoded: scalars, nothing at all, grids, activations, pictures."""

BLOCKS = TensorSpec("t", "float32", (1, 40, 50, 70))
"""Large enough for a chunk of several blocks; for the codecs that have those."""

ROOM = 256 << 20
"""Address space, in bytes, that decoding may take above that of the process before it."""

WATCHED = 64
"""Of so many decodings the memory of one is watched."""

ALLOWED = 16, 1 << 20
"""Memory that a decoding may take: so many times the tensor and its coded bytes, and a constant
(image libraries read in blocks)."""

LARGEST = 1 << 20
PAGE = mmap.PAGESIZE
HANG_S = 30.0
OUT = Path(__file__).resolve().parent.parent / "build" / "fuzz"
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass
class Tally:
    """What came of the inputs."""

    decoded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """Inputs that were decoded or refused."""
        return sum(self.decoded.values()) + sum(self.refused.values())


class Guarded:
    """Memory behind which lies a page that cannot be touched."""

    def __init__(self, path: str | None = None) -> None:
        size = LARGEST + PAGE
        handle = -1
        if path is not None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(handle, size)
        self._map = mmap.mmap(handle, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(address + LARGEST), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        self._view = memoryview(self._map)

    def end(self, size: int) -> memoryview:
        """Return the last ``size`` bytes before the page."""
        return self._view[LARGEST - size : LARGEST]


@dataclass(frozen=True)
class Case:
    """A codec and a tensor for it, with valid encodings."""

    codec: Codec | Following
    spec: TensorSpec
    seeds: tuple[bytes, ...]


class Following:
    """A stream after its first frame: decodes what comes then, and one more after that.

    Args:
        codec: Of the stream.
        first: The frame before.
        last: The frame behind.
    """

    def __init__(self, codec: StreamCodec, first: bytes, last: bytes) -> None:
        self.name = codec.name
        self._codec = codec
        self._first = first
        self._last = last

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        """Decode a second frame into ``out``, and a third one where that is taken."""
        stream = self._codec.stream()
        stream.decode(memoryview(self._first), out)
        stream.decode(payload, out)
        stream.decode(memoryview(self._last), np.empty_like(out))


def _following(codec: StreamCodec, spec: TensorSpec) -> Case:
    """Return a case of frames that refer to others."""
    stream = codec.stream()
    frames = [_encoded(stream, spec, np.roll(_smooth(spec), 5 * n)) or b"" for n in range(3)]
    return Case(Following(codec, frames[0], frames[2]), spec, (frames[1],))


def cases() -> list[Case]:
    """Return every codec with every dtype and shape that it applies to."""
    rng = np.random.default_rng(0)
    found = []
    for name in codec_names_here():
        codec = open_codec(name)
        specs = [TensorSpec("t", dtype, shape) for dtype in DTYPES for shape in SHAPES]
        specs += [BLOCKS] if NEEDS.get(name) == "blosc2" else []
        for spec in specs:
            if codec.applies(spec):
                arrays = (_noise(rng, spec), _smooth(spec), _grid(rng, spec))
                seeds = tuple(filter(None, (_encoded(codec, spec, a) for a in arrays)))
                found.append(Case(codec, spec, seeds or (b"",)))
                if is_stream(name):
                    found.append(_following(cast(StreamCodec, codec), spec))
    return found


def _noise(rng: np.random.Generator, spec: TensorSpec) -> np.ndarray:
    if spec.dtype.startswith("float"):
        return np.asarray(rng.standard_normal(spec.shape), spec.dtype)
    return np.asarray(rng.integers(0, 2 if spec.dtype == "bool" else 128, spec.shape), spec.dtype)


def _smooth(spec: TensorSpec) -> np.ndarray:
    return np.asarray(np.arange(spec.size) // 40 % 100, spec.dtype).reshape(spec.shape)


def _grid(rng: np.random.Generator, spec: TensorSpec) -> np.ndarray:
    return np.asarray(rng.random(spec.shape) < 0.1, spec.dtype)


def _encoded(codec: Codec, spec: TensorSpec, array: np.ndarray) -> bytes | None:
    scratch = memoryview(bytearray(codec.max_encoded_bytes(spec)))
    try:
        return bytes(codec.encode(np.asarray(array, order="C"), scratch))
    except CodecError:
        return None


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return a damaged copy: flipped bits, other numbers, cut off, grown, put together."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _damage(rng, out, other)
    return bytes(out[:LARGEST])


def _damage(rng: random.Random, out: bytearray, other: bytes) -> None:
    kind = rng.randrange(9)
    size = len(out)
    at = rng.randrange(size) if size else 0
    if kind == 0:
        del out[at:]
    elif kind == 1:
        out += rng.randbytes(rng.randrange(1, 40))
    elif kind == 2:
        out[at:] = other[at if at < len(other) else 0 :]
    elif kind == 3 and size:
        del out[at : at + rng.randrange(1, 16)]
    elif kind == 4 and size:
        out[at:at] = out[at : at + rng.randrange(1, 16)]
    elif kind == 5 and size >= 4:
        place = rng.randrange(min(size - 3, 72))
        struct.pack_into("<I", out, place, rng.choice(EDGES) ^ rng.choice((0, 0, 1, size)))
    elif kind == 6 and size >= 2:
        place = rng.randrange(min(size - 1, 200))
        struct.pack_into(">H", out, place, rng.choice(EDGES) & 0xFFFF)
    elif kind == 7 and size:
        out[rng.randrange(min(size, 40))] = rng.randrange(256)
    elif size:
        out[at] ^= 1 << rng.randrange(8)


def decode_one(
    case: Case, data: bytes, given: Guarded, taken: Guarded, *, watch: bool
) -> tuple[bool, str]:
    """Decode one input; returns whether it was decoded, and what went wrong."""
    payload = given.end(len(data))
    payload[:] = data
    raw = np.frombuffer(taken.end(case.spec.nbytes), np.uint8)
    out = raw.view(case.spec.dtype).reshape(case.spec.shape)
    before = np.frombuffer(taken.end(case.spec.nbytes + 64)[:64], np.uint8)
    before[:] = 0xA5
    if watch:
        tracemalloc.start()
    decoded, wrong = True, ""
    try:
        case.codec.decode(payload, out)
    except CodecError:
        decoded = False
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is what is looked for
        wrong = f"{type(exc).__name__}: {exc}"[:200]
    if watch:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        limit = ALLOWED[0] * (case.spec.nbytes + len(data)) + ALLOWED[1]
        if peak > limit and not wrong:
            wrong = f"took {peak} bytes of memory, at most {limit}"
    if (before != 0xA5).any() and not wrong:
        wrong = "wrote before the array"
    if decoded and not wrong and case.spec.dtype == "bool" and raw.size and raw.max() > 1:
        wrong = "gave a boolean that is neither 0 nor 1"
    return decoded, wrong


def work(seed: int, path: str) -> None:
    """Decode until killed; a line of JSON on stdout now and then."""
    rng = random.Random(seed)  # noqa: S311
    warnings.simplefilter("error")
    known = cases()
    given, taken = Guarded(path), Guarded()
    for case in known:  # whatever is imported late is imported now
        decode_one(case, case.seeds[0], given, taken, watch=False)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    tally, said = Tally(), time.monotonic()
    note = np.frombuffer(given.end(LARGEST)[:16], "<u8")
    number = 0
    while True:
        place = rng.randrange(len(known))
        case = known[place]
        data = mutate(rng, rng.choice(case.seeds), rng.choice(rng.choice(known).seeds))
        if rng.random() < 0.002:
            data = rng.randbytes(rng.randrange(100))
        note[:] = place, len(data)
        number += 1
        decoded, wrong = decode_one(case, data, given, taken, watch=number % WATCHED == 0)
        (tally.decoded if decoded else tally.refused)[case.codec.name] += 1
        if wrong:
            tally.failures.append(f"{case.codec.name} {case.spec}: {wrong}; {data[:64].hex()}")
        if number % 256 == 0 and (time.monotonic() - said > 0.5 or tally.failures):
            print(json.dumps([tally.decoded, tally.refused, tally.failures]), flush=True)
            tally, said = Tally(), time.monotonic()


def fuzz(inputs: int, seconds: float, *, seed: int = 0, jobs: int = 1) -> Tally:
    """Run processes until so many inputs were decoded or the time is over."""
    tally = Tally()
    until = time.monotonic() + seconds
    started = seed
    names = cases()
    with tempfile.TemporaryDirectory() as folder:
        running: dict[Any, tuple[subprocess.Popen[bytes], str, float]] = {}
        try:
            while tally.inputs < inputs and time.monotonic() < until:
                while len(running) < jobs:
                    path = str(Path(folder) / str(started))
                    process = _start(started, path)
                    running[process.stdout] = process, path, time.monotonic()
                    started += 1
                ready, _, _ = select.select(list(running), [], [], 0.5)
                for pipe in list(running):
                    process, path, heard = running[pipe]
                    line = pipe.readline() if pipe in ready else b""
                    if line:
                        decoded, refused, failures = json.loads(line)
                        tally.decoded.update(decoded)
                        tally.refused.update(refused)
                        tally.failures += failures
                        running[pipe] = process, path, time.monotonic()
                    elif pipe in ready or time.monotonic() - heard > HANG_S:
                        del running[pipe]
                        hung = process.poll() is None and pipe not in ready
                        process.kill()
                        why = "hung" if hung else f"ended with {process.wait()}"
                        tally.failures.append(f"{_last_input(path, names)}: the process {why}")
        finally:
            for process, _, _ in running.values():
                process.kill()
                process.wait()
                process.stdout.close()  # type: ignore[union-attr]
    return tally


def _start(seed: int, path: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--worker", str(seed), path]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def _last_input(path: str, known: list[Case]) -> str:
    """Say what a process that ended was decoding, and keep it."""
    data = Path(path).read_bytes() if Path(path).exists() else b""
    if len(data) < LARGEST:
        return "before the first input"
    place, size = struct.unpack_from("<QQ", data)
    case = known[min(place, len(known) - 1)]
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / f"{case.codec.name.replace(':', '-')}-{Path(path).name}.bin"
    kept.write_bytes(data[LARGEST - size : LARGEST])
    return f"{case.codec.name} {case.spec}: {kept}"


@click.command()
@click.option("--inputs", default=1_000_000, show_default=True, help="Stop after so many.")
@click.option("--seconds", default=60.0, show_default=True, help="Stop after so long.")
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--worker", nargs=2, hidden=True)
def main(
    inputs: int, seconds: float, seed: int, jobs: int, worker: tuple[str, str] | None
) -> None:
    """Decode mutated encodings; exit 1 if anything but a value or a CodecError came of one."""
    if worker:
        work(int(worker[0]), worker[1])
        return
    began = time.monotonic()
    tally = fuzz(inputs, seconds, seed=seed, jobs=jobs)
    took = time.monotonic() - began
    for name in codec_names_here():
        known = open_codec(name).name
        print(f"{name:14} {tally.decoded[known]:9} decoded {tally.refused[known]:9} refused")
    for failure in tally.failures[:20]:
        print(f"FAILED {failure}")
    print(
        f"{tally.inputs} inputs in {took:.0f} s, {tally.inputs / took:.0f} a second; "
        f"{len(tally.failures)} failures"
    )
    sys.exit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
