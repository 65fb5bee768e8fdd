"""How many rows the inputs of a striped form may have: what a plan of open height is built for."""

from __future__ import annotations

from typing import Dict, Tuple

from engines.bundle import Bundle
from engines.errors import BuildError
from engines.onnx_ends import read_ends
from engines.replay_forms import Bands, forms_of

__all__ = ["form_rows"]


def form_rows(bundle: Bundle, file: str) -> Dict[str, Tuple[int, int, int]]:
    """Return fewest, typical and most rows of each input that plans can give a form.

    Args:
        bundle: The bundle.
        file: Path of the form's ONNX file in it.

    Raises:
        BuildError: Not a form of this bundle, or one that no plan uses.
    """
    form = forms_of(bundle.manifest).get(file)
    if form is None or bundle.manifest.striping is None:
        raise BuildError(f"{file}: expected a striped form of bundle {bundle.manifest.name!r}")
    ends = read_ends(bundle.path(file))
    rows = Bands(bundle.manifest, form, [end.name for end in ends.inputs]).ranges()
    if not rows:
        raise BuildError(f"{file}: no stripe fits it; build other plans")
    return rows
