"""Backend ``replay``: engines that take the time that a table says, for devices that are not here.

Nothing is computed: a run waits, and gives tensors of the right shape and dtype, those that were
stored or else zeros. Transport, codecs, stripes and selection around it are real.

1. The time of a segment is the sum of its operators'. In a stripe, each operator takes its share
   of the rows, but a launch at least (:meth:`engines.replay_table.ReplayTable.segment_s`).
2. A wait sleeps to an absolute point in time, so that what the tensors cost is part of it. They
   cost next to nothing: they are read-only views of what is stored, stripes too. A device that is
   too fast to be replayed here is warned of, once.
3. One backend is one device: runs from several threads take turns.
4. Which rows a stripe is about follows from the manifest (``engines.replay_forms``); stripes of
   the stored tensors, put together, are the stored tensors.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import threading
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Tuple

import msgspec
import numpy as np

from engines.backend import BackendOptions, CheckedEngine
from engines.bundle import MANIFEST
from engines.errors import BuildError, EngineError, IncompatibleError
from engines.fingerprint import Fingerprint
from engines.manifest import Manifest, decode_manifest
from engines.onnx_ends import End, read_ends
from engines.precise import Clock, PreciseClock
from engines.replay_forms import Bands, Form, Kind, forms_of
from engines.replay_table import ReplayTable, read_replay_table
from engines.rows import RowsEngine, RowsSpec
from engines.stripes import kept_name
from engines.tensors import Array, TensorSpec

__all__ = ["ReplayBackend", "ReplayEngine", "ReplayRowsEngine"]

logger = logging.getLogger(__name__)

_LATE_S = 0.5e-3
"""A run that is later than this before it waits falsifies what is measured."""

_PROBED = 16
"""Channels of a stored tensor that are tried for one whose rows differ."""


class ReplayBackend:
    """A device that is not here.

    Args:
        options: ``table`` names the replay table; without one nothing can be built.
        clock: What to wait by.

    Raises:
        IncompatibleError: The table cannot be read.
    """

    name = "replay"

    def __init__(
        self, options: BackendOptions = BackendOptions(), *, clock: Optional[Clock] = None
    ) -> None:
        self._path = Path(options.table) if options.table else None
        self._device: Optional[_Device] = None
        if self._path is not None:
            table = read_replay_table(self._path)
            file = self._path.parent / table.values if table.values else None
            self._device = _Device(table, _Values(file), clock or PreciseClock())
        self._bundles: Dict[Path, Tuple[Manifest, Dict[str, Form]]] = {}

    def build(self, onnx_path: Path) -> bytes:
        """Return which file it is; its times are looked up when it is loaded.

        Raises:
            BuildError: There is no such file, no table, or the table is of another bundle.
        """
        read_ends(onnx_path)
        self._place(onnx_path, BuildError)
        return msgspec.json.encode(_Plan(onnx_path.name))

    def load(self, plan: bytes, *, folder: Path) -> ReplayEngine:
        """Load a file of the bundle in ``folder``."""
        try:
            path = folder / msgspec.json.decode(plan, type=_Plan).file
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise EngineError(f"replay refused a plan: {exc}") from exc
        _, form = self._place(path, EngineError)
        ends = read_ends(path)
        device = self._need_device(EngineError)
        seconds = sum(device.table.segment_s(index) for index in form.segments)
        inputs, outputs = ([_spec(end) for end in side] for side in ends)
        return ReplayEngine(f"replay:{path.stem}", inputs, outputs, device, seconds)

    def load_rows(self, onnx_path: Path) -> ReplayRowsEngine:
        """Load a striped form of the bundle that the file lies in."""
        manifest, form = self._place(onnx_path, EngineError)
        if form.kind is Kind.WHOLE:
            raise EngineError(f"{onnx_path.name}: expected a striped form")
        return ReplayRowsEngine(onnx_path, manifest, form, self._need_device(EngineError))

    def fingerprint(self) -> Fingerprint:
        """Device and table: what the times depend on."""
        if self._path is None or self._device is None:
            fields = {"device": "none: no table was named", "version": "1"}
        else:
            digest = hashlib.sha256(self._path.read_bytes()).hexdigest()[:12]
            device = f"{self._device.table.device}, replayed"
            fields = {"device": device, "version": "1", "table": digest}
        return Fingerprint(backend=self.name, fields=fields)

    def _need_device(self, error: "type[EngineError]") -> _Device:
        if self._device is None:
            raise error("backend 'replay' needs a table: name it as replay:TABLE.json")
        return self._device

    def _place(self, path: Path, error: "type[EngineError]") -> Tuple[Manifest, Form]:
        """Return the bundle that a file lies in, and what the file stands for."""
        device = self._need_device(error)
        root = next((folder for folder in path.parents if (folder / MANIFEST).exists()), None)
        if root is None:
            raise error(f"{path}: not in a bundle; replay looks up times by a bundle's manifest")
        if root not in self._bundles:
            text = (root / MANIFEST).read_bytes()
            digest = hashlib.sha256(text).hexdigest()
            manifest = decode_manifest(text, where=str(root / MANIFEST))
            if digest != device.table.bundle:
                raise error(
                    f"{self._path}: a table of bundle {device.table.bundle[:12]}, given "
                    f"{digest[:12]}; make the table again for this bundle"
                )
            if len(manifest.segments) != len(device.table.segments_ms):
                raise error(
                    f"{self._path}: expected {len(manifest.segments)} segments, given "
                    f"{len(device.table.segments_ms)}"
                )
            self._bundles[root] = manifest, forms_of(manifest)
        manifest, forms = self._bundles[root]
        form = forms.get(path.relative_to(root).as_posix())
        if form is None:
            raise error(f"{path}: not a file that the manifest of {root.name} names")
        return manifest, form


class ReplayEngine(CheckedEngine):
    """A part of a model between two cuts."""

    def __init__(
        self,
        name: str,
        inputs: List[TensorSpec],
        outputs: List[TensorSpec],
        device: _Device,
        seconds: float,
    ) -> None:
        super().__init__(name, inputs, outputs)
        self._device = device
        self.seconds = seconds
        device.values.fetch(spec.name for spec in outputs)

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        def give() -> Tuple[float, Dict[str, Array]]:
            part = self._device.values.part
            return self.seconds, {s.name: part(s.name, s.dtype, s.shape) for s in self.outputs}

        return self._device.take(give)


class ReplayRowsEngine(RowsEngine):
    """A striped form."""

    any_order = True

    def __init__(self, path: Path, manifest: Manifest, form: Form, device: _Device) -> None:
        ends = read_ends(path)
        super().__init__(
            f"replay:{path.stem}",
            [RowsSpec(*end) for end in ends.inputs],
            [RowsSpec(*end) for end in ends.outputs],
        )
        self._device = device
        self._bands = Bands(manifest, form, [end.name for end in ends.inputs])
        self._kept = _carried_rows(manifest, form)
        device.values.fetch(end.name for end in (*ends.inputs, *ends.outputs))

    def seconds(self, bounds: Tuple[int, int]) -> float:
        """Return the time of the stripe between two bounds."""
        shares = self._bands.shares(bounds)
        return sum(self._device.table.segment_s(index, share) for index, share in shares)

    def _run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        return self._device.take(lambda: self._give(inputs))

    def _give(self, inputs: Dict[str, Array]) -> Tuple[float, Dict[str, Array]]:
        tensors, values = self._bands.tensors, self._device.values
        rows = {n: a.shape[tensors[n].axis] for n, a in inputs.items() if n in tensors}
        bounds = self._bands.bounds(rows, lambda name, axis: values.find(name, axis, inputs[name]))
        given: Dict[str, Array] = {}
        for spec in self.outputs:
            start, stop, axis = 0, self._kept.get(spec.name, 0), 0
            if spec.name in tensors:
                start, stop = self._bands.span(spec.name, bounds)
                axis = tensors[spec.name].axis
            shape = tuple(stop - start if extent is None else extent for extent in spec.shape)
            given[spec.name] = values.part(spec.name, spec.dtype, shape, axis, start)
        return self.seconds(bounds), given


class _Plan(msgspec.Struct, frozen=True):
    """A plan: the name of the ONNX file."""

    file: str


class _Device:
    """What the engines of a backend share: the table, the values, and time."""

    def __init__(self, table: ReplayTable, values: _Values, clock: Clock) -> None:
        self.table = table
        self.values = values
        self._clock = clock
        self._turn = threading.Lock()
        self._warned = False
        self._random = random.Random(table.seed)  # noqa: S311 (noise, no secret)

    def take(self, give: Callable[[], Tuple[float, Dict[str, Array]]]) -> Dict[str, Array]:
        """Return the tensors that ``give`` gives, after as many seconds as it says."""
        with self._turn:
            start_s = self._clock.now_s()
            seconds, given = give()
            if self.table.jitter:
                sigma = self.table.jitter
                seconds *= math.exp(self._random.gauss(0, sigma) - sigma * sigma / 2)
            self._check_early(start_s + seconds)
            self._clock.sleep_until(start_s + seconds)
            return given

    def _check_early(self, deadline_s: float) -> None:
        late_s = self._clock.now_s() - deadline_s
        if late_s > _LATE_S and not self._warned:
            self._warned = True
            logger.warning(
                "%s cannot be replayed here: to give the tensors of a run alone took %.1f ms "
                "longer than the run should",
                self.table.device,
                late_s * 1e3,
            )


class _Values:
    """Stored tensors, and parts of them.

    Args:
        file: Where they are stored; none where there are none.
    """

    def __init__(self, file: Optional[Path]) -> None:
        self._file = file
        self._arrays: Dict[str, Array] = {}
        self._places: Dict[Tuple[str, int], Tuple[Tuple[int, ...], Dict[bytes, int]]] = {}

    def fetch(self, names: Iterable[str]) -> None:
        """Read some tensors, so that no run has to; those that are not stored are left out.

        Raises:
            IncompatibleError: The file cannot be read.
        """
        if self._file is None:
            return
        try:
            with np.load(self._file, allow_pickle=False) as stored:
                for name in set(names).intersection(stored.files).difference(self._arrays):
                    array = stored[name]
                    array.flags.writeable = False
                    self._arrays[name] = array
        except (OSError, ValueError) as exc:
            raise IncompatibleError(
                f"{self._file}: values of a replay table cannot be read: {exc}"
            ) from exc

    def part(
        self, name: str, dtype: str, shape: Tuple[int, ...], axis: int = 0, start: int = 0
    ) -> Array:
        """Return a stored tensor's rows as a view, or zeros where none fit."""
        stored = self._arrays.get(name)
        if stored is not None and stored.dtype.name == dtype and stored.ndim == len(shape):
            if stored.shape == shape:
                return stored
            rows = stored[(slice(None),) * axis + (slice(start, start + shape[axis]),)]
            if rows.shape == shape:
                return rows
        return np.zeros(shape, dtype)

    def find(self, name: str, axis: int, rows: Array) -> Optional[int]:
        """Return at which row of a stored tensor some rows of it begin, or none."""
        stored = self._arrays.get(name)
        if stored is None or stored.ndim != rows.ndim or not rows.shape[axis]:
            return None
        if (name, axis) not in self._places:
            self._places[name, axis] = _index_rows(stored, axis)
        where, places = self._places[name, axis]
        first = rows[(*where, 0)]
        return places.get(first.tobytes())


def _index_rows(stored: Array, axis: int) -> Tuple[Tuple[int, ...], Dict[bytes, int]]:
    """Choose where before the row axis rows differ most, and note each row's place there."""
    best: Tuple[Tuple[int, ...], Dict[bytes, int]] = ((0,) * axis, {})
    channels = np.ndindex(*stored.shape[:axis])
    for _, where in zip(range(_PROBED), channels):
        places: Dict[bytes, int] = {}
        for row in range(stored.shape[axis]):
            places.setdefault(stored[(*where, row)].tobytes(), row)
        if len(places) > len(best[1]):
            best = where, places
    return best


def _carried_rows(manifest: Manifest, form: Form) -> Dict[str, int]:
    """Return how many rows each output has that is carried on, by its name."""
    striping = manifest.striping
    assert striping is not None, "a striped form without stripes"
    kept: Dict[str, int] = {}
    for index in form.segments:
        striped = striping.segment(index)
        for carry in striped.carries if striped is not None else ():
            kept[kept_name(carry.tensor, index)] = carry.rows
    split = striping.row_split(form.cut) if form.cut is not None else None
    for carry in split.carries if split is not None else ():
        kept[kept_name(carry.tensor, None)] = carry.rows
    return kept


def _spec(end: End) -> TensorSpec:
    shape = [extent for extent in end.shape if extent is not None]
    if len(shape) != len(end.shape):
        raise EngineError(f"{end.name!r}: expected a tensor of a fixed shape, given {end.shape}")
    return TensorSpec(end.name, end.dtype, tuple(shape))
