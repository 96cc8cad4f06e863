"""The import rules of ARCHITECTURE.md, read from the source alone.

protocol ← sandbox ← supervisor; protocol is stdlib + msgspec; sandbox adds psutil, and what runs
inside adds a library each in one file; the core is pure and knows only protocol. The attack suite
uses casemate as anybody could, and nothing of ours knows it but the command that runs it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.tree

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("protocol", "sandbox", "supervisor")
SUITE = ROOT / "tests/hostile/suite"  # installed as `casemate.hostile`

MAY_IMPORT = {
    "protocol": {"protocol"},
    "sandbox": {"protocol", "sandbox"},
    "supervisor": {"protocol", "sandbox", "supervisor"},
    "core": {"protocol", "core"},
}
THIRD_PARTY = {
    "protocol": {"msgspec"},
    "sandbox": {"msgspec", "psutil"},
    "core": {"msgspec"},
}
# The guest alone speaks libzmq inside a sandbox; the zygote preloads what a guest needs.
FILE_MAY_ALSO = {
    "sandbox/guestlink.py": {"zmq"},
    "sandbox/zygote.py": {"zmq"},
    "sandbox/loader.py": {"cloudpickle"},
    "sandbox/schema.py": {"jsonschema", "referencing"},
}
KNOWS_THE_SUITE = "supervisor/cli/attack.py"
IMPURE = {
    "asyncio", "ctypes", "datetime", "io", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "socket", "sqlite3", "subprocess", "sys", "tempfile",
    "threading", "time", "uuid",
}  # fmt: skip


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "core" if parts[:2] == ("supervisor", "core") else parts[0]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, target): `layer:` names for our own modules, plain top-level names for the rest."""
    package = path.relative_to(ROOT).parts[:-1]
    if package[:2] == ("supervisor", "facade"):  # installed as `casemate` itself
        package = ()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.lineno, (node.module or "").split(".")[0]
                continue
            base = package[: len(package) - (node.level - 1)]
            module = tuple((node.module or "").split(".")) if node.module else ()
            for alias in node.names:
                target = (*base, *(module or (alias.name,)))
                layer = "core" if target[:2] == ("supervisor", "core") else target[0]
                yield node.lineno, f"layer:{layer}"


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    name = str(path.relative_to(ROOT))
    for line, target in imports_of(path):
        where = f"{name}:{line}"
        if target.startswith("layer:"):
            allowed = MAY_IMPORT[layer] | ({"core"} if layer == "supervisor" else set())
            allowed |= {"hostile"} if name == KNOWS_THE_SUITE else set()
            assert target.removeprefix("layer:") in allowed, (
                f"{where}: {layer} may not import {target}"
            )
            continue
        assert target != "casemate", f"{where}: imports between the folders are relative"
        if target in sys.stdlib_module_names:
            assert layer != "core" or target not in IMPURE, f"{where}: the core is pure: {target}"
            continue
        if layer in THIRD_PARTY:
            allowed = THIRD_PARTY[layer] | FILE_MAY_ALSO.get(name, set())
            assert target in allowed, f"{where}: {layer} may not import {target}"


@pytest.mark.parametrize(
    "path", sorted(SUITE.rglob("*.py")), ids=lambda p: str(p.relative_to(SUITE))
)
def test_the_attack_suite_needs_nothing_but_itself_and_casemate(path: Path) -> None:
    depth = len(path.relative_to(SUITE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level <= depth, f"{where}: leaves the suite"
            continue
        if isinstance(node, ast.ImportFrom):
            targets = {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.Import):
            targets = {alias.name.split(".")[0] for alias in node.names}
        else:
            continue
        allowed = sys.stdlib_module_names | {"casemate", "msgspec", "psutil"}
        assert targets <= allowed, f"{where}: {targets - allowed}"


def test_nothing_python_lies_at_the_root() -> None:
    assert list(ROOT.glob("*.py")) == []


def test_the_engine_loads_without_libzmq() -> None:
    code = "import sys, casemate.supervisor.embedded; print('zmq' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_wheel_holds_the_tree_and_nothing_generic(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "-o",
            str(tmp_path),
            str(ROOT),
        ],
        capture_output=True,
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {"casemate/py.typed", "casemate/supervisor/casemate.service"}
    for path in sources():
        relative = path.relative_to(ROOT)
        facade = relative.parts[:2] == ("supervisor", "facade")
        expected.add("casemate/" + (relative.name if facade else str(relative)))
    expected |= {f"casemate/hostile/{path.relative_to(SUITE)}" for path in SUITE.rglob("*.py")}
    assert names == expected
