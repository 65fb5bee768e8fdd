"""Prints what codecs were measured to cost, for the commands that do."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

from rich.console import Console
from rich.table import Column, Table

from calibration.codings import CodecCost
from engines.codecs import open_codec
from engines.manifest import Manifest

__all__ = ["codec_records", "print_codecs"]


def codec_records(manifest: Manifest, costs: Sequence[CodecCost]) -> List[Dict[str, Any]]:
    """Return one record a tensor and codec: bytes and milliseconds of the whole tensor."""
    records = []
    for cost in costs:
        (spec,) = manifest.specs((cost.tensor,))
        records.append(
            {
                "tensor": cost.tensor,
                "codec": cost.codec,
                "lossless": open_codec(cost.codec).lossless,
                "bytes": round(spec.nbytes * cost.ratio),
                "ratio": round(cost.ratio, 4),
                "encode_ms": round(spec.nbytes * cost.encode_s * 1e3, 4),
                "decode_ms": round(spec.nbytes * cost.decode_s * 1e3, 4),
            }
        )
    return records


def print_codecs(manifest: Manifest, costs: Sequence[CodecCost]) -> None:
    """Print a line a tensor and codec."""
    if not costs:
        return
    whole = Column("codec", no_wrap=True)
    shown = Table("tensor", whole, "lossless", "bytes", "ratio", "encode ms", "decode ms")
    for record in codec_records(manifest, costs):
        shown.add_row(
            record["tensor"][:30],
            record["codec"],
            "yes" if record["lossless"] else "no",
            str(record["bytes"]),
            f"{record['ratio']:.3f}",
            f"{record['encode_ms']:.3f}",
            f"{record['decode_ms']:.3f}",
        )
    Console().print(shown)
