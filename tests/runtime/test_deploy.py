from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import Bundle
from engines.errors import BundleError, DeployError, EngineError
from runtime import Robot
from runtime.deploy import deploy, releases, rollback
from tests.runtime.helpers import assert_right
from tests.toy import write_toy_bundle


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "robot"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("other") / "other.bundle", seed=1)


def _current(target: Path) -> str:
    return Bundle.open(target).digest


def test_a_bundle_is_copied_verified_and_made_current(toy: Bundle, target: Path) -> None:
    release = deploy(toy, target)
    assert release.key == toy.digest[:12]
    assert release.current
    assert _current(target) == _current(target / "current") == toy.digest
    assert os.readlink(target / "current") == f"releases/{release.key}"
    assert sorted(os.listdir(target)) == ["current", "releases"]
    assert os.listdir(target / "releases") == [release.key]


@pytest.mark.parametrize("place", ["", "current"])
def test_a_robot_runs_from_where_it_was_deployed(
    toy: Bundle,
    target: Path,
    place: str,
    inputs: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
) -> None:
    deploy(toy, target)
    with Robot(target / place, threads=1) as robot:
        assert_right(robot.infer(inputs), expected)


def test_deploying_again_changes_nothing(toy: Bundle, target: Path) -> None:
    first = deploy(toy, target)
    inode = (first.folder / "manifest.json").stat().st_ino
    assert deploy(toy, target) == first
    assert (first.folder / "manifest.json").stat().st_ino == inode
    assert not (target / "previous").exists()


def test_rollback_goes_back_and_forth(toy: Bundle, other: Bundle, target: Path) -> None:
    deploy(toy, target)
    deploy(other, target)
    assert _current(target) == other.digest
    assert rollback(target).key == toy.digest[:12]
    assert _current(target) == toy.digest
    assert rollback(target).key == other.digest[:12]
    assert _current(target) == other.digest


def test_listing_marks_current_and_previous(toy: Bundle, other: Bundle, target: Path) -> None:
    deploy(toy, target)
    deploy(other, target)
    (target / "releases" / ".copy-half").mkdir()
    found = {release.key: (release.current, release.previous) for release in releases(target)}
    assert found == {other.digest[:12]: (True, False), toy.digest[:12]: (False, True)}


def test_a_damaged_release_is_replaced(toy: Bundle, target: Path) -> None:
    release = deploy(toy, target)
    (release.folder / "graph" / "weights.bin").write_bytes(b"damaged")
    with pytest.raises(BundleError):
        Bundle.open(target)
    deploy(toy, target)
    assert _current(target) == toy.digest
    assert os.listdir(target / "releases") == [release.key]


def test_a_copy_that_does_not_arrive_whole_leaves_current(
    toy: Bundle, other: Bundle, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(toy, target)
    copytree = shutil.copytree

    def damaging(source: str, to: str, *more: object, **named: object) -> object:
        done = copytree(source, to, *more, **named)  # type: ignore[arg-type]
        weights = Path(to) / "graph" / "weights.bin"
        if weights.exists():  # it calls itself for each folder
            weights.write_bytes(weights.read_bytes()[:-1])
        return done

    monkeypatch.setattr(shutil, "copytree", damaging)
    with pytest.raises(DeployError, match=r"does not verify.*weights\.bin"):
        deploy(other, target)
    assert _current(target) == toy.digest
    assert os.listdir(target / "releases") == [toy.digest[:12]]


@pytest.mark.parametrize("failing", ["copytree", "rename", "symlink", "replace"])
def test_a_full_disk_leaves_current(
    toy: Bundle, other: Bundle, target: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    deploy(toy, target)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(shutil if failing == "copytree" else os, failing, fail)
    with pytest.raises(DeployError, match="No space left on device; what was current still is"):
        deploy(other, target)
    monkeypatch.undo()
    assert _current(target) == toy.digest
    assert not [name for name in os.listdir(target / "releases") if name.startswith(".")]
    deploy(other, target)
    assert rollback(target).key == toy.digest[:12]


def test_a_bundle_that_changes_while_it_is_copied_is_refused(
    toy_copy: Path, other: Bundle, target: Path
) -> None:
    stale = Bundle.open(toy_copy)
    shutil.rmtree(toy_copy)
    shutil.copytree(other.folder, toy_copy)
    with pytest.raises(DeployError, match="changed while it was copied"):
        deploy(stale, target)
    assert not (target / "current").exists()


def test_a_release_that_is_not_ready_leaves_current(
    toy: Bundle, other: Bundle, target: Path
) -> None:
    deploy(toy, target)
    seen: list[Bundle] = []

    def refuse(release: Bundle) -> None:
        seen.append(release)
        assert _current(target) == toy.digest
        raise EngineError("a cut is over its tolerance")

    with pytest.raises(DeployError, match=r"not ready: a cut is .*what was current still is"):
        deploy(other, target, ready=refuse)
    assert _current(target) == toy.digest
    assert [release.digest for release in seen] == [other.digest]
    deploy(other, target, ready=seen.append)
    assert _current(target) == other.digest
    assert seen[1].folder == (target / "releases" / other.digest[:12]).resolve()


def test_a_bundle_that_cannot_be_moved_stays(
    toy_copy: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(toy_copy)

    def fail(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link", "somewhere")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(DeployError, match="cross-device"):
        deploy(bundle, target, move=True)
    assert Bundle.open(toy_copy).digest == bundle.digest


def test_rollback_without_a_previous_release_says_so(toy: Bundle, target: Path) -> None:
    for _ in range(2):
        with pytest.raises(DeployError, match="no previous release"):
            rollback(target)
        deploy(toy, target)


def test_rollback_to_a_damaged_release_is_refused(
    toy: Bundle, other: Bundle, target: Path
) -> None:
    release = deploy(toy, target)
    deploy(other, target)
    (release.folder / "parity.npz").unlink()
    with pytest.raises(DeployError, match=r"cannot be used.*parity\.npz"):
        rollback(target)
    assert _current(target) == other.digest


def test_nothing_deployed_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="nothing is deployed"):
        releases(tmp_path)


@pytest.mark.parametrize("there", ["file", "current folder"])
def test_what_is_in_the_way_is_never_removed(toy: Bundle, target: Path, there: str) -> None:
    if there == "file":
        target.write_text("text")
    else:
        (target / "current").mkdir(parents=True)
        (target / "current" / "thesis.tex").write_text("text")
    with pytest.raises(DeployError):
        deploy(toy, target)
    assert target.is_file() or (target / "current" / "thesis.tex").read_text() == "text"


def test_what_a_bundle_links_to_is_copied(toy: Bundle, tmp_path: Path, target: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(toy.folder)
    deploy(Bundle.open(link), target)
    assert not (target / "current" / "manifest.json").is_symlink()
    assert _current(target) == toy.digest
