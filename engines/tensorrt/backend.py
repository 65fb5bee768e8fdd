"""Backends ``tensorrt`` and ``tensorrt-rtx``.

What they need: the library to build and to run; a GPU to run, and for ``tensorrt`` to build too.
``tensorrt-rtx`` builds for the compute capabilities that it is told, without a GPU.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from engines.backend import BackendOptions
from engines.errors import BuildError, EngineError, IncompatibleError
from engines.files import write_at_once
from engines.fingerprint import Fingerprint
from engines.plans import CAPABILITY, ROWS, TARGETS, BuiltPlan
from engines.tensorrt.api import Api, Context, Progress, find_api, one_line, platform_name
from engines.tensorrt.builder import BuildOptions, Rows, build_plan
from engines.tensorrt.engine import TensorRTEngine
from engines.tensorrt.memory import DeviceMemory, open_memory
from engines.tensorrt.named import split_plan
from engines.tensorrt.rows_engine import TensorRTRowsEngine
from engines.tensorrt.session import Session

__all__ = ["RowsPlanBuilder", "TensorRTBackend", "TensorRTOptions", "TensorRTRTXBackend"]

logger = logging.getLogger(__name__)


class TensorRTOptions(BackendOptions, frozen=True, kw_only=True):
    """Options of both backends.

    Attributes:
        build: How plans are built.
        cuda_graphs: Run engines as CUDA graphs where that works.
        runtime_cache: Folder for what TensorRT-RTX compiles when a plan first runs, so that the
            next start need not; none to keep nothing.
    """

    build: BuildOptions = BuildOptions()
    cuda_graphs: bool = True
    runtime_cache: Optional[Path] = None


class TensorRTBackend:
    """NVIDIA TensorRT 8.5 to 11.

    Args:
        options: :class:`TensorRTOptions`; plain backend options mean their defaults.
        api: The library; found by itself if not given.
        memory: Opens the GPU's memory.
        progress: Told of the builder's phases.

    Raises:
        IncompatibleError: The library cannot be used here.
    """

    name = "tensorrt"

    def __init__(
        self,
        options: BackendOptions = BackendOptions(),
        *,
        api: Optional[Api] = None,
        memory: Callable[[], DeviceMemory] = open_memory,
        progress: Optional[Progress] = None,
    ) -> None:
        self.options = options if isinstance(options, TensorRTOptions) else TensorRTOptions()
        self.progress = progress
        self.api = find_api(self.name) if api is None else api
        self._open_memory = memory
        self._session: Optional[Session] = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.api.library} {self.api.version}>"

    def build(self, onnx_path: Path) -> bytes:
        """Build the plan of one ONNX file.

        Raises:
            BuildError: The library cannot build it, for its own reason.
            IncompatibleError: It is built for this machine's GPU, and there is none.
        """
        return self.build_plan(onnx_path).data

    def build_plan(self, onnx_path: Path) -> BuiltPlan:
        """Build as :meth:`build` does; also tells precision and time."""
        if not onnx_path.is_file():
            raise BuildError(f"{onnx_path}: cannot be read: no such file")
        return build_plan(self.api, onnx_path, self.build_options(), progress=self.progress)

    def with_rows(self, rows: Rows) -> RowsPlanBuilder:
        """Return what builds plans of striped forms.

        Args:
            rows: Fewest, typical and most rows, by input.
        """
        return RowsPlanBuilder(self, rows)

    def load(self, plan: bytes, *, folder: Path) -> TensorRTEngine:
        """Load a plan. It holds its weights: ``folder`` is not looked at.

        Runs of other engines go on meanwhile: the session is held only to take memory.

        Raises:
            IncompatibleError: There is no GPU, or the library says that the plan is for others.
            EngineError: The library refused it.
        """
        session = self._device()
        digest = hashlib.sha256(plan).hexdigest()
        with session.memory.current(), self._refusals():
            return self._load(plan, session, digest)

    def load_rows_plan(self, plan: bytes) -> TensorRTRowsEngine:
        """Load the plan of a striped form.

        Raises:
            IncompatibleError: There is no GPU, or the library says that the plan is for others.
            EngineError: The library refused it, or it is no plan of a striped form.
        """
        session = self._device()
        digest = hashlib.sha256(plan).hexdigest()
        with session.memory.current(), self._refusals():
            runtime, engine, context = self._opened(plan, digest, graphs=False)
            return TensorRTRowsEngine(
                f"{self.name}:{digest[:12]}",
                self.api,
                session,
                runtime=runtime,
                engine=engine,
                context=context,
                save_cache=self._cache_writer(digest),
            )

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Give errors what the library said meanwhile."""
        with self.api.errors() as errors:
            try:
                yield
            except EngineError as exc:
                said = one_line("; ".join(dict.fromkeys(errors)))
                raise type(exc)(f"{exc}: {said}" if said else str(exc)) from exc
            except Exception as exc:  # the bindings raise errors of every kind
                raise EngineError(f"{self.api.library} refused a plan: {one_line(exc)}") from exc

    def fingerprint(self) -> Fingerprint:
        """Say what this device is; without a GPU, what is built here, if it was said for what.

        Raises:
            IncompatibleError: There is no GPU, and the options name no compute capabilities.
        """
        try:
            session = self._device()
        except IncompatibleError:
            if not self.options.build.compute_capabilities:
                raise
            return self.plan_fingerprint()
        device = session.memory.device
        return self._fingerprint({"device": device.name, CAPABILITY: device.compute_capability})

    def plan_fingerprint(self) -> Fingerprint:
        """Say what a plan built with these options is valid for.

        Raises:
            IncompatibleError: It would be for this machine's GPU, and there is none.
        """
        targets = self._targets()
        if targets:
            return self._fingerprint({TARGETS: ",".join(targets)})
        return self.fingerprint()

    def plan_options(self) -> Dict[str, str]:
        """Return every option that changes a plan."""
        return self.build_options().as_key()

    def _fingerprint(self, fields: Dict[str, str]) -> Fingerprint:
        library = {"version": self.api.version, "platform": platform_name()}
        return Fingerprint(backend=self.name, fields={**library, **fields})

    def _targets(self) -> Tuple[str, ...]:
        """Return the compute capabilities to build for; none for this GPU, as it is."""
        named = self.options.build.compute_capabilities
        known = self.api.target_names
        if not known:
            return named  # refused, by name, by the builder
        if named:
            return tuple(name for name in known if name in named) + tuple(
                name for name in named if name not in known
            )
        try:
            own = self._device().memory.device.compute_capability
        except IncompatibleError as exc:
            raise IncompatibleError(
                f"{exc}; to build without one, name targets: --target {self.name}:sm86,sm89"
            ) from exc
        if own not in known:
            raise IncompatibleError(
                f"{self.api.library} {self.api.version} builds for {', '.join(known)}, this GPU "
                f"is {own}; name targets, or use the backend tensorrt"
            )
        return (own,)

    def build_options(self) -> BuildOptions:
        """Return how plans are built here, its targets among that.

        Raises:
            IncompatibleError: They are built for this machine's GPU, and there is none.
        """
        if self.api.needs_gpu_to_build:
            self._device()  # says what is missing better than the library does
        options = self.options.build
        return BuildOptions(
            compute_capabilities=self._targets(),
            workspace_bytes=options.workspace_bytes,
            tf32=options.tf32,
            optimization_level=options.optimization_level,
            precision_flags=options.precision_flags,
            flags=options.flags,
            timing_cache=options.timing_cache,
        )

    def _device(self) -> Session:
        if self._session is None:
            try:
                self._session = Session(self._open_memory())
            except IncompatibleError as exc:
                raise IncompatibleError(f"backend {self.name!r}: {exc}") from exc
        return self._session

    def _load(self, plan: bytes, session: Session, digest: str) -> TensorRTEngine:
        plan, names = split_plan(plan)
        graphs = self.options.cuda_graphs
        runtime, engine, context = self._opened(plan, digest, graphs=graphs)
        return TensorRTEngine(
            f"{self.name}:{digest[:12]}",
            self.api,
            session,
            runtime=runtime,
            engine=engine,
            context=context,
            names=names,
            graphs=graphs,
            save_cache=self._cache_writer(digest),
        )

    def _opened(self, plan: bytes, digest: str, *, graphs: bool) -> Tuple[Any, Any, Context]:
        """Return the library's runtime, its engine of a plan, and what that is run with."""
        api = self.api
        runtime = api.create_runtime()
        if api.validity(runtime, plan) == "invalid":
            raise IncompatibleError(
                f"{api.library} {api.version} refused a plan as not for this device: "
                f"[{self.fingerprint()}]; `runtime build BUNDLE` builds it here"
            )
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{api.library} {api.version} refused a plan")
        context = api.create_context(engine, graphs=graphs, cache=self._read_cache(digest))
        if context is None:
            raise EngineError(f"{api.library} {api.version} has no memory to run a plan")
        return runtime, engine, context

    # --- the runtime cache: only ever a help ---

    def _read_cache(self, digest: str) -> bytes:
        folder = self.options.runtime_cache
        if folder is None:
            return b""
        try:
            return (folder / f"{digest[:32]}.cache").read_bytes()
        except OSError:
            return b""

    def _cache_writer(self, digest: str) -> Optional[Callable[[bytes], None]]:
        folder = self.options.runtime_cache
        if folder is None:
            return None

        def write(data: bytes) -> None:
            try:
                write_at_once(folder / f"{digest[:32]}.cache", data)
            except OSError as exc:
                logger.info("runtime cache in %s was not written: %s", folder, exc.strerror)

        return write


class RowsPlanBuilder:
    """Builds plans of striped forms, of open height, as a backend builds its others.

    Args:
        backend: What builds.
        rows: Fewest, typical and most rows, by input.
    """

    def __init__(self, backend: TensorRTBackend, rows: Rows) -> None:
        self._backend = backend
        self._rows = rows
        self.name = backend.name

    def build_plan(self, onnx_path: Path) -> BuiltPlan:
        """Build the plan of one striped form.

        Raises:
            BuildError: The library cannot build it.
            IncompatibleError: It is built for this machine's GPU, and there is none.
        """
        backend = self._backend
        return build_plan(
            backend.api,
            onnx_path,
            backend.build_options(),
            rows=self._rows,
            progress=backend.progress,
        )

    def load(self, plan: bytes, *, folder: Path) -> TensorRTEngine:
        """Load as the backend does: a plan of open height is refused."""
        return self._backend.load(plan, folder=folder)

    def fingerprint(self) -> Fingerprint:
        """Say what this device is."""
        return self._backend.fingerprint()

    def plan_fingerprint(self) -> Fingerprint:
        """Say what a plan built now is valid for."""
        return self._backend.plan_fingerprint()

    def plan_options(self) -> Dict[str, str]:
        """Return every option that changes a plan, the rows among them."""
        rows = ";".join(f"{name}={a}:{b}:{c}" for name, (a, b, c) in sorted(self._rows.items()))
        return {**self._backend.plan_options(), ROWS: rows}


class TensorRTRTXBackend(TensorRTBackend):
    """NVIDIA TensorRT for RTX: plans for several GPUs at once, built without one."""

    name = "tensorrt-rtx"
