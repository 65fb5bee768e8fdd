"""What docs/api.md says: its program runs, its types hold, and an import stays light."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]


def _programs() -> list[str]:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=120,
    )


def test_its_program_runs_as_it_stands(toy: Bundle, tmp_path: Path) -> None:
    shutil.copytree(toy.folder, tmp_path / "detector.bundle")
    for code in _programs():
        done = _run(code, tmp_path)
        assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    told = [line.partition(":")[0] for line in lines if " bytes up, " in line]
    assert len(told) == 4
    assert told[2] in ("remote", "fallback")  # the frame was asked for; the machine may be busy
    assert told[3] == "local"
    assert any(re.fullmatch(r"logits float32 \(1, 5\)", line) for line in lines)
    assert [line[0] for line in lines if line.endswith(" ms old")] == ["3", "4", "5", "6"]
    assert any(re.fullmatch(r"served \d+", line) for line in lines)
    assert re.match(r"(local): .*no connection", lines[-1])


def test_its_program_has_the_types_that_it_says(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(_programs()[-1])
    done = _run_mypy(program)
    assert done.returncode == 0, done.stdout
    program.write_text(program.read_text().replace("deadline_s=0.08", 'deadline_s="80ms"'))
    done = _run_mypy(program)
    assert done.returncode == 1
    assert '"deadline_s"' in done.stdout


def _run_mypy(program: Path) -> subprocess.CompletedProcess[str]:
    """Check it as a user would, without this project's configuration."""
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
         "--disable-error-code=import-untyped", f"--cache-dir={program.parent / 'cache'}",
         str(program)],
        capture_output=True, text=True, check=False, cwd=program.parent,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip


@pytest.mark.parametrize("package", ["runtime", "engines", "calibration", "compiler"])
def test_its_types_are_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


LOADED = """
def loaded():
    return {
        name.partition(".")[0] for name, module in list(sys.modules.items())
        if "site-packages" in (getattr(module, "__file__", None) or "")
    }

before = loaded()
import MODULE
print(*sorted(loaded() - before - {"runtime", "engines", "calibration"}))
"""


def test_importing_it_loads_no_backend_and_nothing_heavy() -> None:
    done = _run(LOADED.replace("MODULE", "runtime"), ROOT)
    assert done.returncode == 0, done.stderr
    # msgspec looks for typing_extensions.
    assert set(done.stdout.split()) - {"typing_extensions"} == {"msgspec", "numpy"}


def test_the_check_of_what_is_loaded_sees_a_backend() -> None:
    assert "onnxruntime" in _run(LOADED.replace("MODULE", "onnxruntime"), ROOT).stdout.split()
