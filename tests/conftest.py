"""Fixtures that every suite shares: the hand-made bundle, its inputs and its answers."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.program import Program
from tests.striped_toy import write_striped_bundle
from tests.toy import toy_outputs, write_toy_bundle

# Examples are the same in every run, and nothing is measured against a clock.
hypothesis.settings.register_profile(
    "splitrt", deadline=None, derandomize=True, database=None, max_examples=100
)
hypothesis.settings.load_profile("splitrt")

# A background job of a script starts with Ctrl-C ignored, and would hand that on to what the tests
# start: a process that is interrupted by a test must hear it however the tests were started.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give the toy bundle. Not to be changed: take ``toy_copy`` for that."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "toy.bundle")


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a bundle with striped forms, its outputs as spatial as its input."""
    return write_striped_bundle(tmp_path_factory.mktemp("dense") / "dense.bundle")


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a bundle with striped forms that ends in a classifier."""
    folder = tmp_path_factory.mktemp("classes") / "classes.bundle"
    return write_striped_bundle(folder, dense=False)


@pytest.fixture
def toy_copy(toy: Bundle, tmp_path: Path) -> Path:
    """Give the path of a copy of the toy bundle that the test may damage."""
    copy = tmp_path / "copy.bundle"
    shutil.copytree(toy.folder, copy)
    return copy


@pytest.fixture(scope="session")
def inputs() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(42)
    return {"x": draw.standard_normal((1, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(scope="session")
def expected(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give what NumPy alone computes for ``inputs``."""
    return toy_outputs(inputs)


@pytest.fixture
def program(toy: Bundle) -> Program:
    with Program(toy, open_backend("ort", BackendOptions(threads=1))) as loaded:
        yield loaded
