from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backend import BackendOptions, available_backends, open_backend
from engines.bundle import Bundle
from engines.errors import BuildError, DigestError, EngineError, IncompatibleError
from engines.fingerprint import Fingerprint
from engines.plans import CachedBackend, PlanStore, fits
from engines.tensorrt.api import Api, find_api
from engines.tensorrt.backend import TensorRTBackend, TensorRTOptions, TensorRTRTXBackend
from engines.tensorrt.builder import BuildOptions
from engines.tensorrt.memory import DeviceMemory
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.trt import GENERATIONS, fake_tensorrt, write_graph
from tests.engines.test_tensorrt_builder import write_small_onnx

PAIR = [["x", "float32", [2]], ["y", "float32", [2]]]
SUM = [["s", "float32", [2], "add", ["x", "y"]]]
ONES = np.ones(2, np.float32)
AMPERE = TensorRTOptions(build=BuildOptions(compute_capabilities=("sm86", "sm89")))


def no_gpu() -> DeviceMemory:
    raise IncompatibleError("no GPU can be used here: pycuda: none")


def make(
    generation: str, options: BackendOptions = BackendOptions(), gpu: str = "sm86"
) -> TensorRTBackend:
    memory = FakeMemory(capability=gpu or "none")
    kind = TensorRTRTXBackend if generation == "rtx" else TensorRTBackend
    api = Api(fake_tensorrt(generation, memory))
    return kind(options, api=api, memory=(lambda: memory) if gpu else no_gpu)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "g.onnx", PAIR, SUM)


@pytest.mark.parametrize("generation", GENERATIONS)
class TestEveryGeneration:
    def test_it_builds_loads_and_runs(self, generation: str, graph: Path) -> None:
        backend = make(generation, BackendOptions(threads=2))
        engine = backend.load(backend.build(graph), folder=graph.parent)
        assert engine.run({"x": ONES, "y": ONES})["s"].tolist() == [2, 2]
        assert backend.name in repr(engine)

    def test_what_is_no_plan_is_refused_in_one_line(self, generation: str, graph: Path) -> None:
        with pytest.raises(EngineError, match="refused a plan") as caught:
            make(generation).load(b"\xff no plan", folder=graph.parent)
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_not_there(self, generation: str, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match=r"gone\.onnx"):
            make(generation).build(tmp_path / "gone.onnx")

    def test_without_a_gpu_nothing_runs(self, generation: str, graph: Path) -> None:
        plan = make(generation).build(graph)
        name = "tensorrt-rtx" if generation == "rtx" else "tensorrt"
        with pytest.raises(IncompatibleError, match=f"backend '{name}': no GPU can be used"):
            make(generation, gpu="").load(plan, folder=graph.parent)
        with pytest.raises(IncompatibleError, match="no GPU can be used"):
            make(generation, gpu="").fingerprint()
        with pytest.raises(IncompatibleError, match="no GPU can be used"):
            make(generation, gpu="").build(graph)

    def test_a_fingerprint_names_what_a_plan_depends_on(self, generation: str) -> None:
        backend = make(generation)
        fields = backend.fingerprint().fields
        assert set(fields) == {"version", "platform", "device", "compute_capability"}
        assert (fields["device"], fields["compute_capability"]) == ("Fake GPU", "sm86")
        assert fits(backend.plan_fingerprint(), backend.fingerprint())
        assert not fits(backend.plan_fingerprint(), make(generation, gpu="sm89").fingerprint())

    def test_plans_are_kept(self, generation: str, graph: Path, tmp_path: Path) -> None:
        store = PlanStore(tmp_path / "plans")
        backend = make(generation)
        cached = CachedBackend(backend, store)
        for _ in range(3):
            engine = cached.load(cached.build(graph), folder=graph.parent)
            assert engine.run({"x": ONES, "y": ONES})["s"].tolist() == [2, 2]
        builds = [call for call in backend.api.trt.calls if call[0] == "build"]
        assert len(builds) == 1

    def test_a_plan_for_another_gpu_never_reaches_the_library(
        self, generation: str, graph: Path, tmp_path: Path
    ) -> None:
        store = PlanStore(tmp_path / "plans")
        header = store.build(make(generation), graph).header
        other = make(generation, gpu="sm120")
        with pytest.raises(IncompatibleError, match=r"sm86.*sm120.*`runtime build BUNDLE`"):
            store.open(header.key, other.fingerprint())
        assert store.open(header.key, make(generation).fingerprint())


class TestRtx:
    def test_it_builds_without_a_gpu_for_the_targets_that_it_is_told(self, graph: Path) -> None:
        backend = make("rtx", AMPERE, gpu="")
        plan = backend.build(graph)
        assert backend.fingerprint() == backend.plan_fingerprint()
        assert backend.plan_fingerprint().fields["targets"] == "sm86,sm89"
        for gpu in ("sm86", "sm89"):
            device = make("rtx", gpu=gpu)
            assert fits(backend.plan_fingerprint(), device.fingerprint())
            assert device.load(plan, folder=graph.parent).run({"x": ONES, "y": ONES})
        wrong = make("rtx", gpu="sm120")
        assert not fits(backend.plan_fingerprint(), wrong.fingerprint())
        with pytest.raises(IncompatibleError, match=r"not for this device: .*sm120"):
            wrong.load(plan, folder=graph.parent)

    def test_the_order_of_targets_does_not_matter(self) -> None:
        swapped = TensorRTOptions(build=BuildOptions(compute_capabilities=("sm89", "sm86")))
        one, two = make("rtx", AMPERE), make("rtx", swapped)
        assert one.plan_fingerprint() == two.plan_fingerprint()
        assert one.plan_options() == two.plan_options()

    def test_without_a_gpu_and_targets_it_says_how_to_name_them(self, graph: Path) -> None:
        with pytest.raises(IncompatibleError, match="--target tensorrt-rtx:sm86,sm89"):
            make("rtx", gpu="").build(graph)

    def test_a_gpu_that_it_does_not_list(self, graph: Path) -> None:
        with pytest.raises(IncompatibleError, match=r"builds for sm75, .*, this GPU is sm90"):
            make("rtx", gpu="sm90").build(graph)

    def test_what_it_compiled_is_kept_between_starts(self, graph: Path, tmp_path: Path) -> None:
        options = TensorRTOptions(runtime_cache=tmp_path / "cache")
        seen = []
        for _ in range(2):
            backend = make("rtx", options)
            engine = backend.load(backend.build(graph), folder=graph.parent)
            engine.run({"x": ONES, "y": ONES})
            engine.close()
            seen.append([call[1] for call in backend.api.trt.calls if call[0] == "runtime_cache"])
        assert seen == [[], [b"jitWHOLE_GRAPH_CAPTURE"]]
        (kept,) = (tmp_path / "cache").iterdir()
        kept.write_bytes(b"of another driver")
        backend = make("rtx", options)
        engine = backend.load(backend.build(graph), folder=graph.parent)
        assert engine.run({"x": ONES, "y": ONES})["s"].tolist() == [2, 2]
        engine.close()
        assert kept.read_bytes() == b"jitWHOLE_GRAPH_CAPTURE"

    def test_a_cache_that_cannot_be_written_is_no_error(self, graph: Path) -> None:
        backend = make("rtx", TensorRTOptions(runtime_cache=graph / "below a file"))
        engine = backend.load(backend.build(graph), folder=graph.parent)
        engine.run({"x": ONES, "y": ONES})
        engine.close()

    def test_an_engine_that_never_ran_keeps_nothing(self, graph: Path, tmp_path: Path) -> None:
        backend = make("rtx", TensorRTOptions(runtime_cache=tmp_path / "cache"))
        backend.load(backend.build(graph), folder=graph.parent).close()
        assert not (tmp_path / "cache").exists()


def test_tensorrt_needs_a_gpu_whatever_it_is_told(graph: Path) -> None:
    with pytest.raises(IncompatibleError, match="no GPU can be used"):
        make("10", AMPERE, gpu="").build(graph)
    with pytest.raises(BuildError, match="the GPU of this machine only"):
        make("10", AMPERE).build(graph)


class TestRealRtx:
    """The backend as it is here: a builder, and no GPU."""

    @pytest.fixture
    def backend(self) -> TensorRTRTXBackend:
        try:
            find_api("tensorrt-rtx")
        except IncompatibleError as exc:
            pytest.skip(str(exc))
        backend = open_backend("tensorrt-rtx", AMPERE)
        assert isinstance(backend, TensorRTRTXBackend)
        return backend

    def test_plans_of_fp32_and_fp16_are_built_once(
        self, backend: TensorRTRTXBackend, tmp_path: Path
    ) -> None:
        store = PlanStore(tmp_path / "plans")
        for dtype, precision in ((np.float32, "fp32"), (np.float16, "fp16")):
            path = write_small_onnx(tmp_path, dtype)
            first, again = store.build(backend, path), store.build(backend, path)
            assert (first.found, again.found) == (False, True)
            assert first.data == again.data
            assert first.header.precision == precision
            assert first.header.fingerprint.fields["targets"] == "sm86,sm89"
            device = Fingerprint(
                backend="tensorrt-rtx",
                fields={
                    **{k: backend.fingerprint().fields[k] for k in ("version", "platform")},
                    "device": "NVIDIA GeForce RTX 4090",
                    "compute_capability": "sm89",
                },
            )
            assert store.open(first.header.key, device) == first.data
            other = Fingerprint("tensorrt-rtx", {**device.fields, "compute_capability": "sm120"})
            with pytest.raises(IncompatibleError, match=r"sm86,sm89.*sm120"):
                store.open(first.header.key, other)
        assert [header.precision for header in store.headers()].count("fp16") == 1

    def test_every_graph_of_a_bundle_is_built(
        self, backend: TensorRTRTXBackend, toy: Bundle, tmp_path: Path
    ) -> None:
        store = PlanStore(tmp_path / "plans")
        files = sorted((toy.folder / "graph").glob("*.onnx"))
        weights = toy.manifest.files["graph/weights.bin"].sha256
        for file in files:
            store.build(backend, file, weights_sha256=weights)
        assert all(store.build(backend, file).found for file in files)

    def test_a_flipped_bit_is_found_before_the_library_sees_it(
        self, backend: TensorRTRTXBackend, tmp_path: Path
    ) -> None:
        store = PlanStore(tmp_path / "plans")
        header = store.build(backend, write_small_onnx(tmp_path)).header
        path = store.folder / header.file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(DigestError, match="`runtime build BUNDLE`"):
            store.open(header.key, backend.fingerprint())


def test_the_registry_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = available_backends()
    for name in ("tensorrt", "tensorrt-rtx"):
        if found[name]:
            assert "install" in found[name]
            assert "\n" not in found[name]
