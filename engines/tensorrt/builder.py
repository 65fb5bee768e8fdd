"""An ONNX file to a serialised plan.

The parser reads the file by its path, so that the weights file beside it is found. Precision is
what the graph's types say; where a network is weakly typed (TensorRT 8), the flags that these
types demand are set.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import msgspec

from engines.errors import BuildError
from engines.files import write_at_once
from engines.plans import BuiltPlan
from engines.tensorrt.api import Api, IoTensor, Progress, one_line

__all__ = ["BuildOptions", "Rows", "build_plan"]

logger = logging.getLogger(__name__)

_PRECISION_FLAGS = ("FP16", "INT8", "BF16", "FP8")

_building = threading.Lock()
"""One build at a time: builds beside each other would falsify the timings that they choose by."""


Rows = Mapping[str, Tuple[int, int, int]]
"""Fewest, typical and most rows of each input of a striped form."""


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How plans are built.

    Attributes:
        compute_capabilities: GPUs to build for, as ``sm86``, where the library builds for others
            than this machine's; empty for this machine's.
        workspace_bytes: Most scratch memory that a layer may use; none for the library's bound.
        tf32: Allow FP32 to be computed in TF32, of 10 bits of mantissa. Off: FP32 is FP32.
        optimization_level: 0 (fast build) to 5; none for the library's default.
        precision_flags: Flags to set where networks are weakly typed, such as ``FP16``; none for
            what the graph's own types demand. They say nothing to a strongly typed network.
        flags: Further builder flags by name, such as ``GPU_FALLBACK``.
        timing_cache: File with the timings of earlier builds, read and written where the library
            has such a thing. Shared by all segments of a model it shortens their builds.
    """

    compute_capabilities: Tuple[str, ...] = ()
    workspace_bytes: Optional[int] = None
    tf32: bool = False
    optimization_level: Optional[int] = None
    precision_flags: Optional[Tuple[str, ...]] = None
    flags: Tuple[str, ...] = ()
    timing_cache: Optional[Path] = None

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise ValueError(f"workspace_bytes must be above 0, given {self.workspace_bytes}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimization_level must be 0 to 5, given {self.optimization_level}")
        unknown = set(self.precision_flags or ()).difference(_PRECISION_FLAGS)
        if unknown:
            raise ValueError(f"precision_flags are {_PRECISION_FLAGS}, given {sorted(unknown)}")

    def as_key(self) -> Dict[str, str]:
        """Return all that changes a plan; the timing cache is not part of it."""
        automatic = self.precision_flags is None
        return {
            "compute_capabilities": ",".join(self.compute_capabilities),
            "workspace_bytes": str(self.workspace_bytes or "default"),
            "tf32": str(self.tf32).lower(),
            "optimization_level": (
                "default" if self.optimization_level is None else str(self.optimization_level)
            ),
            "precision_flags": "graph" if automatic else ",".join(self.precision_flags or ()),
            "flags": ",".join(sorted(self.flags)),
        }


def build_plan(
    api: Api,
    onnx_path: Path,
    options: BuildOptions = BuildOptions(),
    *,
    rows: Optional[Rows] = None,
    progress: Optional[Progress] = None,
) -> BuiltPlan:
    """Build the plan of one ONNX file.

    Args:
        api: The library.
        onnx_path: The file; its weights file lies beside it.
        options: How to build.
        rows: Of a striped form: fewest, typical and most rows, by input.
        progress: Told of the builder's phases, where the library tells them.

    Raises:
        BuildError: The file cannot be built; the message has the library's reason, in one line.
    """
    if not onnx_path.is_file():
        raise BuildError(f"{onnx_path}: cannot be read: no such file")
    with _building, api.errors() as errors:
        started = time.perf_counter()
        try:
            data, precision, tensors = _build(api, onnx_path, options, rows, progress, errors)
        except BuildError:
            raise
        except Exception as exc:  # the bindings raise RuntimeError, TypeError and others
            reason = "; ".join(errors) or one_line(exc)
            raise BuildError(f"{onnx_path.name}: {api.library} failed: {reason}") from exc
        if data is None:
            reason = one_line("; ".join(_without_repeats(errors)) or "it gave no reason")
            raise BuildError(f"{onnx_path.name}: {api.library} cannot build it: {reason}")
        seconds = time.perf_counter() - started
    logger.info("built %s: %d bytes, %s, %.1f s", onnx_path.name, len(data), precision, seconds)
    return BuiltPlan(
        data,
        precision,
        seconds,
        inputs=tuple(tensor.spec for tensor in tensors if tensor.is_input),
        outputs=tuple(tensor.spec for tensor in tensors if not tensor.is_input),
    )


def _build(
    api: Api,
    onnx_path: Path,
    options: BuildOptions,
    rows: Optional[Rows],
    progress: Optional[Progress],
    errors: List[str],
) -> Tuple[Optional[bytes], str, List[IoTensor]]:
    builder = api.create_builder()
    network, typed = api.create_network(builder)
    parser = api.create_parser(network)
    if not parser.parse_from_file(str(onnx_path)):
        found = api.parser_errors(parser)
        if not any(line.startswith("node ") for line in found):
            # Which file of weights is missing, for one, is only logged.
            found += [line for line in errors if not any(part in line for part in found)][:1]
        reason = "; ".join(found) or "it gave no reason"
        raise BuildError(f"{onnx_path.name}: {api.library} cannot read it: {one_line(reason)}")
    config = builder.create_builder_config()
    tensors: List[IoTensor] = []  # of a form: their heights are those of each run
    try:
        if rows is None:
            tensors = api.network_tensors(network)
        else:
            api.set_rows(builder, config, network, rows)
    except BuildError as exc:
        raise BuildError(f"{onnx_path.name}: {exc}") from exc
    precision = api.graph_precision(network)
    _configure(api, config, options)
    if not typed:
        wanted = options.precision_flags
        for name in api.precision_flags(precision) if wanted is None else wanted:
            api.set_flag(config, name, True)
    monitor = None if progress is None else api.set_progress(config, progress)
    timed = options.timing_cache is not None and api.start_timing_cache(
        config, _read(options.timing_cache)
    )
    data = api.build(builder, network, config)
    del monitor  # only now: the library holds no reference of its own
    if timed and data is not None and options.timing_cache is not None:
        _write(options.timing_cache, api.end_timing_cache(config))
    return data, precision, tensors


def _configure(api: Api, config: Any, options: BuildOptions) -> None:
    api.set_flag(config, "TF32", options.tf32)
    for name in options.flags:
        api.set_flag(config, name, True)
    if options.workspace_bytes is not None:
        api.set_workspace(config, options.workspace_bytes)
    if options.optimization_level is not None:
        api.set_optimization_level(config, options.optimization_level)
    api.set_targets(config, options.compute_capabilities)


def _without_repeats(lines: List[str]) -> List[str]:
    return list(dict.fromkeys(lines))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise BuildError(f"timing cache {path}: cannot be read: {exc.strerror}") from exc


def _write(path: Path, data: bytes) -> None:
    """Replace the timing cache at once, so that a build that is cut off leaves the old one."""
    try:
        write_at_once(path, data)
    except OSError as exc:
        logger.info("timing cache %s was not written: %s", path, exc.strerror)
