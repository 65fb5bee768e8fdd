"""Write the page of the zoo's results.

``python tests/zoo/table.py build/zoo.json docs/models.md``, as ``make test-zoo`` does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEADER = """\
# Models that compile

What `make test-zoo` found: architectures of torchvision and timm with random weights, each
compiled with `--cuts all`. For every model, every tensor of every frontier is compared with
PyTorch's own (see `calibration/parity.py` for how an error is measured; the tolerance for float32
is 1e-4); then the bundle is opened anew and head and tail of a few cuts replay its parity
vectors. This page is written by that command; do not edit it.
"""

COLUMNS = (
    "| model | library | kind | input | parameters | cuts | refused | largest error "
    "| bundle / weights | seconds |\n"
    "|---|---|---|---|---:|---:|---:|---:|---:|---:|"
)

NOTES = """\
*refused* counts boundaries that more tensors cross than `--max-frontier` allows, or that no cut
can be at for another reason that `split-bundle inspect` gives. *bundle / weights* is the size on
disk, parity vectors and the graphs of all cuts included, by that of the weights: small models
have a large share of graphs. *seconds* is everything from building the model to verifying cuts,
on whatever machine ran it.
"""


def render(results: dict[str, Any]) -> str:
    """Return the page."""
    models: dict[str, dict[str, Any]] = results["models"]
    good = {name: row for name, row in models.items() if "failed" not in row}
    failed = {name: row["failed"] for name, row in models.items() if "failed" in row}
    cuts = sum(row["cuts"] for row in good.values())
    refused = sum(row["refused"] for row in good.values())
    worst = max(good, key=lambda name: good[name]["max_error"])
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    summary = (
        f"**{len(good)} of {len(models)} models, {cuts} cuts, {refused} boundaries refused; "
        f"largest error {good[worst]['max_error']:.2g}** ({worst.partition('-')[2]}).\n{versions}."
    )
    rows = [_row(name, models[name]) for name in sorted(models, key=_order(models))]
    parts = [HEADER, summary + "\n", "\n".join([COLUMNS, *rows]) + "\n", NOTES]
    if failed:
        lines = [f"- `{name}`: {reason}" for name, reason in sorted(failed.items())]
        parts.append("\n".join(["## Not compiled\n", *lines]) + "\n")
    return "\n".join(parts)


def _order(models: dict[str, dict[str, Any]]) -> Any:
    return lambda name: (models[name]["kind"], name.partition("-")[2])


def _row(name: str, row: dict[str, Any]) -> str:
    cells = [
        name.partition("-")[2],
        row["library"],
        row["kind"],
        "x".join(str(size) for size in row["input"]),
    ]
    if "failed" in row:
        cells += ["not compiled", "", "", "", "", ""]
    else:
        cells += [
            f"{row['parameters'] / 1e6:.1f} M",
            str(row["cuts"]),
            str(row["refused"]),
            f"{row['max_error']:.1e}",
            f"{row['bundle_bytes'] / row['weights_bytes']:.2f}",
            f"{row['seconds']:.0f}",
        ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Read the results and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="JSON file that --zoo-json wrote")
    parser.add_argument("page", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    given.page.write_text(render(json.loads(given.results.read_text())))


if __name__ == "__main__":
    main()
