"""Walls must not break honest work: longer jobs than those of test_honest.py, through the front
door. Each runs under `casemate exec` with its default policy and default limits, in a folder of the
host that it may write to (an idmapped mount under root), as an agent's tools would; and once more
outside, with the same environment, where it must say exactly the same.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from casemate.sandbox.spec import base_environment

PATIENCE = 110.0
CLI = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()", "exec"]

# program: (script for sh, the last line it prints)
PROGRAMS = {
    "python": (
        """
        cat > job.py <<'END'
import hashlib, json, os, sqlite3, subprocess, sys, tempfile, threading, concurrent.futures as cf
with cf.ThreadPoolExecutor(8) as pool:
    sizes = list(pool.map(lambda n: len(hashlib.sha256(bytes(n)).hexdigest()), range(64)))
with cf.ProcessPoolExecutor(2) as pool:
    assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]
base = sqlite3.connect("a.db")
base.execute("pragma journal_mode = wal")
base.execute("create table t (x)")
base.executemany("insert into t values (?)", [(n,) for n in sizes])
base.commit()
assert base.execute("select sum(x) from t").fetchone() == (64 * 64,)
with tempfile.TemporaryDirectory() as folder:
    os.mkfifo(folder + "/f")
assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout == b"1\\n"
print(json.dumps("fine"))
END
        python job.py
        """,
        '"fine"',
    ),
    "sh": (
        """
        seq 1000 > numbers; sort -rn numbers | head -1 > top
        mkfifo pipe; (cat pipe > copy) & cat numbers > pipe; wait
        cmp numbers copy && find . -name '[ct]o*' | xargs ls -l > list && wc -l < list
        chmod 600 top; cp -a numbers n2; mv n2 n3; rm n3; ln -s numbers link; readlink link
        """,
        "numbers",
    ),
    "bash": (
        """
        bash -c 'set -o pipefail; diff <(seq 3) <(printf "1\\n2\\n3\\n") && echo same |
            tee >(cat >&2) | tr a-z A-Z; exec 3<>/dev/null; kill -0 $$; echo "${PIPESTATUS[0]}"'
        """,
        "0",
    ),
    "git": (
        """
        git init -q repo && cd repo
        git config user.email agent@example.org; git config user.name Agent
        for n in 1 2 3; do echo $n > file; git add file; git commit -q -m "change $n"; done
        git checkout -q -b side HEAD~1; echo side > other; git add other; git commit -q -m side
        git merge -q -m merge - && git stash list && git gc -q && git fsck --strict 2>&1
        git clone -q . ../copy && git -C ../copy diff HEAD~1 --stat && git status --short
        echo more >> file && git diff && git diff HEAD~2 --name-status && git checkout -q file
        git log --oneline | wc -l
        """,
        "5",
    ),
    "make": (
        """
        printf 'all: a b c\\n%%:\\n\\t@echo made $@ > $@\\n' > Makefile
        make -s -j4 && make -s all && cat c
        """,
        "made c",
    ),
    "gcc": (
        """
        mkdir src; cat > src/a.c <<'END'
#include <math.h>
#include <pthread.h>
#include <stdio.h>
static void *work(void *x) { *(double *)x = sqrt(1764.0); return 0; }
int main(void) {
    double x; pthread_t t;
    if (pthread_create(&t, 0, work, &x)) return 1;
    pthread_join(t, 0); printf("%.0f\\n", x); return 0;
}
END
        gcc -O2 -g -c src/a.c -o a.o && gcc a.o -o a -lm -lpthread && ./a
        """,
        "42",
    ),
    "node": (
        """
        cat > job.js <<'END'
const fs = require("fs"), net = require("net"), { Worker } = require("worker_threads");
const { execFileSync } = require("child_process");
fs.writeFileSync("out.json", JSON.stringify({ a: execFileSync("echo", ["hi"]).toString() }));
const worker = new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", {eval: true});
worker.on("message", (value) => {
  const server = net.createServer((socket) => socket.end(String(value)));
  server.listen(0, "127.0.0.1", () => {
    net.connect(server.address().port, "127.0.0.1").on("data", (data) => {
      console.log(data.toString()); process.exit(0);
    });
  });
});
END
        node job.js
        """,
        "42",
    ),
    "java": ("java -version 2>&1 && echo fine", "fine"),
    "javac": (
        """
        cat > Hello.java <<'END'
import java.nio.file.*; import java.util.stream.*;
public class Hello {
    public static void main(String[] a) throws Exception {
        Files.writeString(Path.of("out"), "x".repeat(1000));
        System.gc();
        System.out.println(IntStream.range(0, 1000).parallel().map(n -> n % 7).sum());
    }
}
END
        javac Hello.java && java Hello
        """,
        "2997",
    ),
    "sqlite3": (
        """
        sqlite3 a.db "create table t (n integer primary key, x text);
            with recursive c(n) as (select 1 union all select n + 1 from c where n < 20000)
            insert into t select n, hex(n * n) from c; create index i on t (x);
            pragma journal_mode = wal;
            update t set x = x || 'x' where n % 7 = 0; select count(*), max(length(x)) from t;"
        echo '.dump' | sqlite3 a.db | sqlite3 b.db && sqlite3 b.db 'pragma integrity_check'
        """,
        "ok",
    ),
    "rg": ("mkdir d; echo needle > d/hay; rg -l needle", "d/hay"),
    "perl": ("perl -MPOSIX -e 'open F, \">f\"; print F 1; close F; print -s \"f\", \"\\n\"'", "1"),
    "tar": ("seq 9 > a; tar czf a.tgz a && rm a && tar xzf a.tgz && tail -1 a", "9"),
    "curl": ("python -m http.server 8000 2>/dev/null & curl -s --retry 9 --retry-delay 1 "
             "--retry-connrefused -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:8000/", "200"),
}  # fmt: skip
# What stays behind in the background dies with the sandbox, and outside with nobody.
INSIDE_ALONE = {"curl"}
ALWAYS = {"python", "sh", "git", "make"}

# name: (the package that the interpreter of the tests needs for it, script for python)
PACKAGES = {
    "numpy": (
        "numpy",
        """
import numpy, threading
a = numpy.random.default_rng(1).random((400, 400))
threads = [threading.Thread(target=lambda: a @ a) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
numpy.save("a.npy", a); b = numpy.load("a.npy", mmap_mode="r")
print(numpy.linalg.svd(a, compute_uv=False)[:3].round(6), numpy.linalg.det(a[:20, :20]).round(9))
print(int(abs(numpy.linalg.inv(a) @ b).trace().round()))
""",
    ),
    "pytest": (
        "pytest",
        """
import pathlib, subprocess, sys
pathlib.Path("test_a.py").write_text(
    "def test_a(tmp_path, capfd):\\n    (tmp_path / 'x').write_text('y')\\n    assert 1 + 1 == 2\\n"
)
done = subprocess.run([sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True)
print(400 if "1 passed" in done.stdout else done)
""",
    ),
    # Wheels that ship them, of packages that casemate needs anyway.
    "a package's own tests": (
        "pytest",
        """
import re, subprocess, sys
modules = ("referencing.tests.test_core", "jsonschema.tests.test_types")
done = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs",
     *modules],
    capture_output=True, text=True,
)
print(done.returncode, re.findall("[0-9]+ (?:passed|failed|error)[^,]*?(?= in|,|$)", done.stdout))
print(400 if done.returncode == 0 else done)
""",
    ),
    "pip": (
        "pip",
        """
import pathlib, subprocess, sys, zipfile
pathlib.Path("wheels").mkdir()
for name, needs in (("first", "Requires-Dist: second>=1"), ("second", "")):
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(f"wheels/{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"name = {name!r}\\n")
        wheel.writestr(f"{info}/METADATA",
            f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n{needs}\\n")
        wheel.writestr(f"{info}/WHEEL",
            "Wheel-Version: 1.0\\nGenerator: hand\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
where = ["--no-index", "--find-links", "wheels", "--target", "site"]
subprocess.run([*pip, "install", *where, "first"], check=True)
print(sorted(path.name for path in pathlib.Path("site").iterdir() if path.suffix == ".py"))
sys.path.insert(0, "site")
import first, second
print(400 if (first.name, second.name) == ("first", "second") else "?")
""",
    ),
}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "--state", str(folder.parent / "state"), "--rw", str(folder), "--", *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def outside(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The same without walls."""
    home = folder.parent / "outside"
    home.mkdir()
    environment = {**base_environment(sys.prefix), "HOME": str(home), "TMPDIR": str(home)}
    return subprocess.run(
        command,
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def worked(folder: Path, expected: str, *command: str) -> str:
    """All that it printed inside."""
    done = run(folder, *command)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == expected, done
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


def is_here(program: str) -> bool:
    return (
        program in ALWAYS or shutil.which(program, path="/usr/local/bin:/usr/bin:/bin") is not None
    )


@pytest.mark.parametrize("program", [name for name in PROGRAMS if is_here(name)])
def test_a_program_does_its_work(folder: Path, program: str) -> None:
    script, expected = PROGRAMS[program]
    said = worked(folder, expected, "sh", "-ec", script)
    if program not in INSIDE_ALONE:
        assert outside(folder, "sh", "-ec", script).stdout == said


@pytest.mark.parametrize(
    "job", [name for name, (package, _) in PACKAGES.items() if importlib.util.find_spec(package)]
)
def test_a_package_does_its_work(folder: Path, job: str) -> None:
    script = PACKAGES[job][1]
    said = worked(folder, "400", "python", "-c", script)
    assert outside(folder, "python", "-c", script).stdout == said
