"""Data: folders, archives read row by row, iterables; finite, repeatable, named by a digest."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from calibration.samples import DataDigest, open_samples
from engines.errors import SourceError, TensorMismatchError
from engines.manifest import ImageLayout
from engines.tensors import TensorSpec

X = TensorSpec("x", "float32", (1, 3, 4, 4))
PIXELS = TensorSpec("x", "uint8", (1, 8, 8, 3))
IMAGES = {"x": ImageLayout(layout="NHWC")}
RANDOM = np.random.default_rng(0)


def arrays(samples, name="x"):
    return [sample.inputs[name] for sample in samples]


def digest(samples):
    found = DataDigest()
    for sample in samples:
        found.add(sample.inputs)
    return found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(5, 1, 3, 4, 4), (5, 3, 4, 4)])
def test_an_archive_row_by_row(tmp_path, save, shape):
    given = RANDOM.normal(size=shape).astype(np.float32)
    save(tmp_path / "d.npz", x=given, other=np.zeros(3))
    samples = open_samples(str(tmp_path / "d.npz"), (X,), {})
    assert samples.size == 5
    for _ in range(2):  # it can be gone through again
        assert np.array_equal(np.stack(arrays(samples)), given.reshape(5, 1, 3, 4, 4))
    assert [s.name for s in samples.first(2)] == ["d.npz[0]", "d.npz[1]"]
    assert samples.first(2).size == 2
    np.savez(tmp_path / "one.npz", x=given.reshape(5, 1, 3, 4, 4)[0])
    assert open_samples(str(tmp_path / "one.npz"), (X,), {}).size == 1


def test_an_archive_is_never_in_memory_as_a_whole(tmp_path):
    spec = TensorSpec("x", "float32", (1, 64, 64))
    np.savez(tmp_path / "d.npz", x=np.zeros((400, 1, 64, 64), np.float32))
    samples = open_samples(str(tmp_path / "d.npz"), (spec,), {})
    tracemalloc.start()
    count = sum(1 for _ in samples)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 400
    assert peak < 40 * spec.nbytes


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "d.npz"

    def refused(match, specs=(X,), text=None, images=None):
        with pytest.raises(SourceError, match=match) as raised:
            list(open_samples(text or str(path), specs, images or {}))
        assert "\n" not in str(raised.value)

    refused("not a readable .npz file: No such file")
    np.savez(path, y=np.zeros(3))
    refused("no 'x'; it has y; make it with numpy.savez")
    np.savez(path, x=np.zeros((2, 3, 4, 5), np.float32))
    refused(r"expected float32 \[samples, 1, 3, 4, 4\], given float32 \[2, 3, 4, 5\]")
    np.savez(path, x=np.zeros((2, 3, 4, 4)))
    refused("given float64")
    np.savez(path, x=np.asfortranarray(np.zeros((2, 3, 4, 4), np.float32)))
    refused("Fortran order")
    two = (X, TensorSpec("y", "float32", (2,)))
    np.savez(path, x=np.zeros((2, 3, 4, 4), np.float32), y=np.zeros((3, 2), np.float32))
    refused("different numbers of samples", two)
    np.savez(path, x=np.zeros((2, 3, 4, 4), np.float32))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused("not a readable .npz file")
    path.write_bytes(data.replace(b"descr", b"descX"))
    refused("not a readable .npz file")
    refused("no such file", text="nowhere")
    refused("takes no raw image", text=str(tmp_path))
    refused("expected images", (PIXELS,), str(tmp_path), IMAGES)


def test_pickles_are_never_read(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object))
    with pytest.raises(SourceError, match="given object"):
        open_samples(str(tmp_path / "d.npz"), (X,), {})


def test_a_folder_in_the_order_of_its_names(tmp_path):
    from PIL import Image

    for name, value in (("b", 9), ("a", 200)):
        Image.new("RGB", (9, 9), (value, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("no image")
    samples = open_samples(str(tmp_path), (PIXELS,), IMAGES)
    assert [(s.name, int(s.inputs["x"].max())) for s in samples] == [("a.png", 200), ("b.png", 9)]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "X = np.ones((1, 3, 4, 4), np.float32)\n"
        "stored = [{'x': X}, X, (X,)]\n"
        "def drawn():\n    yield from stored\n"
        "once = drawn()\n"
        "wrong = [X[0]]\n"
        "two = [(X, X)]\n"
        "number = 3\n"
        "def fails():\n    yield X\n    raise RuntimeError('camera lost')\n"
    )


def test_iterables_and_functions(mine):
    stored = open_samples("mine.py:stored", (X,), {})
    drawn = open_samples("mine.py:drawn", (X,), {})
    assert (stored.size, drawn.size) == (3, None)
    for _ in range(2):
        assert len(arrays(stored)) == len(arrays(drawn)) == 3
    assert digest(stored).hexdigest() == digest(drawn).hexdigest()


def test_iterables_that_do_not_work(mine):
    once = open_samples("mine.py:once", (X,), {})
    assert len(list(once)) == 3
    for samples, error, match in (
        (once, SourceError, "can be gone through twice, given a generator; give a function"),
        (open_samples("mine.py:number", (X,), {}), SourceError, "expected an iterable"),
        (open_samples("mine.py:fails", (X,), {}), SourceError, "sample 1: RuntimeError: camera"),
        (open_samples("mine.py:two", (X,), {}), SourceError, "expected 1 inputs, given 2"),
        (open_samples("mine.py:wrong", (X,), {}), TensorMismatchError, r"given float32 \[3, 4, 4"),
    ):
        with pytest.raises(error, match=match):
            list(samples)
    with pytest.raises(SourceError, match="no 'other' there"):
        open_samples("mine.py:other", (X,), {})


def test_the_digest_depends_on_values_names_and_order_of_samples():
    a, b = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)

    def of(*samples):
        found = DataDigest()
        for inputs in samples:
            found.add(inputs)
        return found.hexdigest()

    assert of({"x": a, "y": b}) == of({"y": b, "x": a})
    different = [{"x": a}], [{"y": a}], [{"x": b}], [{"x": a}, {"x": b}], [{"x": b}, {"x": a}]
    different += ([{"x": a.astype("f2")}], [{"x": a[0]}], [{"x": a, "y": b}], [{"x": b, "y": a}])
    assert len({of(*samples) for samples in different}) == len(different)
    found = DataDigest()
    found.add({"x": a})
    found.add({"x": a})
    assert found.constant
    found.add({"x": b})
    assert not found.constant
