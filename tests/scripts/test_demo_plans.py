"""Plans of the demo model for two GPUs in two precisions, built without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler import CompileOptions, compile_model
from compiler.inputs import parse_input
from engines.bundle import Bundle
from engines.bundle_plans import BundlePlans
from engines.errors import IncompatibleError
from engines.fingerprint import Fingerprint
from engines.plans import PlanStore
from engines.tensorrt.backend import TensorRTOptions, TensorRTRTXBackend
from engines.tensorrt.builder import BuildOptions
from scripts.demo_model import INPUT

MODEL = f"{Path(__file__).resolve().parents[2] / 'scripts' / 'demo_model.py'}:efficientnet_lite0"
TARGETS = ("sm86", "sm89")

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
pytest.importorskip("efficientnet_lite_pytorch", reason="the demo's model is not installed")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp(request.param) / "demo.bundle"
    options = CompileOptions(
        inputs=(parse_input(INPUT),),
        targets=(f"tensorrt-rtx:{','.join(TARGETS)}",),
        precision=request.param,
        halves="none",
        stripes="none",
    )
    compile_model(MODEL, out, options=options)
    return Bundle.open(out)


@pytest.mark.slow
def test_every_segment_of_the_demo_has_a_plan(planned: Bundle) -> None:
    target = planned.manifest.targets["tensorrt-rtx"]
    assert target.plans is not None
    headers = PlanStore(planned.folder / target.plans).headers()
    names = {segment.file.rpartition("/")[2] for segment in planned.manifest.segments}
    assert {header.onnx for header in headers} == names
    assert len(names) >= 4
    wanted = "fp16" if planned.manifest.precision == "fp16" else "fp32"
    assert {header.precision for header in headers} == {wanted}
    assert {header.fingerprint.fields["targets"] for header in headers} == {"sm86,sm89"}
    largest = max(header.size for header in headers)
    assert largest > 1_000_000


@pytest.mark.slow
def test_the_second_build_of_the_demo_finds_every_plan(planned: Bundle) -> None:
    target = planned.manifest.targets["tensorrt-rtx"]
    assert target.plans is not None
    store = PlanStore(planned.folder / target.plans)
    build = BuildOptions(compute_capabilities=TARGETS)
    backend = TensorRTRTXBackend(TensorRTOptions(build=build))
    files = [planned.path(segment.file) for segment in planned.manifest.segments]
    assert all(store.build(backend, file).found for file in files)


@pytest.mark.slow
def test_a_plan_of_the_demo_is_refused_on_another_gpu(
    planned: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TensorRTRTXBackend(TensorRTOptions(build=BuildOptions(compute_capabilities=TARGETS)))
    fields = dict(backend.fingerprint().fields)
    del fields["targets"]
    other = Fingerprint("tensorrt-rtx", {**fields, "device": "X", "compute_capability": "sm90"})
    monkeypatch.setattr(backend, "fingerprint", lambda: other)
    plans = BundlePlans(planned, backend)
    with pytest.raises(IncompatibleError, match=r"(?s)sm90.*sm86,sm89.*runtime build"):
        plans.build(planned.path(planned.manifest.segments[0].file))
