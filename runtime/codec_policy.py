"""Which codecs a robot may use: what the user says, what both ends have, what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

from calibration.codec_ranges import codec_ranges, ranges_digest
from calibration.codings import CodecOffer
from calibration.quality import stored_quality
from calibration.ranges import stored_ranges
from engines.bundle import Bundle
from engines.codecs import CALIBRATED, CODECS, NEEDS, codec_ids_here, extra_of, open_codec
from engines.codecs.encoders import NO_RANGES, ValueRange
from engines.errors import CodecError
from runtime.wire import Table

__all__ = ["AUTO", "CODEC_FORMS", "CodecPolicy", "open_policy"]

CODEC_FORMS = (
    "auto (the best for each cut and link, as `runtime profile` measured them), none, or "
    + ", ".join(name for name, _ in CODECS.values())
)


@dataclass(frozen=True)
class CodecPolicy:
    """What the user allows.

    Attributes:
        name: ``auto``, ``none``, or a codec's name.
        admitted: Pairs of a cut's id and a lossy codec whose measured error there is allowed.
        ranges: Calibrated ranges by tensor and codec, where one of those codecs is admitted.
    """

    name: str = "auto"
    admitted: Tuple[Tuple[str, str], ...] = ()
    ranges: Mapping[Tuple[str, str], ValueRange] = field(
        default_factory=lambda: NO_RANGES, compare=False
    )

    def offer(self, robot: Table, server: Table) -> Optional[CodecOffer]:
        """Return the codecs that a pair of devices has; none where there is nothing to choose."""
        if self.name == "none":
            return None
        ids = set(codec_ids_here()).intersection(server.codec_ids)
        if self.name == "auto" and not robot.codecs:
            return None
        return CodecOffer(
            usable=tuple(CODECS[wire_id][0] for wire_id in sorted(ids)),
            robot=robot.codecs,
            server=server.codecs,
            policy=self.name,
            admitted=self.admitted,
        )


AUTO = CodecPolicy()


def open_policy(codec: str, bundle: Bundle, allow_lossy: Optional[float] = None) -> CodecPolicy:
    """Read what the user says.

    Args:
        codec: ``auto``, ``none``, or a codec's name.
        bundle: Where the measured errors of lossy codecs are.
        allow_lossy: Largest mean error that a lossy codec may have at a cut; none to use no lossy
            codec.

    Raises:
        CodecError: No such codec, or one that may not be used.
        SplitError: The measured errors, or the calibrated ranges, cannot be read.
    """
    name = codec if codec in ("auto", "none") else open_codec(codec).name
    base = name.partition(":")[0]
    if base in NEEDS and open_codec(name).wire_id not in codec_ids_here():
        raise CodecError(
            f"codec {name!r} needs {NEEDS[base]}, which is not installed; "
            f"pip install 'splitrt[{extra_of(base)}]'"
        )
    lossy = name not in ("auto", "none") and not open_codec(name).lossless
    if allow_lossy is None:
        if lossy:
            raise CodecError(
                f"codec {name!r} is lossy: expected leave for it, given none; say how large an "
                "error is allowed (--allow-lossy MAX_ERROR)"
            )
        return CodecPolicy(name)
    if not allow_lossy >= 0:
        raise CodecError(f"allowed error: expected 0 or more, given {allow_lossy}")
    table = stored_quality(bundle)
    if table is None:
        raise CodecError(
            f"no error of lossy codecs was measured of bundle {bundle.manifest.name!r}; "
            "run `split-bundle verify BUNDLE --data DATA` first"
        )
    found = stored_ranges(bundle)
    admitted = table.admitted(allow_lossy, ranges_digest(found))
    if lossy and not any(pair[1] == name for pair in admitted):
        if name in CALIBRATED and ranges_digest(found) != table.ranges:
            raise CodecError(
                f"codec {name!r}: the bundle was calibrated again since its errors were "
                "measured; run `split-bundle verify BUNDLE --data DATA` again"
            )
        known = [row.error for row in table.rows if row.codec == name]
        least = f"{min(known):g} ({table.metric}) at best" if known else "nothing measured"
        raise CodecError(
            f"codec {name!r}: expected an error of at most {allow_lossy:g} at some cut, "
            f"given {least}; allow more, or name another codec"
        )
    by_range = any(codec in CALIBRATED for _, codec in admitted)
    return CodecPolicy(name, admitted, codec_ranges(found) if by_range else NO_RANGES)
