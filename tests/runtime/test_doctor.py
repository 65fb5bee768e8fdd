from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from engines.backend import BACKENDS
from runtime import doctor
from runtime.doctor import examine


def test_what_is_needed_is_here() -> None:
    checks = {check.name: check for check in examine()}
    for name in ("splitrt", "device", "python", "numpy", "msgspec", "click", "rich", "a backend"):
        assert checks[name].needed
        assert checks[name].ok, name
        assert checks[name].found
    assert {f"backend {name}" for name in BACKENDS} <= set(checks)


def test_a_missing_package_is_told_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", missing)
    checks = {check.name: check for check in examine()}
    assert not checks["numpy"].ok
    assert checks["numpy"].mend == "pip install numpy"
    assert "splitrt[codecs]" in checks["Pillow"].mend
    assert not checks["Pillow"].needed


def test_no_backend_at_all_is_a_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_backends", lambda: {"ort": "not installed"})
    checks = {check.name: check for check in examine()}
    assert not checks["a backend"].ok
    assert checks["a backend"].needed
    assert checks["backend ort"].found == "not installed"
    assert checks["backend ort"].mend == "pip install 'splitrt[ort]'"
    assert all(check.mend for check in checks.values() if not check.ok)
