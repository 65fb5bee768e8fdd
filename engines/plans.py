"""Plans on disk: found again by what they were built from, opened only where they fit.

1. A plan's key is the SHA-256 over the ONNX file's bytes, the digest of the weights file, the
   options and the fingerprint that the plan is valid for. Whatever changes a plan changes its key.
2. ``<key>.plan`` is written first and ``<key>.json``, its header, last, each at once: a plan
   without a header does not exist, and nobody ever reads half of one.
3. A plan is opened only if its header is for this device, its size and digest are the header's,
   and its key is the one asked for. The backend sees it after that, never before.

A plan is code: a folder of plans is to be trusted as a folder of programs is.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Protocol, Tuple

import msgspec

from engines.backend import Engine
from engines.bundle import sha256_file
from engines.errors import DigestError, EngineError, IncompatibleError
from engines.files import write_at_once
from engines.fingerprint import Fingerprint
from engines.tensors import TensorSpec

__all__ = [
    "WEIGHTS",
    "BuiltPlan",
    "CachedBackend",
    "Plan",
    "PlanBuilder",
    "PlanHeader",
    "PlanStore",
    "fits",
    "plan_key",
]

logger = logging.getLogger(__name__)

WEIGHTS = "weights.bin"
"""Weights file beside the ONNX files of a bundle."""

_SCHEMA = 1
_KEY_DIGITS = 32
"""Of the key's 64 hex digits, as many as name its files."""

_MAX_HEADER_BYTES = 1 << 16

TARGETS = "targets"
"""Field of a plan's fingerprint: the compute capabilities that it may run on."""

ROWS = "rows"
"""Option of a plan of open height: how many rows each input may have."""

CAPABILITY = "compute_capability"
"""Field of a device's fingerprint: the one that it has."""


class BuiltPlan(NamedTuple):
    """What a builder made.

    Attributes:
        data: The serialised plan.
        precision: ``fp32``, ``fp16`` or ``int8``: the smallest that the graph asks for.
        seconds: How long it took.
        inputs: What the plan takes.
        outputs: What it gives. Dtypes may differ from the ONNX file's where the library has not
            got them.
    """

    data: bytes
    precision: str
    seconds: float
    inputs: Tuple[TensorSpec, ...] = ()
    outputs: Tuple[TensorSpec, ...] = ()


class PlanBuilder(Protocol):
    """A backend whose plans are worth keeping."""

    @property
    def name(self) -> str:
        """Name of the backend."""

    def build_plan(self, onnx_path: Path) -> BuiltPlan:
        """Build the plan of one ONNX file. Raises BuildError."""

    def load(self, plan: bytes, *, folder: Path) -> Engine:
        """Load a plan. See :meth:`engines.backend.Backend.load`."""

    def fingerprint(self) -> Fingerprint:
        """Say what this device is."""

    def plan_fingerprint(self) -> Fingerprint:
        """Say what a plan built now is valid for."""

    def plan_options(self) -> Dict[str, str]:
        """Return every option that changes a plan."""


class PlanHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a plan without reading it.

    Attributes:
        schema: Version of this header.
        key: SHA-256 over all that the plan was built from, in hex.
        onnx: Name of the ONNX file, for people.
        size: Bytes of the plan.
        sha256: Digest of the plan.
        precision: ``fp32``, ``fp16`` or ``int8``.
        fingerprint: What the plan is valid for.
        options: How it was built.
        build_s: Seconds that building it took.
        inputs: What the plan takes.
        outputs: What it gives.
    """

    schema: int
    key: str
    onnx: str
    size: int
    sha256: str
    precision: str
    fingerprint: Fingerprint
    options: Dict[str, str]
    build_s: float
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]

    @property
    def file(self) -> str:
        """Name of the plan's file in its folder."""
        return f"{self.key[:_KEY_DIGITS]}.plan"


class Plan(NamedTuple):
    """A plan that was built or found.

    Attributes:
        header: What is known of it.
        data: The serialised plan.
        found: Whether it was there already.
    """

    header: PlanHeader
    data: bytes
    found: bool


def plan_key(
    onnx_bytes: bytes, weights_sha256: str, options: Mapping[str, str], fingerprint: Fingerprint
) -> str:
    """Return the key of a plan, 64 hex digits.

    Args:
        onnx_bytes: The ONNX file.
        weights_sha256: Digest of the weights file, in hex; empty where there is none.
        options: Every option that changes the plan.
        fingerprint: What the plan is valid for.
    """
    parts = msgspec.json.encode(
        [
            _SCHEMA,
            hashlib.sha256(onnx_bytes).hexdigest(),
            weights_sha256,
            sorted(options.items()),
            fingerprint.backend,
            sorted(fingerprint.fields.items()),
        ]
    )
    return hashlib.sha256(parts).hexdigest()


def fits(plan: Fingerprint, device: Fingerprint) -> bool:
    """Say whether a plan may run on a device.

    Every field must be equal, but that a plan with ``targets`` runs on each of these compute
    capabilities, whatever the device is called.
    """
    if plan.backend != device.backend:
        return False
    wanted = dict(plan.fields)
    targets = wanted.pop(TARGETS, None)
    if targets is None:
        return wanted == device.fields
    if TARGETS in device.fields:  # a builder without a GPU, asking for what it would build itself
        return plan.fields == device.fields
    if device.fields.get(CAPABILITY) not in targets.split(","):
        return False
    return all(device.fields.get(name) == value for name, value in wanted.items())


class PlanStore:
    """Plans in a folder.

    Args:
        folder: The folder; it is made when the first plan is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"<PlanStore {self.folder}>"

    def headers(self) -> List[PlanHeader]:
        """Return the headers of all plans, by the name of the ONNX file.

        Raises:
            EngineError: One cannot be read.
        """
        found = [self._read_header(path) for path in sorted(self.folder.glob("*.json"))]
        return sorted(found, key=lambda header: (header.onnx, header.key))

    def find(self, key: str) -> Optional[PlanHeader]:
        """Return the header of the plan with this key, if there is one.

        Raises:
            EngineError: There is one, and it cannot be read.
        """
        path = self.folder / f"{key[:_KEY_DIGITS]}.json"
        if not path.exists():
            return None
        header = self._read_header(path)
        if header.key != key:
            raise EngineError(f"plan header {path}: expected key {key}, given {header.key}")
        return header

    def open(self, key: str, device: Fingerprint) -> bytes:
        """Return a plan for this device.

        Raises:
            IncompatibleError: It is for another device or library.
            DigestError: It is not the plan that was written.
            EngineError: There is no such plan, or its header cannot be read.
        """
        header = self.find(key)
        if header is None:
            raise EngineError(
                f"plan {key[:12]} is not in {self.folder}; `runtime build BUNDLE` builds it here"
            )
        return self._read(header, device)

    def build(
        self, backend: PlanBuilder, onnx_path: Path, *, weights_sha256: Optional[str] = None
    ) -> Plan:
        """Return the plan of an ONNX file: the one that is here, else a new one.

        A plan that is here but damaged is built again.

        Args:
            backend: What builds.
            onnx_path: The ONNX file.
            weights_sha256: Digest of its weights file where the caller knows it; none to read
                the file ``weights.bin`` beside it.

        Raises:
            BuildError: The backend cannot build it.
            EngineError: The plan cannot be written.
        """
        fingerprint, options = backend.plan_fingerprint(), backend.plan_options()
        key = self.key_of(backend, onnx_path, weights_sha256=weights_sha256)
        try:
            header = self.find(key)
            if header is not None:
                return Plan(header, self._read(header, None), found=True)
        except (EngineError, DigestError) as exc:
            logger.warning("%s; building it again", exc)
        built = backend.build_plan(onnx_path)
        header = PlanHeader(
            schema=_SCHEMA,
            key=key,
            onnx=onnx_path.name,
            size=len(built.data),
            sha256=hashlib.sha256(built.data).hexdigest(),
            precision=built.precision,
            fingerprint=fingerprint,
            options=options,
            build_s=round(built.seconds, 3),
            inputs=built.inputs,
            outputs=built.outputs,
        )
        self._write(header, built.data)
        return Plan(header, built.data, found=False)

    def key_of(
        self, backend: PlanBuilder, onnx_path: Path, *, weights_sha256: Optional[str] = None
    ) -> str:
        """Return the key that :meth:`build` uses for this file.

        Raises:
            EngineError: The file or its weights cannot be read.
        """
        try:
            onnx_bytes = onnx_path.read_bytes()
            if weights_sha256 is None:
                weights_sha256 = _weights_digest(onnx_path.parent / WEIGHTS)
        except OSError as exc:
            raise EngineError(f"{onnx_path}: cannot be read: {exc.strerror}") from exc
        options, fingerprint = backend.plan_options(), backend.plan_fingerprint()
        return plan_key(onnx_bytes, weights_sha256, options, fingerprint)

    def _read_header(self, path: Path) -> PlanHeader:
        try:
            size = path.stat().st_size
            if size > _MAX_HEADER_BYTES:
                raise EngineError(
                    f"plan header {path}: expected at most {_MAX_HEADER_BYTES} bytes, given {size}"
                )
            header = msgspec.json.decode(path.read_bytes(), type=PlanHeader)
        except OSError as exc:
            raise EngineError(f"plan header {path}: cannot be read: {exc.strerror}") from exc
        except msgspec.MsgspecError as exc:
            raise EngineError(f"plan header {path}: {exc}; `runtime build BUNDLE`") from exc
        if header.schema != _SCHEMA or path.name != f"{header.key[:_KEY_DIGITS]}.json":
            raise EngineError(
                f"plan header {path}: expected schema {_SCHEMA} and its own key, given schema "
                f"{header.schema} and key {header.key[:12]}; `runtime build BUNDLE`"
            )
        return header

    def _read(self, header: PlanHeader, device: Optional[Fingerprint]) -> bytes:
        if device is not None and not fits(header.fingerprint, device):
            raise IncompatibleError(
                f"plan of {header.onnx} was built for [{header.fingerprint}], this is [{device}]; "
                "`runtime build BUNDLE` builds it for this device"
            )
        path = self.folder / header.file
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise DigestError(
                f"plan of {header.onnx} ({path}): cannot be read: {exc.strerror}; "
                "`runtime build BUNDLE` builds it again"
            ) from exc
        digest = hashlib.sha256(data).hexdigest()
        if len(data) != header.size or digest != header.sha256:
            raise DigestError(
                f"plan of {header.onnx} ({path}): expected {header.size} bytes of SHA-256 "
                f"{header.sha256[:12]}, given {len(data)} of {digest[:12]}; "
                "`runtime build BUNDLE` builds it again"
            )
        return data

    def _write(self, header: PlanHeader, data: bytes) -> None:
        try:
            path = self.folder / header.file
            # A header of an older, damaged plan must not vouch for the new one.
            _remove(path.with_suffix(".json"))
            write_at_once(path, data)
            write_at_once(path.with_suffix(".json"), msgspec.json.encode(header) + b"\n")
        except OSError as exc:
            raise EngineError(f"{self.folder}: no plan can be written: {exc.strerror}") from exc


class CachedBackend:
    """A backend whose plans are kept in a folder.

    Args:
        backend: What builds and runs.
        store: Where its plans are kept.
    """

    def __init__(self, backend: PlanBuilder, store: PlanStore) -> None:
        self._backend = backend
        self._store = store
        self.name = backend.name

    def build(self, onnx_path: Path) -> bytes:
        """Return the plan that is kept, else build it and keep it."""
        return self._store.build(self._backend, onnx_path).data

    def load(self, plan: bytes, *, folder: Path) -> Engine:
        """Load as the other backend does."""
        return self._backend.load(plan, folder=folder)

    def fingerprint(self) -> Fingerprint:
        """Say what the other backend says."""
        return self._backend.fingerprint()


_Stamp = Tuple[str, int, int, int]
_digests: Dict[_Stamp, str] = {}
_digesting = threading.Lock()


def _weights_digest(path: Path) -> str:
    """Hash a weights file once in this process, as long as it stays as it is."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return ""
    stamp = (str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns)
    with _digesting:
        if stamp not in _digests:
            _digests[stamp] = sha256_file(path)
        return _digests[stamp]


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
