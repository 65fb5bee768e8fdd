"""Building plans: with every generation of the fake library, and with the real TensorRT-RTX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import BuildError, IncompatibleError
from engines.tensorrt import api as api_module
from engines.tensorrt.api import Api, find_api, one_line
from engines.tensorrt.builder import BuildOptions, build_plan
from tests.engines.fakes.gpu import FakeMemory
from tests.engines.fakes.trt import GENERATIONS, fake_tensorrt, write_graph

PAIR = [["x", "float32", [2]], ["y", "float32", [2]]]
SUM = [["s", "float32", [2], "add", ["x", "y"]]]


@pytest.fixture(params=GENERATIONS)
def trt(request: pytest.FixtureRequest) -> Any:
    return fake_tensorrt(request.param, FakeMemory())


def _calls(trt: Any, name: str) -> list[tuple[Any, ...]]:
    return [call[1:] for call in trt.calls if call[0] == name]


class TestEveryGeneration:
    def test_it_builds(self, trt: Any, tmp_path: Path) -> None:
        built = build_plan(Api(trt), write_graph(tmp_path / "g.onnx", PAIR, SUM))
        assert built.data.startswith(b"fakeplan")
        assert built.precision == "fp32"
        assert built.seconds > 0
        assert _calls(trt, "create_network") == [(trt.generation != "8.5",)]

    def test_it_says_what_the_plan_takes_and_gives(self, trt: Any, tmp_path: Path) -> None:
        built = build_plan(Api(trt), write_graph(tmp_path / "g.onnx", PAIR, SUM))
        assert [str(spec) for spec in built.inputs] == ["x: float32 [2]", "y: float32 [2]"]
        assert [str(spec) for spec in built.outputs] == ["s: float32 [2]"]

    def test_shapes_that_are_not_fixed_are_refused_by_name(self, trt: Any, tmp_path: Path) -> None:
        path = write_graph(tmp_path / "g.onnx", [["x", "float32", [-1, 2]]], [])
        with pytest.raises(BuildError, match=r"g\.onnx: .*'x' has the shape \[-1, 2\]"):
            build_plan(Api(trt), path)

    def test_fp32_is_fp32_unless_tf32_is_allowed(self, trt: Any, tmp_path: Path) -> None:
        path = write_graph(tmp_path / "g.onnx", PAIR, SUM)
        build_plan(Api(trt), path)
        build_plan(Api(trt), path, BuildOptions(tf32=True))
        assert _calls(trt, "build") == [([],), (["TF32"],)]

    @pytest.mark.parametrize(
        ("dtype", "more", "precision", "flags"),
        [
            ("float32", {}, "fp32", []),
            ("float16", {}, "fp16", ["FP16"]),
            ("float32", {"quantised": True}, "int8", ["FP16", "INT8"]),
        ],
    )
    def test_flags_only_where_the_types_of_the_graph_do_not_bind(
        self,
        trt: Any,
        tmp_path: Path,
        dtype: str,
        more: dict[str, Any],
        precision: str,
        flags: list[str],
    ) -> None:
        path = write_graph(
            tmp_path / "g.onnx",
            [["x", dtype, [2]]],
            [["d", dtype, [2], "double", ["x"]]],
            **more,
        )
        assert build_plan(Api(trt), path).precision == precision
        assert _calls(trt, "build") == [(flags if trt.generation == "8.5" else [],)]

    def test_precision_flags_can_be_named_where_they_mean_something(
        self, trt: Any, tmp_path: Path
    ) -> None:
        path = write_graph(tmp_path / "g.onnx", PAIR, SUM)
        build_plan(Api(trt), path, BuildOptions(precision_flags=("FP16",)))
        assert _calls(trt, "build") == [(["FP16"] if trt.generation == "8.5" else [],)]

    def test_a_workspace_and_further_flags(self, trt: Any, tmp_path: Path) -> None:
        options = BuildOptions(
            workspace_bytes=1 << 20, flags=("GPU_FALLBACK",), optimization_level=5
        )
        build_plan(Api(trt), write_graph(tmp_path / "g.onnx", PAIR, SUM), options)
        assert _calls(trt, "workspace") == [("WORKSPACE", 1 << 20)]
        assert _calls(trt, "build") == [(["GPU_FALLBACK"],)]

    def test_a_flag_that_is_not_there(self, trt: Any, tmp_path: Path) -> None:
        path = write_graph(tmp_path / "g.onnx", PAIR, SUM)
        with pytest.raises(BuildError, match=r"'FP5': tensorrt.* has only .*TF32"):
            build_plan(Api(trt), path, BuildOptions(flags=("FP5",)))

    def test_targets(self, trt: Any, tmp_path: Path) -> None:
        path = write_graph(tmp_path / "g.onnx", PAIR, SUM)
        options = BuildOptions(compute_capabilities=("sm86", "sm89"))
        if trt.generation == "rtx":
            assert b'["sm86", "sm89"]' in build_plan(Api(trt), path, options).data
            wrong = BuildOptions(compute_capabilities=("sm86", "sm87"))
            with pytest.raises(BuildError, match=r"target sm87: .* builds for sm75, sm86, sm89"):
                build_plan(Api(trt), path, wrong)
        else:
            with pytest.raises(BuildError, match="the GPU of this machine only"):
                build_plan(Api(trt), path, options)

    def test_progress_where_the_library_tells_it(self, trt: Any, tmp_path: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        build_plan(
            Api(trt),
            write_graph(tmp_path / "g.onnx", PAIR, SUM),
            progress=lambda *step: seen.append(step),
        )
        told = [("Building", 0, 2), ("Building", 1, 2), ("Building", 2, 2), ("Building", 2, 2)]
        assert seen == ([] if trt.generation == "8.5" else told)

    @pytest.mark.parametrize("before", [None, b"old;", b"foreign;", b"broken;"])
    def test_the_timing_cache_is_kept_where_there_is_one(
        self, trt: Any, tmp_path: Path, before: bytes | None
    ) -> None:
        cache = tmp_path / "timing.cache"
        if before is not None:
            cache.write_bytes(before)
        options = BuildOptions(timing_cache=cache)
        for name in ("a", "b"):
            build_plan(Api(trt), write_graph(tmp_path / name, PAIR, SUM), options)
        kept = cache.read_bytes() if cache.exists() else None
        if trt.generation == "rtx":
            assert kept == before
        else:
            assert kept == (before if before == b"old;" else b"") + b"timed;timed;"
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []

    def test_a_timing_cache_that_cannot_be_read(self, tmp_path: Path) -> None:
        options = BuildOptions(timing_cache=tmp_path)
        path = write_graph(tmp_path / "g.onnx", PAIR, SUM)
        with pytest.raises(BuildError, match=r"timing cache .* cannot be read"):
            build_plan(Api(fake_tensorrt("10", FakeMemory())), path, options)

    def test_refusals_are_one_line(self, trt: Any, tmp_path: Path) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"\xff")
        write_graph(tmp_path / "u.onnx", PAIR, SUM, unbuildable=True)
        write_graph(tmp_path / "w.onnx", PAIR, SUM, weights="weights.bin")
        node = "node number 0: " if trt.generation == "8.5" else r"node 'fc' \(Gemm\): "
        for name, said in [
            ("gone.onnx", "no such file"),
            ("broken.onnx", r"broken\.onnx: .* cannot read it: Failed to parse the ONNX model"),
            ("u.onnx", r"u\.onnx: .* cannot build it: Cannot compile 'fc'"),
            ("w.onnx", f"{node}no file weights.bin"),
        ]:
            with pytest.raises(BuildError, match=said) as caught:
                build_plan(Api(trt), tmp_path / name)
            assert "\n" not in str(caught.value)

    def test_what_the_bindings_raise_is_a_build_error(
        self, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_factory(_: Any) -> Any:
            raise TypeError("pybind11::init(): factory function returned nullptr")

        monkeypatch.setattr(trt, "Builder", no_factory)
        with pytest.raises(BuildError, match="returned nullptr"):
            build_plan(Api(trt), write_graph(tmp_path / "g.onnx", PAIR, SUM))


def test_messages_are_collected_by_those_who_ask_meanwhile() -> None:
    api = Api(fake_tensorrt("10", FakeMemory()))
    severity = api.trt.ILogger.Severity
    with api.errors() as outer:
        with api.errors() as inner:
            api._logger.log(severity.ERROR, "one")
            api._logger.log(severity.WARNING, "a warning")
        api._logger.log(severity.INTERNAL_ERROR, "two")
    api._logger.log(severity.ERROR, "three")
    assert (outer, inner) == (["one", "two"], ["one"])


def test_long_messages_are_bounded() -> None:
    assert one_line("a\n b") == "a b"
    assert len(one_line("x" * 9999)) == 600


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_there(module: str) -> Any:
        raise OSError(f"lib{module}.so: cannot open shared object file")

    monkeypatch.setattr(api_module.importlib, "import_module", not_there)
    monkeypatch.setattr(api_module, "_found", {})
    with pytest.raises(IncompatibleError, match=rf"cannot open .*pip install 'splitrt\[{name}\]'"):
        find_api(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workspace_bytes": 0}, "workspace_bytes"),
        ({"optimization_level": 6}, "optimization_level"),
        ({"precision_flags": ("FP12",)}, "precision_flags"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BuildOptions(**options)


def _rtx() -> Api:
    try:
        return find_api("tensorrt-rtx")
    except IncompatibleError as exc:
        pytest.skip(str(exc))


def write_small_onnx(folder: Path, dtype: Any = np.float32, op: str = "Conv") -> Path:
    """Convolution, mean and a linear layer, with all weights in ``weights.bin``."""
    draw = np.random.default_rng(0)
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    weights = {
        "w1": draw.standard_normal((8, 3, 3, 3)).astype(dtype),
        "w2": draw.standard_normal((8, 5)).astype(dtype),
    }
    nodes = [
        helper.make_node(op, ["x", "w1"], ["a"], name="conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="mean"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", kind, (1, 5))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    path = folder / "small.onnx"
    onnx.save(
        model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


class TestRealRtx:
    """What the builder of TensorRT-RTX does here; it needs no GPU."""

    @pytest.mark.parametrize(("dtype", "precision"), [(np.float32, "fp32"), (np.float16, "fp16")])
    def test_it_builds_for_gpus_that_are_not_here(
        self, tmp_path: Path, dtype: Any, precision: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        api = _rtx()
        capfd.readouterr()
        seen: list[tuple[str, int, int]] = []
        built = build_plan(
            api,
            write_small_onnx(tmp_path, dtype),
            BuildOptions(compute_capabilities=("sm86", "sm89"), workspace_bytes=1 << 26),
            progress=lambda *step: seen.append(step),
        )
        assert len(built.data) > 1000
        assert built.precision == precision
        assert any(done == steps > 0 for _, done, steps in seen)
        assert capfd.readouterr() == ("", "")

    def test_it_has_no_float64_and_says_so(self, tmp_path: Path) -> None:
        api = _rtx()
        nodes = [
            helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("ArgMax", ["f"], ["i"], axis=1),
        ]
        infos = [
            helper.make_tensor_value_info(name, kind, shape)
            for name, kind, shape in [
                ("x", TensorProto.UINT8, (1, 8)),
                ("d", TensorProto.DOUBLE, (1, 8)),
                ("i", TensorProto.INT64, (1, 1)),
            ]
        ]
        graph = helper.make_graph(nodes, "casts", infos[:1], infos[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 10
        path = tmp_path / "casts.onnx"
        onnx.save(model, str(path))
        built = build_plan(api, path, BuildOptions(compute_capabilities=("sm86",)))
        assert [str(spec) for spec in built.inputs] == ["x: uint8 [1, 8]"]
        given = [str(spec) for spec in built.outputs]
        assert given == ["d: float32 [1, 8]", "i: int64 [1, 1]"]

    def test_more_targets_are_another_plan(self, tmp_path: Path) -> None:
        api = _rtx()
        path = write_small_onnx(tmp_path)
        one, two = (
            build_plan(api, path, BuildOptions(compute_capabilities=names)).data
            for names in (("sm86",), ("sm86", "sm89"))
        )
        assert one != two

    def test_turing_has_no_fp32_and_the_reason_is_one_line(self, tmp_path: Path) -> None:
        api = _rtx()
        with pytest.raises(BuildError, match="FP32 GEMM is not supported") as caught:
            build_plan(
                api, write_small_onnx(tmp_path), BuildOptions(compute_capabilities=("sm75",))
            )
        assert "'fc'" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_turing_has_fp16(self, tmp_path: Path) -> None:
        api = _rtx()
        options = BuildOptions(compute_capabilities=("sm75",))
        assert build_plan(api, write_small_onnx(tmp_path, np.float16), options).data

    def test_refusals_are_one_line_and_nothing_on_stderr(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        api = _rtx()
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"\xff no ONNX")
        lonely = tmp_path / "lonely"
        lonely.mkdir()
        (lonely / "small.onnx").write_bytes(write_small_onnx(tmp_path).read_bytes())
        strange = tmp_path / "strange"
        strange.mkdir()
        options = BuildOptions(compute_capabilities=("sm86",))
        capfd.readouterr()
        for path, said in [
            (broken, "Failed to parse the ONNX model"),
            (write_small_onnx(strange, op="Conw"), r"node 'conv' \(Conw\): .*Plugin not found"),
            (lonely / "small.onnx", "weights.bin"),
        ]:
            with pytest.raises(BuildError, match=said) as caught:
                build_plan(api, path, options)
            assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_it_has_every_name_that_the_fake_has(self) -> None:
        """The fake stands in for the run path, which needs a GPU: it must not invent names."""
        trt = _rtx().trt
        used = {
            "Runtime": "deserialize_cuda_engine get_engine_validity",
            "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_shape get_tensor_dtype "
            "get_tensor_location get_tensor_mode create_runtime_config create_execution_context "
            "device_memory_size_v2",
            "IRuntimeConfig": "cuda_graph_strategy create_runtime_cache set_runtime_cache",
            "IRuntimeCache": "serialize deserialize",
            "IExecutionContext": "set_tensor_address execute_async_v3",
            "CudaGraphStrategy": "DISABLED WHOLE_GRAPH_CAPTURE",
            "EngineValidity": "VALID SUBOPTIMAL INVALID",
            "TensorIOMode": "INPUT OUTPUT",
            "TensorLocation": "DEVICE HOST",
            "LayerType": "QUANTIZE DEQUANTIZE",
            "DataType": "FLOAT HALF INT8 INT32 INT64 BOOL UINT8 BF16",
        }
        for cls, names in used.items():
            missing = [name for name in names.split() if not hasattr(getattr(trt, cls), name)]
            assert missing == [], cls
        fake = fake_tensorrt("rtx", FakeMemory())
        for name in vars(fake):
            if name not in ("calls", "memory", "generation"):
                assert hasattr(trt, name), name

    def test_the_gpus_that_it_lists(self) -> None:
        assert {"sm75", "sm86", "sm89"} <= set(_rtx().target_names)

    def test_what_it_says_goes_to_the_log(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        api = _rtx()
        caplog.set_level("DEBUG", logger="engines.tensorrt")
        build_plan(api, write_small_onnx(tmp_path), BuildOptions(compute_capabilities=("sm86",)))
        assert re.search(r"Reading weights from external file: \S*weights\.bin", caplog.text)
        assert "built small.onnx" in caplog.text
