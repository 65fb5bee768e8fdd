"""Quality: how far results are from the float32 model's, by cut and codec, as it was measured.

``split-bundle verify BUNDLE --data DATA`` measures it and writes ``quality-<metric>.json`` into
the bundle's device folder; what allows lossy codecs up to an error looks it up there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import msgspec

from calibration.records import read_record, write_record
from engines.bundle import Bundle
from engines.codecs import CALIBRATED
from engines.errors import SplitError

__all__ = [
    "SPEC",
    "CodecQuality",
    "QualityTable",
    "quality_file",
    "read_quality",
    "stored_quality",
    "write_quality",
]

SPEC = 1
"""Version of the table's schema; another one is refused."""


class CodecQuality(msgspec.Struct, frozen=True, kw_only=True):
    """The measured error of one codec at one cut.

    Attributes:
        cut: The cut's id.
        codec: The codec's name, for every tensor of the cut that it applies to; the others cross
            by their lossless default.
        metric: What ``error`` is measured by: ``top1``, ``cosine``, ``max``, or a function's name.
        error: Mean over the samples; 0 where the results are the reference's own.
        largest: The worst sample's.
        bytes: Mean encoded size of what crosses, in bytes.
        lossless: Whether the codec gives back exactly what it took.
    """

    cut: str
    codec: str
    metric: str
    error: float
    largest: float
    bytes: float
    lossless: bool


class QualityTable(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of a bundle over some data, by one metric.

    Attributes:
        spec: Version of this schema.
        bundle: Digest of the bundle.
        reference: Digest of the bundle whose results count as right.
        precision: What the bundle computes in.
        metric: What errors are measured by.
        data: SHA-256 of the data; see ``calibration.samples``.
        samples: How many samples it has.
        rows: By cut and codec.
        ranges: Digest of the calibrated ranges that codecs wrote by; nothing where there were
            none. Errors of those codecs hold for these ranges only.
    """

    spec: int
    bundle: str
    reference: str
    precision: str
    metric: str
    data: str
    samples: int
    rows: Tuple[CodecQuality, ...]
    ranges: str = ""

    def error(self, cut: str, codec: str) -> Optional[float]:
        """Return the mean error of a codec at a cut; none where it was not measured."""
        for row in self.rows:
            if (row.cut, row.codec) == (cut, codec):
                return row.error
        return None

    def admitted(self, most: float, ranges: str) -> Tuple[Tuple[str, str], ...]:
        """Return the pairs of cut and lossy codec whose mean error is at most ``most``.

        Args:
            most: What is allowed.
            ranges: Digest of the calibrated ranges that would be used: where it is another one,
                codecs that write by them are not among the pairs.
        """
        known = ranges == self.ranges
        return tuple(
            sorted(
                (row.cut, row.codec)
                for row in self.rows
                if not row.lossless and row.error <= most
                and (known or row.codec not in CALIBRATED)
            )
        )  # fmt: skip


def quality_file(bundle: Bundle, metric: str) -> Path:
    """Return where the table of a metric lies in a bundle's device folder."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in metric)
    return bundle.device_folder / f"quality-{plain}.json"


def write_quality(path: Path, table: QualityTable) -> None:
    """Write a table, whole or not at all.

    Raises:
        SplitError: The file cannot be written.
    """
    write_record(path, table, "a table of errors")


def read_quality(path: Path) -> QualityTable:
    """Read a table.

    Raises:
        SplitError: It cannot be read, or is of another schema.
    """
    table = read_record(path, QualityTable, "a table that `split-bundle verify --data` wrote")
    if table.spec != SPEC:
        raise SplitError(
            f"{path}: expected schema {SPEC}, given {table.spec}; "
            "run `split-bundle verify BUNDLE --data DATA` again"
        )
    return table


def stored_quality(bundle: Bundle, metric: Optional[str] = None) -> Optional[QualityTable]:
    """Return what was measured of a bundle here; none where nothing was.

    Args:
        bundle: The bundle.
        metric: Which table; by default the first there is of ``top1``, ``cosine``, ``max`` and
            the others by name.

    Raises:
        SplitError: The table cannot be read, or is of another bundle.
    """
    if metric is not None:
        paths = [quality_file(bundle, metric)]
    else:
        usual = [quality_file(bundle, name) for name in ("top1", "cosine", "max")]
        others = sorted(bundle.device_folder.glob("quality-*.json"))
        paths = [*usual, *others]
    for path in paths:
        if not path.is_file():
            continue
        table = read_quality(path)
        if table.bundle != bundle.digest:
            raise SplitError(
                f"{path}: expected a table of bundle {bundle.digest[:12]}, given one of "
                f"{table.bundle[:12]}; run `split-bundle verify BUNDLE --data DATA` again"
            )
        return table
    return None
