"""`make test-vm`: the suites on pure cgroup v2, under systemd, as root and as an ordinary user.

    host     builds the wheel, gathers its dependencies for the guest's Python, the tests: one tar
    guest    boots with it as a second disk, installs the wheel, runs each round (`inside.py`),
             writes what came of it to a third disk, powers off
    host     reads that, prints a table; exit code 0 only if every round passed

Everything lives in `build/vm`, which `make clean` removes: images and wheels are kept there, so a
second run boots after seconds. `--ablate` instead runs the attacks with one wall off at a time
(`ablate.py`), which nothing but such a guest will do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vm.image import USER, Image, make_image, missing_programs
from vm.machine import boot, read_results

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "vm"

# With the wheel's own: what the tests of these suites import.
TEST_PACKAGES = ["pytest>=8.2", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100"]
WITH_THEM = ["numpy"]  # works inside a sandbox (test_honest_programs.py)

SUITES = ("tests/sandbox", "tests/hostile", "tests/supervisor/test_exec.py")

# On two idle cores with KVM a round takes some minutes; emulated, or beside others, far longer.
DEADLINE = 3600.0


@dataclass(frozen=True, slots=True)
class Round:
    """One pytest in the guest. `delegated`: in a scope with Delegate=yes; else in root's cgroup, as
    a login session is."""

    name: str
    user: str
    delegated: bool
    tests: tuple[str, ...]


# The checks are no part of the ordinary suite: only a guest like this one can pass them.
ROUNDS = (
    Round("root", "root", True, ("tests/sandbox/checks_cgroup.py", *SUITES)),
    Round("user", USER, True, ("tests/sandbox/checks_cgroup.py", *SUITES)),
    Round("session", USER, False, ("tests/vm/checks_scope.py", "tests/hostile")),
    Round("service", "root", False, ("tests/vm/checks_service.py",)),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make test-vm", description=__doc__)
    parser.add_argument("--release", default="trixie", help="of Debian: kernel, systemd, Python")
    names = [each.name for each in ROUNDS]
    parser.add_argument("--round", action="append", choices=names, help="only this one")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for the guest")
    parser.add_argument("--ablate", nargs="*", metavar="WALL", help="one wall off at a time")
    parser.add_argument("tests", nargs="*", help="for pytest, instead of the suites")
    asked = parser.parse_args()
    missing = missing_programs()
    if missing:
        print(
            f"not on this host: {', '.join(missing)}. On Debian: "
            f"apt-get install {' '.join(sorted(set(missing.values())))}",
            file=sys.stderr,
        )
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    print(f"the image of {asked.release} (made once: some minutes)", flush=True)
    image = make_image(BUILD, asked.release)
    rounds = [
        replace(each, tests=tuple(asked.tests) or each.tests)
        for each in ROUNDS
        if each.name in (asked.round or ([] if asked.ablate is not None else names))
    ]
    folder = BUILD / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    payload = pack(folder, image, rounds, asked.ablate)
    print(f"booting it, deadline {asked.deadline:.0f} s; its console: {folder / 'console'}")
    trouble = boot(image, folder, payload, asked.deadline)
    results = read_results(folder)
    kept = folder / "kept"
    kept.mkdir()
    for name, content in results.items():
        (kept / name).write_bytes(content)
    if "guest-failed" in results:
        trouble = results["guest-failed"].decode()
    if trouble is None and not results:
        trouble = "it left no results"
    if trouble is not None:
        print(f"the guest: {trouble}\n{last_lines(folder / 'console')}", file=sys.stderr)
    is_good = show(results, rounds)
    if asked.ablate is not None:
        is_good = show_ablation(results) and is_good
    print(f"logs: {kept}")
    return 0 if is_good and trouble is None else 1


# --- what goes in ------------------------------------------------------------------------------


def pack(folder: Path, image: Image, rounds: list[Round], ablate: list[str] | None) -> Path:
    job = {"rounds": [asdict(each) for each in rounds], "ablate": ablate}
    (folder / "job.json").write_text(json.dumps(job))
    wheel = build_wheel(folder)
    wheels = gather_wheels(image.python, wheel)
    requirements = [f"casemate @ file:///srv/job/{wheel.name}", *TEST_PACKAGES, *WITH_THEM]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    payload = folder / "payload"
    with tarfile.open(payload, "w") as archive:
        for name in ("job.json", "requirements.txt", wheel.name):
            archive.add(folder / name, name)
        for each in sorted(wheels.glob("*.whl")):
            archive.add(each, f"wheels/{each.name}")
        for name in ("tests", "examples", "pyproject.toml", "Makefile", "README.md"):
            archive.add(ROOT / name, name, filter=_without_caches)
    # A disk is read by whole sectors.
    os.truncate(payload, -(-payload.stat().st_size // 4096) * 4096)
    return payload


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if Path(member.name).name in ("__pycache__", ".hypothesis"):
        return None
    member.mode |= 0o555 if member.isdir() else 0o444
    return member


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    subprocess.run([*command, str(ROOT)], stdout=subprocess.DEVNULL, check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def gather_wheels(python: str, wheel: Path) -> Path:
    """A folder with all that the guest installs; downloaded when what is asked for changes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *TEST_PACKAGES, *WITH_THEM]
    key = hashlib.sha256("\n".join((python, *wanted)).encode()).hexdigest()[:12]
    kept = BUILD / f"wheels-{python}-{key}"
    if not kept.exists():
        print(f"wheels for Python {python}", flush=True)
        draft = kept.with_name(kept.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(17, 37)]
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--only-binary=:all:", f"--python-version={python}", "--implementation=cp"),
            *("--platform=manylinux2014_x86_64", *platforms, "--dest", str(draft), *wanted),
        ]
        subprocess.run(command, check=True)
        draft.rename(kept)
    return kept


# --- what comes out ----------------------------------------------------------------------------


def show(results: dict[str, bytes], rounds: list[Round]) -> bool:
    """The table; whether every round ran and passed."""
    facts = json.loads(results.get("facts.json", b"{}"))
    for name, value in facts.items():
        print(f"{name:12} {value}")
    print(f"\n{'who':8} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
    is_good = True
    failures: list[str] = []
    for each in rounds:
        report = results.get(f"{each.name}.xml")
        if report is None:
            print(f"{each.name:8} did not come to an end")
            is_good = False
            continue
        [suite] = ElementTree.fromstring(report).iter("testsuite")
        count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors")}
        skipped = int(suite.get("skipped", "0"))
        failed = count["failures"] + count["errors"]
        passed = count["tests"] - failed - skipped
        seconds = float(suite.get("time", "0"))
        print(f"{each.name:8} {passed:7} {failed:7} {skipped:8} {seconds:8.0f}")
        is_good = is_good and failed == 0 and passed > 0
        for case in suite.iter("testcase"):
            for what in (*case.iter("failure"), *case.iter("error")):
                why = (what.get("message") or "").splitlines()[:1]
                failures.append(
                    f"{each.name}: {case.get('classname')}::{case.get('name')}: {''.join(why)}"
                )
    if failures:
        print("\n" + "\n".join(failures))
    return is_good


def show_ablation(results: dict[str, bytes]) -> bool:
    """The table: what each wall alone was stopping, or why it stays."""
    table = json.loads(results.get("ablation.json", b"[]"))
    print("\n| without | gets through | is refused in another way |\n|---|---|---|")
    for row in table:
        through = ", ".join(row["through"]) or f"nothing: {row['reason']}"
        print(f"| {row['wall']} | {through} | {', '.join(row['otherwise'])} |")
    return bool(table) and all(row["through"] or row["reason"] for row in table)


def last_lines(console: Path) -> str:
    return "\n".join(console.read_text(errors="replace").splitlines()[-25:])


if __name__ == "__main__":
    sys.exit(main())
