"""What a layer costs over a large workspace: begin, commit, and how the state directory grows.

    python tests/bench/layers.py [--files N] [--size MIB] [--repeat R] [--folder DIR]

A workspace of N files and MIB mebibytes (20 000 and 400) below DIR, a disk that counts. Each round
begins an attempt, writes three files into its upper folder as overlayfs would leave them (mounting
is the sandbox's own cost), and commits it: synced, manifest written. Rounds stand on one another:
the stack grows to R layers. Beside it in the same run: the same with three fsyncs and nothing else,
`cp -a` of the workspace and `cp -al`, what there would be without layers. Medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.state import RunDirectory
from casemate.supervisor.workspace import Workspace

PER_FOLDER = 100
CONTENT = b"changed\n" * 100


def milliseconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1000


def make(root: Path, files: int, size: int) -> None:
    content = os.urandom(size // files)
    for number in range(files):
        folder = root / f"d{number // PER_FOLDER:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number % PER_FOLDER:02}").write_bytes(content)


def taken(path: Path) -> int:
    told = subprocess.run(["du", "-sk", path], capture_output=True, text=True, check=True)
    return int(told.stdout.split()[0])


def write_three(folder: Path) -> None:
    for number in range(3):
        (folder / f"d{number:03}").mkdir(exist_ok=True)
        (folder / f"d{number:03}" / "f00").write_bytes(CONTENT)


def sync_three(folder: Path) -> None:
    for number in range(3):
        fd = os.open(folder / f"d{number:03}" / "f00", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="casemate-bench-", dir=chosen.folder))
    try:
        measure(place, chosen.files, chosen.size, chosen.repeat)
    finally:
        shutil.rmtree(place)


def measure(place: Path, files: int, size: int, repeat: int) -> None:
    base = place / "base"
    make(base, files, size << 20)
    os.sync()
    run = RunDirectory("0" * 12, place / "run")
    run.path.mkdir()
    spec = PipelineSpec(name="bench", tasks=(), edges=(), root=str(place), workspace=str(base))
    workspace = Workspace(run, spec)
    rows: list[tuple[str, float]] = [("note the base, durable", milliseconds(workspace.begin_run))]
    rows.append(
        (
            "look for changes of it",
            statistics.median(milliseconds(workspace.changed) for _ in "123"),
        )
    )
    before = taken(run.path)
    begins: list[float] = []
    commits: list[float] = []
    bare: list[float] = []
    stack: list[str] = []
    for number in range(repeat):
        name = f"task.{number}"
        begins.append(milliseconds(lambda name=name: workspace.begin(name, stack)))  # type: ignore[misc]
        write_three(workspace.store.root / name / "upper")
        commits.append(milliseconds(lambda name=name: workspace.commit(name, stack)))  # type: ignore[misc]
        stack.append(name)
        beside = place / "bare" / str(number)
        beside.mkdir(parents=True)
        write_three(beside)
        bare.append(milliseconds(lambda beside=beside: sync_three(beside)))  # type: ignore[misc]
    grown = taken(run.path) - before
    rows += [
        ("begin an attempt", statistics.median(begins)),
        ("  its slowest (16 layers become one)", max(begins)),
        ("commit 3 changed files, durable", statistics.median(commits)),
        ("  3 fsyncs alone", statistics.median(bare)),
        ("resolve all layers against the base", milliseconds(lambda: workspace.resolve(stack))),
    ]
    copies = {}
    for option in ("-a", "-al"):
        target = place / f"copy{option}"
        copies[option] = milliseconds(
            lambda option=option, target=target: subprocess.run(  # type: ignore[misc]
                ["cp", option, base, target], check=True
            )
        )
        rows.append((f"cp {option} of the workspace", copies[option]))
    print(f"{files} files, {size} MiB; {repeat} layers of 3 changed files")
    for label, value in rows:
        print(f"  {label:<40}{value:>12.2f} ms")
    both = statistics.median(begins) + statistics.median(commits)
    print(f"  {'cp -a / (begin + commit)':<40}{copies['-a'] / both:>12.0f} ×")
    print(f"  {'state directory after them':<40}{grown:>12} KiB more")


if __name__ == "__main__":
    main()
