"""A TensorRT that computes on the fake GPU, in the generations 8.5, 10, 11 and RTX.

Its ONNX files are JSON: ``{"inputs": [[name, dtype, shape]], "outputs": [[name, dtype, shape,
operation, [names]]], "weights": file}``. A plan is the same with a magic word. Each generation has
only the names that the real one has, and is as strict: 8.5 wants EXPLICIT_BATCH, a strongly typed
network refuses precision flags, RTX must not be asked for a timing cache, an open extent (-1)
needs a profile.
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.engines.fakes.gpu import FakeMemory

GENERATIONS = ("8.5", "10", "11", "rtx")
MAGIC = b"fakeplan"
OPERATIONS = {
    "add": lambda first, *arrays: sum(arrays, first),
    "double": lambda array: array * 2,
    "positive": lambda array: array > 0,
}
_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "bool": "BOOL"}


class _Enum(enum.Enum):
    def __int__(self) -> int:
        return int(self.value)


def _enum(name: str, *members: str) -> Any:
    return _Enum(name, {member: index for index, member in enumerate(members)})


class Logger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.made = True


def fake_tensorrt(generation: str, memory: FakeMemory) -> Any:
    """Return a module; ``calls`` on it records what was asked of it."""
    trt = types.SimpleNamespace(
        __name__="tensorrt_rtx" if generation == "rtx" else "tensorrt",
        __version__={"8.5": "8.5.2.2", "10": "10.13.0", "11": "11.4.1", "rtx": "1.7.1"}[
            generation
        ],
        calls=[],
        memory=memory,
        generation=generation,
        ILogger=Logger,
        TensorIOMode=_enum("TensorIOMode", "NONE", "INPUT", "OUTPUT"),
        TensorLocation=_enum("TensorLocation", "DEVICE", "HOST"),
        MemoryPoolType=_enum("MemoryPoolType", "WORKSPACE"),
        LayerType=_enum("LayerType", "ELEMENTWISE", "QUANTIZE"),
    )
    dtypes = ["FLOAT", "HALF", "INT8", "INT32", "BOOL"]
    trt.DataType = _enum("DataType", *dtypes, *([] if generation == "8.5" else ["INT64", "BF16"]))
    kinds = {"8.5": ["EXPLICIT_BATCH"], "10": ["EXPLICIT_BATCH", "STRONGLY_TYPED"]}
    trt.NetworkDefinitionCreationFlag = _enum("Flag", *kinds.get(generation, ["STRONGLY_TYPED"]))
    old = ["FP16", "INT8"] if generation in ("8.5", "10") else []
    trt.BuilderFlag = _enum("BuilderFlag", "TF32", "GPU_FALLBACK", *old)
    if generation != "8.5":
        trt.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
    if generation == "rtx":
        trt.ComputeCapability = _enum("ComputeCapability", "NONE", "SM75", "SM86", "SM89", "SM120")
        trt.CudaGraphStrategy = _enum("CudaGraphStrategy", "DISABLED", "WHOLE_GRAPH_CAPTURE")
        trt.EngineValidity = _enum("EngineValidity", "VALID", "SUBOPTIMAL", "INVALID")
    trt.Builder = lambda logger: Builder(trt, logger)
    trt.OnnxParser = lambda network, logger: Parser(trt, network, logger)
    trt.Runtime = lambda logger: Runtime(trt, logger)
    return trt


def _error(trt: Any, logger: Any, message: str) -> None:
    logger.log(Logger.Severity.ERROR, message)


class Builder:
    def __init__(self, trt: Any, logger: Any) -> None:
        assert logger.made, "a logger whose base was not initialised crashes TensorRT"
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int) -> Any:
        kinds = self.trt.NetworkDefinitionCreationFlag
        typed = hasattr(kinds, "STRONGLY_TYPED") and flags >> int(kinds.STRONGLY_TYPED) & 1
        if self.trt.generation == "8.5":
            assert flags == 1 << int(kinds.EXPLICIT_BATCH), "8.5 needs EXPLICIT_BATCH"
        self.trt.calls.append(("create_network", bool(typed)))
        return Network(self.trt, bool(typed))

    def create_builder_config(self) -> Any:
        return Config(self.trt)

    def create_optimization_profile(self) -> Any:
        return Profile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self.trt.calls.append(("build", sorted(flag.name for flag in config.flags)))
        precise = [flag.name for flag in config.flags if flag.name in ("FP16", "INT8")]
        if network.typed and precise:
            _error(self.trt, self.logger, "a strongly typed network takes no precision flags")
            return None
        if network.graph.get("unbuildable"):
            _error(self.trt, self.logger, "Cannot compile\n  'fc'")
            return None
        open_inputs = {entry[0] for entry in network.graph["inputs"] if -1 in entry[2]}
        profile = config.profiles[0].shapes if config.profiles else {}
        if open_inputs != set(profile):
            _error(self.trt, self.logger, f"no optimization profile for {sorted(open_inputs)}")
            return None
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            assert all(monitor.step_complete("Building", step) for step in range(2))
            monitor.phase_finish("Building")
        if config.cache is not None:
            config.cache.content += b"timed;"
        graph = dict(network.graph, targets=config.targets, profile=profile)
        return MAGIC + json.dumps(graph).encode()


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, low: list[int], opt: list[int], high: list[int]) -> None:
        assert all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
        self.shapes[name] = [list(low), list(opt), list(high)]


class Config:
    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.flags: set[Any] = {trt.BuilderFlag.TF32}
        self.cache: Any = None
        self.pools: dict[str, int] = {}
        self.profiles: list[Profile] = []
        self._targets: list[str] = []
        if trt.generation != "8.5":
            self.progress_monitor = None
            self.builder_optimization_level = 3

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, nbytes: int) -> None:
        self.trt.calls.append(("workspace", pool.name, nbytes))

    def create_timing_cache(self, data: bytes) -> Any:
        assert self.trt.generation != "rtx", "RTX asks for a GPU when it makes a timing cache"
        if data.startswith(b"broken"):
            raise TypeError("pybind11: nullptr")
        return types.SimpleNamespace(content=data, serialize=None)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content.startswith(b"foreign"):
            return False
        self.cache = cache
        cache.serialize = lambda: cache.content
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._targets)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._targets = ["CURRENT"] * count

    def set_compute_capability(self, value: Any, index: int) -> None:
        self._targets[index] = value.name.lower()

    @property
    def targets(self) -> list[str]:
        return self._targets


class Network:
    def __init__(self, trt: Any, typed: bool) -> None:
        self.trt, self.typed = trt, typed
        self.graph: dict[str, Any] = {}

    def _tensor(self, entry: list[Any]) -> Any:
        name, kind, shape = entry[:3]
        dtype = self.trt.DataType[_DTYPES.get(kind, kind)]
        return types.SimpleNamespace(name=name, dtype=dtype, shape=shape)

    @property
    def num_inputs(self) -> int:
        return len(self.graph["inputs"])

    def get_input(self, index: int) -> Any:
        return self._tensor(self.graph["inputs"][index])

    num_outputs = property(lambda self: len(self.graph["outputs"]))

    def get_output(self, index: int) -> Any:
        return self._tensor(self.graph["outputs"][index])

    @property
    def num_layers(self) -> int:
        return len(self.graph["outputs"])

    def get_layer(self, index: int) -> Any:
        kind = "QUANTIZE" if self.graph.get("quantised") else "ELEMENTWISE"
        return types.SimpleNamespace(
            type=self.trt.LayerType[kind],
            num_outputs=1,
            get_output=lambda _: self.get_output(index),
        )


class Parser:
    def __init__(self, trt: Any, network: Any, logger: Any) -> None:
        self.trt, self.network, self.logger = trt, network, logger
        self.errors: list[Any] = []

    def parse_from_file(self, path: str) -> bool:
        try:
            self.network.graph = json.loads(Path(path).read_text())
        except ValueError:
            return self._refuse(-1, "", "", "Failed to parse\n the ONNX model.")
        weights = self.network.graph.get("weights")
        if weights and not Path(path).with_name(weights).exists():
            return self._refuse(0, "fc", "Gemm", f"no file {weights}")
        return True

    def _refuse(self, node: int, name: str, operator: str, text: str) -> bool:
        error = types.SimpleNamespace(node=lambda: node, desc=lambda: text)
        if self.trt.generation != "8.5":
            error.node_name = lambda: name
            error.node_operator = lambda: operator
        self.errors.append(error)
        _error(self.trt, self.logger, text)
        return False

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        return self.errors[index]


class Runtime:
    def __init__(self, trt: Any, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        if trt.generation == "rtx":
            self.get_engine_validity = self._validity

    def _validity(self, plan: bytes) -> tuple[Any, int]:
        kinds = self.trt.EngineValidity
        if not plan.startswith(MAGIC):
            return kinds.INVALID, 1
        capability = self.trt.memory.device.compute_capability
        fits = capability in json.loads(plan[len(MAGIC) :])["targets"]
        return (kinds.VALID, 0) if fits else (kinds.INVALID, 2)

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if not plan.startswith(MAGIC):
            _error(self.trt, self.logger, "Assertion\nmagic failed.")
            return None
        return Engine(self.trt, json.loads(plan[len(MAGIC) :]), self.logger)


class Engine:
    def __init__(self, trt: Any, graph: dict[str, Any], logger: Any) -> None:
        self.trt, self.graph, self.logger = trt, graph, logger
        self._names = [entry[0] for entry in graph["inputs"] + graph["outputs"]]
        self._entries = {entry[0]: entry for entry in graph["inputs"] + graph["outputs"]}
        self.num_io_tensors = len(self._names)
        if trt.generation in ("8.5", "10"):
            self.device_memory_size = 64
        if trt.generation != "8.5":
            self.device_memory_size_v2 = 64
            self.create_runtime_config = lambda: RuntimeConfig(trt)

    def get_tensor_name(self, index: int) -> str:
        return str(self._names[index])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name][2])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert index == 0
        return [tuple(shape) for shape in self.graph["profile"][name]]

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self._entries[name][1]
        return self.trt.DataType[_DTYPES.get(kind, kind)]

    def get_tensor_location(self, name: str) -> Any:
        place = "HOST" if name in self.graph.get("on_host", ()) else "DEVICE"
        return self.trt.TensorLocation[place]

    def get_tensor_mode(self, name: str) -> Any:
        inputs = [entry[0] for entry in self.graph["inputs"]]
        return self.trt.TensorIOMode["INPUT" if name in inputs else "OUTPUT"]

    def create_execution_context(self, config: Any = None) -> Any:
        if self.graph.get("too_big"):
            return None
        return ExecutionContext(self, config)


class RuntimeConfig:
    def __init__(self, trt: Any) -> None:
        self.cache: Any = None
        if trt.generation == "rtx":
            self.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self.create_runtime_cache = lambda: RuntimeCache(trt)
            self.set_runtime_cache = lambda cache: setattr(self, "cache", cache)


class RuntimeCache:
    def __init__(self, trt: Any) -> None:
        self.trt, self.content = trt, b""

    def deserialize(self, data: bytes) -> bool:
        self.trt.calls.append(("runtime_cache", data))
        if not data.startswith(b"jit"):
            return False
        self.content = data
        return True

    def serialize(self) -> bytes:
        return self.content


class ExecutionContext:
    """Computes when the stream is synchronised, at the addresses that held when it was called."""

    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine, self.config = engine, config
        self.memory: FakeMemory = engine.trt.memory
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.graph["profile"][name]
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            _error(self.engine.trt, self.engine.logger, "Satisfiability check failed")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        own = tuple(self.engine._entries[name][2])
        if name in self.shapes or -1 not in own or len(self.engine._entries[name]) == 3:
            return self.shapes.get(name, own)
        return self.get_tensor_shape(self.engine._entries[name][4][0])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine._entries

    def execute_async_v3(self, stream: int) -> bool:
        trt, graph = self.engine.trt, self.engine.graph
        if graph.get("fails"):
            _error(trt, self.engine.logger, "illegal memory access")
            return False
        if stream in self.memory.capturing and not (self.runs and graph.get("capturable", True)):
            _error(trt, self.engine.logger, "an allocation cannot be captured")
            return False
        self.runs += 1
        trt.calls.append(("execute", stream))
        if self.config is not None and self.config.cache is not None:
            self.config.cache.content = b"jit" + self.config.cuda_graph_strategy.name.encode()
        addresses = dict(self.addresses)
        shapes = {name: self.get_tensor_shape(name) for name in self.engine._entries}
        if any(-1 in shape for shape in shapes.values()):
            _error(trt, self.engine.logger, "not all dimensions are specified")
            return False

        def view(name: str) -> np.ndarray:
            dtype, shape = self.engine._entries[name][1], shapes[name]
            nbytes = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
            return self.memory.read(addresses[name], nbytes).view(dtype).reshape(shape)

        def work() -> None:
            for name, dtype, _, operation, names in graph["outputs"]:
                result = OPERATIONS[operation](*[view(n) for n in names])
                view(name)[...] = np.asarray(result).astype(dtype)

        self.memory.enqueue(stream, work)
        return True


def write_graph(path: Path, inputs: list[Any], outputs: list[Any], **more: Any) -> Path:
    """Write a fake ONNX file."""
    path.write_text(json.dumps({"inputs": inputs, "outputs": outputs, **more}))
    return path
