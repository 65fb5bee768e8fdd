from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import fuzz_decoders
import numpy as np
import pytest

from engines.codecs import codec_names_here, open_codec
from engines.errors import CodecError
from engines.tensors import DTYPES, TensorSpec

SCRIPT = Path(fuzz_decoders.__file__)


def test_damaged_bytes_are_decoded_or_refused_and_nothing_else() -> None:
    tally = fuzz_decoders.fuzz(20_000, 60, seed=1)
    assert tally.failures == []
    assert tally.inputs >= 20_000
    assert {open_codec(name).name for name in codec_names_here()} == set(tally.refused)


def test_every_codec_is_fuzzed_with_every_dtype_that_it_takes() -> None:
    found = {(case.codec.name, case.spec.dtype) for case in fuzz_decoders.cases()}
    for name in codec_names_here():
        codec = open_codec(name)
        for dtype in DTYPES:
            if codec.applies(TensorSpec("t", dtype, (1, 24, 16, 3))):
                assert (codec.name, dtype) in found


def test_frames_that_refer_to_others_are_fuzzed_too() -> None:
    if "video:60" not in codec_names_here():
        pytest.skip("PyAV is not installed")
    following = [c for c in fuzz_decoders.cases() if isinstance(c.codec, fuzz_decoders.Following)]
    assert {case.codec.name for case in following} == {"video:60", "video:85"}
    for case in following:
        out = np.empty(case.spec.shape, case.spec.dtype)
        case.codec.decode(memoryview(case.seeds[0]), out)
        with pytest.raises(CodecError, match="the first is missing"):
            open_codec(case.codec.name).decode(memoryview(case.seeds[0]), out)


def test_mutations_differ_and_stay_within_the_largest_size() -> None:
    rng = random.Random(0)
    found = {fuzz_decoders.mutate(rng, b"0123456789" * 10, b"abc" * 9) for _ in range(500)}
    assert len(found) > 300
    assert max(map(len, found)) <= fuzz_decoders.LARGEST


class _Broken:
    """A decoder with a fault."""

    name = "broken"

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        if self._fault == "raises":
            raise IndexError("payload")
        if self._fault == "takes":
            np.ones(20 << 20, np.uint8)
        if self._fault == "before":
            out.base.base[:0]
            out.reshape(-1)
            start = out.__array_interface__["data"][0]
            __import__("ctypes").memset(start - 8, 0, 4)


def test_faults_are_found() -> None:
    spec = TensorSpec("t", "float32", (4,))
    memory = fuzz_decoders.Guarded(), fuzz_decoders.Guarded()

    def result(fault: str) -> str:
        case = fuzz_decoders.Case(_Broken(fault), spec, (b"",))
        return fuzz_decoders.decode_one(case, b"12345", *memory, watch=True)[1]

    assert result("none") == ""
    assert result("raises") == "IndexError: payload"
    assert result("takes").startswith("took 2097")
    assert result("before") == "wrote before the array"


def test_one_byte_too_far_ends_the_process() -> None:
    program = (
        "import ctypes, fuzz_decoders as f; v = f.Guarded().end(4); "
        "a = ctypes.addressof(ctypes.c_char.from_buffer(v)); "
        "print(ctypes.string_at(a, 4)); print(ctypes.string_at(a, 5))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={"PYTHONPATH": f"{SCRIPT.parent}:{SCRIPT.parent.parent}"},
        check=False,
    )
    assert done.returncode == -11
    assert done.stdout in (b"", b"b'\\x00\\x00\\x00\\x00'\n")
