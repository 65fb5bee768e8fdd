"""Plans of a bundle: taken from it or from the device folder, if they fit; never built."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from calibration.measure import measure_latency
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle, file_entries, new_bundle
from engines.bundle_plans import BundlePlans, device_store, open_bundle_backend, target_of
from engines.errors import DigestError, IncompatibleError
from engines.fingerprint import Fingerprint
from engines.halves import halves_of
from engines.manifest import Target
from engines.plans import BuiltPlan, PlanStore
from engines.program import Program
from engines.tensorrt.backend import TensorRTOptions
from tests.toy import toy_outputs, write_toy_bundle


class FakeGpu:
    """A backend whose plan is the ONNX file, valid for one device."""

    name = "tensorrt-rtx"

    def __init__(self, device: str = "gpu-a", level: str = "3") -> None:
        self._device = device
        self._level = level
        self._runner = open_backend("ort")
        self.built = 0

    def build_plan(self, onnx_path: Path) -> BuiltPlan:
        self.built += 1
        return BuiltPlan(onnx_path.read_bytes(), "fp32", 0.5)

    def load(self, plan: bytes, *, folder: Path) -> object:
        return self._runner.load(plan, folder=folder)

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(backend=self.name, fields={"device": self._device, "version": "1"})

    def plan_fingerprint(self) -> Fingerprint:
        return self.fingerprint()

    def plan_options(self) -> dict[str, str]:
        return {"level": self._level}


def bundle_with_plans(target: Path, builder: FakeGpu) -> Bundle:
    plain = write_toy_bundle(target.with_name("plain.bundle"))
    with new_bundle(target) as (folder, finish):
        for name in plain.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(plain.path(name).read_bytes())
        for segment in plain.manifest.segments:
            PlanStore(folder / "plans/rtx").build(builder, folder / segment.file)
        recipe = Target(backend=builder.name, opset=18, precision="fp32", plans="plans/rtx")
        return finish(
            msgspec.structs.replace(
                plain.manifest, targets={"rtx": recipe}, files=file_entries(folder)
            )
        )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle_with_plans(tmp_path / "planned.bundle", FakeGpu())
    return Bundle.open(tmp_path / "planned.bundle")


def test_a_program_runs_on_the_plans_in_the_bundle_and_builds_none(bundle: Bundle) -> None:
    gpu = FakeGpu()
    inputs, _ = bundle.parity_vectors()
    with Program(bundle, BundlePlans(bundle, gpu), fuse=False) as program:
        outputs = program.outputs(program.run(inputs))
    expected = toy_outputs(inputs)
    assert gpu.built == 0
    assert all(np.allclose(outputs[name], expected[name], atol=1e-5) for name in expected)


def test_a_plan_for_another_device_is_refused_with_both_fingerprints(bundle: Bundle) -> None:
    with pytest.raises(IncompatibleError) as caught:
        Program(bundle, BundlePlans(bundle, FakeGpu("gpu-b")))
    message = str(caught.value)
    assert "gpu-a" in message
    assert "gpu-b" in message
    assert "runtime build" in message
    assert "\n" not in message


def test_what_the_device_built_is_taken_where_the_bundle_has_none_for_it(bundle: Bundle) -> None:
    other = FakeGpu("gpu-b")
    for segment in bundle.manifest.segments:
        device_store(bundle).build(other, bundle.path(segment.file))
    with Program(bundle, BundlePlans(bundle, FakeGpu("gpu-b")), fuse=False) as program:
        assert len(program.loaded) == len(bundle.manifest.segments)


def test_plans_of_any_options_will_do(bundle: Bundle) -> None:
    with Program(bundle, BundlePlans(bundle, FakeGpu(level="5")), fuse=False) as program:
        assert len(program.loaded) == len(bundle.manifest.segments)


def test_a_plan_of_another_model_is_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    # The same file names, other weights: the key tells them apart.
    other = write_toy_bundle(tmp_path / "other.bundle", seed=1)
    for segment in bundle.manifest.segments:
        device_store(other).build(FakeGpu(), bundle.path(segment.file))
    with pytest.raises(IncompatibleError, match="there is none"):
        Program(other, BundlePlans(other, FakeGpu()))


def test_a_damaged_plan_of_the_device_folder_is_refused(bundle: Bundle) -> None:
    other = FakeGpu("gpu-b")
    segment = bundle.manifest.segments[0]
    plan = device_store(bundle).build(other, bundle.path(segment.file))
    path = device_store(bundle).folder / plan.header.file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DigestError, match=segment.file.rpartition("/")[2]):
        Program(bundle, BundlePlans(bundle, other))


def test_halves_without_a_plan_stay_chains_and_it_is_said_once(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    inputs, _ = bundle.parity_vectors()
    with Program(bundle, BundlePlans(bundle, FakeGpu())) as program:
        assert not program.load_half(0, program.last)
        assert not program.load_half(0, program.last)
        for _ in range(5):
            assert set(program.outputs(program.run(inputs))) == {"pooled", "logits"}
    said = [record for record in caplog.records if "stays a chain" in record.message]
    assert [record.levelname for record in said] == ["INFO"]
    assert "there is none" in said[0].message


def test_what_has_no_plan_is_measured_as_a_chain(bundle: Bundle) -> None:
    with Program(bundle, BundlePlans(bundle, FakeGpu())) as program:
        table = measure_latency(program, runs=3, warmup=0, halves=True)
    assert table.halves == ()
    assert table.whole.p50_s > 0


def test_halves_run_on_their_plans(bundle: Bundle) -> None:
    gpu = FakeGpu()
    inputs, _ = bundle.parity_vectors()
    expected = toy_outputs(inputs)
    halves = halves_of(bundle.manifest, "all")
    for file in halves.values():
        device_store(bundle).build(gpu, bundle.path(file))
    with Program(bundle, BundlePlans(bundle, gpu), max_halves=99) as program:
        assert all(program.load_half(*span) for span in halves)
        for start, stop in halves:
            env = program.run(inputs, 0, start, fused=False)
            env = program.run(env, start, stop, fused=True)
            outputs = program.outputs(program.run(env, stop, fused=False))
            assert all(np.allclose(outputs[name], expected[name], atol=1e-5) for name in expected)


def test_a_damaged_plan_of_a_half_leaves_the_chain(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = FakeGpu()
    plan = device_store(bundle).build(gpu, bundle.path(bundle.manifest.graph))
    (device_store(bundle).folder / plan.header.file).write_bytes(b"damaged")
    inputs, _ = bundle.parity_vectors()
    with Program(bundle, BundlePlans(bundle, gpu)) as program:
        program.run(inputs)
        until = time.monotonic() + 30
        while "stays a chain" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.005)
        assert set(program.outputs(program.run(inputs))) == {"pooled", "logits"}
    assert "builds it again" in caplog.text


def test_targets_by_name(bundle: Bundle, toy: Bundle) -> None:
    assert target_of(bundle, None)[0] == "rtx"
    assert target_of(bundle, "rtx")[1].plans == "plans/rtx"
    with pytest.raises(IncompatibleError, match="rtx"):
        target_of(bundle, "jetson")
    with pytest.raises(IncompatibleError, match="none"):
        target_of(toy, None)


def test_what_rtx_compiles_is_kept_in_the_device_folder(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    def fake_open(name: str, options: object) -> FakeGpu:
        opened.append(options)
        return FakeGpu()

    monkeypatch.setattr("engines.bundle_plans.open_backend", fake_open)
    open_bundle_backend(toy, "tensorrt-rtx", BackendOptions(threads=3))
    assert opened == [
        TensorRTOptions(threads=3, runtime_cache=toy.device_folder / "runtime-cache")
    ]


def test_other_backends_are_opened_as_they_are(toy: Bundle) -> None:
    assert open_bundle_backend(toy, "ort").name == "ort"
    with pytest.raises(IncompatibleError, match="no-such"):
        open_bundle_backend(toy, "no-such")
