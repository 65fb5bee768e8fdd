from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from engines import bundle as bundle_module
from engines.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, file_entries, new_bundle, sha256_file
from engines.errors import BundleError, DigestError, ManifestError
from tests.toy import write_toy_bundle

FILES = [
    "manifest.json",
    "manifest.sha256",
    "parity.npz",
    "graph/model.onnx",
    "graph/weights.bin",
    *(f"graph/segment_000{i}.onnx" for i in range(7)),
]


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_written_bundle_opens_with_the_digest_it_was_written_with(tmp_path: Path) -> None:
    written = write_toy_bundle(tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    assert opened.digest == written.digest == sha256_file(tmp_path / "b" / MANIFEST)
    assert opened.manifest == written.manifest
    assert opened.folder == written.folder
    assert opened.digest[:12] in repr(opened)


def test_sha256sum_can_read_the_digest_file(toy: Bundle) -> None:
    text = (toy.folder / MANIFEST_DIGEST).read_bytes()
    content = (toy.folder / MANIFEST).read_bytes()
    assert text == f"{hashlib.sha256(content).hexdigest()}  manifest.json\n".encode()


def test_every_file_of_the_folder_is_in_the_manifest(toy: Bundle) -> None:
    assert set(_tree(toy.folder)) == {*toy.manifest.files, MANIFEST, MANIFEST_DIGEST}
    assert set(FILES) <= set(_tree(toy.folder))


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    first, again = write_toy_bundle(tmp_path / "a"), write_toy_bundle(tmp_path / "b")
    graph = {n: e for n, e in first.manifest.files.items() if n.startswith("graph/")}
    assert graph == {n: e for n, e in again.manifest.files.items() if n.startswith("graph/")}


def test_paths_inside_are_those_of_the_manifest_only(toy: Bundle) -> None:
    assert toy.path("graph/model.onnx").is_file()
    for name in ("graph/none.onnx", "../x", "manifest.json"):
        with pytest.raises(ManifestError, match="not a file of bundle"):
            toy.path(name)


def test_what_a_device_adds_lies_beside_the_bundle(toy: Bundle) -> None:
    assert toy.device_folder.parent == toy.folder.parent
    assert toy.device_folder != toy.folder


@pytest.mark.parametrize("name", FILES)
class TestAnyDamage:
    """The error says which file; for the manifest's own digest it names both."""

    def test_a_flipped_bit_is_refused(self, toy_copy: Path, name: str) -> None:
        path = toy_copy / name
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            self._assert_refused(toy_copy, name)
        path.write_bytes(content)
        Bundle.open(toy_copy)

    def test_a_missing_byte_is_refused(self, toy_copy: Path, name: str) -> None:
        path = toy_copy / name
        path.write_bytes(path.read_bytes()[:-1])
        self._assert_refused(toy_copy, name)

    @pytest.mark.parametrize("extra", [b"\0", b"\n", b" "])
    def test_an_extra_byte_is_refused(self, toy_copy: Path, name: str, extra: bytes) -> None:
        path = toy_copy / name
        path.write_bytes(path.read_bytes() + extra)
        self._assert_refused(toy_copy, name)

    def test_an_empty_file_is_refused(self, toy_copy: Path, name: str) -> None:
        (toy_copy / name).write_bytes(b"")
        self._assert_refused(toy_copy, name)

    def test_a_missing_file_is_refused(self, toy_copy: Path, name: str) -> None:
        (toy_copy / name).unlink()
        with pytest.raises(BundleError, match=name):
            Bundle.open(toy_copy)

    def test_a_folder_in_its_place_is_refused(self, toy_copy: Path, name: str) -> None:
        (toy_copy / name).unlink()
        (toy_copy / name).mkdir()
        with pytest.raises(BundleError, match=name):
            Bundle.open(toy_copy)

    def _assert_refused(self, folder: Path, name: str) -> None:
        with pytest.raises(DigestError) as caught:
            Bundle.open(folder)
        assert name in str(caught.value)
        assert "again" in str(caught.value)


@pytest.mark.parametrize("name", ["graph/weights.bin", "graph/model.onnx", "parity.npz"])
def test_a_link_in_a_files_place_is_refused(toy_copy: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(toy_copy / name, elsewhere)
    (toy_copy / name).symlink_to(elsewhere)
    with pytest.raises(DigestError, match=name):
        Bundle.open(toy_copy)


def test_a_file_that_cannot_be_read_is_a_bundle_error(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(bundle_module, "sha256_file", fail)
    with pytest.raises(DigestError, match="Input/output error"):
        Bundle.open(toy_copy)


@pytest.mark.parametrize("what", ["nothing", "empty folder", "file", "other folder"])
def test_what_is_no_bundle_is_refused_with_its_path(tmp_path: Path, what: str) -> None:
    path = tmp_path / "there"
    if what == "file":
        path.write_text("text")
    elif what != "nothing":
        path.mkdir()
    if what == "other folder":
        (path / "notes.txt").write_text("text")
    with pytest.raises(BundleError, match=r"there.*split-compile"):
        Bundle.open(path)


def test_it_opens_through_a_link_and_through_a_deployments_current(
    toy_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "deployed").mkdir()
    (tmp_path / "deployed" / "current").symlink_to(toy_copy)
    for path in ("deployed", "deployed/current"):
        opened = Bundle.open(tmp_path / path)
        assert opened.folder == Path(os.path.realpath(toy_copy))


def test_parity_vectors_are_split_into_inputs_and_outputs(toy: Bundle) -> None:
    inputs, outputs = toy.parity_vectors()
    assert set(inputs) == {"x"}
    assert set(outputs) == {"pooled", "logits"}


class TestWriting:
    def test_another_bundle_is_replaced_and_nothing_else_is_left(self, tmp_path: Path) -> None:
        first = write_toy_bundle(tmp_path / "out" / "b", seed=0)
        second = write_toy_bundle(tmp_path / "out" / "b", seed=1)
        assert first.digest != second.digest
        assert Bundle.open(tmp_path / "out" / "b").digest == second.digest
        assert os.listdir(tmp_path / "out") == ["b"]

    def test_an_empty_folder_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        assert write_toy_bundle(tmp_path / "b").digest

    def test_until_it_is_finished_the_old_one_can_be_opened(self, tmp_path: Path) -> None:
        old = write_toy_bundle(tmp_path / "b", seed=0)
        with new_bundle(tmp_path / "b") as (folder, finish):
            (folder / "half").write_text("written")
            assert folder.parent == tmp_path
            assert Bundle.open(tmp_path / "b").digest == old.digest
            del finish
        assert Bundle.open(tmp_path / "b").digest == old.digest
        assert os.listdir(tmp_path) == ["b"]

    @pytest.mark.parametrize("there", ["nothing", "bundle"])
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
    def test_a_writer_that_fails_leaves_everything_as_it_was(
        self, tmp_path: Path, there: str, error: type[BaseException]
    ) -> None:
        if there == "bundle":
            write_toy_bundle(tmp_path / "b")
        before = _tree(tmp_path)
        with pytest.raises(error), new_bundle(tmp_path / "b") as (folder, _):  # noqa: PT012
            (folder / "graph").mkdir()
            (folder / "graph" / "half.onnx").write_bytes(b"half")
            raise error
        assert _tree(tmp_path) == before
        assert os.listdir(tmp_path) == (["b"] if there == "bundle" else [])

    @pytest.mark.parametrize("failing", [1, 2])
    def test_a_rename_that_fails_leaves_the_old_bundle(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
    ) -> None:
        old = write_toy_bundle(tmp_path / "b", seed=0)
        calls = []
        rename = os.rename

        def fail(source: str, target: str) -> None:
            calls.append(source)
            if len(calls) == failing:
                raise OSError(28, "No space left on device", source)
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(BundleError, match="No space left"):
            write_toy_bundle(tmp_path / "b", seed=1)
        assert Bundle.open(tmp_path / "b").digest == old.digest
        assert os.listdir(tmp_path) == ["b"]

    @pytest.mark.parametrize("what", ["folder", "file"])
    def test_what_is_no_bundle_is_never_overwritten(self, tmp_path: Path, what: str) -> None:
        target = tmp_path / "mine"
        if what == "folder":
            target.mkdir()
            (target / "thesis.tex").write_text("text")
        else:
            target.write_text("text")
        before = _tree(tmp_path)
        with pytest.raises(BundleError, match=r"mine: expected a bundle or nothing"):
            write_toy_bundle(target)
        assert _tree(tmp_path) == before
        assert os.listdir(tmp_path) == ["mine"]

    def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("text")
        with pytest.raises(BundleError, match="cannot be written"):
            write_toy_bundle(tmp_path / "file" / "b")

    def test_entries_name_files_by_posix_path(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "f").write_bytes(b"abc")
        entries = file_entries(tmp_path)
        assert list(entries) == ["a/f"]
        assert entries["a/f"].bytes == 3
        assert entries["a/f"].sha256 == hashlib.sha256(b"abc").hexdigest()
