"""The striped forms of a bundle, loaded when they are needed.

Forms are engines beside those of the program, each with weights of its own, so none is loaded
before a plan asks for it. Loading takes far longer than a stripe:

1. ``ready`` says whether a plan can be carried out now; it never waits.
2. ``prepare_soon`` loads in a thread of its own; the inference meanwhile does without stripes.
3. ``forms`` gives a run its engines, all of them at its start, and loads those that are missing.
   A run keeps what it was given, whatever is dropped meanwhile.

At most ``max_forms`` stay loaded; those unused for longest are dropped first.
"""

from __future__ import annotations

import enum
import logging
import queue
import threading
from collections import OrderedDict
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple

from engines.errors import EngineError, SplitError
from engines.manifest import Manifest
from engines.program import Program
from engines.rows import RowsEngine, rows_backend
from engines.stripe_plans import BoundedPlan, Plan, RowPlan, bounded_of
from engines.stripes import Striping

__all__ = ["Forms", "Side", "StripedProgram", "form_files"]

logger = logging.getLogger(__name__)

MAX_FORMS = 256
"""Forms loaded at a time: those of the plans in use, and a few more."""

Forms = Mapping[str, RowsEngine]
"""Engines by the path of their ONNX file in the bundle."""


class Side(enum.Enum):
    """Who carries a plan out."""

    ROBOT = "robot"
    SERVER = "server"


def form_files(plan: Plan, manifest: Manifest, side: Side) -> Tuple[str, ...]:
    """Return the ONNX files that one side needs for a valid plan."""
    striping = manifest.striping
    assert striping is not None, "a plan without stripes"
    if isinstance(plan, RowPlan):
        split = striping.row_split(plan.cut)
        assert split is not None, "a plan without a row split"
        return (split.top, split.last) if side is Side.ROBOT else (split.bottom,)
    if isinstance(plan, BoundedPlan):
        return (bounded_of(plan, striping).plain,)
    head = manifest.cuts[plan.cut].robot_segments
    if side is Side.ROBOT:
        return _segment_files(striping, head, first=True, middle=True, last=True)
    files: List[str] = []
    raw = plan.stripes - plan.robot
    if raw:
        cut = striping.cut(plan.cut)
        entry = None if cut is None else (cut.entry if raw > 1 else cut.rest)
        assert entry is not None, "a two-sided plan at a cut that cannot be divided"
        files.append(entry)
        files += _segment_files(striping, head, middle=raw > 2, last=raw > 1)
    tail = sorted(set(manifest.cuts[plan.until].robot_segments).difference(head))
    files += _segment_files(striping, tail, first=True, middle=plan.stripes > 2, last=True)
    return tuple(files)


class StripedProgram:
    """A program's striped forms. Safe across threads.

    Args:
        program: What runs the parts that are not striped; closed by its owner.
        max_forms: Forms kept loaded.
    """

    def __init__(self, program: Program, *, max_forms: int = MAX_FORMS) -> None:
        self.program = program
        self.manifest = program.bundle.manifest
        self._backend = rows_backend(program.backend)
        self._max_forms = max_forms
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._loaded: "OrderedDict[str, RowsEngine]" = OrderedDict()
        self._wanted: "queue.Queue[Optional[Tuple[Tuple[str, ...], Callable[[str], None]]]]" = (
            queue.Queue()
        )
        self._held: Dict[str, bool] = {}
        self._asked: Set[Tuple[str, ...]] = set()
        self._loader: Optional[threading.Thread] = None
        self._closing = threading.Event()

    def __repr__(self) -> str:
        return f"<StripedProgram {self.manifest.name}: {len(self._loaded)} forms>"

    @property
    def offered(self) -> bool:
        """Whether plans can be carried out here: the bundle has forms, the backend runs them."""
        return self._backend is not None and self.manifest.striping is not None

    def loadable(self, plan: Plan, side: Side) -> bool:
        """Whether one side of a valid plan can be loaded here, as far as is known beforehand.

        A backend that takes plans built ahead says so of each form by ``holds``.
        """
        holds = getattr(self._backend, "holds", None)
        if holds is None:
            return self.offered
        for file in form_files(plan, self.manifest, side):
            if file not in self._held:
                self._held[file] = holds(self.program.bundle.path(file))
            if not self._held[file]:
                return False
        return True

    def ready(self, plan: Plan, side: Side) -> bool:
        """Whether all that one side of a plan needs is loaded."""
        files = form_files(plan, self.manifest, side)
        with self._lock:
            return all(file in self._loaded for file in files)

    def forms(self, plan: Plan, side: Side) -> Dict[str, RowsEngine]:
        """Return the engines of one side of a valid plan, loading those that are missing.

        Raises:
            EngineError: A form cannot be loaded here.
        """
        return self._forms(form_files(plan, self.manifest, side))

    def prepare_soon(
        self, plan: Plan, side: Side, then: Optional[Callable[[str], None]] = None
    ) -> None:
        """Load the forms of one side of a plan in the background.

        Args:
            plan: A valid plan.
            side: Whose forms.
            then: Called from the loading thread: with an empty string, or with what went wrong.
                Not called if the program is closed first. None to ask for the same forms once.
        """
        files = form_files(plan, self.manifest, side)
        with self._lock:
            if self._closing.is_set() or (then is None and files in self._asked):
                return
            if then is None:
                self._asked.add(files)
            if self._loader is None:
                self._loader = threading.Thread(
                    target=self._load_wanted, name="splitrt-load-forms", daemon=True
                )
                self._loader.start()
            self._wanted.put((files, then or (lambda _: None)))

    def close(self) -> None:
        """Stop loading and free every form; safe to call again."""
        with self._lock:
            self._closing.set()
            loader, self._loader = self._loader, None
        if loader is not None:
            self._wanted.put(None)
            loader.join()
        with self._lock:
            engines = list(self._loaded.values())
            self._loaded.clear()
        for engine in engines:
            engine.close()

    def _forms(self, files: Tuple[str, ...]) -> Dict[str, RowsEngine]:
        found: Dict[str, RowsEngine] = {}
        for file in files:
            found[file] = self._known(file) or self._load(file)
        with self._lock:
            for file in list(self._loaded):
                if len(self._loaded) <= self._max_forms:
                    break
                if file not in found:  # whoever runs it still holds it, and frees it at its end
                    del self._loaded[file]
        return found

    def _known(self, file: str) -> Optional[RowsEngine]:
        with self._lock:
            engine = self._loaded.get(file)
            if engine is not None:
                self._loaded.move_to_end(file)
            return engine

    def _load(self, file: str) -> RowsEngine:
        if self._backend is None:
            raise EngineError(
                f"backend {self.program.backend.name!r} runs no striped forms; use backend 'ort'"
            )
        with self._loading:
            engine = self._known(file)
            if engine is not None:
                return engine
            if self._closing.is_set():
                raise EngineError(f"model {self.manifest.name!r} is closed")
            path = self.program.bundle.path(file)
            try:
                engine = self._backend.load_rows(path)
            except EngineError as exc:
                raise type(exc)(f"{path.name}: {exc}") from exc
            with self._lock:
                if not self._closing.is_set():
                    self._loaded[file] = engine
                    return engine
        engine.close()
        raise EngineError(f"model {self.manifest.name!r} is closed")

    def _load_wanted(self) -> None:
        while True:
            wanted = self._wanted.get()
            if wanted is None or self._closing.is_set():
                return
            files, then = wanted
            trouble = ""
            try:
                self._forms(files)
            except SplitError as exc:
                if self._closing.is_set():
                    return
                logger.warning("stripes cannot be used: %s", exc)
                trouble = str(exc)
            else:
                with self._lock:  # may be asked for again, should they be dropped
                    self._asked.discard(files)
            then(trouble)


def _segment_files(
    striping: Striping,
    segments: "Tuple[int, ...] | List[int]",
    *,
    first: bool = False,
    middle: bool = False,
    last: bool = False,
) -> Tuple[str, ...]:
    files: List[str] = []
    seen: Set[str] = set()
    for index in segments:
        striped = striping.segment(index)
        assert striped is not None, f"segment {index} is not striped"
        wanted = ((first, striped.first), (middle, striped.middle), (last, striped.last))
        files += [file for use, file in wanted if use and file not in seen]
        seen.update(files)
    return tuple(files)
