"""The bundle on disk: written whole or not at all, opened only if every digest holds.

1. ``write_bundle`` fills a temporary folder beside the target, then renames it into place; an
   older bundle at the target is moved aside first and removed last.
2. ``manifest.sha256`` holds the SHA-256 of ``manifest.json``, in the format of sha256sum(1).
   That SHA-256 is the bundle's digest: robot and server compare it in their handshake.
3. ``Bundle.open`` checks the manifest against it, then every file against the manifest.
4. What a device measures lives in ``<bundle>.device/``, beside the bundle, never in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, Union

import numpy as np

from engines.errors import BundleError, DigestError, ManifestError
from engines.manifest import FileEntry, Manifest, decode_manifest, encode_manifest
from engines.tensors import Array

__all__ = [
    "MANIFEST",
    "MANIFEST_DIGEST",
    "Bundle",
    "file_entries",
    "new_bundle",
    "sha256_file",
]

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"

_BLOCK_BYTES = 1 << 20
"""Read size when hashing: large enough to keep system calls out of the profile."""


class Bundle:
    """An opened bundle: a verified folder and its manifest."""

    def __init__(self, folder: Path, manifest: Manifest, digest: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = digest

    def __repr__(self) -> str:
        return f"<Bundle {self.manifest.name} {self.digest[:12]} at {self.folder}>"

    @classmethod
    def open(cls, path: Union[str, Path]) -> Bundle:
        """Open the bundle at ``path``, or the one that a deployment made current there.

        Raises:
            BundleError: No bundle there.
            ManifestError: Its manifest cannot be read.
            DigestError: A file is missing or not the one that was compiled.
        """
        folder = _bundle_folder(Path(path))
        manifest_path = folder / MANIFEST
        try:
            text = manifest_path.read_bytes()
            stated = (folder / MANIFEST_DIGEST).read_bytes()
        except OSError as exc:
            raise BundleError(
                f"{exc.filename}: {exc.strerror}; expected a bundle made by split-compile"
            ) from exc
        digest = hashlib.sha256(text).hexdigest()
        if stated != _digest_line(digest):
            raise DigestError(
                f"{manifest_path}: expected SHA-256 as in {MANIFEST_DIGEST}, given {digest}; "
                "the file changed after it was compiled: copy or compile the bundle again"
            )
        manifest = decode_manifest(text, where=str(manifest_path))
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry)
        return cls(folder, manifest, digest)

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest names."""
        if name not in self.manifest.files:
            raise ManifestError(f"{name!r} is not a file of bundle {self.manifest.name!r}")
        return self.folder / name

    @property
    def device_folder(self) -> Path:
        """Folder beside the bundle for what this device measures and builds."""
        return self.folder.with_name(self.folder.name + ".device")

    def parity_vectors(self) -> "tuple[Dict[str, Array], Dict[str, Array]]":
        """Return the seeded inputs and the whole model's outputs for them, by name."""
        inputs: Dict[str, Array] = {}
        outputs: Dict[str, Array] = {}
        with np.load(self.path(self.manifest.parity.file), allow_pickle=False) as vectors:
            for key in vectors.files:
                kind, _, name = key.partition(":")
                (inputs if kind == "input" else outputs)[name] = vectors[key]
        return inputs, outputs


@contextmanager
def new_bundle(target: Path) -> Iterator["tuple[Path, Callable[[Manifest], Bundle]]"]:
    """Give a temporary folder and a function that finishes it into a bundle at ``target``.

    Usage: write every file into the folder, then call the function with the manifest. If the
    block is left without that, nothing is left behind and ``target`` is as it was.

    Raises:
        BundleError: Something that is not a bundle lies at ``target``, or it cannot be written.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and not _replaceable(target):
        raise BundleError(
            f"{target}: expected a bundle or nothing there, given something else; "
            "choose another folder with -o"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=str(target.parent)))
    except OSError as exc:
        raise BundleError(f"{target}: cannot be written: {exc.strerror}") from exc
    folder.chmod(0o755)

    def finish(manifest: Manifest) -> Bundle:
        text = encode_manifest(manifest)
        digest = hashlib.sha256(text).hexdigest()
        (folder / MANIFEST).write_bytes(text)
        (folder / MANIFEST_DIGEST).write_bytes(_digest_line(digest))
        _replace(folder, target)
        return Bundle(Path(os.path.realpath(target)), manifest, digest)

    try:
        yield folder, finish
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


def file_entries(folder: Path) -> Dict[str, FileEntry]:
    """Return size and SHA-256 of every file below ``folder``, by POSIX path, sorted."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            if not block:
                return hasher.hexdigest()
            hasher.update(block)


def _bundle_folder(path: Path) -> Path:
    """Follow a deployment's ``current`` link, and links on the way.

    Loaders follow external weights only inside the model file's own real folder.
    """
    if not (path / MANIFEST).exists() and (path / "current" / MANIFEST).exists():
        path = path / "current"
    return Path(os.path.realpath(path))


def _digest_line(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode("ascii")


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    mend = "copy or compile the bundle again"
    if path.is_symlink() or not path.is_file():
        raise DigestError(f"{path}: expected a file of {entry.bytes} bytes, given none; {mend}")
    size = path.stat().st_size
    if size != entry.bytes:
        raise DigestError(f"{path}: expected {entry.bytes} bytes, given {size}; {mend}")
    try:
        digest = sha256_file(path)
    except OSError as exc:
        raise DigestError(f"{path}: cannot be read: {exc.strerror}; {mend}") from exc
    if digest != entry.sha256:
        raise DigestError(f"{path}: expected SHA-256 {entry.sha256}, given {digest}; {mend}")


def _replaceable(target: Path) -> bool:
    if not target.is_dir():
        return False
    return (target / MANIFEST).is_file() or not any(target.iterdir())


def _replace(folder: Path, target: Path) -> None:
    """Rename ``folder`` to ``target``; whatever was there goes only once the new one is in."""
    try:
        if target.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=str(target.parent)))
            try:
                os.rename(str(target), str(aside / target.name))
                try:
                    os.rename(str(folder), str(target))
                except OSError:
                    os.rename(str(aside / target.name), str(target))
                    raise
            finally:
                # Unless the old bundle could not be put back: then it is all there is of it.
                if target.exists():
                    shutil.rmtree(str(aside), ignore_errors=True)
        else:
            os.rename(str(folder), str(target))
    except OSError as exc:
        raise BundleError(f"{target}: cannot be written: {exc.strerror}") from exc
