"""`--ablate` runs in a guest of ours alone, and what it takes out of a copy is really there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import casemate
import pytest
from casemate.hostile.attack import every_attack

from vm.ablate import WALLS, ablate, refusal

VIRTUAL = "processor : 0\nflags : fpu hypervisor sse2\n"
REAL = "processor : 0\nflags : fpu sse2\n"


@pytest.mark.parametrize(
    ("marked", "cpuinfo", "complaint"),
    [
        (False, VIRTUAL, "no guest of `make test-vm`"),
        (True, REAL, "no virtual machine"),
        (False, REAL, "no guest of `make test-vm`"),
        (True, VIRTUAL, None),
    ],
)
def test_it_runs_in_a_guest_of_ours_alone(
    tmp_path: Path, marked: bool, cpuinfo: str, complaint: str | None
) -> None:
    marker, processor = tmp_path / "marker", tmp_path / "cpuinfo"
    if marked:
        marker.touch()
    processor.write_text(cpuinfo)
    why = refusal(marker, processor)
    assert why is None if complaint is None else why is not None and complaint in why


def test_here_it_refuses_before_anything_else(tmp_path: Path) -> None:
    script = Path(__file__).with_name("ablate.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--ablate: refused" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_wall_has_attacks_that_name_it() -> None:
    named = {name for attack in every_attack() for name in attack.walls}
    assert {wall.called for wall in WALLS} <= named


# The copies are imported one after the other: what a wall's lines name must be there to replace.
LOAD = """
import importlib, sys
own = list(sys.path)
for copy in sys.argv[2:]:
    sys.path[:] = [copy, *own]
    for name in [name for name in sys.modules if name.split(".")[0] == "casemate"]:
        del sys.modules[name]
    for name in sys.argv[1].split():
        module = importlib.import_module("casemate." + name)
        assert module.__file__.startswith(copy), module.__file__
"""


def test_every_wall_can_be_taken_out_of_a_copy(tmp_path: Path) -> None:
    [package] = map(Path, casemate.__path__)
    copies = [ablate(package, wall, tmp_path) for wall in WALLS]
    files = sorted({name for wall in WALLS for name in wall.lines})
    modules = " ".join(name.removesuffix(".py").replace("/", ".") for name in files)
    for wall, copy in zip(WALLS, copies, strict=True):
        for name, lines in wall.lines.items():
            assert (copy / "casemate" / name).read_text().endswith(lines)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, modules, *map(str, copies)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
