from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.backend import Engine
from engines.errors import BuildError, DigestError, EngineError, IncompatibleError
from engines.fingerprint import Fingerprint
from engines.plans import (
    BuiltPlan,
    CachedBackend,
    PlanHeader,
    PlanStore,
    fits,
    plan_key,
)

HERE = {"version": "10.3.0", "platform": "linux-aarch64", "device": "Orin"}
DEVICE = Fingerprint(backend="tensorrt", fields={**HERE, "compute_capability": "sm87"})
RTX = {"version": "1.7.1", "platform": "linux-x86_64"}
PLAN_RTX = Fingerprint(backend="tensorrt-rtx", fields={**RTX, "targets": "sm86,sm89"})


def on_rtx(capability: str, **more: str) -> Fingerprint:
    fields = {**RTX, "device": "RTX", "compute_capability": capability, **more}
    return Fingerprint(backend="tensorrt-rtx", fields=fields)


class Builder:
    """Builds plans that say what they were built from, and counts them."""

    name = "tensorrt"

    def __init__(self) -> None:
        self.built = 0
        self.options = {"tf32": "false"}
        self.here = DEVICE
        self.loaded: list[bytes] = []

    def build_plan(self, onnx_path: Path) -> BuiltPlan:
        self.built += 1
        if onnx_path.read_bytes() == b"bad":
            raise BuildError("bad")
        return BuiltPlan(b"plan of " + onnx_path.read_bytes(), "fp16", 1.25)

    def load(self, plan: bytes, *, folder: Path) -> Engine:
        self.loaded.append(plan)
        raise EngineError("no engine in this test")

    def fingerprint(self) -> Fingerprint:
        return self.here

    plan_fingerprint = fingerprint

    def plan_options(self) -> dict[str, str]:
        return self.options


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "weights.bin").write_bytes(b"weights")
    path = tmp_path / "graph" / "segment_0000.onnx"
    path.write_bytes(b"onnx")
    return path


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    return PlanStore(tmp_path / "plans" / "tensorrt")


def test_the_second_build_finds_the_first(store: PlanStore, onnx: Path) -> None:
    builder = Builder()
    first = store.build(builder, onnx)
    again = PlanStore(store.folder).build(builder, onnx)
    assert builder.built == 1
    assert (first.found, again.found) == (False, True)
    assert first.data == again.data == b"plan of onnx"
    assert store.open(first.header.key, DEVICE) == b"plan of onnx"


def test_what_is_listed(store: PlanStore, onnx: Path) -> None:
    other = onnx.with_name("a.onnx")
    other.write_bytes(b"a")
    builder = Builder()
    headers = [store.build(builder, path).header for path in (onnx, other)]
    assert store.headers() == headers[::-1]
    assert PlanStore(store.folder / "nowhere").headers() == []
    header = headers[0]
    assert (header.onnx, header.size, header.precision) == ("segment_0000.onnx", 12, "fp16")
    assert (header.build_s, header.fingerprint) == (1.25, DEVICE)
    assert header.options == {"tf32": "false"}
    assert {path.suffix for path in store.folder.iterdir()} == {".plan", ".json"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in store.folder.iterdir())


def test_everything_that_changes_a_plan_changes_its_key(store: PlanStore, onnx: Path) -> None:
    builder = Builder()
    keys = [store.build(builder, onnx).header.key]

    def built() -> None:
        keys.append(store.build(builder, onnx).header.key)

    onnx.write_bytes(b"onnx 2")
    built()
    (onnx.parent / "weights.bin").write_bytes(b"Weights")
    built()
    (onnx.parent / "weights.bin").unlink()
    built()
    builder.options = {"tf32": "true"}
    built()
    builder.options = {"tf32": "true", "workspace_bytes": "1"}
    built()
    for name in DEVICE.fields:
        fields = {**DEVICE.fields, name: "other"}
        builder.here = Fingerprint(backend="tensorrt", fields=fields)
        built()
    builder.here = Fingerprint(backend="tensorrt-rtx", fields=DEVICE.fields)
    built()
    assert len(set(keys)) == len(keys) == builder.built


def test_keys_do_not_run_together() -> None:
    device = Fingerprint(backend="b", fields={})
    pairs = [({"a": "1,b=2"}, device), ({"a": "1", "b": "2"}, device)]
    assert plan_key(b"", "", *pairs[0]) != plan_key(b"", "", *pairs[1])
    assert plan_key(b"ab", "", {}, device) != plan_key(b"a", "b", {}, device)


def test_a_key_is_the_same_in_every_process_and_version() -> None:
    assert plan_key(b"onnx", "ab", {"b": "2", "a": "1"}, DEVICE) == plan_key(
        b"onnx", "ab", {"a": "1", "b": "2"}, DEVICE
    )
    assert plan_key(b"", "", {}, Fingerprint(backend="b", fields={})) == (
        "e5e4a15b71cd3a531601e62a5ecd2285d23cb6b4d372cefee4dcd2ef475e7e28"
    )


def test_a_known_digest_of_the_weights_is_not_computed(store: PlanStore, onnx: Path) -> None:
    import hashlib

    digest = hashlib.sha256(b"weights").hexdigest()
    key = store.key_of(Builder(), onnx)
    (onnx.parent / "weights.bin").unlink()
    assert store.key_of(Builder(), onnx, weights_sha256=digest) == key


def test_an_onnx_file_that_is_not_there(store: PlanStore, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.onnx: cannot be read"):
        store.build(Builder(), tmp_path / "gone.onnx")


def test_a_failed_build_leaves_nothing(store: PlanStore, onnx: Path) -> None:
    onnx.write_bytes(b"bad")
    with pytest.raises(BuildError):
        store.build(Builder(), onnx)
    assert not store.folder.exists()


class TestFits:
    def test_a_plan_for_one_device_fits_this_device_only(self) -> None:
        assert fits(DEVICE, DEVICE)
        for name in DEVICE.fields:
            other = Fingerprint(backend="tensorrt", fields={**DEVICE.fields, name: "other"})
            assert not fits(DEVICE, other)
        assert not fits(DEVICE, Fingerprint(backend="tensorrt-rtx", fields=DEVICE.fields))

    def test_a_plan_for_several_targets_fits_each(self) -> None:
        assert fits(PLAN_RTX, on_rtx("sm86"))
        assert fits(PLAN_RTX, on_rtx("sm89", device="another"))
        assert not fits(PLAN_RTX, on_rtx("sm120"))
        assert not fits(PLAN_RTX, on_rtx("sm8"))
        assert not fits(PLAN_RTX, on_rtx("sm86", version="1.6.1"))
        assert not fits(PLAN_RTX, on_rtx("sm86", platform="windows-amd64"))

    def test_a_builder_without_a_gpu_is_its_own_target(self) -> None:
        assert fits(PLAN_RTX, PLAN_RTX)
        other = Fingerprint(backend="tensorrt-rtx", fields={**RTX, "targets": "sm86"})
        assert not fits(PLAN_RTX, other)


class TestRefusals:
    def test_a_wrong_fingerprint_names_both_and_the_command(
        self, store: PlanStore, onnx: Path
    ) -> None:
        key = store.build(Builder(), onnx).header.key
        xavier = Fingerprint("tensorrt", {**DEVICE.fields, "device": "Xavier"})
        with pytest.raises(IncompatibleError) as caught:
            store.open(key, xavier)
        said = str(caught.value)
        assert "segment_0000.onnx" in said
        assert str(DEVICE) in said
        assert str(xavier) in said
        assert "`runtime build BUNDLE`" in said
        assert "\n" not in said

    def test_it_is_refused_before_the_plan_is_read(self, store: PlanStore, onnx: Path) -> None:
        header = store.build(Builder(), onnx).header
        (store.folder / header.file).unlink()
        with pytest.raises(IncompatibleError):
            store.open(header.key, on_rtx("sm86"))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-1],
            lambda data: b"",
            lambda data: data + b"x",
            lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:],
        ],
    )
    def test_a_damaged_plan_is_not_opened_but_built_again(
        self, store: PlanStore, onnx: Path, damage: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        builder = Builder()
        header = store.build(builder, onnx).header
        path = store.folder / header.file
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DigestError, match=r"expected 12 bytes.*`runtime build BUNDLE`"):
            store.open(header.key, DEVICE)
        again = store.build(builder, onnx)
        assert (again.found, builder.built) == (False, 2)
        assert "building it again" in caplog.text
        assert store.open(header.key, DEVICE) == b"plan of onnx"

    def test_a_plan_whose_file_is_gone(self, store: PlanStore, onnx: Path) -> None:
        header = store.build(Builder(), onnx).header
        (store.folder / header.file).unlink()
        with pytest.raises(DigestError, match="cannot be read"):
            store.open(header.key, DEVICE)

    def test_a_plan_that_was_never_built(self, store: PlanStore) -> None:
        with pytest.raises(EngineError, match=r"not in .*`runtime build BUNDLE`"):
            store.open("0" * 64, DEVICE)

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:20],
            lambda text: text.replace('"schema":1', '"schema":2'),
            lambda text: text.replace('"size":12', '"size":"twelve"'),
            lambda text: text.replace('"size":12', '"size":12,"more":1'),
            lambda text: text + " " * (1 << 16),
        ],
    )
    def test_a_header_that_cannot_be_read(self, store: PlanStore, onnx: Path, change: Any) -> None:
        builder = Builder()
        header = store.build(builder, onnx).header
        path = (store.folder / header.file).with_suffix(".json")
        path.write_text(change(path.read_text()))
        with pytest.raises(EngineError, match="plan header"):
            store.open(header.key, DEVICE)
        assert store.build(builder, onnx).found is False
        assert builder.built == 2

    def test_a_header_under_another_name(self, store: PlanStore, onnx: Path) -> None:
        header = store.build(Builder(), onnx).header
        path = (store.folder / header.file).with_suffix(".json")
        other = "f" * 64
        path.rename(path.with_name(f"{other[:32]}.json"))
        with pytest.raises(EngineError, match="its own key"):
            store.open(other, DEVICE)

    def test_a_key_that_only_begins_alike(self, store: PlanStore, onnx: Path) -> None:
        key = store.build(Builder(), onnx).header.key
        with pytest.raises(EngineError, match="expected key"):
            store.open(key[:32] + "0" * 32, DEVICE)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, onnx: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(EngineError, match="no plan can be written"):
            PlanStore(tmp_path / "file" / "plans").build(Builder(), onnx)


def test_a_write_that_is_cut_off_leaves_no_plan(
    store: PlanStore, onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    builder = Builder()
    replace, cut_off = os.replace, [".json"]

    def sometimes(source: Any, target: Any) -> None:
        if cut_off and str(target).endswith(cut_off[0]):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("engines.files.os.replace", sometimes)
    with pytest.raises(KeyboardInterrupt):
        store.build(builder, onnx)
    assert store.headers() == []
    assert [p.name for p in store.folder.iterdir() if p.name.startswith(".")] == []
    cut_off.clear()
    assert store.build(builder, onnx).found is False
    assert store.build(builder, onnx).found is True


def test_a_cached_backend_builds_once_and_loads_what_it_built(
    store: PlanStore, onnx: Path
) -> None:
    builder = Builder()
    backend = CachedBackend(builder, store)
    plans = [backend.build(onnx) for _ in range(3)]
    assert builder.built == 1
    assert (backend.name, backend.fingerprint()) == ("tensorrt", DEVICE)
    with pytest.raises(EngineError, match="no engine"):
        backend.load(plans[0], folder=onnx.parent)
    assert builder.loaded == [b"plan of onnx"]


def test_a_header_is_plain_json(store: PlanStore, onnx: Path) -> None:
    header = store.build(Builder(), onnx).header
    path = (store.folder / header.file).with_suffix(".json")
    decoded = json.loads(path.read_text())
    assert set(decoded) == set(PlanHeader.__struct_fields__)
    assert decoded["fingerprint"]["fields"] == DEVICE.fields
