"""Walls must not break honest work: the programs that agents use run inside, defaults and all.

Only those that this machine has. A program that is broken by a wall breaks the promise as much as
an attack that gets through.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator

import msgspec
import pytest
from casemate.protocol.limits import MIB
from sealed import FASHIONS, LIMITS, House

ROOMY = msgspec.structs.replace(
    LIMITS, memory=2048 * MIB, pids=256, files=1024, tmp=512 * MIB, disk=1024 * MIB
)

# program: (what is run, what it prints)
PROGRAMS = {
    "node": ("""node -e 'console.log(require("os").EOL.length + 1)'""", "2\n"),
    "javac": (
        "echo 'class A { public static void main(String[] a) { System.out.println(42); } }' "
        "> A.java && java A.java",
        "42\n",
    ),
    "git": (
        "git init -q r && cd r && git config user.email a@b && git config user.name n "
        "&& echo a > a && git add a && git commit -q -m one && git log --format=%s",
        "one\n",
    ),
    "gcc": (
        "echo '#include <stdio.h>\nint main(void) { puts(\"hi\"); }' > a.c && gcc a.c && ./a.out",
        "hi\n",
    ),
    "make": ("printf 'all:\\n\\t@echo made\\n' > Makefile && make", "made\n"),
    "bash": ("bash -c 'cat <(echo a; echo b) | tee /dev/stderr | sort -r > /dev/stdout'", "b\na\n"),
    "perl": ("perl -e 'print 3, \"\\n\"'", "3\n"),
    "sqlite3": (
        "sqlite3 a.db 'create table t(x); insert into t values (7); select x from t'",
        "7\n",
    ),
    "rg": ("echo needle > hay && rg --no-filename needle hay", "needle\n"),
    "tar": ("echo a > a && tar czf a.tgz a && tar tzf a.tgz", "a\n"),
}

# Packages and parts of Python.
PYTHON = {
    "numpy": "import numpy; print(int((numpy.ones((99, 99)) @ numpy.ones((99, 99)))[0, 0]) - 98)",
    "multiprocessing": (
        "import multiprocessing\nwith multiprocessing.Pool(2) as pool:\n"
        "    print(sum(pool.map(abs, [-1])))"
    ),
    "asyncio": "import asyncio; print(asyncio.run(asyncio.sleep(0, 1)))",
    "threading": (
        "import threading; t = [threading.Thread(target=int) for _ in range(20)]\n"
        "[x.start() for x in t]; [x.join() for x in t]; print(1)"
    ),
    "tempfile": "import tempfile; tempfile.NamedTemporaryFile().write(b'x'); print(1)",
    "pytest": (
        "import pathlib, pytest; pathlib.Path('test_a.py').write_text('def test_a(): pass')\n"
        "print(int(pytest.main(['-q', '--no-summary', '-p', 'no:cacheprovider']) == 0))"
    ),
}


@pytest.fixture(scope="module", params=FASHIONS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    with House(request.param) as made:
        yield made


@pytest.mark.parametrize("program", [n for n in PROGRAMS if shutil.which(n, path="/usr/bin")])
def test_a_program_runs_inside(house: House, program: str) -> None:
    command, expected = PROGRAMS[program]
    outcome = house.shell(command, limits=ROOMY)
    assert outcome.code == 0, outcome
    assert outcome.stdout == expected, outcome


@pytest.mark.parametrize("part", [n for n in PYTHON if importlib.util.find_spec(n)])
def test_python_runs_inside(house: House, part: str) -> None:
    outcome = house.run("python", "-c", PYTHON[part], limits=ROOMY)
    assert outcome.code == 0, outcome
    assert outcome.stdout.splitlines()[-1] == "1", outcome
