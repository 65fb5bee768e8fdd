"""The layer rule: engines <- calibration <- {compiler, runtime}, and who may import what.

Compiler and runtime meet in the bundle only. What runs on a robot imports no torch and, but for
the reference backend, no onnx; and it is written for Python 3.8.
"""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engines.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engines", "calibration", "compiler", "runtime")
ROBOT_PACKAGES = ("engines", "calibration", "runtime")

MAY_IMPORT = {
    "engines": {"engines"},
    "calibration": {"engines", "calibration"},
    "compiler": {"engines", "calibration", "compiler"},
    "runtime": {"engines", "calibration", "runtime"},
}
BUILDERS_ONLY = {"torch", "torchvision", "onnxscript", "onnx_graphsurgeon", "onnx"}
"""What the compiler alone may import, but for ``onnx`` in the reference backend."""


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(source: str, module: str) -> list[tuple[int, str]]:
    """List what a module imports, with the lines; imports within functions and by name too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            found.append((node.lineno, ".".join([*base, *filter(None, [node.module])])))
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            literal = isinstance(first, ast.Constant) and isinstance(first.value, str)
            if name in ("import_module", "__import__") and literal:
                found.append((node.lineno, str(first.value)))
    return found


def _violations(source: str, module: str) -> list[str]:
    package = module.split(".", maxsplit=1)[0]
    wrong: list[str] = []
    for line, imported in _imports(source, module):
        top = imported.split(".", maxsplit=1)[0]
        layer = top in PACKAGES and top not in MAY_IMPORT[package]
        builder = top in BUILDERS_ONLY and package != "compiler"
        if builder and top == "onnx" and module == "engines.reference":
            continue
        if layer or builder:
            wrong.append(f"{module}:{line} imports {imported}")
    return wrong


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    paths = _modules(package)
    assert paths, f"no module in {package}"
    wrong = [w for path in paths for w in _violations(path.read_text("utf-8"), _name(path))]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engines.x", "import calibration.parity"),
        ("engines.x", "from runtime import Robot"),
        ("engines.x", "import onnx"),
        ("calibration.x", "from compiler.trace import trace"),
        ("calibration.x", "def f():\n    import runtime.wire as w"),
        ("compiler.x", "from runtime.wire import encode"),
        ("runtime.x", "from compiler import cli"),
        ("runtime.x", "if True:\n    class A:\n        from torch import nn"),
        ("runtime.x", "import numpy, torch.fx"),
        ("runtime.x", "import importlib; importlib.import_module('compiler.cli')"),
        ("runtime.x", "__import__('torch')"),
        ("runtime.x", "import onnx.helper"),
        ("runtime.reference", "import onnx"),
    ],
)
def test_the_check_sees_a_violation(module: str, source: str) -> None:
    """The negative control."""
    assert len(_violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("compiler.x", "import torch, onnx, engines.bundle, calibration.parity"),
        ("engines.reference", "import onnx.reference"),
        ("runtime.x", "import onnxruntime\nfrom engines import backend\nfrom . import wire"),
        ("calibration.x", "text = 'import torch'  # import torch"),
    ],
)
def test_the_check_lets_through_what_is_allowed(module: str, source: str) -> None:
    assert _violations(source, module) == []


ROBOT_MODULES = [_name(path) for package in ROBOT_PACKAGES for path in _modules(package)]


@pytest.mark.parametrize("name", ROBOT_MODULES)
def test_what_a_module_says_is_public_is_there(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    assert [entry for entry in listed if not hasattr(module, entry)] == []
    with_code = any(
        isinstance(node, (ast.FunctionDef, ast.ClassDef))
        for node in ast.parse(Path(str(module.__file__)).read_text("utf-8")).body
    )
    assert listed or not with_code, "a module with code says what of it is public"


def test_the_names_that_the_documentation_promises() -> None:
    from runtime import Result, Robot, Server

    assert {Robot.__name__, Server.__name__, Result.__name__} == {"Robot", "Server", "Result"}


def test_a_robot_that_runs_loads_neither_torch_nor_onnx() -> None:
    code = "import sys, runtime, runtime.cli, runtime.deploy_cli, calibration.bundle_cli\n"
    code += "print([name for name in ('torch', 'onnx', 'onnxscript') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", [path for package in ROBOT_PACKAGES for path in _modules(package)], ids=_name
)
def test_it_is_written_for_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 8))
    lazy = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
    )
    assert lazy or len(tree.body) == 1, "annotations are not evaluated, so that | may stand there"
    wrong = [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix"))
        or (isinstance(node, ast.keyword) and node.arg in ("strict", "slots"))
    ]
    assert wrong == [], "known on later versions only"


def test_the_python_3_8_check_sees_a_violation() -> None:
    for source in ("match x:\n    case 1: pass", "with (a as b, c as d): pass"):
        with pytest.raises(SyntaxError):
            ast.parse(source, feature_version=(3, 8))


SMOKE = """
    import sys
    import numpy as np
    from calibration.parity import error_of, verify_cuts
    from engines.backend import BackendOptions, open_backend
    from engines.bundle import Bundle
    from engines.program import Program
    from runtime import Robot, Server

    assert sys.version_info[:2] == (3, 8), sys.version
    bundle = Bundle.open(sys.argv[1])
    inputs, expected = bundle.parity_vectors()
    with Program(bundle, open_backend("ort", BackendOptions(threads=1))) as program:
        assert all(parity.ok for parity in verify_cuts(program))
        with Server([program]) as server:
            address = "{}:{}".format(*server.address)
            with Robot(bundle, server=address, threads=1) as robot:
                for cut in bundle.manifest.cuts:
                    result = robot.infer(inputs, cut=cut.id)
                    last = cut is bundle.manifest.cuts[-1]
                    assert result.answered_by == ("local" if last else "remote"), result.reason
                    for name, array in expected.items():
                        assert error_of(result.outputs[name], array) <= 1e-4, (cut.id, name)
                print(len(bundle.manifest.cuts), "cuts right")
"""


def _python_3_8() -> str:
    """Return a Python 3.8 that has what a robot needs, or skip with the reason."""
    named = os.environ.get("SPLITRT_PY38")
    python = named or shutil.which("python3.8")
    if not python:
        pytest.skip("no Python 3.8 here; name one with the robot's packages in SPLITRT_PY38")
    needs = "import sys, numpy, msgspec, onnxruntime, click, rich; print(sys.version_info[:2])"
    found = subprocess.run([python, "-c", needs], capture_output=True, text=True, check=False)
    if found.stdout.strip() != "(3, 8)":
        reason = (found.stderr.strip().splitlines() or [found.stdout.strip()])[-1]
        assert not named, f"SPLITRT_PY38={named}: {reason}"
        pytest.skip(f"{python} cannot run a robot: {reason}")
    return python


def test_every_cut_is_right_on_python_3_8(toy: Bundle) -> None:
    python = _python_3_8()
    done = subprocess.run(
        [python, "-W", "error", "-c", textwrap.dedent(SMOKE), str(toy.folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8 cuts right\n"


@pytest.mark.parametrize("module", ["runtime.cli", "runtime.deploy_cli", "calibration.bundle_cli"])
def test_the_commands_start_on_python_3_8(module: str) -> None:
    python = _python_3_8()
    done = subprocess.run(
        [python, "-c", f"from {module} import main; main(['--help'])"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
