"""Every difference between the Python modules ``tensorrt`` 8.5 to 11 and ``tensorrt_rtx``.

Nothing else in SplitRT knows which of them it speaks to. What a module can do is found by asking
whether it has the name (``hasattr``), never by comparing versions:

===================  ==========================  ====================  ======================
what                 8.5, 8.6                    10, 11                RTX
===================  ==========================  ====================  ======================
network              EXPLICIT_BATCH is needed    STRONGLY_TYPED        STRONGLY_TYPED
precision            flags beside the graph      the graph's types     the graph's types
timing cache         yes                         yes                   has it, must not be used
targets              the GPU that builds         the GPU that builds   compute capabilities
CUDA graphs          the caller's                the caller's          the library's own
runtime cache        no                          no                    yes
validity of a plan   load it and see             load it and see       asked beforehand
===================  ==========================  ====================  ======================

Source:
    Migration guides and API references of TensorRT 8.5 to 11.4, symbols of TensorRT-RTX 1.7.1.
"""

from __future__ import annotations

import importlib
import logging
import platform
import threading
from contextlib import contextmanager
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from engines.errors import BuildError, EngineError, IncompatibleError
from engines.rows import RowsSpec
from engines.tensors import TensorSpec

__all__ = [
    "MENDS",
    "Api",
    "Context",
    "IoTensor",
    "Progress",
    "find_api",
    "one_line",
    "platform_name",
]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all) while a plan is built."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
MENDS = {
    "tensorrt": (
        "pip install 'splitrt[tensorrt]', or on a Jetson: sudo apt install python3-libnvinfer "
        "and an environment made with --system-site-packages"
    ),
    "tensorrt-rtx": "pip install 'splitrt[tensorrt-rtx]'",
}
"""Name of a backend -> the command that installs its library."""

_DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
}
"""TensorRT's name of a dtype -> NumPy's. BF16, FP8 and smaller have no NumPy representation."""

_LEVELS = {"VERBOSE": logging.DEBUG, "INFO": logging.DEBUG, "WARNING": logging.INFO}
"""Errors are logged as INFO too: what made a call fail is in the error that is raised."""

_MESSAGE_LENGTH = 600


class IoTensor(NamedTuple):
    """An input or output of an engine."""

    spec: TensorSpec
    is_input: bool


class Context(NamedTuple):
    """What an engine is run with.

    Attributes:
        execution: The library's execution context.
        captures: Whether the library makes CUDA graphs itself, so that the caller must not.
        cache: The library's runtime cache; none where it has no such thing.
    """

    execution: Any
    captures: bool
    cache: Any


def one_line(text: object) -> str:
    """Return a library's message as one line of bounded length."""
    line = " ".join(str(text).split())
    return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 3] + "..."


class Api:
    """One of the Python modules.

    Args:
        module: The imported module.
    """

    def __init__(self, module: Any) -> None:
        self.trt = module
        self.library = str(module.__name__)
        self.version = str(module.__version__)
        self._lock = threading.Lock()
        self._collectors: List[List[str]] = []
        # TensorRT keeps the first logger of a process for good: one, and never freed.
        self._logger = _make_logger(module, self._heard)

    def __repr__(self) -> str:
        return f"<Api {self.library} {self.version}>"

    # --- messages ---

    @contextmanager
    def errors(self) -> Iterator[List[str]]:
        """Collect what the library reports as an error meanwhile, one line each."""
        collected: List[str] = []
        with self._lock:
            self._collectors.append(collected)
        try:
            yield collected
        finally:
            with self._lock:
                # By identity: two empty lists are equal.
                self._collectors = [c for c in self._collectors if c is not collected]

    def _heard(self, severity: str, message: str) -> None:
        logger.log(_LEVELS.get(severity, logging.INFO), "%s: %s", self.library, message)
        if severity in ("ERROR", "INTERNAL_ERROR"):
            with self._lock:
                for collected in self._collectors:
                    collected.append(one_line(message))

    # --- building ---

    @property
    def needs_gpu_to_build(self) -> bool:
        """Whether a plan can only be built for the GPU of this machine."""
        return not self.is_rtx

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which compiles for a GPU when it first runs."""
        return self.library.startswith("tensorrt_rtx")

    @property
    def target_names(self) -> Tuple[str, ...]:
        """Compute capabilities that plans can be built for, as ``sm86``; none: this GPU's only."""
        if not self.is_rtx or not hasattr(self.trt, "ComputeCapability"):
            return ()
        names = [n for n in dir(self.trt.ComputeCapability) if n[:2] == "SM" and n[2:].isdigit()]
        return tuple(n.lower() for n in sorted(names, key=lambda n: int(n[2:])))

    def create_builder(self) -> Any:
        """Return a builder; TensorRT, unlike RTX, needs a GPU for it."""
        return self.trt.Builder(self._logger)

    def create_network(self, builder: Any) -> Tuple[Any, bool]:
        """Return an empty network, and whether the types of the graph are binding for it."""
        kinds = self.trt.NetworkDefinitionCreationFlag
        typed = hasattr(kinds, "STRONGLY_TYPED")
        flags = 0
        for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
            if hasattr(kinds, name):
                flags |= 1 << int(getattr(kinds, name))
        return builder.create_network(flags), typed

    def create_parser(self, network: Any) -> Any:
        """Return an ONNX parser that fills ``network``."""
        return self.trt.OnnxParser(network, self._logger)

    def parser_errors(self, parser: Any) -> List[str]:
        """Return what the parser found, with the node where the module tells it."""
        found: List[str] = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            name = error.node_name() if hasattr(error, "node_name") else ""
            kind = error.node_operator() if hasattr(error, "node_operator") else ""
            where = f"node {name!r} ({kind}): " if name or kind else ""
            if not where and error.node() >= 0:
                where = f"node number {error.node()}: "
            found.append(one_line(f"{where}{error.desc()}"))
        return found

    def set_workspace(self, config: Any, nbytes: int) -> None:
        """Bound the scratch memory that a layer's implementation may use."""
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, nbytes)

    def set_flag(self, config: Any, name: str, on: bool) -> None:
        """Set or clear a builder flag by name.

        Raises:
            BuildError: This module has no such flag; those that it has are listed.
        """
        flags = self.trt.BuilderFlag
        if not hasattr(flags, name):
            known = ", ".join(n for n in dir(flags) if n.isupper())
            raise BuildError(
                f"builder flag {name!r}: {self.library} {self.version} has only {known}"
            )
        (config.set_flag if on else config.clear_flag)(getattr(flags, name))

    def set_optimization_level(self, config: Any, level: int) -> None:
        """Say how long the builder may search, 0 to 5; ignored before TensorRT 8.6."""
        if hasattr(config, "builder_optimization_level"):
            config.builder_optimization_level = level

    def set_targets(self, config: Any, names: Sequence[str]) -> None:
        """Build for these compute capabilities.

        Raises:
            BuildError: The module cannot build for one of them.
        """
        known = self.target_names
        wrong = [name for name in names if name not in known]
        if wrong:
            can = ", ".join(known) or "the GPU of this machine only, without a list"
            raise BuildError(
                f"target {', '.join(wrong)}: {self.library} {self.version} builds for {can}"
            )
        if names:
            config.num_compute_capabilities = len(names)
            for index, name in enumerate(names):
                value = getattr(self.trt.ComputeCapability, name.upper())
                config.set_compute_capability(value, index)

    def set_progress(self, config: Any, progress: Progress) -> Any:
        """Report the builder's phases to ``progress``, where the module has a monitor (8.6+).

        Returns what must stay alive while the builder runs.
        """
        if not hasattr(self.trt, "IProgressMonitor") or not hasattr(config, "progress_monitor"):
            return None
        monitor = _make_monitor(self.trt, progress)
        config.progress_monitor = monitor
        return monitor

    def start_timing_cache(self, config: Any, data: bytes) -> bool:
        """Give the builder the timings of earlier builds. Returns whether it keeps any.

        RTX has the methods, but measures nothing when it builds, and asks for a GPU.
        """
        if self.is_rtx or not hasattr(config, "create_timing_cache"):
            return False
        try:
            cache = config.create_timing_cache(data)
            fits = cache is not None and config.set_timing_cache(cache, False)
        except (RuntimeError, TypeError):  # what the bindings make of a null pointer
            fits = False
        if not fits:
            # Of another GPU or version: start anew rather than mistrust what is built.
            logger.info("%s: the timing cache does not fit; starting anew", self.library)
            config.set_timing_cache(config.create_timing_cache(b""), False)
        return True

    def end_timing_cache(self, config: Any) -> bytes:
        """Return the timings after a build."""
        return bytes(memoryview(config.get_timing_cache().serialize()))

    def graph_precision(self, network: Any) -> str:
        """Return ``int8``, ``fp16`` or ``fp32``: the smallest that the graph itself asks for."""
        dtypes = self.trt.DataType
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        quantised = False
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            quantised |= str(layer.type).rpartition(".")[2] in ("QUANTIZE", "DEQUANTIZE")
            tensors += [layer.get_output(i) for i in range(layer.num_outputs)]
        if quantised:
            return "int8"
        halves = (dtypes.HALF, getattr(dtypes, "BF16", dtypes.HALF))
        return "fp16" if any(tensor.dtype in halves for tensor in tensors) else "fp32"

    def network_tensors(self, network: Any) -> List[IoTensor]:
        """Return what a plan of ``network`` will take and give.

        They may differ from the ONNX file: TensorRT gives float32 for float64, and TensorRT 8
        int32 for int64.

        Raises:
            BuildError: One has no fixed shape or no NumPy dtype.
        """
        found: List[Optional[IoTensor]] = []
        wrong: List[str] = []
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            found.append(_io_tensor(tensor.name, tensor.shape, tensor.dtype, True, wrong))
        for index in range(network.num_outputs):
            tensor = network.get_output(index)
            found.append(_io_tensor(tensor.name, tensor.shape, tensor.dtype, False, wrong))
        if wrong:
            raise BuildError(_unfit(wrong))
        return [tensor for tensor in found if tensor is not None]

    def set_rows(
        self, builder: Any, config: Any, network: Any, rows: Mapping[str, Tuple[int, int, int]]
    ) -> None:
        """Say how many rows an input of open height may have, by an optimisation profile.

        Args:
            builder: The builder.
            config: Its configuration.
            network: What is to be built.
            rows: Fewest, typical and most rows, by input.

        Raises:
            BuildError: An input has another open extent, or the library refused the profile.
        """
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = [int(extent) for extent in tensor.shape]
            if min(shape, default=0) >= 0:
                continue
            if tensor.name not in rows or sum(extent < 0 for extent in shape) > 1:
                raise BuildError(
                    f"input {tensor.name!r} has the shape {shape}: expected one open extent, that "
                    "of the rows of a stripe"
                )
            points = [[n if extent < 0 else extent for extent in shape] for n in rows[tensor.name]]
            profile.set_shape(tensor.name, *points)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{self.library} refused the rows {dict(rows)}")

    def precision_flags(self, precision: str) -> Tuple[str, ...]:
        """Return the flags without which a weakly typed network ignores the graph's own types."""
        wanted = {"int8": ("INT8", "FP16"), "fp16": ("FP16",)}.get(precision, ())
        return tuple(name for name in wanted if hasattr(self.trt.BuilderFlag, name))

    def build(self, builder: Any, network: Any, config: Any) -> Optional[bytes]:
        """Return the serialised plan, or none where the builder failed."""
        memory = builder.build_serialized_network(network, config)
        return None if memory is None else bytes(memoryview(memory))

    # --- running ---

    def create_runtime(self) -> Any:
        """Return what deserialises plans; it must outlive its engines."""
        return self.trt.Runtime(self._logger)

    def validity(self, runtime: Any, plan: bytes) -> str:
        """Return ``valid``, ``suboptimal``, ``invalid`` or, where it cannot tell, ``unknown``."""
        if not hasattr(runtime, "get_engine_validity"):
            return "unknown"
        answer = runtime.get_engine_validity(plan)
        state = answer[0] if isinstance(answer, tuple) else answer
        return str(state).rpartition(".")[2].lower()

    def io_tensors(self, engine: Any) -> List[IoTensor]:
        """Return the engine's inputs and outputs.

        Raises:
            EngineError: One has no fixed shape, no NumPy dtype, or is read on the host.
        """
        found: List[IoTensor] = []
        wrong: List[str] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            shape, dtype = engine.get_tensor_shape(name), engine.get_tensor_dtype(name)
            tensor = _io_tensor(name, shape, dtype, is_input, wrong)
            if str(engine.get_tensor_location(name)).rpartition(".")[2] != "DEVICE":
                wrong.append(f"{name!r} is a shape, read on the host")
            elif tensor is not None:
                found.append(tensor)
        if wrong:
            raise EngineError(_unfit(wrong))
        return found

    def rows_tensors(self, engine: Any) -> List[Tuple[RowsSpec, bool]]:
        """Return the inputs and outputs of an engine of open height, and which are inputs.

        Raises:
            EngineError: One has no NumPy dtype, or is read on the host.
        """
        found: List[Tuple[RowsSpec, bool]] = []
        wrong: List[str] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
            if str(engine.get_tensor_location(name)).rpartition(".")[2] != "DEVICE":
                wrong.append(f"{name!r} is a shape, read on the host")
            elif kind not in _DTYPES:
                wrong.append(f"{name!r} has the dtype {kind}")
            else:
                extents = [int(extent) for extent in engine.get_tensor_shape(name)]
                shape = tuple(None if extent < 0 else extent for extent in extents)
                found.append((RowsSpec(name, _DTYPES[kind], shape), is_input))
        if wrong:
            raise EngineError(f"a striped form: {'; '.join(wrong)}; build its plan again")
        return found

    def device_memory_bytes(self, engine: Any) -> int:
        """Return how much scratch memory one context of ``engine`` takes on the device."""
        for name in ("device_memory_size_v2", "device_memory_size"):
            if hasattr(engine, name):
                return int(getattr(engine, name))
        return 0

    def create_context(self, engine: Any, *, graphs: bool, cache: bytes) -> Optional[Context]:
        """Return what to run ``engine`` with, or none where the library failed.

        Args:
            engine: A deserialised engine.
            graphs: Let the library make CUDA graphs of runs, where it can.
            cache: What :meth:`save_cache` gave earlier; empty for none.
        """
        config = self._runtime_config(engine)
        if config is None:
            execution = engine.create_execution_context()
            return None if execution is None else Context(execution, False, None)
        kept = None
        if hasattr(config, "create_runtime_cache"):
            kept = config.create_runtime_cache()
            if cache:
                try:
                    fits = kept.deserialize(cache)
                except Exception:  # noqa: BLE001  a cache is only a cache
                    fits = False
                if fits is False:
                    logger.info("%s: the runtime cache does not fit; starting anew", self.library)
                    kept = config.create_runtime_cache()
            config.set_runtime_cache(kept)
        captures = hasattr(config, "cuda_graph_strategy")
        if captures:
            kinds = self.trt.CudaGraphStrategy
            config.cuda_graph_strategy = kinds.WHOLE_GRAPH_CAPTURE if graphs else kinds.DISABLED
        execution = engine.create_execution_context(config)
        return None if execution is None else Context(execution, captures, kept)

    def _runtime_config(self, engine: Any) -> Any:
        # TensorRT 10 and 11 have a runtime configuration too, with nothing in it for us.
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        ours = ("create_runtime_cache", "cuda_graph_strategy")
        return config if any(hasattr(config, name) for name in ours) else None

    def save_cache(self, context: Context) -> bytes:
        """Return the runtime cache's content; empty where there is none."""
        if context.cache is None:
            return b""
        memory = context.cache.serialize()
        return b"" if memory is None else bytes(memoryview(memory))


_found: Dict[str, Api] = {}
_finding = threading.Lock()


def find_api(backend: str) -> Api:
    """Return the module of ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        IncompatibleError: It is not installed here, or its libraries cannot be loaded.
    """
    with _finding:
        if backend not in _found:
            name = _MODULES[backend]
            try:
                _found[backend] = Api(importlib.import_module(name))
            except Exception as exc:  # its own initialisation raises errors of every kind
                raise IncompatibleError(
                    f"backend {backend!r} needs the Python module {name}, which cannot be used "
                    f"here ({one_line(exc)}); {MENDS[backend]}"
                ) from exc
        return _found[backend]


def platform_name() -> str:
    """Return operating system and architecture, which a plan depends on."""
    return f"{platform.system()}-{platform.machine()}".lower()


def _io_tensor(
    name: str, shape: Any, dtype: Any, is_input: bool, wrong: List[str]
) -> Optional[IoTensor]:
    extents = tuple(int(extent) for extent in shape)
    kind = str(dtype).rpartition(".")[2]
    if any(extent < 0 for extent in extents):
        wrong.append(f"{name!r} has the shape {list(extents)}")
    elif kind not in _DTYPES:
        wrong.append(f"{name!r} has the dtype {kind}")
    else:
        return IoTensor(TensorSpec(name, _DTYPES[kind], extents), is_input)
    return None


def _unfit(wrong: List[str]) -> str:
    return (
        f"an engine takes and gives tensors of a fixed shape and a NumPy dtype, given: "
        f"{'; '.join(wrong)}; compile the model with --input to fix its shapes"
    )


def _make_logger(trt: Any, heard: Callable[[str, str], None]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of a module found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            heard(str(severity).rpartition(".")[2], message)

    return Logger()


def _make_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: Dict[str, int] = {}

        def phase_start(self, phase: str, parent: Optional[str], steps: int) -> None:
            self._steps[phase] = steps
            progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step + 1, self._steps.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self._steps.pop(phase, 0)
            progress(phase, steps, steps)

    return Monitor()
