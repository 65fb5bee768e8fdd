"""Deploys a bundle into a folder: copy, verify, then switch ``current``; roll back.

    PATH/releases/<digest>/     one folder a release, named by 12 digits of its bundle digest
    PATH/current -> releases/<digest>
    PATH/previous -> releases/<digest>     what --rollback returns to

A failure at any step leaves ``current`` as it was. A release is copied to a temporary name and
renamed once it has been verified, so a folder below ``releases`` is always whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional

from engines.bundle import Bundle
from engines.errors import BundleError, DeployError, SplitError

__all__ = ["Release", "deploy", "releases", "rollback"]

_KEY_DIGITS = 12


class Release(NamedTuple):
    """A release on a target.

    Attributes:
        key: First digits of its bundle digest.
        folder: Where it lies.
        current: Whether it is in use.
        previous: Whether a rollback would return to it.
    """

    key: str
    folder: Path
    current: bool
    previous: bool


def deploy(
    bundle: Bundle,
    target: Path,
    *,
    move: bool = False,
    ready: Optional[Callable[[Bundle], None]] = None,
) -> Release:
    """Copy a bundle to ``target``, verify it there and make it current.

    A release that is there already is verified again instead of copied; if it is damaged, it is
    replaced.

    Args:
        bundle: An opened bundle.
        target: Where releases lie.
        move: Move the bundle's folder instead of copying it; both on one file system.
        ready: Called with the release, in its place, before it is made current.

    Raises:
        DeployError: It could not be copied, does not verify there, or is not ready: ``ready``
            raised a ``SplitError``.
    """
    key = bundle.digest[:_KEY_DIGITS]
    folder = target / "releases" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not _intact(folder, bundle.digest):
            _place(bundle, folder, move=move)
        if ready is not None:
            _make_ready(ready, Bundle(folder.resolve(), bundle.manifest, bundle.digest))
        was = _linked(target / "current")
        if was != key:
            if was is not None:
                _link(target / "previous", was)
            _link(target / "current", key)
    except OSError as exc:
        raise DeployError(
            f"{exc.filename or target}: {exc.strerror or exc}; what was current still is"
        ) from exc
    return Release(key, folder, current=True, previous=False)


def rollback(target: Path) -> Release:
    """Make the previous release current again; the two change places.

    Raises:
        DeployError: There is none, or it does not verify.
    """
    now, before = _linked(target / "current"), _linked(target / "previous")
    if before is None or now is None:
        raise DeployError(f"{target}: no previous release to return to; see --list")
    folder = target / "releases" / before
    try:
        Bundle.open(folder)
    except BundleError as exc:
        raise DeployError(f"previous release {before} cannot be used: {exc}") from exc
    try:
        _link(target / "current", before)
        _link(target / "previous", now)
    except OSError as exc:
        raise DeployError(f"{exc.filename or target}: {exc.strerror or exc}") from exc
    return Release(before, folder, current=True, previous=False)


def releases(target: Path) -> List[Release]:
    """List what is deployed at ``target``, by key."""
    now, before = _linked(target / "current"), _linked(target / "previous")
    folder = target / "releases"
    if not folder.is_dir():
        raise DeployError(f"{target}: nothing is deployed there")
    return [
        Release(path.name, path, current=path.name == now, previous=path.name == before)
        for path in sorted(folder.iterdir())
        if path.is_dir() and len(path.name) == _KEY_DIGITS
    ]


def _make_ready(ready: Callable[[Bundle], None], release: Bundle) -> None:
    try:
        ready(release)
    except SplitError as exc:
        key = release.digest[:_KEY_DIGITS]
        raise DeployError(f"release {key} is not ready: {exc}; what was current still is") from exc


def _place(bundle: Bundle, folder: Path, *, move: bool) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".copy-", dir=str(folder.parent)))
    try:
        copy = bundle.folder if move else temporary / folder.name
        if not move:
            # The loaders of external weights would refuse links: copy what they point to.
            shutil.copytree(str(bundle.folder), str(copy), symlinks=False)
        try:
            arrived = Bundle.open(copy)
        except BundleError as exc:
            raise DeployError(f"the copy does not verify: {exc}") from exc
        if arrived.digest != bundle.digest:
            raise DeployError(f"{bundle.folder} changed while it was copied; deploy it again")
        if folder.exists():
            os.rename(str(folder), str(temporary / "damaged"))
        os.rename(str(copy), str(folder))
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)


def _intact(folder: Path, digest: str) -> bool:
    try:
        return Bundle.open(folder).digest == digest
    except BundleError:
        return False


def _linked(link: Path) -> Optional[str]:
    """Return the key of the release that a link names; none if there is no such link."""
    return Path(os.readlink(str(link))).name if link.is_symlink() else None


def _link(link: Path, key: str) -> None:
    """Point ``link`` at a release, in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    if temporary.is_symlink():
        temporary.unlink()
    os.symlink(os.path.join("releases", key), str(temporary))
    os.replace(str(temporary), str(link))
